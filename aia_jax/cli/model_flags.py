"""Flags that name a trained annotator and its thresholds, for `aia annotate` and `aia export`."""

import argparse
from pathlib import Path

from aia_jax.utils.errors import InputError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name an annotator and its thresholds."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--workdir", type=Path, metavar="DIR", help="folder of an annotation run, whose best epoch counts"
    )
    model.add_argument("--weights", metavar="FILE", help="PyTorch or safetensors file; needs --config")
    parser.add_argument("--config", metavar="CONFIG", help="of --weights; --config.field=value overrides")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="of --weights: its labels, one a line or JSON with `labels`; the default are those of the config's data",
    )
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--threshold", type=float, metavar="T", help="labels that score above it count")
    limits.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE.json",
        help="one for each label; the default is thresholds.json of the workdir, else config.eval.threshold (0.5)",
    )


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """Raises InputError on flags of `add_model_arguments` that do not go together."""
    for flag in ("config", "labels"):
        if arguments.workdir and getattr(arguments, flag):
            raise InputError(f"--{flag} belongs to --weights; a workdir has its own")
    if arguments.weights and not arguments.config:
        raise InputError("--weights needs --config, which says what model the file holds")
