"""A review of photos with a small run: answers, order, retraining, and what a later session finds."""

import json
import shutil
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import special

import aia_jax
from aia_jax.inference.review.session import ReviewSession
from aia_jax.models import backbones
from aia_jax.models.tresnet import TResNet, Variant
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo
from tests.helpers.untrained import annotator_config, write_run

NUM_PHOTOS = 8


def nothing(*_):
    """A progress that is not shown."""


@pytest.fixture(scope="module")
def source(tmp_path_factory, cache_dir):
    """An untrained run of a small annotator that compiles in a moment."""
    variant = Variant(blocks=(1,), width=8, basic_stages=1)
    with pytest.MonkeyPatch.context() as patch:
        entry = backbones.Backbone(partial(TResNet, variant), "tresnet", None, 4)
        patch.setitem(backbones.BACKBONES, "tresnet_block", entry)
        fields = {"model.backbone": "tresnet_block", "model.head": "gap", "data.flips": "horizontal"}
        fields |= {"model.freeze_backbone": True, "epochs": 2}
        yield write_run(tmp_path_factory.mktemp("source"), annotator_config(**fields))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photos, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM_PHOTOS):
        make_photo(folder / "trip" / f"{number}.jpg", number)
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture
def workdir(source, tmp_path):
    return shutil.copytree(source, tmp_path / "run")


def open_review(workdir, images):
    session = ReviewSession(workdir, images, batch_size=4)
    try:
        session.load(nothing)
    except BaseException:
        session.close()
        raise
    return session


def test_questions_are_the_most_useful_labels_without_an_answer(workdir, images):
    with open_review(workdir, images) as review:
        assert review.names == tuple(f"trip/{number}.jpg" for number in range(NUM_PHOTOS))
        assert list(review.problems) == ["broken.jpg"]
        expected = aia_jax.load(workdir)([images / name for name in review.names]).scores
        np.testing.assert_allclose(review.scores, expected, atol=1e-5)
        assert review.picture(3).startswith(b"RIFF")
        first = review.order()[0]
        asked = review.questions(first, 3)
        assert len(asked) == 3
        for label in asked:
            review.answer([first], review.labels[label], True)
        assert not set(asked) & set(review.questions(first, 3))
        label = review.labels[0]
        rest = [photo for photo in review.order(label) if label not in review.answers.get(review.names[photo], {})]
        assert review.order(label)[: len(rest)] == rest
        distances = np.abs(special.logit(review.scores[rest, 0]) - special.logit(review.thresholds[0]))
        nearest = [rest[place] for place in np.argsort(distances, kind="stable")]
        assert review.order(label, by_threshold=True)[: len(rest)] == nearest
        assert review.progress() == {
            "photos": NUM_PHOTOS,
            "answered_photos": 1,
            "elsewhere": 0,
            "answers": 3,
            "confirmed": 3,
            "rejected": 0,
            "added_labels": [],
        }
    with open_review(workdir, images / "trip") as review:
        assert review.progress() | {"elsewhere": 3, "answers": 0, "answered_photos": 0} == review.progress()
        with pytest.raises(InputError, match="no answers yet about these photos"):
            review.retrain(nothing)


def test_added_labels_are_new_columns_and_other_spellings_of_known_labels_are_refused(workdir, images):
    with open_review(workdir, images) as review:
        known = review.labels
        for label in (known[0].upper(), f"{known[0][0]} {known[0][1:]}"):
            with pytest.raises(InputError, match=f"is the label '{known[0]}' in another spelling"):
                review.answer([0], label, True)
        for label, message in (("two\nlines", "one line"), (None, "one line")):
            with pytest.raises(InputError, match=message):
                review.answer([0], label, True)
        with pytest.raises(InputError, match="there is no photo 8; there are 8"):
            review.answer([NUM_PHOTOS], known[0], True)
        assert review.answers == {}
        review.answer([0, 1], "Rex", True)
        assert review.labels == (*known, "Rex")
        assert np.isnan(review.scores[:, -1]).all()
        assert len(known) not in review.questions(2, 1000)
        assert review.undo()["label"] == "Rex"
        assert review.undo() is None


def test_a_full_disk_is_named(workdir, images, monkeypatch):
    with ReviewSession(workdir, images) as review:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(InputError, match=r"the disk of .*review is full: .*after you free space, the same command"):
            review.load(nothing)


def test_an_interrupted_load_keeps_its_pictures_and_features(workdir, images, monkeypatch):
    monkeypatch.setattr("aia_jax.inference.search_index._PART_SIZE", 4)
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done:
            raise KeyboardInterrupt

    with ReviewSession(workdir, images, batch_size=4) as review, pytest.raises(KeyboardInterrupt):
        review.load(stop)
    with ReviewSession(workdir, images, batch_size=4) as review:
        review.load(lambda *counts: seen.append(counts))
        assert len(review.names) == NUM_PHOTOS
    assert seen == [(0, 9), (4, 9), (3, 9), (7, 9), (9, 9), (9, 9)]  # the broken photo is always tried again
    with pytest.raises(InputError, match="another process reviews"), open_review(workdir, images):
        ReviewSession(workdir, images)


def test_retraining_learns_from_answers_and_a_later_session_goes_on_with_it(workdir, images):
    with open_review(workdir, images) as review:
        label, before = review.labels[0], review.scores
        with pytest.raises(InputError, match="no answers yet"):
            review.retrain(nothing)
        review.answer([0, 1, 2], label, True)
        review.answer([3, 4, 5], label, False)
        review.answer([0, 1, 2], "Rex", True)
        fractions = []

        def meanwhile(fraction):
            fractions.append(fraction)
            if len(fractions) == 1:
                other = threading.Thread(target=review.answer, args=([7], label, True))
                other.start()
                other.join(10)
                with pytest.raises(InputError, match="a training is running"):
                    review.retrain(nothing)

        report = review.retrain(meanwhile)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert review.answers["trip/7.jpg"] == {label: True}
        assert (report["photos"], report["answers"], report["imported_photos"]) == (6, 9, 36)
        rows = {row["label"]: row for row in report["labels"]}
        assert (rows[label]["confirmed"], rows[label]["rejected"]) == (3, 3)
        assert (rows["Rex"]["confirmed"], rows["Rex"]["imported"], rows["Rex"]["threshold_before"]) == (3, 0, None)
        assert report["metrics"]["photos"] == 4
        assert report["metrics"]["before"] != report["metrics"]["after"]
        selected = before > np.float32(0.5), review.scores > np.float32(review.thresholds)
        gained = (selected[1][:, 0] & ~selected[0][:, 0]).sum()
        assert report["gained"].get(label, 0) == gained
        assert np.isfinite(review.scores).all()
        scores, thresholds, labels = review.scores, review.thresholds, review.labels
    found = aia_jax.load(workdir / "review" / "model")([images / name for name in review.names])
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    chosen = [{label for label, _ in each} for each in found.labels]
    assert chosen == [{labels[i] for i in np.flatnonzero(row > np.float32(thresholds))} for row in scores]
    (workdir / "review" / "model").rename(workdir / "review" / ".model-old")  # as if killed while it was replaced
    with open_review(workdir, images) as review:
        np.testing.assert_array_equal(review.scores, scores)
        np.testing.assert_array_equal(review.thresholds, thresholds)
        assert review.labels == labels
    (workdir / "review" / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no model; or delete .*review/model, and train again"):
        ReviewSession(workdir, images)


def test_a_retraining_that_is_interrupted_changes_nothing(workdir, images, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with open_review(workdir, images) as review:
        review.answer([0], review.labels[0], True)
        scores, files = review.scores, sorted(path.name for path in (workdir / "review").iterdir())
        with pytest.raises(KeyboardInterrupt):
            review.retrain(stop)
        monkeypatch.setattr("aia_jax.inference.review.retrained_model.write_model_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            review.retrain(nothing)
        assert review.scores is scores
        assert sorted(path.name for path in (workdir / "review").iterdir()) == files


def test_a_run_whose_data_changed_is_not_retrained(workdir, images):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["data"].update({"name": "corel5k", "root": str(workdir / "nowhere")})
    path.write_text(json.dumps(config))
    with open_review(workdir, images) as review:
        review.answer([0], review.labels[0], True)
        with pytest.raises(InputError, match="retraining needs the imported photos and labels of the run"):
            review.retrain(nothing)
