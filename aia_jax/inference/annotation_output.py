"""Writes the files in the output folder of `aia annotate`. After an interruption, the next call continues.

    settings.json                  the settings that determine the labels; one set of settings for all photos
    annotations.jsonl              {"image": ..., "labels": [{"label": ..., "score": ...}, ...]}, a line per photo
    problems.jsonl                 {"image": ..., "problem": ...}, the unreadable photos of the last call
    annotations.csv                image,label,score: a row per label, derived from annotations.jsonl
    keywords/<image>.json          {"tagging": {"keywords": [...]}}: a file per photo, derived from annotations.jsonl
    pictures.jsonl                 see `thumbnails`; only for the HTML page
    label_studio.json, .xml        see `exporting`; derived from annotations.jsonl by `export`
    coco.json                      likewise

The JSON files are ASCII. They can store any file name, even with line separators or with bytes that are not UTF-8. Such
bytes become escapes such as \\udce9. The CSV file follows RFC 4180 in UTF-8, and has the same escapes in such names.
A spreadsheet would run a file name such as "=a.jpg" as a formula. The CSV file therefore contains "./=a.jpg", which is
a path of the same photo. Such a label gets a single quote at its beginning.
"""

import contextlib
import csv
import errno
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aia_jax.data.exporting import ExportedPhoto, write_coco, write_label_studio
from aia_jax.inference.thumbnails import PICTURES, Thumbnail, ThumbnailStore
from aia_jax.report.gallery.writer import PageLabel, PagePhoto, announce_size, encode_scores, write_gallery_page
from aia_jax.report.page_parts import folder_url
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path, check_writable, complete_lines, exclusive_lock, write_bytes, write_json
from aia_jax.utils.messages import spreadsheet_path, spreadsheet_text

SETTINGS = "settings.json"
ANNOTATIONS = "annotations.jsonl"
PROBLEMS = "problems.jsonl"
TABLE = "annotations.csv"
KEYWORDS = "keywords"
FORMATS = {"label-studio": "label_studio.json", "coco": "coco.json"}

_BAD_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
Labels = Sequence[tuple[str, float]]  # pairs of a label and its score


class AnnotationOutput(contextlib.ExitStack):
    """Context manager for the output folder of `aia annotate`.

    `settings` are the settings that determine the labels, as JSON values. `force` deletes the labels of earlier calls.

    Attributes:
        done: names of the photos whose labels are stored.
        pictures: the stored thumbnails; None if this output does not store thumbnails.

    Raises:
        InputError: the folder has labels from other settings, labels without `settings.json`, or damaged files; or
            another process writes to the folder.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, force: bool = False, pictures: bool = False):
        super().__init__()
        check_writable(folder)
        self._folder = folder
        with contextlib.ExitStack() as opened:
            folder.mkdir(parents=True, exist_ok=True)
            refusal = f"another process is annotating into {folder}; wait for it, or name another --output"
            opened.enter_context(exclusive_lock(folder, refusal))
            if not (folder / SETTINGS).exists():
                _check_origin(folder)
            elif not force:
                check_settings(folder / SETTINGS, (folder / SETTINGS).read_bytes(), settings)
            if force:
                for name in (ANNOTATIONS, PROBLEMS, TABLE, PICTURES, *FORMATS.values()):
                    (folder / name).unlink(missing_ok=True)
                if (folder / KEYWORDS).exists():
                    shutil.rmtree(folder / KEYWORDS)
            write_json(folder / SETTINGS, settings)
            self._annotations = opened.enter_context((folder / ANNOTATIONS).open("a+b"))
            self._problems = opened.enter_context((folder / PROBLEMS).open("wb"))
            lines = enumerate(complete_lines(self._annotations), start=1)
            self.done = {_parse(line, folder / ANNOTATIONS, number)[0] for number, (_, line) in lines}
            self.pictures = opened.enter_context(ThumbnailStore(folder)) if pictures else None
            self.enter_context(opened.pop_all())

    def has(self, name: str) -> bool:
        """Returns whether a photo's labels are stored and, if this output stores thumbnails, also the thumbnail."""
        return name in self.done and (self.pictures is None or name in self.pictures)

    def add(
        self,
        photos: Iterable[tuple[str, Labels]],
        problems: Iterable[tuple[str, str]],
        pictures: Iterable[tuple[str, Thumbnail]] = (),
    ) -> None:
        """Appends labels, reasons why photos cannot be used, and thumbnails to the files, and flushes the files."""
        for name, picture in pictures:
            self.pictures.add(name, picture)
        for name, labels in photos:
            scored = [{"label": label, "score": score} for label, score in labels]
            self._annotations.write(_line({"image": name, "labels": scored}))
            self.done.add(name)
        for name, problem in problems:
            self._problems.write(_line({"image": name, "problem": problem}))
        self._annotations.flush()
        self._problems.flush()

    def read(self) -> Iterator[tuple[str, Labels]]:
        """Yields the name and labels of each annotated photo, in the order in which the photos were added."""
        path = self._folder / ANNOTATIONS
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _parse(line, path, number)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the name of each photo that cannot be used, and the reason."""
        with (self._folder / PROBLEMS).open("rb") as file:
            for line in map(json.loads, file):
                yield line["image"], line["problem"]

    def derive(self) -> Iterator[tuple[str, Labels]]:
        """Writes the CSV file atomically, and one keywords file per photo. Yields a photo's name and labels after that.

        If the name of a photo cannot be the name of a keywords file, adds the photo to `problems.jsonl`.
        """
        with (
            atomic_path(self._folder / TABLE) as path,
            path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow(("image", "label", "score"))
            for name, labels in self.read():
                rows = ((spreadsheet_path(name), spreadsheet_text(label), score) for label, score in labels)
                table.writerows(rows)
                self._write_keywords(name, [label for label, _ in labels])
                yield name, labels

    def export(
        self, formats: Iterable[str], photos: Path, names: Collection[str], labels: Sequence[str], model: str
    ) -> None:
        """Writes the labels of the photos in `names` in the given `FORMATS`.

        If the size of a photo cannot be read, adds the photo to `problems.jsonl`.

        Args:
            photos: the folder of the photos.
            labels: the vocabulary of the model.
            model: name of the model.

        Raises InputError if a format cannot hold a label.
        """

        def read() -> Iterator[ExportedPhoto]:
            bar = tqdm(self.read(), desc=path.name, unit="img", leave=False, dynamic_ncols=True, mininterval=0.5)
            return (ExportedPhoto(name, found) for name, found in bar if name in names)

        for name in formats:
            path = self._folder / FORMATS[name]
            if name == "coco":
                self.add([], write_coco(path, photos, read, labels))
            else:
                write_label_studio(path, photos, read(), labels, model)

    def _write_keywords(self, name: str, keywords: list[str]) -> None:
        path = self._folder / KEYWORDS / f"{name}.json"
        try:
            if not path.is_file():  # the labels of a photo never change
                write_bytes(path, _line({"tagging": {"keywords": keywords}}))
        except OSError as error:
            if error.errno not in _BAD_NAME:
                raise
            self.add([], [(name, f"its file of keywords cannot be written: {error.strerror}")])


def write_gallery(
    path: Path,
    photos: Path,
    labels: Sequence[str],
    output: AnnotationOutput,
    queries: Iterable[tuple[str, Mapping[str, float]]] = (),
) -> None:
    """Writes an HTML page with all annotated photos and a list of the unreadable photos to `path`.

    Each query is a pair of a sentence and the scores of the photos for it, `{name: score}`.
    """
    folder = photos.resolve()
    title, problems = folder.name or str(folder), list(output.problems())
    facts = {"title": title, "subtitle": str(folder), "labels": labels, "problems": problems}
    names = [name for name, _ in output.read()]
    facts["queries"] = [(query, encode_scores(map(scores.get, names))) for query, scores in queries]
    page_photos = announce_size(_page_photos(labels, output), len(output.done), path.name)
    write_gallery_page(path, page_photos, **facts, folder=folder_url(folder, path))


def _page_photos(labels: Sequence[str], output: AnnotationOutput) -> Iterator[PagePhoto]:
    numbers = {label: number for number, label in enumerate(labels)}
    bar = tqdm(output.read(), desc="page", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5)
    for name, scored in bar:
        thumbnail = output.pictures.get(name) or Thumbnail(b"")
        maps = {numbers[label]: heat for label, heat in zip(thumbnail.labels, thumbnail.maps, strict=True)}
        yield PagePhoto(name, [PageLabel(numbers[label], score) for label, score in scored], thumbnail.webp, maps)


def _check_origin(folder: Path) -> None:
    for name in (ANNOTATIONS, PROBLEMS, TABLE, KEYWORDS, PICTURES):
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} is there, without the {SETTINGS} that says what made it; name another --output"
            )


def check_settings(path: Path | str, written: str | bytes, settings: dict[str, Any]) -> None:
    """Raises InputError if the content `written` of a file of settings is damaged, or differs from `settings`."""
    advice = "--force starts anew, --output names another place"
    settings = json.loads(json.dumps(settings))  # JSON changes tuples to lists, for example
    try:
        stored = json.loads(written)
        differing = sorted(key for key in stored.keys() | settings.keys() if stored.get(key) != settings.get(key))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}; {advice}") from None
    if differing:
        raise InputError(
            f"{path} describes annotations whose {', '.join(differing)} differ from these; results are never mixed: "
            f"{advice}"
        )


def _parse(line: bytes, path: Path, number: int) -> tuple[str, Labels]:
    try:
        photo = json.loads(line)
        return photo["image"], [(label["label"], label["score"]) for label in photo["labels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}:{number} is damaged: {error}; delete the line, or start anew with --force") from None


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()
