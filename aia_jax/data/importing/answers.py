"""Reads answers about labels of photos: Label Studio's export as JSON, COCO's JSON, or a table image,label,answer.

An answer says that a photo has a label (confirmed), or that it does not have it (rejected). Whether the photo has any
other label is unknown. This differs from the lists of labels that `label_files` reads: there, the photo has no others.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aia_jax.data.annotation.annotations import label_problem, label_spelling
from aia_jax.data.exporting import ANSWERS, PROPOSED, photo_addresses, table_name
from aia_jax.data.importing.coco import read_coco_answers
from aia_jax.data.importing.label_names import label_names
from aia_jax.data.photo_files import SUFFIXES
from aia_jax.data.photo_finder import PhotoFinder
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text
from aia_jax.utils.messages import spreadsheet_text

_EXPECTED = "Label Studio's export as JSON, COCO's JSON, or a table with the columns image,label,answer"
_COLUMNS = ("image", "label", "answer")
_VALUES = {word: holds for holds, word in ANSWERS.items()}
_QUESTION = "label"  # the question in the exported labeling interface
_Rows = Iterable[tuple[str, str, Mapping[str, bool]]]  # place in the file, photo as written, answers


class AnswerList(NamedTuple):
    """The answers in a file.

    Attributes:
        answers: `{photo: {label: answer}}`. An answer is True (the photo has the label) or False.
        understood: one line that describes how the file was read.
        problems: one line for each entry that is not in `answers`.
    """

    answers: dict[str, dict[str, bool]]
    understood: str
    problems: list[str]


def read_answers(path: Path, folder: Path, names: Collection[str], labels: Collection[str]) -> AnswerList:
    """Reads a file of answers, and finds its photos with `PhotoFinder`.

    Args:
        folder: the folder of the photos.
        names: the photos in the folder, relative to it.
        labels: the known labels. Another spelling of a known label is a problem. Other labels are accepted.

    Raises:
        InputError: the file cannot be read, or is in another format.
    """
    problems: list[str] = []
    form: Callable[[str], str] = str  # how the exported files write a name
    text = read_text(path)
    if text.lstrip()[:1] not in ("{", "["):
        rows, layout, form = _read_table(path, problems), "a table of answers", table_name
    else:
        document = read_json(path, _EXPECTED)
        if isinstance(document, dict) and "images" in document:
            rows, layout = read_coco_answers(path, document, problems), "COCO's JSON"
        elif isinstance(document, list) and all(isinstance(task, dict) and "data" in task for task in document):
            (rows, layout), form = _read_tasks(path, document, problems), photo_addresses(folder)
        else:
            raise InputError(f"{path} is in no known format of answers; expected {_EXPECTED}")
    answers = _merge(_find_photos(rows, folder, names, form, problems), labels, problems)
    values = [holds for found in answers.values() for holds in found.values()]
    counts = f"{sum(values):,} confirmed and {len(values) - sum(values):,} rejected labels of {len(answers):,} photos"
    return AnswerList(answers, f"{path}: {layout}; {counts}", problems)


def _find_photos(
    rows: _Rows, folder: Path, names: Collection[str], form: Callable[[str], str], problems: list[str]
) -> Iterator[tuple[str, str, Mapping[str, bool]]]:
    """Yields the rows with the names of the photos. Names in the form of the exported files come first."""
    exact: dict[str, list[str]] = {}
    for name in names:
        exact.setdefault(form(name), []).append(name)
    finder, known = PhotoFinder(folder), set(names)
    for where, written, answers in rows:
        found = exact.get(written, [])
        photo, problem = (found[0], "") if found else finder.find(written)
        if len(found) > 1:
            problem = f"{written!r} can be {found[0]!r} or {found[1]!r}; rename one of them"
        elif not problem and photo not in known:
            problem = f"no photo {written!r} in {folder}"
        if problem:
            problems.append(f"{where}: {problem}")
        else:
            yield where, photo, answers
    finder.print_note()


def _merge(rows: _Rows, labels: Collection[str], problems: list[str]) -> dict[str, dict[str, bool]]:
    spellings = {label_spelling(label): label for label in reversed([*labels])}
    merged: dict[str, dict[str, bool | None]] = {}
    for where, photo, answers in rows:
        for label, holds in answers.items():
            if problem := label_problem(label):
                problems.append(f"{where}: a label {problem}")
            elif label not in labels and label_spelling(label) in spellings:
                known = spellings[label_spelling(label)]
                problems.append(f"{where}: {label!r} is the label {known!r} in another spelling; write {known!r}")
            elif merged.setdefault(photo, {}).setdefault(label, holds) is not holds:
                problems.append(f"{where}: {photo!r} has both answers about {label!r}; keep one of them")
                merged[photo][label] = None
    kept = {
        photo: {label: holds for label, holds in found.items() if holds is not None} for photo, found in merged.items()
    }
    return {photo: found for photo, found in kept.items() if found}


def _read_table(path: Path, problems: list[str]) -> _Rows:
    text = read_text(path, newline="")
    table = csv.reader(io.StringIO(text), delimiter=";" if ";" in text.partition("\n")[0] else ",")
    try:
        columns = [name.strip().lower() for name in next(table, [])]
        if not set(_COLUMNS) <= set(columns):
            raise InputError(f"{path} has the columns {', '.join(columns) or 'none'}; expected {_EXPECTED}")
        for cells in filter(None, table):
            where, row = f"{path.name}:{table.line_num}", dict(zip(columns, cells, strict=False))
            answer = row.get("answer", "")
            if len(cells) != len(columns):
                problems.append(f"{where}: {len(cells)} cells, expected {len(columns)}")
            elif (holds := _VALUES.get(answer.strip().lower())) is None:
                problems.append(f"{where}: the answer must be {' or '.join(_VALUES)}, found {answer!r:.80}")
            else:
                plain = row["label"].removeprefix("'")
                yield where, row["image"], {plain if spreadsheet_text(plain) == row["label"] else row["label"]: holds}
    except csv.Error as error:
        raise InputError(f"{path}:{table.line_num} is no row of a table: {error}") from None


def _read_tasks(path: Path, tasks: Sequence[dict[str, Any]], problems: list[str]) -> tuple[_Rows, str]:
    """Returns the rows of Label Studio's tasks, and a description of what was read.

    A label that all annotations of a task chose is confirmed. A proposed label that none of them chose is rejected.
    """
    found, open_tasks, questions = [], 0, dict[str, None]()
    for index, task in enumerate(tasks):
        where = f"{path.name}: task {task.get('id', index)}"
        try:
            made = [each for each in task.get("annotations", task.get("completions")) if not each.get("was_cancelled")]
            made = [each for each in made if each.get("ground_truth")] or made
            chosen, proposed = [_choices(each["result"]) for each in made], _proposals(task, made)
            photo = _photo(task["data"])
        except ValueError as problem:
            problems.append(f"{where}: {problem}")
        except (AttributeError, KeyError, TypeError):
            problems.append(f"{where}: does not have the fields of Label Studio's JSON")
        else:
            open_tasks += not made
            if made:
                found.append((where, photo, chosen, proposed))
                questions |= dict.fromkeys(question for each in [*chosen, proposed or {}] for question in each)
    questions.pop(PROPOSED, None)
    if len(questions) > 1 and _QUESTION not in questions:
        raise InputError(
            f"{path} has several questions: {', '.join(questions)}; name the one about labels {_QUESTION!r}"
        )
    question = _QUESTION if _QUESTION in questions else next(iter(questions), _QUESTION)
    rows = []
    for where, photo, chosen, proposed in found:
        counts = Counter(label for each in chosen for label in dict.fromkeys(each.get(question, ())))
        if differing := [label for label, count in counts.items() if count < len(chosen)]:
            problems.append(f"{where}: its annotations differ about {', '.join(differing):.80}, which get no answer")
        answers = {label: True for label, count in counts.items() if count == len(chosen)}
        names = (proposed or {}).get(PROPOSED, (proposed or {}).get(question, ()))
        rows.append((where, photo, answers | {label: False for label in names if label not in counts}))
    layout = f"Label Studio's JSON, {open_tasks:,} of {len(tasks):,} tasks without an annotation"
    if bare := sum(proposed is None for *_, proposed in found):
        layout += f"; {bare:,} tasks do not say which labels were proposed, so they reject none"
    return rows, layout


def _choices(result: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns `{name of a question: chosen labels}`."""
    found: dict[str, list[str]] = {}
    for item in result:
        kind = item.get("type", "")
        if kind == "taxonomy":
            raise ValueError("a taxonomy is not read; write a table image,label,answer")
        if kind == "choices" or kind.endswith("labels"):
            found.setdefault(item.get("from_name", ""), []).extend(label_names(item["value"][kind]))
    return found


def _proposals(task: dict[str, Any], made: list[dict[str, Any]]) -> dict[str, list[str]] | None:
    """Returns the labels that were proposed: `{PROPOSED: labels}`, or as `_choices`; None if they are unknown.

    Label Studio's export has only the numbers of predictions, but the prediction that an annotation started from.
    """
    if PROPOSED in task["data"]:
        return {PROPOSED: [*label_names(task["data"][PROPOSED])]}
    given = [*(task.get("predictions") or ()), *(each.get("prediction") for each in made)]
    results = [each["result"] for each in given if isinstance(each, dict) and "result" in each]
    return _choices([item for result in results for item in result]) if results else None


def _photo(data: dict[str, Any]) -> str:
    texts = {name: text for name, text in data.items() if isinstance(text, str)}
    photos = [name for name, text in texts.items() if any(part.endswith(SUFFIXES) for part in text.lower().split("?"))]
    names = [name for name in ("image", *photos) if name in texts][:2]
    if not names or ("image" not in texts and len(names) > 1):
        raise ValueError(f"has {'several photos' if names else 'no photo'}; the field of the photo must be 'image'")
    return texts[names[0]]
