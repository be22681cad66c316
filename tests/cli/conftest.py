"""A run of an annotator, commands that fail, and no change of the compilation cache of the tests by a command."""

import pytest

from aia_jax.cli import annotate, export, search
from aia_jax.cli.main import main
from aia_jax.tasks.registry import make_task
from tests.helpers.untrained import annotator_config, random_weights, write_run


@pytest.fixture(scope="module", autouse=True)
def compilation_cache():
    with pytest.MonkeyPatch.context() as patch:
        for command in (annotate, export, search):
            patch.setattr(command, "enable_compilation_cache", lambda: None)
        yield


@pytest.fixture(scope="session")
def config():
    """The config of `annotator`."""
    return annotator_config(**{"data.num_test": 20})


@pytest.fixture(scope="session")
def annotator(config, tmp_path_factory):
    """The folder of a run of an annotator with random weights."""
    return write_run(tmp_path_factory.mktemp("runs") / "annotator", config, random_weights(make_task(config)))


@pytest.fixture
def failing(capsys):
    """Runs a command that fails, and returns what it writes to stderr."""

    def run(*argv: str, code: int = 2) -> str:
        capsys.readouterr()
        assert main(argv) == code
        return capsys.readouterr().err

    return run
