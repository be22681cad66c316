"""Stores the answers of a person about the labels of photos: JSON lines, one for each action.

    {"time": ..., "folder": ..., "images": [name, ...], "label": "dog", "answer": true}     the photos have the label
    {"time": ..., "folder": ..., "images": [name, ...], "label": "dog", "answer": false}    they do not have it
    {"time": ..., "folder": ..., "images": [name, ...], "label": "dog", "answer": null}     takes the answers back
    {"time": ..., "undo": true}                                                             undoes the last action

A later answer replaces an earlier one. An undone action counts as if it had not happened. `folder` is the folder of the
photos. If it is moved, the answers are still about the photos with the same names.
"""

import contextlib
import filecmp
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aia_jax.data.annotation.annotations import label_problem
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import complete_lines, exclusive_lock, os_errors_as_input_errors

CORRECTIONS = "corrections.jsonl"
_ADVICE = "the answer is not stored; make room or make the folder writable, and answer again"


class Corrections(contextlib.ExitStack):
    """Context manager for the answers in `folder`, which is created. Each action is written to the file at once.

    Args:
        images: folder of the photos; None: the answers are not compared with photos.

    Attributes:
        answers: `{image: {label: answer}}`. An answer is True (the image has the label) or False. Images and labels
            without an answer are left out.

    Raises:
        InputError: another process reviews the same run, the file is damaged, the folder cannot be written, or there
            are answers about other photos of the same names.
    """

    def __init__(self, folder: Path, images: Path | None = None):
        super().__init__()
        self._images = os.path.realpath(images) if images else ""
        self.answers: dict[str, dict[str, bool]] = {}
        self._folder, self._path = folder, folder / CORRECTIONS
        self._actions: list[tuple[dict[str, Any], dict[str, bool | None]]] = []  # with the answers before the action
        with contextlib.ExitStack() as opened:
            with os_errors_as_input_errors(folder, None, "make it writable, or name another --workdir"):
                folder.mkdir(parents=True, exist_ok=True)
                refusal = f"another process reviews photos in {folder}; close it first, or name another --workdir"
                opened.enter_context(exclusive_lock(folder, refusal))
                self._file = opened.enter_context(self._path.open("a+b", buffering=0))
                for number, (_, line) in enumerate(complete_lines(self._file), start=1):
                    self._apply(self._parse(line, number))
                self._end = self._file.seek(0, 2)
            self._check_photos()
            self.enter_context(opened.pop_all())

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels with an answer, in the order of their first action."""
        answered = {label for answers in self.answers.values() for label in answers}
        return tuple(dict.fromkeys(action["label"] for action, _ in self._actions if action["label"] in answered))

    def answer(self, images: Sequence[str], label: str, answer: bool | None) -> None:
        """Stores one answer about a label of one or more images. None takes earlier answers back.

        Raises InputError if the label is not valid, or the file cannot be written. Then nothing changes.
        """
        if not images:
            raise InputError("an answer needs at least one photo")
        if not (answer is None or isinstance(answer, bool)):
            raise InputError(f"an answer must be true, false or null, found {answer!r:.80}")
        if problem := label_problem(label):
            raise InputError(f"a label {problem}")
        where = {"folder": self._images} if self._images else {}
        self._add({**where, "images": list(dict.fromkeys(images)), "label": label, "answer": answer})

    def undo(self) -> dict[str, Any] | None:
        """Undoes the last action that is not undone yet.

        Returns:
            The undone action, with `images`, `label` and `answer`; None if there is no action.

        Raises InputError if the file cannot be written. Then nothing changes.
        """
        if not self._actions:
            return None
        undone = self._actions[-1][0]
        self._add({"undo": True})
        return {name: undone[name] for name in ("images", "label", "answer")}

    def _check_photos(self) -> None:
        """Raises InputError if an answer is about another photo that has the name of a photo in the folder."""
        folders: dict[str, dict[str, None]] = {}
        for action, _ in self._actions:
            names = (name for name in action["images"] if name in self.answers)
            folders.setdefault(action.get("folder", ""), {}).update(dict.fromkeys(names))
        for folder in folders.keys() - {"", self._images} if self._images else ():
            for name in folders[folder]:
                answered, photo = os.path.join(folder, name), os.path.join(self._images, name)
                both = os.path.isfile(answered) and os.path.isfile(photo)
                if both and not os.path.samefile(answered, photo) and not filecmp.cmp(answered, photo, shallow=False):
                    raise InputError(
                        f"{self._path} has answers about {answered}, and {photo} is another photo with the same name; "
                        "rename it, or review these photos with a copy of the run"
                    )

    def _add(self, action: dict[str, Any]) -> None:
        line = (json.dumps({"time": round(time.time(), 3), **action}) + "\n").encode()
        with os_errors_as_input_errors(self._folder, None, _ADVICE):
            self._file.truncate(self._end)  # removes what an earlier write to a full disk left
            written = self._file.write(line)
            if written < len(line):
                written += self._file.write(line[written:])  # raises the error of the disk
            if written < len(line):
                raise OSError(28, "No space left on device")
        self._end += len(line)
        self._apply(action)

    def _apply(self, action: dict[str, Any]) -> None:
        if action.get("undo"):
            undone, before = self._actions.pop()
            for image, answer in before.items():
                self._set(image, undone["label"], answer)
            return
        label = action["label"]
        before = {image: self.answers.get(image, {}).get(label) for image in action["images"]}
        self._actions.append((action, before))
        for image in before:
            self._set(image, label, action["answer"])

    def _set(self, image: str, label: str, answer: bool | None) -> None:
        answers = self.answers.setdefault(image, {})
        if answer is None:
            answers.pop(label, None)
        else:
            answers[label] = answer
        if not answers:
            del self.answers[image]

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        """Returns the action in a line. Raises InputError with the name of the file and the line if it is damaged."""
        try:
            action = json.loads(line)
            if action.get("undo") is True:
                if not self._actions:
                    raise ValueError("there is no action to undo before it")
                return action
            images, answer = action["images"], action["answer"]
            if not (isinstance(images, list) and images and all(isinstance(image, str) for image in images)):
                raise ValueError("images must be a list of names")
            if not (answer is None or isinstance(answer, bool)):
                raise ValueError(f"an answer must be true, false or null, found {answer!r:.80}")
            if problem := label_problem(action["label"]):
                raise ValueError(f"a label {problem}")
            return action
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"{self._path}:{number} is damaged: {why}; correct or delete the line") from None
