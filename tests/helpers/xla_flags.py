"""XLA's flags for the processes that tests start."""

import os

_EIGHT = "--xla_force_host_platform_device_count=8"


def xla_flags(num_devices: int = 1) -> str:
    """The flags of this process, with another number of devices. Fewer devices compile faster."""
    return os.environ.get("XLA_FLAGS", "").replace(_EIGHT, _EIGHT[:-1] + str(num_devices))
