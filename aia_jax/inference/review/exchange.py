"""Exchanges the answers of a review with other programs: Label Studio, COCO's JSON, and a table image,label,answer."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from aia_jax.data.exporting import (
    ANSWERS,
    ExportedPhoto,
    server_settings,
    write_answers,
    write_coco,
    write_label_studio,
)
from aia_jax.data.importing.answers import read_answers
from aia_jax.data.photo_folder import photo_names
from aia_jax.inference.review.corrections import Corrections
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count, list_problems, printable

FORMATS = ("label-studio", "coco", "csv")
_MOST_LISTED = 20


def export_answers(
    corrections: Corrections, images: Path, labels: Sequence[str], file_format: str, output: Path
) -> list[str]:
    """Writes all answers about photos that are in the folder `images`.

    Args:
        labels: the vocabulary of the run. Labels that the person added follow it.
        file_format: one of `FORMATS`.
        output: the file to write. Label Studio's labeling interface is beside it, with the suffix .xml.

    Returns:
        Lines for the person: what was written, and what was left out.

    Raises:
        InputError: there is no answer, or the format cannot hold a label.
    """
    answers = corrections.answers
    photos = [ExportedPhoto(name, None, answers[name]) for name in photo_names(images) if name in answers]
    if not photos:
        raise InputError(f"no photo in {images} has an answer; answer first: aia review without --export")
    labels = tuple(dict.fromkeys((*labels, *corrections.labels)))
    left_out = [
        f"{printable(name)}: no longer in the folder"
        for name in sorted(answers.keys() - {photo.name for photo in photos})
    ]
    lines = []
    if file_format == "csv":
        write_answers(output, photos)
    elif file_format == "coco":
        problems = write_coco(output, images, lambda: photos, labels)
        left_out += [f"{printable(name)}: {problem}" for name, problem in problems]
    else:
        write_label_studio(output, images, photos, labels, "")
        lines.append(server_settings(images))
    lines.insert(
        0, f"answers about {format_count(len(answers) - len(left_out), 'photo')} written to {printable(str(output))}"
    )
    if left_out:
        lines.append(f"{format_count(len(left_out), 'photo')} left out:{list_problems(left_out, _MOST_LISTED)}")
    return lines


def import_answers(corrections: Corrections, images: Path, labels: Sequence[str], path: Path) -> list[str]:
    """Stores the answers in a file. They replace other answers about the same photos and labels.

    Args:
        images: folder of the photos.
        labels: the vocabulary of the run. The file may add labels, as a person can.
        path: a file that `export_answers` or one of the other programs wrote; see `read_answers`.

    Returns:
        Lines for the person: what was stored and replaced, added labels, and the entries that were not used.

    Raises:
        InputError: the file cannot be read, or has no answer that can be used. Then nothing changes.
    """
    known = dict.fromkeys((*labels, *corrections.labels))
    found = read_answers(path, images, photo_names(images), known)
    unused = f"not used: {format_count(len(found.problems), 'problem')} of entries:"
    unused += list_problems(list(map(printable, found.problems)), _MOST_LISTED)
    if not found.answers:
        raise InputError(f"{found.understood}{'; ' + unused if found.problems else ''}")
    actions: dict[tuple[str, bool], list[str]] = defaultdict(list)
    replaced, added = [], Counter[str]()
    for photo, answers in found.answers.items():
        stored = corrections.answers.get(photo, {})
        for label, holds in answers.items():
            if stored.get(label) is holds:
                continue
            actions[label, holds].append(photo)
            added[label] += label not in known
            if label in stored:
                replaced.append(f"{printable(photo)}: {printable(label)} is {ANSWERS[holds]}, was {ANSWERS[not holds]}")
    for (label, holds), photos in actions.items():
        corrections.answer(photos, label, holds)
    number = sum(map(len, actions.values()))
    total = sum(map(len, found.answers.values()))
    lines = [found.understood, f"{format_count(number, 'answer')} stored, {total - number:,} were stored before"]
    if replaced:
        listed = list_problems(replaced, _MOST_LISTED)
        lines.append(f"{format_count(len(replaced), 'answer')} of these replaced the opposite answer:{listed}")
    if new := [f"{printable(label)}: {format_count(count, 'answer')}" for label, count in added.items() if count]:
        lines.append(f"{format_count(len(new), 'label')} added that the run does not have:{list_problems(new)}")
    return [*lines, unused] if found.problems else lines
