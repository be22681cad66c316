"""Adds flags that several commands share: a trained annotator with thresholds, and a folder of photos."""

import argparse
from pathlib import Path

from aia_jax.cli.flags import Parser, not_negative, positive
from aia_jax.utils.errors import InputError


def add_model_arguments(parser: Parser) -> None:
    """Adds the flags for an annotator and its thresholds."""
    group = parser.add_argument_group("model")
    model = group.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--workdir", type=Path, metavar="DIR", help="folder of an annotation run; its best epoch is used"
    )
    model.add_argument("--weights", metavar="FILE", help="PyTorch or safetensors file; needs --config")
    group.add_argument("--config", metavar="FILE", help="config of --weights; --config.field=value sets a field")
    labels = "labels of --weights, one per line or JSON with `labels`; default: the labels of the config's data"
    group.add_argument("--labels", type=Path, metavar="FILE", help=labels)
    limits = group.add_mutually_exclusive_group()
    limits.add_argument("--threshold", type=float, metavar="T", help="a label is chosen if its score is above T")
    thresholds = "a threshold for each label; default: thresholds.json of the workdir, else config.eval.threshold"
    limits.add_argument("--thresholds", type=Path, metavar="FILE.json", help=thresholds)


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """Raises InputError if flags of `add_model_arguments` contradict each other."""
    for flag in ("config", "labels"):
        if arguments.workdir and getattr(arguments, flag):
            raise InputError(f"--{flag} belongs to --weights; a workdir has its own")
    if arguments.weights and not arguments.config:
        raise InputError("--weights needs --config, which says what model the file holds")


def add_photo_arguments(parser: Parser) -> None:
    """Adds the flags for the folder of photos, the batch size and the number of decoding processes."""
    images = "photos, in subfolders too; hidden files are ignored"
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help=images)
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="photos per batch; default: 32")
    parser.add_argument(
        "--num_workers", type=not_negative, default=0, metavar="N", help="processes that decode photos; 0: threads"
    )
