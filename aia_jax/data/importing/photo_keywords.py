"""Reads labels from the keywords of photos: in XMP sidecars, and in XMP and IPTC inside the photos."""

from collections import Counter
from pathlib import Path

from tqdm import tqdm

from aia_jax.data.importing.labelled_photos import LabelList, LabelRow
from aia_jax.data.photo_files import PhotoFiles
from aia_jax.data.photo_metadata.keywords import PARENT, KeywordPath
from aia_jax.data.photo_metadata.mapping import KeywordMapping
from aia_jax.data.photo_metadata.photo_xmp import photo_keywords
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count, printable

LEVELS = ("last", "all", "path")  # of a hierarchical keyword: its last level, each level, or the path is the label
# First levels of keywords that no person gave: those of darktable for itself, and automatic ones whose record is lost.
_NOT_GIVEN = ("darktable", PARENT)
_NUM_SHOWN = 5


def read_photo_keywords(folder: Path, mapping: KeywordMapping, levels: str) -> LabelList:
    """Reads the keywords of all photos in a folder. Automatic keywords of `aia annotate` are left out.

    A photo without keywords is left out: nobody has said which labels it has.

    Args:
        mapping: the label of each keyword, and keywords to ignore.
        levels: one of `LEVELS`.

    Raises:
        InputError: the folder has no photos, or no photo has a keyword.
    """
    files = PhotoFiles()
    names = files.names(folder)
    files.print_notes()
    rows, problems = [], []
    places: Counter[str] = Counter()
    keywords: Counter[KeywordPath] = Counter()
    for name in tqdm(names, desc="keywords", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5):
        try:
            found, place = photo_keywords(folder / name)
        except (InputError, OSError) as error:
            problems.append(f"{name!r}: {getattr(error, 'strerror', None) or error}")
            continue
        found = [path for path in found if len(path) == 1 or path[0] not in _NOT_GIVEN]
        labels = [label for path in found for label in _labels(path, mapping, levels)]
        keywords.update(found)
        if labels:
            places[place] += 1
            rows.append(LabelRow(f"{name!r} ({place})", name, tuple(dict.fromkeys(labels))))
    if not rows:
        listed = f"; {len(problems):,} photos cannot be read, such as {problems[0]}" if problems else ""
        raise InputError(
            f"none of the {len(names):,} photos in {folder} has a keyword, in a sidecar or in the photo; automatic "
            f"keywords of aia annotate and ignored keywords do not count{listed}"
        )
    return LabelList(tuple(rows), _understood(folder, len(names), places, keywords, mapping, levels), tuple(problems))


def _labels(path: KeywordPath, mapping: KeywordMapping, levels: str) -> list[str]:
    """Returns the labels of a keyword; [] if it is ignored."""
    label = mapping.label(path)
    if label and levels == "path" and label == path[-1]:
        label = "|".join(path)
    above = [mapping.label(path[:end]) for end in range(1, len(path))] if label and levels == "all" else []
    return [name for name in (*above, label) if name]


def _understood(
    folder: Path,
    num_photos: int,
    places: Counter[str],
    keywords: Counter[KeywordPath],
    mapping: KeywordMapping,
    levels: str,
) -> str:
    """Returns lines that say where the keywords were, and how they were read."""
    where = ", ".join(f"{number:,} in {place}" for place, number in places.most_common())
    without = num_photos - places.total()
    lines = [
        f"{folder}: {format_count(places.total(), 'photo')} with keywords ({where}); {without:,} without, left out"
    ]
    deep = [path for path, _ in keywords.most_common() if len(path) > 1]
    kinds = f"{format_count(len(keywords), 'keyword')}, {len(deep):,} of them hierarchical"
    lines.append(f"{kinds}{_examples(deep, mapping, levels)}")
    ignored = [path for path, _ in keywords.most_common() if not _labels(path, mapping, levels)]
    if ignored:
        shown = ", ".join(printable("|".join(path)) for path in ignored[:_NUM_SHOWN])
        more = f" and {len(ignored) - _NUM_SHOWN:,} more" if len(ignored) > _NUM_SHOWN else ""
        lines.append(f"ignored by the mapping: {shown}{more}")
    return "\n".join(lines)


def _examples(deep: list[KeywordPath], mapping: KeywordMapping, levels: str) -> str:
    named = [(path, _labels(path, mapping, levels)) for path in deep]
    shown = [f"{printable('|'.join(path))} is {' + '.join(map(printable, names))}" for path, names in named if names]
    return f": {', '.join(shown[:_NUM_SHOWN])}; --levels says which part is the label" if shown else ""
