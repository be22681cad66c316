"""Documents and tables of the benchmarks on tiny shapes; no test depends on a measured time."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aia_jax.configs import corel5k, demo, sgraf
from aia_jax.utils.errors import InputError
from benchmarks import comparison, convolutions, head, input, metrics, retrieval, roofline, timing
from benchmarks.step import check_config
from tests.helpers import references
from tests.helpers.xla_flags import xla_flags

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("grain", "orbax", "tensorflow_datasets", "array_record", "clu", "tensorboardX", "matplotlib", "sklearn")


@pytest.fixture
def config():
    config = demo.get_config()
    config.batch_size, config.data.image_size = 2, 32
    config.model.dropout = 0.1
    return config


@pytest.fixture
def in_this_process(monkeypatch):
    """Measures without new processes, which take seconds each; another test covers them."""

    def attempt(function, *args):
        return timing.attempt(function, *args)

    for module in (comparison, head, input, retrieval):
        monkeypatch.setattr(module, "isolated", attempt)


def test_a_window_has_calls_for_the_given_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def run(calls):
        clock[0] += 0.25 * calls

    assert timing.time_windows(run, windows=6, seconds=1.0) == {
        **{"median": 0.25, "min": 0.25, "max": 0.25},
        **{"windows": 6, "calls_per_window": 4},
    }
    rates = timing.per_second(10, {"median": 0.25, "min": 0.125, "max": 0.5})
    assert rates == {"median": 40, "min": 20, "max": 80}


def _fail(error):
    raise error


def test_failures_in_a_process_are_results_except_for_invalid_input():
    worker = timing.Worker()
    assert worker.run(_fail, MemoryError("80 GB\nat x.cc:7")) == {"failed": "MemoryError: 80 GB"}
    with pytest.raises(InputError, match="no such label"):
        worker.run(_fail, InputError("no such label"))
    assert "its process died" in worker.run(os._exit, 9)["failed"]
    assert worker.run(time.sleep, 600, timeout=0.5) == {"failed": "it took more than the 0 s that were left"}


def test_estimated_work(config):
    """The backbone needs 22.9 G multiplications at 448 px; the head's queries are shared by the batch."""
    tresnet_m = corel5k.get_config()
    tresnet_m.batch_size = 128
    work = roofline.count_work(tresnet_m, 260, inference=True)
    assert work.flops / 2e9 == pytest.approx(25.2, rel=0.01)
    inference, training = (roofline.count_work(config, 22, inference=inference) for inference in (True, False))
    assert training.flops == 3 * inference.flops
    assert training.bytes > 6 * inference.bytes
    bound = roofline.bounds(work, {"matmul_flops_per_second": work.flops, "copy_bytes_per_second": work.bytes / 3})
    assert bound == pytest.approx({"compute": 1, "memory": 1 / 3, "in_series": 1 / 4})


def test_the_best_peer_is_the_fastest_one_that_did_not_fail():
    def row(name, rate):
        return {"name": name, "images_per_second": {"median": rate}}

    assert comparison.best_peer([row("aia_jax", 6.0), row("a", 2.0), row("b", 4.0)]) == ("b", 1.5)
    assert comparison.best_peer([{"name": "aia_jax", "failed": "x"}, row("b", 4.0)]) == ("b", None)


@pytest.mark.parametrize("compare", [comparison.compare, head.compare, input.compare])
def test_configs_of_other_tasks_are_refused(compare):
    options = {"inference": True} if compare is comparison.compare else {}
    with pytest.raises(InputError, match=r"config\.task='retrieval': needed is an annotation config"):
        compare(sgraf.get_config("coco"), **options)


def test_a_profile_that_cannot_be_written_is_refused_before_the_timing(config, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=r"file/trace cannot be written: (Not a directory|File exists)"):
        comparison.compare(config, inference=True, profile=str(file))


def test_shapes_on_a_cpu_are_reduced_but_never_increased():
    config = corel5k.get_config()
    small = comparison.shrunk(config)
    assert (small.data.image_size, small.batch_size, small.model.dtype) == (160, 4, "float32")
    assert (config.data.image_size, config.model.dtype) == (448, "bfloat16")
    config.data.image_size = 96
    assert comparison.shrunk(config).data.image_size == 96


@references.needs_torch
def test_the_head(config, in_this_process):
    importlib.import_module("tests.helpers.torch_oracles")  # imports timm also without torchvision's operators
    document = head.compare(config, seconds=0.0)
    assert document["features"][:3] == [2, 2, 2]
    assert [row["name"] for row in document["results"]] == ["aia_jax", "torch"] * 2
    assert all(row["seconds_per_call"]["windows"] == 5 for row in document["results"])
    assert all(ratio > 0 for ratio in document["ratio_to_best_peer"].values())
    assert "forward + backward" in head.table(document)
    config.model.head = "gap"
    with pytest.raises(InputError, match="times the head 'attention'"):
        head.compare(config)


@references.needs_torch
def test_retrieval_compared_with_a_loop_over_captions(in_this_process):
    config = sgraf.get_config("flickr8k")
    config.batch_size, config.eval.batch_size = 4, 8
    sizes = {"num_features": 5, "num_regions": 3, "embed_size": 8, "word_size": 4, "similarity_size": 4}
    config.model.update(sizes)
    document = retrieval.compare(config, num_images=6, num_captions=9, windows=5, seconds=0.0)
    assert [(row["pass"], row["name"]) for row in document["results"]] == [
        *(("score", "aia_jax"), ("score", "torch, by caption")),
        *(("train", "aia_jax"), ("train", "torch, by caption")),
    ]
    assert [row["pairs"] for row in document["results"]] == [[6, 9]] * 2 + [[4, 4]] * 2
    assert all(ratio > 0 for ratio in document["ratio_to_peer"].values())
    assert "6 x 9" in retrieval.table(json.loads(json.dumps(document)))
    with pytest.raises(InputError, match="needs a retrieval config with precomputed features"):
        retrieval.compare(demo.get_config())


def test_input_from_memory_files_records_and_jpegs(config, in_this_process, monkeypatch):
    monkeypatch.setattr(input, "_THREADS", (1,))
    document = input.compare(config, num_images=6, step_rate=100.0, windows=5, seconds=0.0)
    names = ["device-resident", "memory-mapped", "streamed, 1 threads", "JPEGs, 1 threads"]
    assert [row["name"] for row in document["results"]] == names
    if "failed" in document["results"][2]:
        assert "needs more packages" in document["results"].pop(2)["failed"]
    for row in document["results"]:
        assert row["fraction_of_step_rate"] == pytest.approx(row["images_per_second"]["median"] / 100)
        assert row["cores_for_step_rate"] == pytest.approx(100 / row["images_per_cpu_second"])
    assert "for a step at 100 img/s" in input.table(document)
    with pytest.raises(InputError, match="--images=1 is less"):
        input.compare(config, num_images=1)


def test_generated_photos_have_the_size_of_corel_5k(tmp_path):
    input.write_photos(tmp_path, 2)
    photo = tmp_path / "Corel-5k" / "images" / "1.jpeg"
    with Image.open(photo) as opened:
        assert opened.size == (500, 375)
    assert 30_000 < photo.stat().st_size < 200_000


def test_metrics_compared_with_scikit_learn():
    document = metrics.compare(200, 5, seconds=0.0)
    assert [row["name"] for row in document["results"]] == ["aia_jax", "sklearn loop"]
    assert document["results"][1]["seconds"]["windows"] == 5
    assert "times the speed of the loop" in metrics.table(document)


def test_metrics_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    document = metrics.compare(20, 3, seconds=0.0)
    assert "pip install scikit-learn" in document["results"][1]["failed"]
    assert document["ratio_to_peer"] is None
    assert "failed: " in metrics.table(document)


@references.needs_torch
@pytest.mark.slow
def test_the_command_needs_few_packages(tmp_path):
    """Jax, flax, optax, ml_collections, torch and timm are enough; other packages cannot be imported.

    The parent process uses no device: JAX would reserve most of a GPU's memory, which the measured processes need.
    """
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    overrides = {"batch_size": 2, "data.image_size": 32, "model.backbone": "tresnet_m"}
    program = """
from jax._src import xla_bridge
from benchmarks import comparison, head
from aia_jax.configs import demo
head.features_shape(demo.get_config())
try:
    comparison.command("", inference=True)
finally:
    assert not xla_bridge.backends_are_initialized()
"""
    command = [sys.executable, "-c", program, "--config", "configs/demo.py", "--seconds", "0"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    command += ["--profile", str(tmp_path / "trace")]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XLA_FLAGS": xla_flags()}
    output = tmp_path / "results" / "out.json"
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    ours, *peers = document["results"]
    assert ours["seconds_per_step"]["windows"] == 5
    assert {"images_per_second", "compile_seconds", "temporary_gb", "peak_gb"} < ours.keys()
    assert [row["name"] for row in peers] == ["torch NCHW", "torch channels_last"]
    assert document["ratio_to_roofline"].keys() == {"compute", "memory", "in_series"}
    assert np.isfinite(document["ratio_to_roofline"]["memory"])
    assert (document["batch_size"], document["dtype"], document["small_because_cpu"]) == (2, "float32", True)
    assert {"jax", "python"} < document["versions"].keys()
    assert "On a CPU: small shapes" in done.stdout
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert [row["failed"] for row in peers if "failed" in row] == []
    assert document["ratio_to_best_peer"] > 0
    assert document["model"] in done.stdout


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("accumulate_steps", 2, "time one whole batch on one device with Adam"),
        ("mesh.fsdp", 2, "time one whole batch on one device with Adam"),
        ("optimizer.name", "lamb", "time one whole batch on one device with Adam"),
        ("mixup", True, "no mixup"),
        ("model.freeze_backbone", True, "freeze_backbone"),
        ("data.name", "photos", "config.data.name='photos' is not one of corel5k, espgame"),
    ],
)
def test_unsupported_options_are_refused(field, value, message):
    config = demo.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        check_config(config)


@references.needs_torch
def test_single_convolutions_compared_with_pytorch():
    document = convolutions.compare(((6, 4, 5, 3), (4, 8, 3, 1)), windows=2, seconds=0.0)
    for row in document["results"]:
        assert [len(passes) for passes in row["seconds"]] == [3, 3]
        assert all(timed["median"] > 0 for passes in row["seconds"] for timed in passes)
    assert "3x3, 4 to 5, 6 x 6" in convolutions.table(document)


def test_unwritable_files_are_refused_and_no_file_is_left(tmp_path):
    (tmp_path / "file").touch()
    comparison.check_writable(None, "", tmp_path / "new" / "numbers.json")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new"]
    with pytest.raises(InputError, match="new is a folder; name a file in it"):
        comparison.check_writable(tmp_path / "new")
    with pytest.raises(InputError, match=r"numbers\.json cannot be written: "):
        comparison.check_writable(tmp_path / "file" / "numbers.json")
