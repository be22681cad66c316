import pytest

from tests.helpers.untrained import annotator_config, write_run


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """An untrained run of a small annotator."""
    return write_run(tmp_path_factory.mktemp("runs") / "annotator", annotator_config())
