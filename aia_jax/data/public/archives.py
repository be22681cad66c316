"""Extracts photos from untrusted zip files."""

import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from aia_jax.data.safe_names import leaves_folder
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes

_LARGEST_PHOTO = 64 << 20  # bytes
_LARGEST_RATIO = 4  # bytes of photos per byte of the archive; JPEGs hardly shrink


def unpack_photos(archive: Path, targets: Mapping[str, Path]) -> set[str]:
    """Writes members of a zip file to the paths that `targets` gives for their names. Folders in names are ignored.

    Each photo is written atomically after a check of its CRC.

    Returns:
        The names in `targets` that the archive contains.

    Raises:
        InputError: the file is not a zip file or is damaged, or contains what an archive of photos does not: paths
            that lead out of it, links, encrypted members, or sizes that no photo has.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(archive, file, targets)
            bar = tqdm(members.items(), f"{archive.name}: unpacking", unit="img", mininterval=0.5, dynamic_ncols=True)
            for name, member in bar:
                write_bytes(targets[name], _read(archive, file, member))
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} cannot be used: {error}; {_advice(archive)}") from None
    return set(members)


def _members(archive: Path, file: zipfile.ZipFile, targets: Mapping[str, Path]) -> dict[str, zipfile.ZipInfo]:
    distrust = f"{archive} is not to be trusted:"
    found: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        if leaves_folder(member.filename):
            raise InputError(f"{distrust} its member {member.filename!r} leads out of it")
        name = member.filename.replace("\\", "/").rpartition("/")[2]
        if name in targets and not member.is_dir():
            found.setdefault(name, member)
    for member in found.values():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise InputError(f"{distrust} its member {member.filename!r} is a link, not a file")
        if member.flag_bits & 1:
            raise InputError(f"{archive} cannot be used: its member {member.filename!r} is encrypted")
        if member.file_size > _LARGEST_PHOTO:
            size = f"has {member.file_size:,} bytes, a photo has at most {_LARGEST_PHOTO:,}"
            raise InputError(f"{distrust} its member {member.filename!r} {size}")
    unpacked, packed = sum(member.file_size for member in found.values()), archive.stat().st_size
    if unpacked > _LARGEST_RATIO * packed:
        raise InputError(f"{distrust} its {packed:,} bytes hold {unpacked:,} bytes of photos")
    return found


def _read(archive: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with file.open(member) as opened:
            return opened.read(member.file_size + 1)  # limits the size, whatever the compressed bytes expand to
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{archive} cannot be used: its member {member.filename!r} is damaged ({error}); {_advice(archive)}"
        ) from None


def _advice(archive: Path) -> str:
    return f"remove {archive.name} and {archive.name}.json, and the same command downloads it again"
