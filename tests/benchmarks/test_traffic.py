"""Bytes and operations read off a program's text, and our steps compiled for devices that are not here."""

import jax
import pytest

from aia_jax.benchmarks.hlo import Kernel, array_bytes, entry_kernels
from aia_jax.benchmarks.targets import described_devices
from aia_jax.benchmarks.traffic import report, summarize, table
from aia_jax.errors import InputError
from configs import demo

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
X, W, Y, SMALL = 2 * 8 * 8 * 16 * 2, 32 * 9 * 16 * 2, 2 * 8 * 8 * 32 * 2, 8 * 4 * 2
CONV_FLOPS = 2 * (2 * 8 * 8) * (32 * 9 * 16)


def test_kernels_of_a_program():
    assert entry_kernels(PROGRAM) == [
        Kernel(
            "conv.1",
            "convolution forward",
            X + W + Y + 128,
            2 * (2 * 8 * 8) * (32 * 9 * 16),
            "jit(step)/jvp(stage2)/conv",
        ),
        Kernel("fusion.1", "fusion kLoop", Y + SMALL, 0, "jit(step)/head/add"),
        Kernel("dot.1", "matmul", 2 * SMALL + 8 * 6 * 4 + 64, 2 * 8 * 6 * 4, ""),
        Kernel("reduce.1", "all-reduce", SMALL + 16, 0, "jit(step)/optimizer/add"),
    ]


def test_a_summary_counts_by_kind_and_stage():
    summary = summarize(entry_kernels(PROGRAM), bandwidth=1e9, flops=1e9, images=2)
    assert summary["kernels"] == 4
    assert summary["collectives"] == 1
    assert summary["collective_mb"] == pytest.approx((SMALL + 16) / 1e6)
    assert set(summary["by_stage"]) == {"stage2", "head", "other", "optimizer"}
    assert summary["by_kind"]["matmul"]["gflop_per_image"] == pytest.approx(384 / 2 / 1e9)
    convolution = CONV_FLOPS / 1e9  # more operations than bytes
    others = (Y + SMALL + 2 * SMALL + 192 + 64 + SMALL + 16) / 1e9
    assert summary["modelled_ms"] == pytest.approx(1e3 * (convolution + others))


@pytest.mark.parametrize(("shape", "expected"), [("f32[]", 4), ("(bf16[2,3]{1,0}, u8[7])", 19), ("pred[5]", 5)])
def test_bytes_of_shapes(shape, expected):
    assert array_bytes(shape) == expected


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        entry_kernels("HloModule nothing")
    with pytest.raises(ValueError, match="cannot read the instruction 'what is this'"):
        entry_kernels("\nENTRY %main {\n  what is this\n}")


def test_programs_of_this_machine_are_read():
    compiled = jax.jit(lambda x: (x @ x).sum()).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
    assert sum(kernel.bytes for kernel in entry_kernels(compiled.as_text())) >= 8 * 8 * 4


@pytest.mark.parametrize(("name", "count"), [("a100", 1), ("h200", 0), ("h200", 12), ("v5e", 3)])
def test_devices_that_cannot_be_described_are_refused(name, count):
    with pytest.raises(InputError, match=r"--target=a100 is unknown; known: h200, v5e|cannot be described for"):
        described_devices(name, count)


def _described(count):
    try:
        return described_devices("h200", count)
    except InputError as error:
        pytest.skip(f"the compiler for GPUs is absent: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "megabytes"), [(1, 12.75), (2, 13.28)])
def test_the_step_of_a_small_annotator_moves_no_more_than_it_did(count, megabytes):
    """A change that moves over 5 % more an image has to say why; one that moves less, to lower the number."""
    _described(count)
    config = demo.get_config()
    config.model.dtype, config.batch_size = "bfloat16", 64 * count
    measured, _ = report(config, "h200", count, inference=False)
    assert measured["gb_per_image"] * 1e3 <= 1.05 * megabytes
    assert measured["gflop_per_image"] > 0.1
    assert (measured["collectives"] > 0) == (count > 1)
    assert "stage3" in table(measured)
