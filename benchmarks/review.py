"""Simulates `aia review`: how fast the annotation of Corel-5k improves with the answers of a person.

    python -m benchmarks.review --full --root datasets --output benchmarks/results/review-corel5k-lite2-cpu.json

300 training photos have all their labels. The truth answers questions about the other 4,200: a click is an answer about
a label of a photo. After each number of clicks, the head is trained again, and evaluated on the test split. A seed is
another choice of the 300 photos. Ways to choose the questions:

    gain            those of `aia review`: photos with the highest expected gains, 5 labels of each
    random photos   the same questions about photos in random order
    random labels   labels of photos in random order, without the model
    uncertain       photos with the score nearest to a threshold, and the 5 labels nearest to theirs

An interrupted benchmark continues with the same `--output`. With `--limits`, 500 training photos are left out, and the
benchmark prints on them what each limit of the MCC gives (`refit_mcc`), without answers and after 2,000.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.flags import Parser
from aia_jax.configs import corel5k_lite
from aia_jax.data.feature_cache import prepare_pooled
from aia_jax.inference.review.imported import LabelledFeatures
from aia_jax.inference.review.ranking import expected_gains, rank_photos, uncertainties
from aia_jax.inference.review.retraining import fit_head, initial_head, join_rows
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.metrics.thresholds import refit_mcc
from aia_jax.report.figures import QUIET, Page
from aia_jax.tasks.frozen_backbone import FrozenBackboneTask
from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
from aia_jax.training.sharding import data_mesh
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_json
from aia_jax.weights.packages import package_parts
from benchmarks.comparison import add_seed_arguments, chosen_seeds, run_command
from benchmarks.timing import machine, progress, versions

_SEEDS = (0, 1, 2, 3, 4)
_IMPORTED = 300  # photos
_QUESTIONS = 5  # labels asked about one photo at a time
_CLICKS = (0, 250, 500, 1000, 2000, 4000, 8000)
_WAYS = {"gain": "#0068a8", "random photos": "#c8400a", "random labels": "#8c5a00", "uncertain": "#6a3d9a"}
_METRICS = ("f1", "n_plus", "map")
_LEFT_OUT = 500  # photos, for the limits of the MCC
_LIMITS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


class Photos(NamedTuple):
    """Photos: features `[N, 1, 1, F]`, features of the flipped photos, and labels bool `[N, C]`."""

    features: np.ndarray
    flipped: np.ndarray
    targets: np.ndarray


class Head(NamedTuple):
    """The arrays of a trained head, thresholds `[C]`, and the arguments of `refit_mcc` that gave them."""

    arrays: dict[str, np.ndarray]
    thresholds: np.ndarray
    fitted_to: tuple[np.ndarray, ...]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Computes the scores `[N, C]` of features `[N, 1, 1, F]`."""
        logits = features[:, 0, 0] @ self.arrays["head.linear.kernel"] + self.arrays["head.linear.bias"]
        return 1 / (1 + np.exp(-logits))


class Simulation:
    """A review with a simulated person.

    Args:
        config: config of the run.
        train: the training photos.
        seed: seed of the choice of the imported photos, and of random questions.
    """

    def __init__(self, config: ConfigDict, train: Photos, seed: int):
        self._config, self._rng = config, np.random.default_rng(seed)
        order = self._rng.permutation(len(train.targets))
        own, rest = order[:_IMPORTED], order[_IMPORTED:]
        versions = train.features[own], train.flipped[own]
        self._imported = LabelledFeatures(versions, train.targets[own], tuple(f"imported {row}" for row in own))
        self._features, self._truth = train.features[rest], train.targets[rest]
        self._known = np.zeros_like(self._truth)
        num_labels, num_features = train.targets.shape[1], train.features.shape[-1]
        self._start = initial_head(config, num_labels, num_features)
        self.head = self.retrain()

    def retrain(self) -> Head:
        """Trains the head, and fits the thresholds."""
        answered = np.flatnonzero(self._known.any(axis=1))
        known, truth, labels = self._known[answered], self._truth[answered], self._known.shape[1]
        paths = [f"answered {row}" for row in answered]
        rows = join_rows(self._imported, labels, paths, self._features[answered], truth & known, known)
        fitted = fit_head(self._config, self._start, rows, lambda _: None)
        before = np.full(labels, self._config.eval.threshold)
        fitted_to = fitted.scores, rows.targets, rows.known, before
        return Head(fitted.arrays, refit_mcc(*fitted_to), fitted_to)

    def ask(self, way: str, clicks: int) -> None:
        """Answers `clicks` more questions."""
        if way == "random labels":
            chosen = self._rng.choice(np.flatnonzero(~self._known), clicks, replace=False)
            self._known[np.unravel_index(chosen, self._known.shape)] = True
            return
        values = self._values(way)
        photos = rank_photos(values)
        if way == "uncertain":
            photos = np.argsort(-values.max(axis=1), kind="stable")
        if way == "random photos":
            photos = self._rng.permutation(len(values))
        for photo in photos[: -(-clicks // _QUESTIONS)]:
            labels = np.argsort(-values[photo], kind="stable")[: min(_QUESTIONS, clicks)]
            self._known[photo, labels] = True
            clicks -= len(labels)

    def counts(self) -> dict[str, int]:
        """Returns the number of answers, and of those that confirm a label."""
        return {"answers": int(self._known.sum()), "confirmed": int((self._known & self._truth).sum())}

    def _values(self, way: str) -> np.ndarray:
        """Returns the value of asking about each label of each photo, `[N, C]`. It is -infinity where answered."""
        scores = self.head.scores(self._features)
        if way == "uncertain":
            values = uncertainties(scores, self.head.thresholds)
        else:
            counts = self._imported.targets.sum(axis=0) + (self._known & self._truth).sum(axis=0)
            values = expected_gains(scores, counts)
        return np.where(self._known, -np.inf, values)


def run_once(config: ConfigDict, train: Photos, test: Photos, seed: int, way: str) -> list[dict[str, Any]]:
    """Simulates one review. Returns the clicks, metrics and counts after each training.

    `predicted` is the mean number of labels predicted for a test photo.
    """
    simulation, rows = Simulation(config, train, seed), []
    for clicks in _CLICKS:
        if clicks:
            simulation.ask(way, clicks - rows[-1]["clicks"])
            simulation.head = simulation.retrain()
        scores, thresholds = simulation.head.scores(test.features), simulation.head.thresholds
        found = annotation_metrics(scores, test.targets, thresholds)
        own = {**{name: found[name] for name in _METRICS}, "predicted": float((scores > thresholds).sum(axis=1).mean())}
        rows.append({"seed": seed, "way": way, "clicks": clicks, **own, **simulation.counts()})
    return rows


def print_limits(config: ConfigDict, train: Photos, seeds: list[int]) -> None:
    """Prints the means over the seeds for each limit of the MCC, on training photos that are left out."""
    order = np.random.default_rng(0).permutation(len(train.targets))
    held, own = (Photos(*(part[some] for part in train)) for some in (order[:_LEFT_OUT], order[_LEFT_OUT:]))
    found: dict[tuple[int, float], list[tuple[float, ...]]] = {}
    for seed in seeds:
        simulation = Simulation(config, own, seed)
        for clicks in (0, 2000):
            if clicks:
                simulation.ask("gain", clicks)
                simulation.head = simulation.retrain()
            scores = simulation.head.scores(held.features)
            for least in _LIMITS:
                thresholds = refit_mcc(*simulation.head.fitted_to, least)
                metrics = annotation_metrics(scores, held.targets, thresholds)
                predicted = float((scores > thresholds).sum(axis=1).mean())
                row = metrics["f1"], metrics["overall_f1"], predicted
                found.setdefault((clicks, least), []).append(row)
    for (clicks, least), rows in sorted(found.items()):
        f1, overall, predicted = np.mean(rows, axis=0)
        print(
            f"{clicks:>5} clicks, limit {least}: F1 {f1:.3f}, overall F1 {overall:.3f}, {predicted:.1f} labels a photo"
        )


def read_photos(config: ConfigDict) -> tuple[Photos, Photos]:
    """Computes or finds the features of the training and the test photos."""
    task = FrozenBackboneTask(config)
    _, shapes = abstract_weights(task.build_model, data_mesh())
    arrays = package_parts(config.model.backbone)["backbone"]
    task.prepare(replace_arrays(select_weights(shapes, "raw"), arrays), ("train", "test"))
    own, test = task.train_arrays(), task.eval_arrays("test")["features"]
    features, flipped, tested = (
        np.asarray(prepare_pooled(maps)) for maps in (own["features"], own["features_h"], test)
    )
    return (
        Photos(features, flipped, task.split("train").targets > 0),
        Photos(tested, tested, task.split("test").targets > 0),
    )


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes means, and standard deviations over the seeds, for each way and number of clicks."""
    summary = []
    for way in _WAYS:
        for clicks in _CLICKS:
            some = [row for row in rows if (row["way"], row["clicks"]) == (way, clicks)]
            means = {name: statistics.mean(row[name] for row in some) for name in (*_METRICS, "predicted", "confirmed")}
            spread = {f"{name}_std": statistics.stdev(row[name] for row in some) for name in _METRICS if some[1:]}
            summary.append({"way": way, "clicks": clicks, "seeds": len(some), **means, **spread})
    return summary


def draw(path: Path, summary: list[dict[str, Any]]) -> None:
    """Draws F1 by the number of clicks for each way, with the standard deviation over the seeds."""
    page = Page(6.4, 4.4)
    page.write_header("F1 on the test split of Corel-5k by the number of answers")
    axes = page.plot(0.75, 1.0, 5.3, 2.7)
    for place, (way, color) in enumerate(_WAYS.items()):
        rows = [row for row in summary if row["way"] == way]
        spread = [row.get("f1_std", 0) for row in rows]
        clicks, means = [row["clicks"] for row in rows], [row["f1"] for row in rows]
        axes.errorbar(clicks, means, spread, color=color, capsize=2, linewidth=1.4)
        page.write(way, 0.75 + 1.35 * place, 0.8, color=color)
    page.write("answers", 6.05, 4.1, color=QUIET, ha="right")
    page.save(path)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--root", default="datasets", help="folder that holds Corel-5k/")
    add_seed_arguments(parser, _SEEDS)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    parser.add_argument("--limits", action="store_true", help="compare limits of the MCC instead; needs no --output")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw F1 by clicks here")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    """Simulates all reviews that `--output` lacks, prints a table, and writes the numbers."""
    config = corel5k_lite.get_config("gap")
    config.data.root, seeds = arguments.root, chosen_seeds(arguments, _SEEDS)
    if arguments.limits:
        return print_limits(config, read_photos(config)[0], list(seeds))
    if not arguments.output:
        raise InputError("name the file for the numbers with --output, or give --limits")
    done = read_json(arguments.output, "results of this benchmark")["runs"] if arguments.output.exists() else []
    facts = {"machine": machine(), "packages": versions()}
    enable_compilation_cache()
    train, test = read_photos(config)
    for seed in seeds:
        for way in _WAYS:
            progress(f"seed {seed}: {way}")
            if not any((row["seed"], row["way"]) == (seed, way) for row in done):
                done += run_once(config, train, test, seed, way)
                write_json(arguments.output, {**facts, "summary": summarize_complete(done), "runs": done})
    for row in summarize(done):
        print(
            f"{row['way']:<14}{row['clicks']:>6} clicks: F1 {row['f1']:.3f}, N+ {row['n_plus']:.0f}, {row['map']:.1f}"
        )
    if arguments.plot:
        draw(arguments.plot, summarize(done))


def summarize_complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the summary, or nothing while a way has no run."""
    return summarize(rows) if {row["way"] for row in rows} == set(_WAYS) else []


if __name__ == "__main__":
    run_command(_make_parser(), _run)
