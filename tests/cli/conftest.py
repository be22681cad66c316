"""Commands that run in a test use the compilation cache of the tests."""

import pytest

from aia_jax.cli import annotate, export, search


@pytest.fixture(scope="module", autouse=True)
def compilation_cache():
    with pytest.MonkeyPatch.context() as patch:
        for command in (annotate, export, search):
            patch.setattr(command, "enable_compilation_cache", lambda: None)
        yield
