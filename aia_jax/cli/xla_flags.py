"""XLA flags for GPUs, in one place; nothing is set that --xla_preset did not ask for.

One GPU is best served by XLA's defaults, TPUs and CPUs too. Across GPUs the gradients' all-reduce should run beside the
backward pass: the scheduler must move it there, and it must come in pieces large enough for the links and small enough
to start before the last gradient is known. See https://docs.nvidia.com/jax-toolbox and `xla/debug_options_flags.cc`.
The values are the usual ones, not measured here.
"""

import os
import sys
from collections.abc import MutableMapping

from absl import flags

PRESETS: dict[str, dict[str, str]] = {
    "multi_gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": "true",  # collectives beside the computation
        "xla_gpu_all_reduce_combine_threshold_bytes": str(32 << 20),  # gradients of TResNet-M: 97 MB, so four pieces
        "xla_gpu_all_gather_combine_threshold_bytes": str(32 << 20),  # weights, with config.mesh.fsdp
        "xla_gpu_reduce_scatter_combine_threshold_bytes": str(32 << 20),  # gradients, with config.mesh.fsdp
    },
    # No atomics, and no kernels chosen by how long they took today: the same bits again, slower.
    "deterministic": {"xla_gpu_deterministic_ops": "true"},
}


def define_xla_flags() -> None:
    """The flag --xla_preset, read by `apply_preset`."""
    flags.DEFINE_enum(
        "xla_preset", None, list(PRESETS), "XLA flags to run with, printed as they are set; those in $XLA_FLAGS win."
    )
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["xla_preset"])


def apply_preset(name: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Puts a preset's flags before those in `XLA_FLAGS`, of which the last counts, and prints the result.

    Must come before the first use of a device, when XLA reads them.
    """
    if name is None:
        return
    ours = [f"--{flag}={value}" for flag, value in PRESETS[name].items()]
    environment["XLA_FLAGS"] = " ".join([*ours, *environment.get("XLA_FLAGS", "").split()])
    print(f"XLA_FLAGS={environment['XLA_FLAGS']!r}", flush=True)
