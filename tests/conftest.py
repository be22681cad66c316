"""Gives all tests of a session eight virtual CPU devices, a cache of prepared data, and one of compiled programs."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if metadata.version("jaxlib").startswith("0.10."):  # jaxlib 0.12 does not have this flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # compiles in half of the time
os.environ["JAX_PLATFORMS"] = "cpu"
# Most programs run only a few times here, so optimising their machine code takes longer than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import tempfile
from pathlib import Path

import pytest

_COMPARING = ("reference", "needs_torch", "WRITERS")  # names in the modules that compare with PyTorch
_HAS_TORCH = importlib.util.find_spec("torch") is not None
SHARED_DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"


@pytest.fixture(scope="session")
def corel5k_root() -> Path:
    """Returns the folder that contains the real Corel-5k. Skips the test if there is none."""
    if not (SHARED_DATASETS / "Corel-5k" / "images").is_dir():
        pytest.skip("the real Corel-5k is not on this machine")
    return SHARED_DATASETS


def pytest_configure(config: pytest.Config) -> None:
    """Lets tests, their subprocesses and the workers of pytest-xdist share compiled programs."""
    gc.set_threshold(50_000, 20, 20)  # JAX has many objects, so a search for cycles takes long
    if not hasattr(config, "workerinput") and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="aia_jax_programs_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of all modules that compare with PyTorch."""
    for item in items:
        if any(hasattr(item.module, name) for name in _COMPARING):
            item.add_marker("extras")


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the cache of prepared data for all tests."""
    folder = tmp_path_factory.getbasetemp()  # of this worker, below the folder that all workers share
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"
    path.mkdir(exist_ok=True)
    os.environ["AIA_JAX_CACHE"] = str(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def whole_arrays() -> None:
    """Lets Orbax save each array from one device. It would compile a slice of each array for each of eight devices."""
    import jax
    from orbax.checkpoint import type_handlers

    handler = type_handlers.ArrayHandler(use_replica_parallel=False)
    type_handlers.register_type_handler(jax.Array, handler, override=True)


@pytest.fixture(scope="module", autouse=True)
def optimized(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles as a user's process does, for tests that compare with an installed PyTorch or count bytes."""
    import jax  # after `pytest_configure` has set the folder of compiled programs

    jax.devices()  # reads XLA's flags before a test changes them
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    is_command = request.path.parent.name in ("cli", "evaluation")
    compares = _HAS_TORCH and any(hasattr(request.module, name) for name in _COMPARING)
    if (compares and not is_command) or request.path.name == "test_traffic.py":
        jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Object storage at `gs://` and `s3://`, with its buckets in `<tmp_path>/cloud`; the cache is another folder."""
    pytest.importorskip("fsspec")
    from tests.helpers.buckets import FakeStorage, use_storage

    monkeypatch.setenv("AIA_JAX_CACHE", str(tmp_path / "cache"))
    fake = FakeStorage(tmp_path / "cloud")
    use_storage(fake, monkeypatch.setattr)
    return fake
