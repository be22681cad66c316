"""The requests of the review page: reads and changes a `ReviewSession`, with values that JSON can hold."""

import contextlib
import math
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aia_jax.utils.errors import InputError

if TYPE_CHECKING:
    from aia_jax.inference.review.session import ReviewSession

MOST_PHOTOS = 200  # photos with labels in a response; an order of 10,000 photos has only their numbers
_QUESTIONS = 3  # labels without a prediction that a photo asks for
_LONGEST_LABEL = 100  # characters
_JOINERS = dict.fromkeys((0x200C, 0x200D))  # Persian words and emoji need them


class RefusedError(Exception):
    """A request that cannot be served. `status` is the HTTP status, and the message is for the person."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class ReviewRequests:
    """Serves the requests of several pages and threads for one session.

    Attributes:
        title: text at the top of the page.
    """

    def __init__(self, session: "ReviewSession", title: str):
        self.title = title
        self._session = session
        self._lock = threading.RLock()  # a session is not made for several threads
        self._changes = 0  # number of answers, undone answers and new models: a page sees changes of other pages
        self._loading: tuple[int, int] | None = (0, 0)
        self._trainings = 0  # finished ones
        self._started_changes, self._trained_changes = 0, 0  # changes before the running training, and the last one
        self._fraction: float | None = None  # of the running one
        self._report: dict[str, Any] | None = None
        self._failure = ""

    def load(self, progress: Any = lambda done, total: None) -> None:
        """Loads the session. Until this method returns, `state` reports the progress, and other requests are refused.

        Args:
            progress: function that is called with the number of photos read, and of all photos.
        """

        def note(done: int, total: int) -> None:
            self._loading = (done, total)
            progress(done, total)

        self._session.load(note)
        self._loading = None

    def state(self) -> dict[str, Any]:
        """Returns what a page asks for again and again: the progress of reading, answering and training."""
        if self._loading:
            return {"title": self.title, "loading": list(self._loading)}
        return {
            "title": self.title,
            "loading": None,
            "problems": list(self._session.problems.items()),
            "trainings": self._trainings,
            "training": self._fraction,
            "failure": self._failure,
            **self._counts(),
        }

    def labels(self) -> list[str]:
        """Returns the names of all labels."""
        with self._loaded() as session:
            return list(session.labels)

    def report(self) -> dict[str, Any]:
        """Returns what the last training changed."""
        if self._report is None:
            raise RefusedError(404, "The model has not been trained again yet.")
        return self._report

    def order(self, label: str, sort: str, show: str) -> list[int]:
        """Returns the numbers of the photos to show, in order.

        Args:
            label: name of a label; "": all labels.
            sort: "name"; "useful": first the photos whose answers about the label are expected to improve the model
                most; or "uncertain": first those whose score is nearest to the threshold of the label. Without a label,
                photos of which the person has answered all questions then come last.
            show: "all", "answered" or "unanswered", with the answers about `label` or about any label.
        """
        with self._loaded() as session:
            self._check_label(label)
            if sort not in ("useful", "uncertain", "name") or show not in ("all", "answered", "unanswered"):
                raise RefusedError(400, "The order of the photos is not known.")
            photos = range(len(session.names))
            if sort != "name":
                photos = session.order(label or None, by_threshold=sort == "uncertain")
            given, wanted = session.answers, show == "answered"
            if sort != "name" and not label:
                done = [
                    name in given and self._is_done(number, given[name]) for number, name in enumerate(session.names)
                ]
                photos = sorted(photos, key=done.__getitem__)  # keeps the order of the others
            if show == "all":
                return [int(photo) for photo in photos]
            answers = [given.get(name, {}) for name in session.names]
            return [
                int(photo) for photo in photos if (label in answers[photo] if label else bool(answers[photo])) == wanted
            ]

    def photos(self, numbers: Sequence[int], label: str = "") -> list[dict[str, Any]]:
        """Returns the name of each photo and its labels: predicted ones, answered ones and a few questions.

        With `label`, this label is also a question. The labels are lists of the number of the label, its score or None,
        whether it is predicted, and the answer or None.
        """
        if len(numbers) > MOST_PHOTOS:
            raise RefusedError(400, f"A request is for at most {MOST_PHOTOS} photos.")
        with self._loaded():
            self._check_label(label)
            return self._described([self._checked(number) for number in numbers], label)

    def picture(self, number: int) -> bytes:
        """Returns a photo as a WebP file."""
        with self._loaded() as session:
            self._checked(number)
        try:
            return session.picture(number)  # decodes a file, without the lock
        except (OSError, InputError) as error:
            raise RefusedError(404, f"The photo cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def answer(self, photos: Any, label: Any, answer: Any) -> dict[str, Any]:
        """Stores an answer about a label of several photos, and returns the counts and the first of these photos."""
        with self._loaded() as session:
            if not isinstance(photos, list) or not photos:
                raise RefusedError(400, "An answer needs the numbers of one or more photos.")
            numbers = [self._checked(number) for number in photos]
            if not (answer is None or isinstance(answer, bool)):
                raise RefusedError(400, "An answer must be true, false or null.")
            session.answer(numbers, label if label in session.labels else _label_name(label), answer)
            self._changes += 1
            return {**self._counts(), "photos": self._described(numbers[:MOST_PHOTOS])}

    def undo(self) -> dict[str, Any]:
        """Undoes the last answer. Returns the counts, the undone answer or None, and the first of its photos."""
        with self._loaded() as session:
            undone = session.undo()
            if undone is None:
                return {**self._counts(), "undone": None, "photos": []}
            self._changes += 1
            images = set(undone["images"])
            numbers = [number for number, name in enumerate(session.names) if name in images]
            shown = {"label": undone["label"], "answer": undone["answer"], "count": len(images)}
            photos = self._described(numbers[:MOST_PHOTOS])
            return {**self._counts(), "undone": shown, "numbers": numbers, "photos": photos}

    def train(self) -> None:
        """Starts the training in a thread; `state` tells its progress and its end."""
        with self._loaded():
            if self._fraction is not None:
                raise RefusedError(409, "The model is being trained already. Wait until it is ready.")
            self._fraction, self._failure, self._started_changes = 0.0, "", self._changes
        threading.Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        def note(fraction: float) -> None:
            self._fraction = min(max(float(fraction), 0.0), 1.0)

        failure = ""
        try:
            self._report = self._session.retrain(note)
        except InputError as error:
            failure = str(error)
        except Exception as error:  # the page must say that a thread has failed
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        with self._lock:
            self._failure = failure and f"The training failed, and the model is as before. {failure}"
            self._trainings += 1
            self._changes += 1
            if not failure:
                self._trained_changes = self._started_changes + 1
            self._fraction = None

    @contextlib.contextmanager
    def _loaded(self) -> Iterator["ReviewSession"]:
        if self._loading:
            raise RefusedError(503, "The photos are being read. Try again when they are ready.")
        with self._lock:
            yield self._session

    def _check_label(self, label: str) -> None:
        if label and label not in self._session.labels:
            raise RefusedError(404, f"There is no label {label}.")

    def _checked(self, number: Any) -> int:
        if isinstance(number, bool) or not isinstance(number, int):
            raise RefusedError(400, "The number of a photo must be a whole number.")
        if not 0 <= number < len(self._session.names):
            raise RefusedError(404, f"There is no photo {number}.")
        return number

    def _counts(self) -> dict[str, Any]:
        with self._lock:
            labels = len(self._session.labels)
            fresh = self._changes - self._trained_changes
            return {
                "changes": self._changes,
                "fresh": fresh,
                "num_labels": labels,
                "progress": self._session.progress(),
            }

    def _is_done(self, number: int, given: Mapping[str, bool]) -> bool:
        """Whether a photo with the answers `given` has no open question."""
        session = self._session
        predicted = np.flatnonzero(session.scores[number] > session.thresholds)
        others = len(given) - len(predicted)
        return others >= _QUESTIONS and all(session.labels[place] in given for place in predicted)

    def _described(self, numbers: Sequence[int], label: str = "") -> list[dict[str, Any]]:
        """Returns the names and labels of photos; see `photos`."""
        session = self._session
        places, answers = {label: place for place, label in enumerate(session.labels)}, session.answers
        found = []
        for number in numbers:
            name, scores = session.names[number], session.scores[number]
            given = {places[label]: answer for label, answer in answers.get(name, {}).items()}
            best_first = np.argsort(-scores, kind="stable")
            predicted = best_first[(scores > session.thresholds)[best_first]].tolist()
            others = [place for place in given if place not in predicted]
            wanted = max(_QUESTIONS - len(others), 0)
            asked = session.questions(number, wanted + len(predicted))
            asked = [place for place in asked if place not in predicted][:wanted]
            if label and places[label] not in (*predicted, *others, *asked):
                asked.append(places[label])
            rows = [
                [place, None if math.isnan(scores[place]) else round(float(scores[place]), 4), kind, given.get(place)]
                for kind, some in ((True, predicted), (False, others), (False, asked))
                for place in some
            ]
            found.append({"number": number, "name": name, "labels": rows})
        return found


def _label_name(label: Any) -> str:
    """Returns the name of a new label, without spaces around it. Refuses names that nobody could read."""
    name = " ".join(label.split()) if isinstance(label, str) else ""
    visible = name.translate(_JOINERS)
    if not visible or len(name) > _LONGEST_LABEL or not visible.isprintable():
        raise RefusedError(400, f"The name of a label must have 1 to {_LONGEST_LABEL} printable characters.")
    return name
