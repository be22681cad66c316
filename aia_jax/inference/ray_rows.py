"""Computes rows of photos on a Ray cluster. Tasks read and decode the photos, and actors run the model.

Ray starts lost tasks and actors again, so each photo has one row in the result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import platform
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aia_jax.data.photo_folder import Photo, read_photo
from aia_jax.data.photo_rows import PhotoModel, PhotoRow, computed_rows
from aia_jax.data.photo_sources import PhotoPlace, PhotoSource, place_reader
from aia_jax.data.pipeline import map_ahead
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra
from aia_jax.utils.storage import is_url

if TYPE_CHECKING:
    pass

_PIXEL_BYTES = 4 * 200_000_000  # memory of a task that decodes the largest photo; see `image_decoding.MOST_PIXELS`
_MOST_BLOCKS = 10_000  # Ray keeps facts about each block
_REQUESTS = 16  # of a task to object storage, at once
_ANSWER_S = 10


@contextlib.contextmanager
def ray_cluster(address: str, num_actors: int | None) -> Iterator[int]:
    """Connects to a Ray cluster, or starts Ray on this machine, and yields the number of actors.

    Args:
        address: `HOST:PORT` of a cluster of which this machine is a node, `ray://HOST:PORT`, `auto` for a cluster that
            runs on this machine, or "" for $RAY_ADDRESS or, without it, Ray on this machine alone.
        num_actors: number of actors; None: one for each GPU of the cluster or, without GPUs, one for each node.

    Raises InputError if no cluster answers, its version differs, or it is too small.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default, of which Ray warns
    ray = import_with_extra("ray", "--ray", "ray")
    import_with_extra("ray.data", "--ray", "ray")
    address = address or os.environ.get("RAY_ADDRESS", "")
    _check_answers(address)
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    if not address and num_actors:
        # On a small machine, the actors need a CPU each, and the tasks that read need one more.
        options["num_cpus"] = max(os.cpu_count() or 1, num_actors + 1)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip()
        token = "" if os.environ.get("RAY_AUTH_MODE") else "; a cluster with a token needs RAY_AUTH_MODE=token here too"
        token *= isinstance(error, ConnectionError)
        raise InputError(f"--ray {address}: Ray does not start or connect: {reason[:1000]}{token}") from error
    try:
        yield _number_of_actors(ray, num_actors)
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises InputError if nothing listens at HOST:PORT. Ray itself would try for minutes."""
    if address in ("", "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--ray {address}: expected HOST:PORT, such as 10.0.0.1:6379, ray://HOST:10001 or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        start = f"ray start --head --port={port}"
        raise InputError(f"--ray {address}: nothing answers there ({error}); start Ray there: {start}") from None


def _number_of_actors(ray: Any, wanted: int | None) -> int:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    number = wanted or gpus or len(nodes)
    kind, most = ("GPU", gpus) if gpus else ("CPU", cpus - 1)
    if number > most or cpus <= (0 if gpus else number):
        more = "" if gpus else ", and one more for reading"
        raise InputError(f"{number} actors need a {kind} each{more}; the cluster has {cpus} CPUs and {gpus} GPUs")
    return number


def ray_rows(
    source: PhotoSource,
    num_actors: int,
    places: Sequence[PhotoPlace],
    load: Callable[[], PhotoModel],
    model: PhotoModel,
    *,
    exact: bool = False,
    in_order: bool = False,
) -> Iterator[list[PhotoRow]]:
    """Computes the rows of photos. Call it within `ray_cluster`, and close the iterator if you stop early.

    Args:
        places: the photos, all or some of `source`.
        load: function without arguments that loads the model in an actor.
        model: the same model in this process, which is not run.
        exact: whether to decode as for training data: exactly, and without the EXIF orientation. False: as
            `local_rows` does.
        in_order: whether to yield the rows in the order of the photos. False: each batch as soon as it is computed.

    Yields:
        The rows of a batch of photos.

    Raises:
        InputError: a machine of the cluster does not have the photos or this model, has a full disk or too little
            memory, or the model gives scores that are not finite.
    """
    if not places:
        return
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = in_order
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    batches = batches_of(places, model.batch_size)
    gpu = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
    rows = ray.data.from_items(batches, override_num_blocks=min(len(batches), _MOST_BLOCKS))
    # With another memory than the actors, Ray does not run the tasks within them.
    rows = rows.map(ReadPhotos(source.root, model.image_size, exact), num_cpus=1, memory=_PIXEL_BYTES)
    rows = rows.map(
        ComputeRows,
        fn_constructor_args=(load, model.digest),
        compute=ActorPoolStrategy(size=num_actors),
        **({"num_gpus": 1} if gpu else {"num_cpus": 1}),
    )
    try:
        for row in rows.iter_rows():
            yield pickle.loads(row["rows"])
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise InputError(f"Ray stopped: {_cause(error)}; after you solve this, the same command continues") from error


def batches_of(places: Sequence[PhotoPlace], size: int) -> list[dict[str, bytes]]:
    """Returns the rows of the data set for `ReadPhotos`, with at most `size` photos each."""
    return [{"places": pickle.dumps(places[start : start + size])} for start in range(0, len(places), size)]


class ReadPhotos:
    """Reads and decodes the photos of a batch, in a task."""

    def __init__(self, root: str, image_size: int, exact: bool):
        self._root, self._image_size = root, image_size
        self._options = {"upright": not exact, "draft": not exact}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._root and not os.path.exists(self._root):
            raise InputError(
                f"{platform.node()} does not have {self._root}; name a folder that all machines share, or a URL"
            )
        places = pickle.loads(row["places"])
        read = place_reader(places)
        num_threads = _REQUESTS if is_url(places[0].file) else 1

        def decode(place: PhotoPlace) -> Photo:
            return read_photo(partial(read, place), self._image_size, **self._options)

        photos = list(map_ahead(decode, places, num_threads))
        return {"photos": pickle.dumps(([place.name for place in places], photos))}


class ComputeRows:
    """Holds the model in an actor."""

    def __init__(self, load: Callable[[], PhotoModel], digest: str):
        self._model = load()
        if self._model.digest != digest:
            raise InputError(f"{platform.node()} has another model, or another version of it, under this name")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        names, photos = pickle.loads(row["photos"])
        batches = computed_rows(names, (photo for photo in photos), self._model.compute, self._model.batch_size)
        return {"rows": pickle.dumps([row for batch in batches for row in batch])}


def _cause(error: BaseException) -> str:
    """Returns what happened in a task or an actor, without Ray's traceback."""
    import ray.exceptions as kinds

    seen: list[BaseException] = []
    while error and error not in seen:
        seen.append(error)
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
    for one in reversed(seen):
        if isinstance(one, InputError | OSError | MemoryError):
            return str(one)
    if any(isinstance(one, kinds.OutOfDiskError) for one in seen):
        return "the disk of a machine is full, on which Ray keeps its objects (ray start --temp-dir names another)"
    if any(isinstance(one, kinds.OutOfMemoryError) for one in seen):
        return "a machine has too little memory; use fewer actors or a smaller --batch_size"
    lines = [line for line in str(seen[-1]).strip().splitlines() if line.strip()]
    return f"{type(seen[-1]).__name__}: {lines[-1] if lines else ''}"[:500]
