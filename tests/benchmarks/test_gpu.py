"""The stages that one command measures on a GPU: order, failures, continuation, table and smoke run."""

import json
import os
import subprocess
import sys

import pytest
from jax.profiler import ProfileData

from aia_jax.models import tresnet
from aia_jax.utils.errors import InputError
from benchmarks import gpu
from benchmarks.gpu_stages import BARS, CHANGES, ROOFLINES, Stage, change_name, list_stages, step_name
from benchmarks.gpu_table import fill, read_results, table
from benchmarks.kernel_times import Speeds, compare_with_model
from benchmarks.timing import attempt
from tests.benchmarks.test_side_by_side import ABSENT, ROOT
from tests.helpers.xla_flags import xla_flags

# As an error, this warning of jaxlib 0.12 aborts the process.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__")

PROGRAM = """ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %loop_fusion.1 = bf16[8,4]{1,0} fusion(%p), kind=kLoop, calls=%f, metadata={op_name="jit(step)/head/add"}
  ROOT %copy.2 = bf16[8,4]{1,0} copy(%loop_fusion.1)
}
"""
# Two steps: an instruction, a kernel without the instruction's name, a library's kernel, and a derived line.
TRACE = """
planes { name: "/host:CPU" lines { name: "python" events { metadata_id: 1 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "call" } } }
planes { name: "/device:GPU:0"
  lines { name: "Stream #13(Compute)"
    events { metadata_id: 1 duration_ps: 4000000 stats { metadata_id: 1 str_value: "loop_fusion.1" } }
    events { metadata_id: 2 duration_ps: 2000000 }
    events { metadata_id: 3 duration_ps: 6000000 } }
  lines { name: "XLA Ops" events { metadata_id: 2 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "some_name" } }
  event_metadata { key: 2 value { id: 2 name: "loop_fusion_1" } }
  event_metadata { key: 3 value { id: 3 name: "cudnn_xmma_wgrad_bf16" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } } }
"""


class InThisProcess:
    """A worker without a process."""

    def run(self, function, *args, timeout=None):
        return attempt(function, *args)

    def stop(self):
        pass


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Returns a function that starts a session with the given minutes in the same folder."""
    monkeypatch.setattr(gpu, "Worker", InThisProcess)
    return lambda minutes=1.0, smoke=False: gpu.Session(tmp_path, minutes, smoke=smoke)


def rate(value):
    return {"images_per_second": {"median": value}}


def fail():
    raise MemoryError("out of memory: 80 GB")


def test_failures_and_missing_time_do_not_stop_the_stages_and_a_second_call_continues(session, tmp_path, capsys):
    first, failing, long, last = (
        Stage("first", "jax", 1, rate, (7.0,)),
        Stage("failing", "torch", 1, fail, ()),
        Stage("long", "jax", 100, rate, (8.0,)),
        Stage(
            "last", "jax", 1, lambda speeds, left: rate(left) | {"bandwidth": speeds.bandwidth}, (), ("speeds", "left")
        ),
    )
    begun = session()
    for stage in (first, failing, long, last):
        begun.run(stage)
    printed = capsys.readouterr().out
    assert "first: 7.0 img/s\n" in printed
    assert "long: skipped: it needs about 100 s\n" in printed
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert list(results) == ["first", "failing", "last"]
    assert results["last"]["bandwidth"] == 4.3e12
    assert 50 < results["last"]["images_per_second"]["median"] < 60
    continued = session(minutes=5.0)
    for stage in (first, failing._replace(measure=rate, arguments=(3.0,)), long):
        continued.run(stage)
    session(minutes=0.0).run(long._replace(name="late", seconds=-1, measure=fail, arguments=()))
    printed = capsys.readouterr().out
    assert "first: already measured\n" in printed
    assert "late: stopped, because the time is over\n" in printed
    runs = {name: row["run"] for name, row in read_results(tmp_path)["results"].items()}
    assert runs == {"first": 0, "failing": 1, "last": 0, "long": 1}
    with pytest.raises(InputError, match=r"gpu\.json has results without --smoke; name another folder"):
        session(smoke=True)


def test_the_most_important_stages_come_first():
    stages = list_stages("gpu", smoke=False, root="datasets")
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for model, step in BARS:
        ours, theirs = (
            names.index(step_name(model, step, side)) for side in ("aia_jax", "torch channels_last compiled")
        )
        assert 0 < ours < theirs < names.index(step_name(model, "training", "model.remat=True"))
    sizes = {s.name: s.arguments[0] for s in stages if s.name.endswith(("batch_size=256", "training, aia_jax"))}
    found = [(c.model.backbone, c.data.image_size, c.batch_size, c.model.dtype) for c in sizes.values()]
    assert found == [
        ("tresnet_m", 448, 128, "bfloat16"),
        ("tresnet_v2_l", 576, 64, "bfloat16"),
        ("tresnet_m", 448, 256, "bfloat16"),
    ]


def test_kernels_of_a_trace_are_grouped_like_those_of_the_program(tmp_path):
    (tmp_path / "host.xplane.pb").write_bytes(ProfileData.text_proto_to_serialized_xspace(TRACE))
    found = compare_with_model(tmp_path, PROGRAM, 2, 8, Speeds(64e6, 1e12))
    assert found["measured_ms"] == pytest.approx(6e-3)
    assert found["modelled_ms"] == pytest.approx(2 * 128 / 64e3)
    kinds = {kind: (part["kernels"], part["measured_ms"]) for kind, part in found["by_kind"].items()}
    assert kinds == {
        "fusion kLoop": (1, pytest.approx(3e-3)),
        "convolution backward filter": (0, pytest.approx(3e-3)),
        "copy": (1, 0),
    }
    assert found["slowest"][0]["scope"] == "jit(step)/head/add"
    with pytest.raises(ValueError, match="the trace has no kernels"):
        compare_with_model(tmp_path / "nothing", PROGRAM, 2, 8, Speeds(1, 1))


def test_the_page_shows_the_measured_numbers(tmp_path):
    page = ROOT / "docs" / "performance.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text())
    fill(copy, read_results(ROOT / "benchmarks" / "results" / "h200"))
    assert copy.read_text() == page.read_text()
    (model, step), *_ = BARS
    results = {step_name(model, step, "aia_jax"): rate(2000.0), step_name(model, step, "torch NCHW"): rate(500.0)}
    results[step_name(model, "training", change_name(CHANGES[model][0]))] = {"failed": "out of memory"}
    filled = table({"smoke": False, "runs": [], "results": results})
    assert f"| {model}, {step} | 2,000 | 1,800 | 500 (NCHW) | 1 of 4 | 4.00 |" in filled
    assert f"| {model} | `model.input_statistics=False` | failed | not measured |" in filled
    copy.write_text("no marks")
    with pytest.raises(InputError, match="needs the line <!-- gpu -->"):
        fill(copy, {})


def test_a_smoke_run_measures_a_stage_of_each_kind(tmp_path, monkeypatch, capsys):
    """With a smaller network, and in this process, because starts and compilation take most of the time."""
    monkeypatch.setattr(gpu, "Worker", InThisProcess)
    monkeypatch.setitem(tresnet.VARIANTS, "tiny", tresnet.Variant(blocks=(1, 1), width=8, basic_stages=1))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    assert gpu.run_all(gpu.make_parser().parse(["--smoke", "--output", str(tmp_path)])) == 0
    results = read_results(tmp_path)["results"]
    assert list(results) == [stage.name for stage in list_stages("cpu", smoke=True, root=None)]
    assert results[ROOFLINES]["copy_bytes_per_second"] > 0
    for name, row in results.items():
        assert row.get("failed") == ("not installed: torch, timm" if ", torch" in name else None)
    kernels = results[step_name(*next(iter(BARS)), "aia_jax")]["kernels"]
    assert min(kernels["by_kind"]["convolution"].values()) > 0
    assert (tmp_path / "gpu.md").read_text() in capsys.readouterr().out


def test_the_command_starts_where_few_packages_are_installed(tmp_path):
    """Jax, flax, optax and ml_collections are enough; other packages cannot be imported."""
    absent = (*ABSENT, "torch", "timm")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n")
    command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XLA_FLAGS": xla_flags()}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "JAX finds no GPU; --smoke tries the stages with tiny shapes on a CPU" in done.stderr
