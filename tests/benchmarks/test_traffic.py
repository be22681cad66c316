"""Bytes and operations in the text of a program, and steps compiled for devices that do not exist here."""

import jax
import pytest

from aia_jax.configs import demo, sgraf
from aia_jax.utils.errors import InputError
from benchmarks import targets
from benchmarks.hlo import Kernel, array_bytes, entry_kernels
from benchmarks.targets import described_devices
from benchmarks.traffic import compile_step, report, summarize, table

pytestmark = pytest.mark.extras
PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_add (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %add.1 = bf16[8,4]{1,0} add(%p, %p)
}

ENTRY %main.1 (x: bf16[2,8,8,16], w: bf16[32,3,3,16]) -> (f32[4]) {
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %w = bf16[32,3,3,16]{3,2,1,0} parameter(1), metadata={op_name="w"}
  %conv.1 = (bf16[2,8,8,32]{3,2,1,0}, u8[128]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(stage2)/conv"}
  %gte = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %fusion.1 = bf16[8,4]{1,0} fusion(%gte), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/head/add"}
  %dot.1 = (f32[8,6]{1,0}, s8[64]{0}) custom-call(%fusion.1, %fusion.1), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %reduce.1 = f32[4]{0} all-reduce-start(%fusion.1), replica_groups={}, metadata={op_name="jit(step)/optimizer/add"}
  %reduce.2 = f32[4]{0} all-reduce-done(%reduce.1)
  ROOT %tuple = (f32[4]{0}) tuple(%reduce.2)
}
"""
GATHER = """
ENTRY %main (x: f32[4], y: f32[2,4]) -> f32[8,4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[2,4]{1,0} parameter(1)
  %start = ((f32[4]{0}, f32[2,4]{1,0}), (f32[16]{0}, f32[8,4]{1,0})) all-gather-start(%x, %y), dimensions={0}
  %done = (f32[16]{0}, f32[8,4]{1,0}) all-gather-done(%start)
  ROOT %part = f32[8,4]{1,0} get-tuple-element(%done), index=1
}
"""
TPU = """
ENTRY %main (x: f32[8,128], w: f32[4,8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %w = f32[4,8,128]{2,1,0:T(8,128)} parameter(1)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[4,8,128]{2,1,0:T(8,128)}), f32[1,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%w)
  %slice-done = f32[1,8,128]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
  %joined = f32[8,128]{1,0:T(8,128)S(1)} custom-call(%slice-done), custom_call_target="ConcatBitcast"
  ROOT %sum = f32[8,128]{1,0:T(8,128)} fusion(%copy-done, %joined), kind=kLoop, calls=%fused
}
"""
COLLECTIVE = """
ENTRY %main (x: f32[24]) -> f32[24] {
  %x = f32[24]{0:T(128)S(1)} parameter(0)
  ROOT %sum = f32[24]{0:T(128)S(1)} all-reduce(%x), to_apply=%add
}
"""
X, W, Y, SMALL = 2 * 8 * 8 * 16 * 2, 32 * 9 * 16 * 2, 2 * 8 * 8 * 32 * 2, 8 * 4 * 2
CONV_FLOPS = 2 * (2 * 8 * 8) * (32 * 9 * 16)


@pytest.mark.parametrize(
    ("program", "kernels"),
    [
        (
            PROGRAM,
            [
                Kernel("conv.1", "convolution forward", X + W + Y + 128, CONV_FLOPS, "jit(step)/jvp(stage2)/conv"),
                Kernel("fusion.1", "fusion kLoop", Y + SMALL, 0, "jit(step)/head/add"),
                Kernel("dot.1", "matmul", 2 * SMALL + 8 * 6 * 4 + 64, 2 * 8 * 6 * 4, ""),
                Kernel("reduce.1", "all-reduce", SMALL + 16, 0, "jit(step)/optimizer/add", SMALL, 16),
            ],
        ),
        (GATHER, [Kernel("start", "all-gather", 48 + 192, 0, "", 48, 192)]),
        (
            TPU,
            [
                Kernel("copy-start", "transfer", 4096, 0, ""),
                Kernel("slice-start", "transfer", 4096, 0, ""),
                Kernel("sum", "fusion kLoop", 4096, 0, ""),
            ],
        ),
        (COLLECTIVE, [Kernel("sum", "all-reduce", 0, 0, "", 96, 96)]),
    ],
    ids=["GPU", "gathered arrays count once", "main memory of a TPU", "collectives in any memory space"],
)
def test_kernels_of_a_program(program, kernels):
    assert entry_kernels(program) == kernels


def test_a_summary_counts_by_kind_and_stage():
    summary = summarize(entry_kernels(PROGRAM), bandwidth=1e9, flops=1e9, images=2)
    assert summary["kernels"] == 4
    assert summary["collectives"] == 1
    assert summary["by_collective"] == {"all-reduce": {"kernels": 1, "sent_mb": SMALL / 1e6, "received_mb": 16 / 1e6}}
    assert set(summary["by_stage"]) == {"stage2", "head", "other", "optimizer"}
    assert summary["by_kind"]["matmul"]["gflop_per_image"] == pytest.approx(384 / 2 / 1e9)
    convolution = CONV_FLOPS / 1e9  # more operations than bytes
    others = (Y + SMALL + 2 * SMALL + 192 + 64 + SMALL + 16) / 1e9
    assert summary["modelled_ms"] == pytest.approx(1e3 * (convolution + others))
    assert summarize(entry_kernels(TPU), bandwidth=1e9, flops=1e9, images=1)["kernels"] == 1


def test_a_loop_counts_once_per_iteration():
    def body(carry, row):
        return carry @ carry + row, None

    shapes = jax.ShapeDtypeStruct((8, 8), "float32"), jax.ShapeDtypeStruct((5, 8, 8), "float32")
    compiled = jax.jit(lambda x, rows: jax.lax.scan(body, x, rows)[0]).lower(*shapes).compile()
    kernels = entry_kernels(compiled.as_text())
    names = [kernel.name for kernel in kernels]
    assert 5 in {names.count(name) for name in names}
    assert sum(kernel.bytes for kernel in kernels) >= 5 * 8 * 8 * 4


@pytest.mark.parametrize(("shape", "expected"), [("f32[]", 4), ("(bf16[2,3]{1,0}, u8[7])", 19), ("pred[5]", 5)])
def test_bytes_of_a_shape(shape, expected):
    assert array_bytes(shape) == expected


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        entry_kernels("HloModule nothing")
    with pytest.raises(ValueError, match="cannot read the instruction 'what is this'"):
        entry_kernels("\nENTRY %main {\n  what is this\n}")


@pytest.mark.parametrize(("name", "count"), [("a100", 1), ("h200", 0), ("h200", 12), ("v5e", 3)])
def test_unsupported_devices_are_refused(name, count):
    with pytest.raises(InputError, match=r"--target=a100 is unknown; known: h200, v5e|is not supported for"):
        described_devices(name, count)


def test_a_missing_toolkit_is_named_before_the_compiler_crashes(monkeypatch):
    monkeypatch.setattr(targets, "_CUDA_FILES", ("bin/absent",))
    with pytest.raises(InputError, match=r"no CUDA toolkit with bin/absent: pip install .*nvidia-cuda-nvcc"):
        described_devices("h200", 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [(sgraf.get_config("coco"), "config.task='retrieval'"), (demo.get_config(), "config.model.freeze_backbone")],
)
def test_unsupported_steps_are_refused(config, message):
    config.model.freeze_backbone = True
    with pytest.raises(InputError, match=message):
        compile_step(config, jax.devices(), {}, inference=False)


def _report(count, batch, *, inference=False, **fields):
    try:
        described_devices("h200", count)
    except InputError as error:
        pytest.skip(f"the compiler for GPUs is missing: {error}")
    config = demo.get_config()
    config.model.dtype, config.batch_size = "bfloat16", batch * count
    config.update_from_flattened_dict(fields)
    return report(config, "h200", count, inference=inference)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "megabytes"), [(1, 11.59), (2, 12.07)])
def test_the_traffic_of_a_small_annotator_does_not_grow(count, megabytes):
    """A change that adds more than 5 % must give a reason; a change that saves traffic lowers the number."""
    measured, _ = _report(count, 64)
    assert measured["gb_per_image"] * 1e3 <= 1.05 * megabytes
    assert measured["gflop_per_image"] > 0.1
    assert "stage3" in table(measured)
    assert set(measured["by_collective"]) == ({"all-reduce"} if count > 1 else set())
    if count > 1:
        assert measured["sent_mb"] == pytest.approx(measured["estimated_collectives_mb"]["all"], rel=1e-12)


@pytest.mark.slow
def test_inference_folds_norms_into_convolutions_with_bias():
    measured, text = _report(1, 64, inference=True)
    assert "__cudnn$convBiasActivationForward" in text
    assert "__cudnn$convForward" not in text
    assert measured["gb_per_image"] * 1e3 <= 1.05 * 2.67


@pytest.mark.slow
def test_devices_exchange_the_estimated_bytes():
    measured, _ = _report(8, 16)
    estimate = measured["estimated_collectives_mb"]
    assert estimate["gradients"] > estimate["norms forward"] > estimate["norms backward"] > 0
    assert measured["sent_mb"] == pytest.approx(estimate["all"], rel=1e-12)
    assert set(measured["by_collective"]) == {"all-reduce"}


@pytest.mark.slow
def test_fsdp_gathers_weights_and_exchanges_nothing_else():
    measured, _ = _report(4, 16, **{"mesh.fsdp": 4})
    assert set(measured["by_collective"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    gathered = measured["by_collective"]["all-gather"]
    assert gathered["received_mb"] == pytest.approx(4 * gathered["sent_mb"])
    sent = measured["sent_mb"] - gathered["sent_mb"]  # and a bit for each split gradient: whether it is finite
    assert sent == pytest.approx(measured["estimated_collectives_mb"]["all"], rel=1e-4)
