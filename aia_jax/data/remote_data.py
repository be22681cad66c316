"""Copies prepared data from object storage to the cache of this machine."""

from ml_collections import ConfigDict

from aia_jax.utils.storage import is_url
from aia_jax.utils.storage_folders import download_folder


def with_local_data(config: ConfigDict) -> ConfigDict:
    """Returns `config`, or a copy in which `data.root` is a local copy of the folder whose URL `config` gives.

    Only objects that are new or changed since the last call are copied.

    Raises InputError if the folder cannot be read, or if the disk of the cache is too small.
    """
    if not is_url(config.data.get("root")):
        return config
    config = config.copy_and_resolve_references()
    config.data.root = str(download_folder(config.data.root, config.data.get("cache_dir", "")))
    return config
