"""Reads and writes mapping files, which connect labels of a model with keywords of a catalogue.

    labels:
      dog: Animals|Mammals|Dog          # the keyword of a label, its levels separated by |
      cat:
        path: Animals|Mammals|Cat
        synonyms: [kitty, kitten]       # other names of the label
    ignore: [outdoor, Places|Rome]      # labels and keywords that are neither written nor imported

`aia annotate` writes the keyword of each label. `aia import-labels` reads the label of each keyword. Case, and the
difference between spaces, hyphens and underscores, are ignored.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aia_jax.data.annotation.annotations import label_problem
from aia_jax.data.photo_metadata.keywords import KeywordPath
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text, write_bytes
from aia_jax.utils.messages import MAX_LISTED, list_problems, nearest

_EXPECTED = "`labels`, with a keyword such as Animals|Dog for each label, and `ignore`, a list"
_HEAD = """\
# Keywords of labels, for `aia annotate --xmp --mapping` and `aia import-labels --xmp --mapping`.
#
#   dog: Animals|Mammals|Dog       the label dog is the keyword Dog in the hierarchy Animals, Mammals
#   cat:                           a label with other names in your catalogue
#     path: Animals|Mammals|Cat
#     synonyms: [kitty, kitten]
#
# Labels and keywords in `ignore` are neither written nor imported.
"""


class KeywordMapping:
    """The keywords of labels.

    Args:
        paths: the keyword of each label.
        synonyms: other names of labels.
        ignored: labels and keywords to leave out.
    """

    def __init__(
        self,
        paths: Mapping[str, KeywordPath] | None = None,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        ignored: Iterable[KeywordPath] = (),
    ):
        self._paths = dict(paths or {})
        self._ignored = {_key(path) for path in ignored}
        names = [(name, label) for label, others in (synonyms or {}).items() for name in (label, *others)]
        self._labels = {_key((name,)): label for name, label in reversed(names)}
        self._labels |= {_key((label,)): label for label in self._paths}
        self._by_path = {_key(path): label for label, path in self._paths.items()}

    def path(self, label: str) -> KeywordPath:
        """Returns the keyword of a label of the model: by default the label itself; () if the label is ignored."""
        known = self._labels.get(_key((label,)), label)
        path = self._paths.get(known, (known,))
        return () if self._is_ignored((label,)) or self._is_ignored(path) else path

    def label(self, path: KeywordPath) -> str:
        """Returns the label of a keyword: by default its last level; "" if the keyword is ignored."""
        if self._is_ignored(path):
            return ""
        label = self._by_path.get(_key(path)) or self._labels.get(_key(path[-1:]), path[-1])
        return "" if self._is_ignored((label,)) else label

    def unknown(self, labels: Sequence[str]) -> list[str]:
        """Returns a line for each label in the mapping that is not in `labels`. The first ones suggest a label."""
        known = {_key((label,)) for label in labels}
        lacking = [
            label
            for label in self._paths
            if not known & {_key((label,)), *(key for key, own in self._labels.items() if own == label)}
        ]
        hints = [nearest(label, labels) for label in lacking[:MAX_LISTED]]
        found = [f"{label!r}; did you mean {hint[0]!r}?" for label, hint in zip(lacking, hints, strict=False) if hint]
        return [*found, *(repr(label) for label in lacking if not any(line.startswith(repr(label)) for line in found))]

    def _is_ignored(self, path: KeywordPath) -> bool:
        key = _key(path)
        return key[-1:] in self._ignored or any(key[:end] in self._ignored for end in range(1, len(key) + 1))


def read_mapping(path: Path) -> KeywordMapping:
    """Reads a mapping file.

    Raises:
        InputError: the file cannot be read, is not YAML, or a name or keyword in it cannot be used. The message lists
            all problems.
    """
    try:
        document = _Loader(read_text(path)).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path} is not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; expected {_EXPECTED}") from None
    if not isinstance(document, dict) or not document or document.keys() - {"labels", "ignore"}:
        found = f"found {', '.join(map(repr, document))}" if isinstance(document, dict) else "found none"
        raise InputError(f"{path}: expected {_EXPECTED}; {found:.200}")
    labels, ignored = document.get("labels") or {}, document.get("ignore") or []
    if not isinstance(labels, dict) or not isinstance(ignored, list):
        raise InputError(f"{path}: expected {_EXPECTED}")
    paths, synonyms, problems = {}, {}, []
    for label, value in labels.items():
        entry = {"path": value} if isinstance(value, str) else value
        if not isinstance(entry, dict) or entry.keys() - {"path", "synonyms"}:
            problems.append(f"{label!r}: expected a keyword, or `path` and `synonyms`, found {value!r:.80}")
            continue
        others = entry.get("synonyms") or []
        others = [others] if isinstance(others, str) else others
        if not isinstance(others, list):
            problems.append(f"{label!r}: synonyms must be a list, found {others!r:.80}")
            continue
        problems += [f"a label {problem}" for name in (label, *others) if (problem := label_problem(name))]
        paths[label], synonyms[label] = _parse_path(entry.get("path") or label, f"{label!r}", problems), others
    left_out = [_parse_path(value, "ignore", problems) for value in ignored]
    problems += _repeated(paths, synonyms)
    if problems:
        raise InputError(f"{path} cannot be used, {len(problems):,} problem(s):{list_problems(problems)}")
    return KeywordMapping(paths, synonyms, left_out)


def write_mapping(path: Path, labels: Iterable[str], keywords: Iterable[KeywordPath]) -> int:
    """Writes a first mapping file. A label that has the name of a keyword of the person gets this keyword.

    Returns:
        The number of labels that got a keyword of the person.

    Raises:
        InputError: the file exists.
    """
    if path.exists():
        raise InputError(f"{path} is there already; name another file, or delete it")
    known: dict[KeywordPath, KeywordPath] = {}
    for keyword in sorted(keywords, key=len, reverse=True):
        known.setdefault(_key(keyword[-1:]), keyword)
    found = {label: known.get(_key((label,))) for label in labels}
    entries: dict[str, str] = {}
    taken: set[KeywordPath] = set()
    for label, keyword in found.items():
        path_of_label = keyword or (label.replace("|", "-"),)
        keys = {_key((label,)), _key(path_of_label)}
        if keys.isdisjoint(taken):  # the file would name a second label, such as Dog beside dog, twice
            entries[label] = "|".join(path_of_label)
        taken |= keys
    document = {"labels": entries, "ignore": []}
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False, default_flow_style=False, width=10_000)
    write_bytes(path, (_HEAD + text).encode())
    return sum(found[label] is not None for label in entries)


class _Loader(yaml.BaseLoader):
    """Reads every scalar as a text, so that labels such as `no` and `1` stay as they are. Refuses a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if not isinstance(key, str) or key in keys[:number]:
                problem = f"found {key!r:.80} twice" if isinstance(key, str) else "found a key that is no text"
                raise yaml.constructor.ConstructorError(None, None, problem, node.value[number][0].start_mark)
        return super().construct_mapping(node, deep)


def _parse_path(value: Any, where: str, problems: list[str]) -> KeywordPath:
    if isinstance(value, str):
        levels = tuple(level.strip() for level in value.split("|"))
        if all(levels) and not any(map(label_problem, levels)):
            return levels
    problems.append(f"{where}: expected a keyword such as Animals|Dog, found {value!r:.80}")
    return ("",)


def _repeated(paths: Mapping[str, KeywordPath], synonyms: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each name that stands for two labels, and for each keyword of two labels."""
    problems, names, keywords = [], {}, {}
    for label, path in paths.items():
        for name in dict.fromkeys((label, *synonyms[label])):
            if names.setdefault(_key((name,)), label) != label:
                problems.append(f"{name!r} is a name of {names[_key((name,))]!r} and of {label!r}")
        if keywords.setdefault(_key(path), label) != label:
            other = keywords[_key(path)]
            advice = "make one a synonym of the other"
            problems.append(f"{'|'.join(path)!r} is the keyword of {other!r} and of {label!r}; {advice}")
    return problems


def _key(path: KeywordPath) -> KeywordPath:
    """Returns a form of a keyword for comparisons."""
    levels = (unicodedata.normalize("NFKC", level).casefold() for level in path)
    return tuple(re.sub(r"[\s_-]+", " ", level).strip() for level in levels)
