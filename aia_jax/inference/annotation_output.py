"""Labels of photos on disk: an append-only file that an interrupted call continues, and files derived from it.

    settings.json                  what made the labels; another model, folder or threshold never adds to them
    annotations.jsonl              {"image": ..., "labels": [{"label": ..., "score": ...}, ...]}, a photo a line
    problems.jsonl                 {"image": ..., "problem": ...}, photos that could not be read in the last call
    annotations.csv                image,label,score, a label a row; derived
    keywords/<image>.json          {"tagging": {"keywords": [...]}}; derived
    pictures.jsonl                 see `data.pictures`, where pictures were asked for

The JSON is ASCII, so that separators of lines within names, and their bytes that are no UTF-8 (as Python's
surrogateescape has them), pass every reader. The CSV is RFC 4180 in UTF-8, such bytes as they are. Names that a
spreadsheet would run as a formula begin with ./ there, which names the same file; labels, which are the model's own and
not those of whoever sent the photos, are as they are.
"""

import contextlib
import csv
import errno
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from aia_jax.inference.thumbnails import PICTURES, Thumbnail, ThumbnailStore
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock, write_bytes, write_json

SETTINGS, ANNOTATIONS, PROBLEMS, TABLE, KEYWORDS = (
    "settings.json",
    "annotations.jsonl",
    "problems.jsonl",
    "annotations.csv",
    "keywords",
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NO_FILE = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class AnnotationOutput:
    """The output of one call; a context.

    Args:
        folder: made if it is absent.
        settings: what the labels depend on, as JSON has it.
        force: whether labels that are there are dropped.
        pictures: whether pictures of the photos are kept too.

    Attributes:
        done: names of the photos that have labels already.
        pictures: those that are there already; None if they are not kept.

    Raises:
        InputError: labels of other settings are there, files that are not ours or are damaged, or another process
            writes there.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, force: bool = False, pictures: bool = False):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {folder} is a file; name a folder")
        settings = json.loads(json.dumps(settings))  # as they will be read back
        self._folder = folder
        with contextlib.ExitStack() as opened:
            folder.mkdir(parents=True, exist_ok=True)
            refusal = f"another process is annotating into {folder}; wait for it, or name another --output"
            opened.enter_context(exclusive_lock(folder, refusal))
            _check_ours(folder)
            if force:
                _clear(folder)
            else:
                _check_same(folder, settings)
            write_json(folder / SETTINGS, settings)
            self._annotations = opened.enter_context((folder / ANNOTATIONS).open("a+b"))
            self._problems = opened.enter_context((folder / PROBLEMS).open("wb"))
            self.done = _recover(self._annotations, folder / ANNOTATIONS)
            self.pictures = opened.enter_context(ThumbnailStore(folder)) if pictures else None
            self._open = opened.pop_all()

    def __enter__(self) -> "AnnotationOutput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def has(self, name: str) -> bool:
        """Whether all is there that is kept of a photo."""
        return name in self.done and (self.pictures is None or name in self.pictures)

    def add(
        self,
        photos: Iterable[tuple[str, Sequence[tuple[str, float]]]],
        problems: Iterable[tuple[str, str]],
        pictures: Iterable[tuple[str, Thumbnail]] = (),
    ) -> None:
        """Appends labels of photos, why others cannot be used, and pictures; a crash of this process afterwards loses
        none."""
        for name, picture in pictures:
            self.pictures.add(name, picture)
        for name, labels in photos:
            self._annotations.write(_line({"image": name, "labels": [_label(*label) for label in labels]}))
        for name, problem in problems:
            self._problems.write(_line({"image": name, "problem": problem}))
        self._annotations.flush()
        self._problems.flush()

    def read(self) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """All photos with labels, in the order in which they were added."""
        path = self._folder / ANNOTATIONS
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _parsed(line, path, number)

    def problems(self) -> Iterator[tuple[str, str]]:
        """The photos that cannot be used, and why."""
        with (self._folder / PROBLEMS).open("rb") as file:
            for line in file:
                problem = json.loads(line)
                yield problem["image"], problem["problem"]

    def derive(self) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """Writes the table, whole or not at all, and the keywords of every photo; yields what `read` does, on the way.

        A photo whose keywords cannot have a file of that name is among the problems.
        """
        with tempfile.TemporaryDirectory(prefix=".annotations.", dir=self._folder) as temporary:
            whole = Path(temporary) / TABLE
            with whole.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                table = csv.writer(file)
                table.writerow(("image", "label", "score"))
                for name, labels in self.read():
                    shown = f"./{name}" if name.startswith(_FORMULA) else name
                    table.writerows((shown, label, score) for label, score in labels)
                    self._write_keywords(name, [label for label, _ in labels])
                    yield name, labels
            whole.replace(self._folder / TABLE)

    def _write_keywords(self, name: str, keywords: list[str]) -> None:
        path = self._folder / KEYWORDS / f"{name}.json"
        try:
            if not path.is_file():  # a line never changes, so neither does its file
                write_bytes(path, _line({"tagging": {"keywords": keywords}}))
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            self.add([], [(name, f"its file of keywords cannot be written: {error.strerror}")])


def _check_ours(folder: Path) -> None:
    if (folder / SETTINGS).exists():
        return
    for name in (ANNOTATIONS, PROBLEMS, TABLE, KEYWORDS, PICTURES):
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} is there, without the {SETTINGS} that says what made it; name another --output"
            )


def _clear(folder: Path) -> None:
    for name in (ANNOTATIONS, PROBLEMS, TABLE, PICTURES):
        (folder / name).unlink(missing_ok=True)
    if (folder / KEYWORDS).exists():
        shutil.rmtree(folder / KEYWORDS)


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(key for key in there.keys() | settings.keys() if there.get(key) != settings.get(key))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}; --force starts anew, --output names another place") from None
    if differing:
        raise InputError(
            f"{path} tells of annotations whose {', '.join(differing)} differ from these; results are never mixed: "
            "--force starts anew, --output names another place"
        )


def _recover(file: BinaryIO, path: Path) -> set[str]:
    """The photos of the whole lines; a torn last one is cut off."""
    done, end = set(), 0
    file.seek(0)
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break
        done.add(_parsed(line, path, number)[0])
        end += len(line)
    file.truncate(end)
    return done


def _parsed(line: bytes, path: Path, number: int) -> tuple[str, list[tuple[str, float]]]:
    try:
        photo = json.loads(line)
        return photo["image"], [(label["label"], label["score"]) for label in photo["labels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}:{number} is damaged: {error}; delete the line, or start anew with --force") from None


def _label(label: str, score: float) -> dict[str, Any]:
    return {"label": label, "score": score}


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()
