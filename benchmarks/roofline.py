"""Computes the roofline of a step from the measured speed of a device and the estimated work per image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.models.annotator import build_annotator
from aia_jax.models.backbones import DTYPES
from aia_jax.training.model_arrays import merge_model, split_model
from benchmarks.step import first_device
from benchmarks.timing import time_windows

# How often each convolution's output crosses the memory bus if every convolution, statistic, normalisation and their
# gradients are separate kernels. Inference, with batch norm folded, writes and reads it once.
_TRAINING_PASSES, _INFERENCE_PASSES = 14, 2
_TRAINING_COPIES = 10  # of float32 weights: read and write gradient, weight, both moments and average
_ON_CPU = {"copy": 1 << 25, "matmul": 2048}  # elements; rows and columns
_ON_ACCELERATOR = {"copy": 1 << 28, "matmul": 8192}


@dataclass(frozen=True)
class Work:
    """The work for one image.

    Attributes:
        flops: operations of convolutions and matrix products, two per multiply-add.
        bytes: traffic on the memory bus.
    """

    flops: float
    bytes: float


def measure_device(windows: int, seconds: float) -> dict[str, Any]:
    """Measures the first device: bandwidth with a large copy, arithmetic with a large product.

    The product is in bfloat16, on a CPU in float32.

    Returns:
        `device`, `copy_bytes_per_second`, `matmul_flops_per_second`, `matmul_dtype`.
    """
    device = jax.devices()[0]
    sizes = _ON_CPU if device.platform == "cpu" else _ON_ACCELERATOR
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    words = jax.device_put(jnp.zeros(sizes["copy"], jnp.float32), device)
    matrix = jax.device_put(jnp.ones((sizes["matmul"],) * 2, dtype), device)
    copy = time_windows(_repeat(jax.jit(lambda x: x + 1), words), windows=windows, seconds=seconds)
    product = time_windows(_repeat(jax.jit(lambda x: x @ x), matrix), windows=windows, seconds=seconds)
    return {
        "device": first_device(),
        "copy_bytes_per_second": 2 * words.nbytes / copy["median"],
        "matmul_flops_per_second": 2 * sizes["matmul"] ** 3 / product["median"],
        "matmul_dtype": jnp.dtype(dtype).name,
    }


def count_work(config: ConfigDict, num_labels: int, *, inference: bool) -> Work:
    """Estimates the work for an image in a step of an annotation config, without computing it.

    Training has three times the operations of the forward pass. Inference moves the output of each convolution twice,
    and training 14 times, as separate kernels for convolutions, statistics, normalisations and gradients do. The bytes
    also include the weights and, in training, the state of the optimiser.
    """
    batch, size = config.batch_size, config.data.image_size
    build = nnx.eval_shape(lambda: build_annotator(config.model, num_labels, rngs=nnx.Rngs(0)))
    graphdef, weights = split_model(build)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)

    def whole(weights: Any, images: jax.Array) -> jax.Array:
        return merge_model(graphdef, weights)(images, train=False)[0]

    def backbone(weights: Any, images: jax.Array) -> jax.Array:
        return merge_model(graphdef, weights).backbone(images, train=False)[0]

    macs = sum(count for _, count in _products(jax.make_jaxpr(whole)(weights, images).jaxpr))
    outputs = sum(size for size, _ in _products(jax.make_jaxpr(backbone)(weights, images).jaxpr))
    width = jnp.dtype(DTYPES[config.model.dtype]).itemsize
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights["params"]))
    if inference:
        return Work(2 * macs / batch, width * (_INFERENCE_PASSES * outputs + parameters) / batch)
    moved = width * _TRAINING_PASSES * outputs + 4 * _TRAINING_COPIES * parameters
    return Work(3 * 2 * macs / batch, moved / batch)


def bounds(work: Work, measured: dict[str, Any]) -> dict[str, float]:
    """Returns bounds in images per second: `compute`, `memory`, and both `in_series`."""
    compute = work.flops / measured["matmul_flops_per_second"]
    memory = work.bytes / measured["copy_bytes_per_second"]
    return {"compute": 1 / compute, "memory": 1 / memory, "in_series": 1 / (compute + memory)}


def _repeat(function: Callable[[jax.Array], jax.Array], argument: jax.Array) -> Callable[[int], object]:
    def run(calls: int) -> None:
        for _ in range(calls):
            result = function(argument)
        jax.block_until_ready(result)

    return run


def _products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """Yields the elements of the result and the multiplications of every convolution and matrix product.

    Where a computation has a variant for each platform, the last variant counts.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            elements = equation.outvars[0].aval.size
            yield elements, elements * _terms(equation)
        parameters = equation.params
        if "branches" in parameters:
            parameters = {**parameters, "branches": parameters["branches"][-1]}
        inner = jax.tree.leaves(parameters, is_leaf=lambda part: hasattr(part, "eqns") or hasattr(part, "jaxpr"))
        for part in inner:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from _products(part)


def _terms(equation: Any) -> int:
    """The number of products in the sum of one element of the result."""
    left, right = (variable.aval for variable in equation.invars[:2])
    if equation.primitive.name == "conv_general_dilated":
        return right.size // right.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    (contracted, _), _ = equation.params["dimension_numbers"]
    terms = 1
    for axis in contracted:
        terms *= left.shape[axis]
    return terms
