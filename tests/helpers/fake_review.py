"""A review session in memory, with the methods of `ReviewSession` and without a model."""

import threading

import numpy as np

from aia_jax.data.image_decoding import encode_webp
from aia_jax.utils.errors import InputError


class FakeSession:
    """Some photos with random scores. `trained` ends a training; `disk_full` refuses answers."""

    def __init__(self, num_photos=12, labels=("sea", "sky", "sand", "tree", "dog"), seed=0):
        rng = np.random.default_rng(seed)
        self.names = tuple(f"photo{number:02}.jpg" for number in range(num_photos))
        self.labels, self.answers, self.problems = tuple(labels), {}, {}
        self.scores = rng.uniform(0, 1, (num_photos, len(labels))).astype(np.float32)
        self.thresholds = np.full(len(labels), 0.5)
        self.actions, self.disk_full, self.trained = [], False, threading.Event()

    def load(self, progress):
        progress(len(self.names), len(self.names))

    def order(self, label=None, *, by_threshold=False):
        columns = [self.labels.index(label)] if label else range(len(self.labels))
        order = np.argsort(self._distances()[:, columns].min(axis=1), kind="stable").tolist()
        return order[::-1] if by_threshold else order

    def questions(self, photo, limit):
        found = self._distances()[photo]
        order = np.argsort(found, kind="stable")[:limit]
        return order[np.isfinite(found[order])].tolist()

    def answer(self, photos, label, answer):
        if self.disk_full:
            raise InputError("the disk of review is full: the answer is not stored")
        if label not in self.labels:
            self.labels = (*self.labels, label)
            self.scores = np.pad(self.scores, ((0, 0), (0, 1)), constant_values=np.nan)
            self.thresholds = np.append(self.thresholds, 0.5)
        images = [self.names[photo] for photo in photos]
        self.actions.append((images, label, answer, {name: self.answers.get(name, {}).get(label) for name in images}))
        self._set(dict.fromkeys(images, answer), label)

    def undo(self):
        if not self.actions:
            return None
        images, label, answer, before = self.actions.pop()
        self._set(before, label)
        return {"images": images, "label": label, "answer": answer}

    def picture(self, photo):
        return encode_webp(np.full((60, 80, 3), (20 * photo % 255, 120, 200), np.uint8))

    def progress(self):
        return {
            "photos": len(self.names),
            "answered_photos": len(self.answers),
            "answers": sum(map(len, self.answers.values())),
        }

    def retrain(self, progress):
        progress(0.5)
        if not self.answers:
            raise InputError("there are no answers yet")
        assert self.trained.wait(30)
        self.scores = 1 - self.scores
        label = {"label": "sea", "confirmed": 1, "rejected": 0, "imported": 9, "threshold_before": 0.5}
        metrics = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "map": 40.0}
        return {
            "photos": len(self.answers),
            "answers": self.progress()["answers"],
            "labels": [{**label, "threshold_after": np.float64(0.4)}],
            "changed_photos": 3,
            "gained": {"sea": 2},
            "lost": {"<b>sky</b>": 1},
            "metrics": {"split": "test", "photos": 5, "before": metrics, "after": {**metrics, "map": 42.5}},
        }

    def _set(self, answers, label):
        for name, answer in answers.items():
            self.answers.setdefault(name, {})[label] = answer
            if answer is None:
                del self.answers[name][label]
            if not self.answers[name]:
                del self.answers[name]

    def _distances(self):
        found = np.nan_to_num(np.abs(self.scores - self.thresholds), nan=np.inf)
        for row, name in enumerate(self.names):
            for label in self.answers.get(name, ()):
                found[row, self.labels.index(label)] = np.inf
        return found
