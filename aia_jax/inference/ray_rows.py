"""Computes rows of photos on a Ray cluster. Tasks read and decode the photos, and actors run the model.

Ray starts lost tasks and actors again, so each photo has one row in the result.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import platform
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from aia_jax.data.image_decoding import MOST_PIXELS
from aia_jax.data.photo_folder import Photo, read_photo
from aia_jax.data.photo_rows import PhotoModel, PhotoRow, computed_rows
from aia_jax.data.photo_sources import PhotoPlace, PhotoSource, place_reader
from aia_jax.data.pipeline import map_ahead
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra
from aia_jax.utils.storage import is_url

_PIXEL_BYTES = 4 * MOST_PIXELS  # memory of a task that decodes the largest photo
_MOST_BLOCKS = 10_000  # Ray keeps facts about each block
_REQUESTS = 16  # of a task to object storage, at once
_ANSWER_S = 10
_STOPPED = "Ray stopped: {}; after you solve this, the same command continues"


@contextlib.contextmanager
def ray_cluster(address: str, num_actors: int | None) -> Iterator[int]:
    """Connects to a Ray cluster, or starts Ray on this machine, and yields the number of actors.

    Args:
        address: `HOST:PORT` of a cluster of which this machine is a node, `auto` for a cluster that runs on this
            machine, or "" for $RAY_ADDRESS or, without it, Ray on this machine alone.
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
    except SystemExit:  # of Ray's handler of SIGTERM, with another exit code
        raise SystemExit(128 + signal.SIGTERM) from None
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip() or f"perhaps the cluster has another version than Ray {ray.__version__} here"
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
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        advice = "; this machine must be a node of the cluster, and Ray Client (ray://) cannot be used"
        raise InputError(f"--ray {address}: expected HOST:PORT, such as 10.0.0.1:6379, or auto{advice}")
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
    if not any(node.get("CPU") and node.get("memory", 0) >= _PIXEL_BYTES for node in nodes):  # Ray would wait forever
        raise InputError(f"no machine has {_PIXEL_BYTES / 1e9} GB of free memory; see ray start --memory")
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
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs tracebacks of errors that it also raises
    batches = batches_of(places, model.batch_size)
    gpu = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
    rows = ray.data.from_items(batches, override_num_blocks=min(len(batches), _MOST_BLOCKS))
    # With another memory than the actors, Ray does not run the tasks within them.
    rows = rows.map(ReadPhotos(source.root, model.image_size, exact), num_cpus=1, memory=_PIXEL_BYTES)
    rows = rows.map(
        ComputeRows,
        fn_constructor_args=(partial(_load_in, os.getcwd(), load), model.digest),
        compute=ActorPoolStrategy(size=num_actors),
        **({"num_gpus": 1} if gpu else {"num_cpus": 1}),
    )
    try:
        for row in rows.iter_rows():
            yield rows_of(row)
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise InputError(_STOPPED.format(_cause(error))) from error


def batches_of(places: Sequence[PhotoPlace], size: int) -> list[dict[str, bytes]]:
    """Returns the rows of the data set for `ReadPhotos`, with at most `size` photos each."""
    return [{"places": pickle.dumps(places[start : start + size])} for start in range(0, len(places), size)]


def rows_of(row: dict[str, bytes]) -> list[PhotoRow]:
    """Returns the result of `ComputeRows`. Raises InputError if a task or an actor had an error."""
    found = pickle.loads(row["rows"])
    if isinstance(found, _Problem):
        raise InputError(_STOPPED.format(found))
    return found


class _Problem(str):
    """Why a task or an actor had to stop."""


def _pickled(work: Callable[[], Any]) -> bytes:
    """Returns the result of `work` as bytes. An error becomes a `_Problem`, because Ray does not keep causes."""
    try:
        return pickle.dumps(work())
    except Exception as error:  # of the model, the disk or the object storage
        traceback.print_exc()  # to the logs of Ray
        kind = "" if isinstance(error, InputError | OSError) else f"{type(error).__name__}: "
        return pickle.dumps(_Problem(f"{kind}{error}"[:1000]))


class ReadPhotos:
    """Reads and decodes the photos of a batch, in a task."""

    def __init__(self, root: str, image_size: int, exact: bool):
        self._root, self._image_size = root, image_size
        self._options = {"upright": not exact, "draft": not exact}

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"photos": _pickled(lambda: self._read(pickle.loads(row["places"])))}

    def _read(self, places: Sequence[PhotoPlace]) -> tuple[list[str], list[Photo]]:
        if self._root and not os.path.exists(self._root):
            raise InputError(
                f"{platform.node()} does not have {self._root}; name a folder that all machines share, or a URL"
            )
        read = place_reader(places)
        num_threads = _REQUESTS if is_url(places[0].file) else 1

        def decode(place: PhotoPlace) -> Photo:
            return read_photo(partial(read, place), self._image_size, **self._options)

        return [place.name for place in places], list(map_ahead(decode, places, num_threads))


class ComputeRows:
    """Holds the model in an actor. Loads it for the first batch: Ray would hide an error of a constructor."""

    def __init__(self, load: Callable[[], PhotoModel], digest: str):
        self._load, self._digest = load, digest

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"rows": _pickled(lambda: self._compute(pickle.loads(row["photos"])))}

    @functools.cached_property
    def _model(self) -> PhotoModel:
        model = self._load()
        if model.digest != self._digest:
            raise InputError(f"{platform.node()} has another model, or another version of it, under this name")
        return model

    def _compute(self, given: tuple[list[str], list[Photo]] | _Problem) -> list[PhotoRow] | _Problem:
        if isinstance(given, _Problem):
            return given
        names, photos = given
        batches = computed_rows(names, (photo for photo in photos), self._model.compute, self._model.batch_size)
        return [row for batch in batches for row in batch]


def _load_in(folder: str, load: Callable[[], PhotoModel]) -> PhotoModel:
    """Loads the model in an actor. Relative paths start at `folder`, the current folder of the command."""
    with contextlib.suppress(OSError):  # a machine without this folder may need no relative path
        os.chdir(folder)
    return load()


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
    last = next((one for one in reversed(seen) if str(one).strip()), seen[-1])
    return f"{type(last).__name__}: {(str(last).strip().splitlines() or [''])[-1]}"[:500]
