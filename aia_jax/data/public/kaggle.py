"""Downloads from Kaggle through its package kagglehub, which continues interrupted downloads and checks them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from aia_jax.utils.errors import InputError

_TOKEN = (
    "make a token at https://www.kaggle.com/settings/api (a free account, «Generate New Token») and put it into "
    "~/.kaggle/access_token or the environment variable KAGGLE_API_TOKEN"
)


def download_from_kaggle(handle: str, folder: Path) -> Path:
    """Downloads the newest version of a public data set and unpacks it below `folder`.

    Args:
        handle: owner/name.
        folder: kagglehub's cache for this call. An interrupted download is continued there.

    Returns:
        The folder with the files. In Kaggle's own notebooks it is outside of `folder` and read-only.

    Raises:
        InputError: kagglehub is not installed, or Kaggle refuses the data set.
        OSError: the disk is full or not writable.
    """
    try:
        import kagglehub
    except ImportError:
        raise InputError(
            "the photos are on Kaggle, and downloading from there needs one more package: pip install kagglehub. If "
            f"Kaggle then asks who you are, {_TOKEN}"
        ) from None
    url = f"https://www.kaggle.com/datasets/{handle}"
    try:
        with _cache_in(folder):
            return Path(kagglehub.dataset_download(handle))
    except OSError as error:
        if error.errno is not None:  # an error of the operating system, not of HTTP
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise InputError(f"Kaggle denies access to {url} ({status}): {_TOKEN}") from None
        if status == 404:
            raise InputError(f"Kaggle has no data set {url} (any more)") from None
        raise InputError(f"{url} cannot be downloaded: {_first_line(error)}; the same command continues") from None
    except Exception as error:  # kagglehub's errors have no common base class.
        message = f"{url} cannot be downloaded, kagglehub says: {_first_line(error)}"
        raise InputError(f"{message}. If the problem persists, remove {folder}") from None


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["KAGGLEHUB_CACHE"]
        if before is not None:
            os.environ["KAGGLEHUB_CACHE"] = before


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
