"""`aia annotate`: scores equal those of evaluation, also after interruptions and for unusual file names."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.convert import convert_back
from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.data.search.keywords import read_keywords
from aia_jax.inference import annotation_output
from aia_jax.inference.annotator import PhotoAnnotator
from aia_jax.tasks.registry import make_task
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
from aia_jax.training.prediction import Predictor
from aia_jax.training.runs import run_arrays
from tests.helpers.photos import TURNED
from tests.helpers.untrained import annotator_config, write_run

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = f"{REPOSITORY}/configs/demo.py"
RUN = ("--workdir", "run")
NUM_PHOTOS = 20


@pytest.fixture(scope="module")
def expected(config, annotator):
    """Scores of the test split, as evaluation predicts them."""
    task = make_task(config)
    graphdef, shapes = abstract_weights(task.build_model, sharding.data_mesh())
    weights = replace_arrays(select_weights(shapes, "raw"), run_arrays(annotator)[0])
    return task.predict_split(Predictor(graphdef, sharding.data_mesh()), [weights], "test")[0]["scores"]


@pytest.fixture
def photos(config, tmp_path):
    """The test split as files."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, pixels in enumerate(make_task(config).split("test").images[:]):
        Image.fromarray(pixels).save(folder / "sub" / f"{number:02}.png")
    return folder


@pytest.fixture
def annotate(annotator, photos, tmp_path):
    def run(*flags, model=("--workdir", str(annotator))):
        given = ["--images", str(photos), "--output", str(tmp_path / "out"), "--batch_size", "8"]
        return main(["annotate", *given, *model, *flags])

    return run


def written(folder):
    """Photo to {label: score}, in the order of the file."""
    lines = (folder / "annotations.jsonl").read_text().splitlines()
    found = {photo["image"]: photo["labels"] for photo in map(json.loads, lines)}
    assert len(found) == len(lines)
    return {image: {label["label"]: label["score"] for label in labels} for image, labels in found.items()}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scores_are_those_of_evaluation(annotate, photos, tmp_path, expected, capsys):
    assert annotate("--threshold", "0") == 0
    found = written(tmp_path / "out")
    assert list(found) == [f"sub/{number:02}.png" for number in range(NUM_PHOTOS)]
    scores = np.array([[labels[label] for label in scenes.LABELS] for labels in found.values()], np.float32)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-4
    for labels in found.values():
        assert list(labels.values()) == sorted(labels.values(), reverse=True)
    printed = capsys.readouterr().out
    assert "20 photos annotated, 22.00 labels a photo, 0 without any\n20 of 20 photos read now, " in printed


def test_threshold_and_top_choose_labels_and_all_files_say_the_same(annotate, tmp_path, expected, capsys):
    threshold = float(np.median(expected.max(axis=1)))
    assert annotate("--threshold", str(threshold), "--top", "3", "--export", "label-studio", "coco") == 0
    found = written(tmp_path / "out")
    counts = np.minimum((expected > np.float32(threshold)).sum(axis=1), 3)
    assert [len(labels) for labels in found.values()] == counts.tolist()
    assert 0 < np.count_nonzero(counts) < NUM_PHOTOS
    printed = capsys.readouterr().out
    assert f"{np.count_nonzero(counts == 0)} without any" in printed
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path}, and" in printed
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_bytes())
    addresses = [f"/data/local-files/?d=photos/{image}" for image in found]
    assert [task["data"] for task in tasks] == [
        {"image": address, "proposed": list(labels)} for address, labels in zip(addresses, found.values(), strict=True)
    ]
    coco = json.loads((tmp_path / "out" / "coco.json").read_bytes())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    scores = {image: {} for image in names.values()}
    for each in coco["annotations"]:
        scores[names[each["image_id"]]][scenes.LABELS[each["category_id"] - 1]] = each["score"]
    assert scores == found
    with (tmp_path / "out" / "annotations.csv").open(newline="") as file:
        rows = [(image, label, float(score)) for image, label, score in list(csv.reader(file))[1:]]
    assert rows == [(image, *label) for image, labels in found.items() for label in labels.items()]
    for image, labels in found.items():
        assert read_keywords(tmp_path / "out" / "keywords" / f"{image}.json") == list(labels)
    assert (tmp_path / "out" / "problems.jsonl").read_bytes() == b""
    flags = ["--min_count=1", "--keywords", str(tmp_path / "out" / "keywords"), "--output", str(tmp_path / "records")]
    assert main(["keywords", "--layout=folder", *flags]) == 0
    assert list(json.loads((tmp_path / "records" / "keyword_names_all.json").read_text())) == list(found)


FAILURES = (
    (KeyboardInterrupt(), 130, "error: interrupted"),
    (signal.SIGINT, 130, "stopped after 16 photos; the same command without --force continues"),
    (signal.SIGTERM, 143, "stopped after 16 photos; the same command without --force continues"),
    (OSError(errno.ENOSPC, ""), 2, "out is full: about 0.1 MB are needed there; --output names another place"),
)


def test_what_was_interrupted_is_continued(annotate, tmp_path, monkeypatch, capsys):
    assert annotate("--threshold", "0.4") == 0
    complete = files(tmp_path / "out")
    add = annotation_output.AnnotationOutput.add
    for failure, code, message in FAILURES:
        calls = []

        def stop(self, *found, failure=failure, calls=calls):
            add(self, *found)
            calls.append(found)
            if len(calls) == 2 and isinstance(failure, signal.Signals):
                os.kill(os.getpid(), failure)
            elif len(calls) == 2:
                self._annotations.write(b'{"image": "torn')
                raise failure

        with monkeypatch.context() as patched:
            patched.setattr(annotation_output.AnnotationOutput, "add", stop)
            assert annotate("--threshold", "0.4", "--force") == code
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out" / "annotations.csv").exists()
        assert annotate("--threshold", "0.4") == 0
        assert "4 of 20 photos read now" in capsys.readouterr().out
        assert files(tmp_path / "out") == complete


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_is_continued(annotate, annotator, photos, tmp_path, signum, capsys):
    Image.fromarray(scenes.draw(0, 0, 640).image).save(photos / "0.png")
    for index in range(1, 400):
        (photos / f"{index}.png").symlink_to(photos / "0.png")
    flags = ["--workdir", annotator, "--images", photos, "--output", tmp_path / "out"]
    # A job in the background ignores Ctrl-C, and hands that down.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "aia_jax", "annotate", *flags, "--batch_size=8"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    output = tmp_path / "out" / "annotations.jsonl"
    while not output.exists() or not output.stat().st_size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signum) if signum == signal.SIGINT else process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), errors
    assert "Traceback" not in errors
    done = len(output.read_bytes().splitlines())
    assert 0 < done < 400
    assert annotate() == 0
    assert f" of {400 + NUM_PHOTOS} photos read now" in capsys.readouterr().out
    assert len(written(tmp_path / "out")) == 400 + NUM_PHOTOS


def test_only_new_and_unreadable_photos_are_read_again(annotate, photos, tmp_path, monkeypatch, capsys):
    readable = (photos / "sub" / "00.png").read_bytes()
    contents = {
        "empty.jpg": b"",
        "torn.png": readable[:60],
        "no\nimage.gif": b"<html>",
        "x.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    }
    for name, content in contents.items():
        (photos / name).write_bytes(content)
    (photos / "link.jpg").symlink_to(photos / "nowhere.jpg")
    assert annotate() == 0
    printed = capsys.readouterr()
    assert "20 photos annotated" in printed.out
    assert "5 photos with problems, see problems.jsonl:\n  empty.jpg: the file is empty\n" in printed.err
    assert "\n  link.jpg: No such file or directory\n" in printed.err
    assert "\n  'no\\nimage.gif': a web page, not an image; download the photo again\n" in printed.err
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert {problem["image"] for problem in problems} == {*contents, "link.jpg"}
    before = written(tmp_path / "out")
    for name in ("empty.jpg", "a.webp"):
        (photos / name).write_bytes(readable)
    assert annotate() == 0
    out = capsys.readouterr().out
    assert "22 photos annotated" in out
    assert "6 of 26 photos read now" in out
    assert list(written(tmp_path / "out")) == [*before, "a.webp", "empty.jpg"]
    assert len((tmp_path / "out" / "problems.jsonl").read_text().splitlines()) == 4
    for name in ("torn.png", "no\nimage.gif", "x.heic", "link.jpg"):
        (photos / name).unlink()
    (photos / "a.webp").rename(photos / "b.webp")
    assert annotate() == 0
    out = capsys.readouterr().out
    assert "1 of 22 photos read now" in out
    assert f"1 annotated photo no longer in {photos}; their labels are kept, --force starts again:\n  a.webp\n" in out
    monkeypatch.setattr(PhotoAnnotator, "annotate", pytest.fail)
    assert annotate("--export", "coco") == 0
    assert "0 of 22 photos read now; written to" in capsys.readouterr().out
    images = json.loads((tmp_path / "out" / "coco.json").read_bytes())["images"]
    assert [image["file_name"] for image in images] == [*before, "empty.jpg", "b.webp"]  # without a.webp


def test_only_unreadable_photos_are_an_error(annotate, photos, capsys):
    for path in photos.glob("sub/*.png"):
        path.write_bytes(b"")
    assert annotate() == 2
    error = capsys.readouterr().err
    assert "error: none of the 20 photos can be read:\n  sub/00.png: the file is empty\n" in error
    assert "\n  ... and 15 more" in error


def test_unusual_names_workers_and_batches_change_no_score(annotate, photos, tmp_path, expected):
    names = ['"q", x.png', "line\nbreak.png", "سیب 🍎.png", os.fsdecode(b"\xff\xfe.png"), "<img src=x>.png", "=1+1.png"]
    for name in names:
        (photos / name).write_bytes((photos / "sub" / "00.png").read_bytes())
    photo = Image.open(photos / "sub" / "03.png")
    photo.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=TURNED)
    assert annotate("--threshold", "0", "--num_workers", "1", "--batch_size", "16") == 0
    found = written(tmp_path / "out")
    rows = {**dict.fromkeys(names, 0), "turned.png": 3, **{f"sub/{row:02}.png": row for row in range(NUM_PHOTOS)}}
    assert found.keys() == rows.keys()
    for name, row in rows.items():
        assert found[name] == pytest.approx(dict(zip(scenes.LABELS, expected[row].tolist(), strict=True)), abs=1e-6)
        assert (tmp_path / "out" / "keywords" / f"{name}.json").is_file()
    with (tmp_path / "out" / "annotations.csv").open(newline="", encoding="utf-8") as file:
        escaped = {name.encode(errors="backslashreplace").decode() for name in found}
        assert {os.path.normpath(row[0]) for row in csv.reader(file, strict=True)} == {"image", *escaped}


def test_thresholds_of_labels_count(annotate, annotator, tmp_path, expected, capsys):
    limits = np.median(expected, axis=0)
    path = tmp_path / "limits.json"
    path.write_text(json.dumps(dict(zip(scenes.LABELS, limits.astype(float), strict=True))))
    assert annotate("--thresholds", str(path)) == 0
    given = written(tmp_path / "out")
    assert 0.3 < sum(map(len, given.values())) / expected.size < 0.7
    (annotator / "thresholds.json").write_bytes(path.read_bytes())
    try:
        assert annotate() == 0
        assert "0 of 20 photos read now" in capsys.readouterr().out  # they are the same
        assert annotate("--threshold", "0.5") == 2
        assert "settings.json describes annotations whose thresholds differ from these" in capsys.readouterr().err
        (annotator / "thresholds.json").write_text('{"sky": 0.5}')
        assert annotate() == 2
        assert "thresholds.json does not fit the 22 labels of the data:\n  no threshold for" in capsys.readouterr().err
    finally:
        (annotator / "thresholds.json").unlink()


def test_another_model_is_never_mixed_in(annotate, config, tmp_path, capsys):
    assert annotate("--threshold", "0") == 0
    before = files(tmp_path / "out")
    other = write_run(tmp_path / "other", annotator_config(**{"data.num_test": NUM_PHOTOS, "seed": 5}))
    assert annotate("--threshold", "0", model=("--workdir", str(other))) == 2
    assert "whose model differ from these; results are never mixed: --force starts anew" in capsys.readouterr().err
    assert files(tmp_path / "out") == before
    assert annotate("--threshold", "0", "--force", model=("--workdir", str(other))) == 0
    assert written(tmp_path / "out") != before


def test_a_file_of_weights_with_labels_of_its_own(annotate, config, annotator, expected, tmp_path, capsys):
    file = tmp_path / "annotator.safetensors"
    convert_back(config, annotator, file)
    fields = {"data.image_size": 32, "model.hidden_size": 16, "model.feedforward_size": 16}
    model = ["--weights", str(file), "--config", DEMO]
    model += [f"--config.{field}={value}" for field, value in fields.items()]
    assert annotate("--threshold", "0", "--output", str(tmp_path / "same"), model=model) == 0
    for labels, wanted in zip(written(tmp_path / "same").values(), expected.tolist(), strict=True):
        assert labels == pytest.approx(dict(zip(scenes.LABELS, wanted, strict=True)), abs=1e-6)
    names = ["<script>alert(1)</script>", "=cmd", *scenes.LABELS[2:]]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    assert annotate("--threshold", "0", "--labels", str(tmp_path / "labels.txt"), model=model) == 0
    assert set(written(tmp_path / "out")["sub/00.png"]) == set(names)
    (tmp_path / "labels.txt").write_text("sky\n")
    assert annotate("--labels", str(tmp_path / "labels.txt"), model=model) == 2
    assert "scores 22 labels, but" in capsys.readouterr().err
    corel = ["--weights", str(file), "--config", f"{REPOSITORY}/configs/corel5k.py", "--config.data.root=nowhere"]
    assert annotate(model=corel) == 2
    assert "without the data, --labels names a file of the labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir", "a", "--weights", "b"], "not allowed with argument"),
        ([*RUN, "--top", "0"], "must be at least 1, not 0"),
        ([*RUN, "--config.model.dtype=float32"], "--config.model.dtype=float32 needs --config"),
        ([*RUN, "--images", "nowhere"], "nowhere does not exist; name a folder of photos"),
        ([*RUN, "--images", f"{REPOSITORY}/configs"], "configs has no photos; their names must end in .apng, .avif"),
        ([*RUN, "--threshold", "1.5"], "the threshold must lie in 0..1, not 1.5"),
        ([*RUN, "--thresholds", "none.json"], "none.json cannot be read: No such file or directory"),
        ([*RUN, "--config", DEMO], "--config belongs to --weights; a workdir or a model has its own"),
        (
            [*RUN, "--labels", "labels.txt"],
            "knows only its own 22 labels; to add labels, train with --config",
        ),
        ([*RUN, "--queries", "labels.txt"], "--queries is for the page of --html; add --html"),
        (
            [*RUN, "--queries", "labels.txt", "--html"],
            "knows labels, but no sentences; name a dual encoder, such as open",
        ),
        (["--workdir", "."], ". is no folder of a run: config.json is not there; name"),
        (["--workdir", "file"], "is no folder of a model or a run; a weights file needs its config too"),
        (["--workdir", "search"], "holds a run of config.task='search'; name one of annotation"),
        (["--workdir", "a", "--model", "open"], "not allowed with argument"),
        (["--weights", "x.pth"], "--weights needs --config"),
        (["--weights", "x.pth", "--config", DEMO], "x.pth"),
        (
            ["--weights", "x.pth", "--config", f"{REPOSITORY}/configs/demo_search.py"],
            "config.task='search' is no annotator; name an",
        ),
    ],
)
def test_flags_and_models_that_cannot_be_used_are_reported(
    annotate, annotator, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(annotator)
    Path("file").write_text("")
    Path("labels.txt").write_text("sky\n")
    Path("search").mkdir()
    Path("search/config.json").write_text(json.dumps({"task": "search", "model": {}}))
    assert annotate(model=flags) == 2
    assert message in capsys.readouterr().err
