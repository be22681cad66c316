"""Train a model from a config, then evaluate its best epoch on the test split.

    aia train --config demo --workdir runs/demo
    aia train --config corel5k --workdir runs/corel5k --config.data.root=datasets
    aia train --config corel5k --workdir gs://bucket/corel5k --config.data.root=gs://bucket/datasets
    aia train --config vg500:large --workdir runs/vg500 --xla_preset=multi_gpu --distributed=auto

The same command continues an interrupted run. `--config.field=value` sets any field of the config, for example
--config.batch_size=64 --config.loss.name=focal. --config.init_backbone=FILE starts from ImageNet weights,
--config.init_from=FILE|WORKDIR from a whole model.
"""

import argparse
import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from aia_jax.cli.devices import add_device_arguments, set_up_devices
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import Parser, add_config_argument, local_or_url
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import printable
from aia_jax.utils.storage import is_url


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia train`."""
    add_config_argument(parser)
    workdir = "folder of the run, on disk or as gs://... or s3://...: checkpoints, metrics, pictures"
    parser.add_argument("--workdir", required=True, type=local_or_url, metavar="DIR|URL", help=workdir)
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Sets up the devices, trains, and prints the next commands."""
    import jax

    from aia_jax.training.runs import record_command

    set_up_devices(arguments)
    with contextlib.ExitStack() as stack:
        workdir, share = arguments.workdir, None
        if is_url(workdir):
            from aia_jax.training.remote_workdir import RemoteWorkdir

            stack.enter_context(exit_on_sigterm())
            remote = RemoteWorkdir(workdir)
            stack.enter_context(remote.opened())
            workdir, share = remote.path, remote.share
        train(arguments.config, workdir, share)
        if jax.process_index() == 0:
            record_command(workdir, ["aia", "train", *arguments.config_flags])
    if jax.process_index() == 0:
        print(_next_commands(arguments), flush=True)


def _next_commands(arguments: argparse.Namespace) -> str:
    """Returns commands that use the trained model. PHOTOS stands for a folder of the user."""
    config, workdir = arguments.config, str(arguments.workdir)
    other = "train" if config.eval.split == "test" else config.eval.split
    own = Path() if is_url(workdir) else arguments.workdir
    folder = str(own / f"evaluation-{other}")
    scores = ["evaluate", *arguments.config_flags, "--workdir", workdir]
    page, photos = str(own / "annotated"), ["--workdir", workdir, "--images", "PHOTOS"]
    commands = {
        "annotation": [[*scores, "--html"], ["annotate", *photos, "--output", page, "--html"]],
        "retrieval": [[*scores, "--split", other, "--output", folder]],
        "search": [["search", *photos]],
    }[config.task]
    program = ["aia"] if shutil.which("aia") else [sys.executable, "-m", "aia_jax"]
    listed = "".join(f"\n  {shlex.join([*program, *command])}" for command in commands)
    return f"next{'' if config.task == 'retrieval' else ', with PHOTOS a folder of your photos'}:{listed}"


def train(config: ConfigDict, workdir: Path, share: Callable[[], None] | None = None) -> None:
    """Trains or continues the run in `workdir`, then evaluates its best checkpoint on the test split.

    Args:
        share: function that gives every process the files of process 0, if each process has its own `workdir`.

    Raises:
        InputError, NonFiniteLossError, Interrupted: see `aia_jax.utils.errors`.
    """
    import jax
    from clu import parameter_overview

    from aia_jax.data.annotation.annotations import CUSTOM
    from aia_jax.evaluation.annotation import check_labelled
    from aia_jax.evaluation.evaluate import evaluate
    from aia_jax.report.label_balance import balance_summary
    from aia_jax.tasks.registry import check_metric, make_task
    from aia_jax.training.checkpoint_recovery import saved_steps
    from aia_jax.training.trainer import Trainer
    from aia_jax.weights.initialization import initializer

    task = make_task(config)
    check_metric(config)
    resumed = bool(saved_steps(workdir))
    if config.model.get("freeze_backbone") and not (config.init_backbone or config.init_from or resumed):
        raise InputError("config.model.freeze_backbone needs a backbone: give config.init_backbone or config.init_from")
    initialize = None if resumed else initializer(config, task)
    trainer = Trainer(config, task, workdir, initialize=initialize, shared_workdir=share is None)
    for split in (config.eval.split, "test"):
        read = task.split(split)  # reads and checks all data before the first step
        if config.task == "annotation":
            check_labelled(read)
    if config.task == "annotation" and config.data.name == CUSTOM and jax.process_index() == 0:
        targets = [task.split(split).targets for split in ("train", config.eval.split)]
        print(balance_summary([printable(label) for label in task.labels], *targets, config.eval.split), flush=True)
    if jax.process_index() == 0:
        parameters = parameter_overview.count_parameters(trainer.abstract_state.weights("raw")["params"])
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        print(
            f"{task.summary()}, {int(parameters):,} trained parameters; "
            f"{trainer.total_steps} steps of {config.batch_size} on {devices}",
            flush=True,
        )
    trainer.fit()
    if share:
        share()
    evaluate(config, workdir, workdir / "evaluation", split="test", task=task)
