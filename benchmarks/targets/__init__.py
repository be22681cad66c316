"""Describes devices, so that programs can be compiled for devices that this machine does not have."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import install_command


@dataclass(frozen=True)
class Target:
    """A described device.

    Attributes:
        platform: "cuda" or "tpu".
        device: name of the device.
        bandwidth: bytes per second between memory and chip.
        flops: bfloat16 operations per second.
        source: source of bandwidth and flops.
    """

    platform: str
    device: str
    bandwidth: float
    flops: float
    source: str


TARGETS = {
    "h200": Target("cuda", "NVIDIA H200 141 GB", 4.3e12, 790e12, "measured elsewhere, a large copy and a large matmul"),
    "v5e": Target("tpu", "TPU v5e", 819e9, 197e12, "the maker's data sheet"),
}
# Without the device there is no autotuning, and XLA cannot tile every Triton matmul. cuBLAS moves the same bytes.
_CUDA_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# Files of a CUDA toolkit. Without them, XLA's compiler ends with an error or a segmentation fault.
_CUDA_FILES = "nvvm/libdevice/libdevice.10.bc", "bin/ptxas"
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def described_devices(name: str, count: int) -> list[Any]:
    """Returns descriptions of devices to lower and compile for.

    Args:
        name: a key of `TARGETS`.
        count: number of devices. GPUs: up to 8 in one host, or a multiple of 8; TPUs: 1 or 4.

    Raises:
        InputError: unknown name, unsupported count, or the compiler is not installed.
    """
    if name not in TARGETS:
        raise InputError(f"--target={name} is unknown; known: {', '.join(TARGETS)}")
    is_gpu = TARGETS[name].platform == "cuda"
    if (is_gpu and (count < 1 or (count > 8 and count % 8))) or (not is_gpu and count not in (1, 4)):
        known = "1 to 8, or a multiple of 8" if is_gpu else "1 or 4"
        raise InputError(f"--devices={count} is not supported for {name}: use {known}")
    if is_gpu and not _has_toolkit():
        raise InputError(f"no CUDA toolkit with {' and '.join(_CUDA_FILES)}: {install_command('aot')}")
    try:
        if is_gpu:
            description = Path(__file__).with_name(f"{name}.txtpb").read_text()
            topology = f"1x{-(-count // 8)}x{min(count, 8)}"
            described = topologies.get_topology_desc(platform="cuda", target_config=description, topology=topology)
        else:
            os.environ.update(_TPU_ENVIRONMENT)
            described = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu")
    except (RuntimeError, ValueError, NotImplementedError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"no compiler for {name} ({first}): {install_command('aot')}") from error
    return list(described.devices)[:count]


def _has_toolkit() -> bool:
    package = importlib.util.find_spec("nvidia")  # of `nvidia-cuda-nvcc`
    roots = [Path(folder, "cu13") for folder in (package.submodule_search_locations if package else None) or ()]
    roots += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), Path("/usr/local/cuda"), Path("/opt/cuda")]
    return any(all((root / file).is_file() for file in _CUDA_FILES) for root in roots)


def compiler_options(name: str) -> dict[str, Any]:
    """Returns the options of `lowered.compile` for a target."""
    return dict(_CUDA_OPTIONS) if TARGETS[name].platform == "cuda" else {}
