from pathlib import Path

import pytest

from aia_jax.training.trainer import Trainer
from tests.helpers.toy_task import run, toy_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """The workdir and the trainer of a finished run that recorded every step; tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run(toy_config(log_every=1), workdir)
