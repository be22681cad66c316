"""The PyTorch models from which ONNX files are made, for networks that timm does not have."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.models import backbones
from aia_jax.models.annotator import label_scores
from aia_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, SameConv, _same_padding
from aia_jax.models.tresnet import TResNet, Variant
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays, merge_model, split_model
from tests.helpers.references import needs_torch
from tests.helpers.untrained import annotator_config, random_weights

pytestmark = needs_torch


def test_a_shorter_tresnet_in_torch_gives_equal_scores(monkeypatch):
    """With an odd image size, and options that the published head does not use."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="ONNX needs more packages: pip install -e '.[onnx]'")
    from tests.helpers.torch_oracles import torch  # isort: skip, timm where torchvision is not whole
    from aia_jax.evaluation.verify import _torch_parts
    from aia_jax.inference import onnx_model

    short = partial(TResNet, Variant(blocks=(1, 1), width=16))
    monkeypatch.setitem(backbones.BACKBONES, "tresnet_short", backbones.Backbone(short, "tresnet", None, 4))
    options = {"activation": "gelu", "norm_first": False, "self_attention": True, "backbone": "tresnet_short"}
    config = annotator_config(**{"data.image_size": 36} | {f"model.{name}": value for name, value in options.items()})
    task, weights = make_task(config), random_weights(make_task(config))
    graphdef, _ = split_model(nnx.eval_shape(lambda: task.build_model(nnx.Rngs(0))))
    images = np.random.default_rng(1).integers(0, 256, (2, 36, 36, 3), np.uint8)
    ours = jax.jit(lambda weights: task.explain(merge_model(graphdef, weights), {"image": images}))(weights)
    model = onnx_model.build_torch_model(config, flat_arrays(weights))
    with torch.no_grad():
        theirs = onnx_model.OnnxAnnotator(model, config.model, task.channel_stats, explain=True)(
            torch.as_tensor(images)
        )
    for name, found in zip(("scores", "attention"), theirs, strict=True):
        np.testing.assert_allclose(found, ours[name], rtol=0, atol=1e-5)
        assert np.ptp(ours[name], axis=0).max() > 1e-3
    assert [name for name, _ in _torch_parts(model.body, "tresnet")] == ["stem", "stage1", "stage2"]


def test_efficientnet_lite_pads_as_at_its_own_resolution():
    from tests.helpers.torch_oracles import torch_models

    model = nnx.eval_shape(lambda: EfficientNetLite("2", rngs=nnx.Rngs(0)))
    expected = {
        ".".join(map(str, path)): _same_padding(conv.nominal, conv.kernel.shape[0], 2)[1]
        for path, conv in nnx.iter_modules(model)
        if isinstance(conv, SameConv) and conv.stride == 2
    }
    body, _ = torch_models.build_body("efficientnet_lite2")
    torch_models.fix_padding(body, VARIANTS["2"].resolution)
    found = {name: m for name, m in body.named_modules() if isinstance(m, torch_models.FixedPaddingConv)}
    names = {name.replace("conv_stem", "stem.conv").replace("blocks", "stages"): m for name, m in found.items()}
    paddings = {name.replace("conv_dw", "depthwise.conv"): conv.padding for name, conv in names.items()}
    assert paddings == {name: padding * 2 for name, padding in expected.items()}
    assert len(set(paddings.values())) > 1


def test_a_convolution_with_fixed_padding_equals_ours():
    from tests.helpers.torch_oracles import torch, torch_models

    side, size = 260, 5
    conv = SameConv(4, 4, size, stride=2, nominal=side, rngs=nnx.Rngs(0))
    theirs = torch_models.Conv2dSame(4, 4, size, stride=2, bias=False)
    theirs.weight.data = torch.as_tensor(np.array(conv.kernel[...])).permute(3, 2, 0, 1)
    images = np.random.default_rng(0).normal(size=(2, 18, 18, 4)).astype(np.float32)
    with torch.no_grad():
        found = torch_models.FixedPaddingConv(theirs, side)(torch.as_tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), conv(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_scores_of_logits_are_equal_in_torch(score):
    from tests.helpers.torch_oracles import torch  # isort: skip, timm where torchvision is not whole
    from aia_jax.weights import torch_annotator

    logits = np.random.default_rng(0).normal(0, 4, (3, 5)).astype(np.float32)
    config = annotator_config(**{"model.score": score}).model
    ours = label_scores(logits, config)
    np.testing.assert_allclose(ours, torch_annotator.label_scores(torch.as_tensor(logits), config), rtol=1e-5)
    assert (abs(ours.sum(axis=1) - 1) < 1e-5).all() == (score == "softmax")
