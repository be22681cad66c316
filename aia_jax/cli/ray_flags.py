"""The flags of commands that can run on a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from aia_jax.cli.devices import use_cpu
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import Parser, positive
from aia_jax.utils.errors import InputError
from aia_jax.utils.storage import is_url

if TYPE_CHECKING:
    from aia_jax.data.photo_rows import PhotoModel, PhotoRow
    from aia_jax.data.photo_sources import PhotoPlace, PhotoSource

    RowsOnRay = Callable[[Sequence[PhotoPlace], Callable[[], PhotoModel], PhotoModel], Iterator[list[PhotoRow]]]


def add_ray_arguments(parser: Parser) -> None:
    """Adds `--ray` and `--ray_actors`."""
    group = parser.add_argument_group("Ray")
    address = "compute on a Ray cluster: HOST:PORT, or auto for the cluster that runs on this machine; "
    address += "default: $RAY_ADDRESS or, without it, Ray is started on this machine alone"
    group.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=address)
    actors = "processes that run the model; default: one for each GPU or, without GPUs, for each machine"
    group.add_argument("--ray_actors", type=positive, metavar="N", help=actors)


def check_ray_flags(arguments: argparse.Namespace, refused: Sequence[str]) -> None:
    """Raises InputError if flags are given that `--ray` does not have, or that need `--ray`."""
    if arguments.ray is None:
        if arguments.ray_actors:
            raise InputError("--ray_actors needs --ray")
        for name in ("images", "output"):
            if is_url(getattr(arguments, name, None)):
                raise InputError(f"--{name} {getattr(arguments, name)} needs --ray; without it, name a local folder")
        return
    for name in refused:
        if getattr(arguments, name):
            raise InputError(f"--{name} does not go with --ray; leave one of them out")


@contextlib.contextmanager
def rows_on_ray(arguments: argparse.Namespace, source: PhotoSource, **options: bool) -> Iterator[RowsOnRay]:
    """Connects to the cluster of `--ray`, and yields `ray_rows` for photos of `source`. Load the model after that.

    `options`: see `ray_rows`. This process leaves the GPUs and TPUs to the actors.
    """
    from aia_jax.inference.ray_rows import ray_cluster, ray_rows

    # Twice, because Ray then has a handler of SIGTERM of its own, with another exit code.
    with exit_on_sigterm(), ray_cluster(arguments.ray, arguments.ray_actors) as num_actors, exit_on_sigterm():
        use_cpu()  # after Ray has started: JAX, once started, warns of new processes
        yield partial(ray_rows, source, num_actors, **options)
