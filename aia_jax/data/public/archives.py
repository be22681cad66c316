"""Photos out of zip files that nobody vouches for."""

import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes

_LARGEST_PHOTO = 64 << 20  # bytes
_LARGEST_RATIO = 4  # bytes of photos to bytes of the archive; JPEGs hardly shrink


def unpack_photos(archive: Path, targets: Mapping[str, Path]) -> set[str]:
    """Writes the members of a zip file whose names, without their folders, are keys of `targets` to the values.

    Each is written whole or not at all, its CRC compared. Where a member says it belongs has no influence.

    Returns:
        The keys of `targets` that the archive holds.

    Raises:
        InputError: it is no zip file, is damaged, or holds what an archive of photos does not: paths that lead out of
            it, links, encrypted members, or sizes that no photo has.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(archive, file, targets)
            for name, member in tqdm(
                members.items(), f"{archive.name}: unpacking", unit="img", mininterval=0.5, dynamic_ncols=True
            ):
                write_bytes(targets[name], _read(archive, file, member))
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} cannot be used: {error}; {_advice(archive)}") from None
    return set(members)


def _members(archive: Path, file: zipfile.ZipFile, targets: Mapping[str, Path]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        path = PureWindowsPath(member.filename)  # Windows rules see drives and both slashes
        if path.anchor or ".." in path.parts:
            raise InputError(f"{archive} is not to be trusted: its member {member.filename!r} leads out of it")
        if path.name in targets and not member.is_dir():
            found.setdefault(path.name, member)
    for member in found.values():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise InputError(f"{archive} is not to be trusted: its member {member.filename!r} is no file but a link")
        if member.flag_bits & 1:
            raise InputError(f"{archive} cannot be used: its member {member.filename!r} is encrypted")
        if member.file_size > _LARGEST_PHOTO:
            raise InputError(
                f"{archive} is not to be trusted: its member {member.filename!r} has {member.file_size:,} bytes, a "
                f"photo {_LARGEST_PHOTO:,} at most"
            )
    unpacked, packed = sum(member.file_size for member in found.values()), archive.stat().st_size
    if unpacked > _LARGEST_RATIO * packed:
        raise InputError(f"{archive} is not to be trusted: its {packed:,} bytes hold {unpacked:,} bytes of photos")
    return found


def _read(archive: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with file.open(member) as opened:
            return opened.read(member.file_size + 1)  # no more, whatever the compressed bytes would become
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{archive} cannot be used: its member {member.filename!r} is damaged ({error}); {_advice(archive)}"
        ) from None


def _advice(archive: Path) -> str:
    return f"remove {archive.name} and {archive.name}.json, and the same command downloads it again"
