"""Checks labels of every source: Unicode forms, labels that look broken, and labels that are nearly the same."""

import contextlib
import dataclasses
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import chain

from aia_jax.data.importing.labelled_photos import LabelRow
from aia_jax.data.photo_files import SUFFIXES
from aia_jax.utils.messages import format_count, printable

_MISREAD = ("cp1252", "latin-1", "mac_roman", "cp1251")  # encodings in which UTF-8 text is often misread
_PATTERNS = {
    r"(?i)nan|null|none|undefined|#?n/a|<na>|#(name|ref|value|div/0|num|null)[?!]": "stands for an empty cell",
    "=.*": "is a formula of a spreadsheet",
    r"/[mtg]/\w+": "is an identifier of Open Images; its file of class descriptions has the name",
    r"(?i).*\w://.*|(\.{0,2}[/\\]|[a-z]:[/\\]).*|.*[/\\].*[/\\].*": "looks like a path or an address",
    r"""[\[{].*[\]}]|.*['"]\s*:.*""": "looks like a part of JSON or of a list",
    r"""(['"\u201c\u2018]).*['"\u201d\u2019]|'.*""": "has quotes that belong to the file",
    r".*[:=(\s]\s*([01]?[.,]\d+|\d+([.,]\d+)?\s?%)\)?": "has a score",
    r"(?i)(and|or|und|et) .*": "begins with a word between two labels",
    r".*&(amp|lt|gt|quot|apos|nbsp|#\w+)\b.*": "has a character code of HTML",
    ".{101,}": "is longer than 100 characters",
}


def unify_labels(
    rows: Sequence[LabelRow], vocabulary: Collection[str] | None, problems: list[str], *, accept: bool
) -> tuple[list[LabelRow], list[str]]:
    """Writes each label in one Unicode form: the form of the vocabulary, else the composed form (NFC).

    Args:
        vocabulary: labels that are not checked; None: there is no vocabulary yet.
        problems: list to which a line is appended for each label that looks broken. If not `accept`, these labels are
            left out, as are rows without another label.

    Returns:
        The rows, and one line for each group of labels that had several Unicode forms, or that differ only in case or
        spaces, which stay different labels.
    """
    known = {unicodedata.normalize("NFC", label): label for label in vocabulary or ()}
    where: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for label in row.labels:
            where[label].append(row.where)
    names = {label: unicodedata.normalize("NFC", label) for label in where}
    names = {label: known.get(name, name) for label, name in names.items()}
    forms = Counter(names.values())
    notes = [
        f"{name!r} was written in {count} Unicode forms; it is one label" for name, count in forms.items() if count > 1
    ]
    for label, places in where.items():
        if not accept and names[label] not in (vocabulary or ()) and (problem := _broken(label)):
            count = format_count(len(places), "time")
            problems.append(f"{places[0]}: the label {label!r:.110} ({count}) {problem}; --accept_labels accepts it")
            names[label] = ""
    counts = Counter(name for row in rows for name in {names[label] for label in row.labels} if name)
    alike = defaultdict(list)
    for name in sorted(counts):
        alike[re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold()) or name].append(name)
    for group in alike.values():
        if len(group) > 1:
            listed = ", ".join(f"{name!r} ({format_count(counts[name], 'photo')})" for name in group)
            notes.append(f"{listed} differ only in upper and lower case, spaces or form; they stay different labels")
    kept = [tuple(dict.fromkeys(names[label] for label in row.labels if names[label])) for row in rows]
    pairs = zip(rows, kept, strict=True)
    return [dataclasses.replace(row, labels=labels) for row, labels in pairs if labels or not row.labels], notes


def _broken(label: str) -> str:
    """Returns why a label looks like a part of a file that was read in a wrong way; "" if it does not."""
    if any(unicodedata.category(sign) in ("Cc", "Co", "Cf") and sign not in "\u200c\u200d" for sign in label):
        return "has invisible characters"
    if "\ufffd" in label or any(_is_misread(label, encoding) for encoding in _MISREAD):
        return "looks like text in another encoding"
    if label.lower().endswith(SUFFIXES):
        return "looks like the name of a photo"
    for pattern, problem in _PATTERNS.items():
        if re.fullmatch(pattern, label):
            return problem
    unpaired = any(label.count(left) != label.count(right) for left, right in ("()", "[]", "{}"))
    if unpaired or len(re.findall(r'(?<!\d)"', label)) % 2:
        return "has brackets or quotes without a partner"
    if all(unicodedata.category(sign) in ("Sm", "Sk") or unicodedata.category(sign)[0] in "PZ" for sign in label):
        return "has no letters"
    return ""


def _is_misread(label: str, encoding: str) -> bool:
    with contextlib.suppress(UnicodeError):
        return not label.isascii() and bool(label.encode(encoding).decode())
    return False


def sample_lines(photos: Sequence[LabelRow], number: int) -> list[str]:
    """Returns a line with name and labels for `number` photos that are spread over the list.

    Photos with several labels come first.
    """
    several = [photo for photo in photos if len(photo.labels) > 1]
    others = [photo for photo in photos if len(photo.labels) < 2]
    spread = [group[:: max(len(group) // number, 1)][:number] for group in (several, others)]
    chosen = list(chain(*spread))[:number]
    names = [printable(photo.photo) for photo in chosen]
    names = [name if len(name) <= 40 else f"...{name[-37:]}" for name in names]
    width = max(map(len, names), default=0)
    labels = [" | ".join(printable(label) for label in photo.labels) or "(no label)" for photo in chosen]
    labels = [text if len(text) <= 100 else f"{text[:97]}..." for text in labels]
    return [f"  {name:<{width}}  {text}" for name, text in zip(names, labels, strict=True)]
