"""Trains what a config describes, then evaluates it: the whole way in one call."""

from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import CUSTOM
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.report.label_balance import balance_summary
from aia_jax.tasks import make_task
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training.run_record import saved_steps
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import printable
from aia_jax.weights.initialization import initializer


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains, or continues, the run in `workdir`, then evaluates its best checkpoint on the test split.

    Raises:
        InputError, NonFiniteLossError, Interrupted: see `aia_jax.utils.errors`.
    """
    task = make_task(config)
    resumed = bool(saved_steps(workdir))
    if config.model.get("freeze_backbone") and not (config.init_backbone or config.init_from or resumed):
        raise InputError("config.model.freeze_backbone needs a backbone: give config.init_backbone or config.init_from")
    for split in ("train", config.eval.split, "test"):
        task.split(split)  # all data are read and checked before the first step
    if config.task == "annotation" and config.data.name == CUSTOM and jax.process_index() == 0:
        print(_balance(task), flush=True)
    initialize = None if resumed else initializer(config, task)
    trainer = Trainer(config, task, workdir, initialize=initialize)
    if jax.process_index() == 0:
        parameters = parameter_overview.count_parameters(trainer.abstract_state.weights("raw")["params"])
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        print(
            f"{task.summary()}, {parameters:,} trained parameters; "
            f"{trainer.total_steps} steps of {config.batch_size} on {devices}",
            flush=True,
        )
    trainer.fit()
    evaluate(config, workdir, workdir / "evaluation", split="test", task=task)


def _balance(task: AnnotationTask) -> str:
    chosen_on = task.config.eval.split
    targets = [task.split(split).targets for split in ("train", chosen_on)]
    return balance_summary([printable(label) for label in task.labels], *targets, chosen_on)
