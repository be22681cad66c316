"""Names of arrays here and in PyTorch files, as tables of `Rule`s; TResNet's and EfficientNet-Lite's are those of timm.

`name_map` reads the tables in both directions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """How the axes of an array change between PyTorch and JAX."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


CONV = Transform(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))  # OIHW, OHWI
HWIO = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
LINEAR = Transform(lambda x: x.T, lambda x: x.T)
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # 1x1 convolution to linear layer
ROW = Transform(lambda x: x[0], lambda x: x[None])
SAME = Transform(lambda x: x, lambda x: x)


class Rule(NamedTuple):
    """The PyTorch name of an array, or of all arrays of a module.

    Attributes:
        pattern: regular expression for the path of the array or module here, without "backbone", "head" or "sgraf".
        target: its name in PyTorch, as a template of `re.Match.expand`.
        transform: of the array, or of the module's `kernel`; other arrays of a module keep their axes.
        part: 0, 1 or 2 for the query, key and value parts of a packed `<target>_weight` and `<target>_bias`.
    """

    pattern: str
    target: str
    transform: Transform = SAME
    part: int | None = None


# Names of a module's arrays; others, such as `bias`, are the same.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

_TRESNET = (  # `stages.0` here is written as `layer1` before the rules apply
    Rule(r"conv1\.(conv|bn)", r"conv1.\1", CONV),
    Rule(r"(layer\d+\.\d+\.conv\d)\.(conv|bn)", r"\1.\2", CONV),
    Rule(r"(layer1\.\d+\.downsample)\.(conv|bn)", r"\1.0.\2", CONV),
    Rule(r"(layer\d+\.\d+\.downsample)\.(conv|bn)", r"\1.1.\2", CONV),  # follows an average pool
    Rule(r"(layer\d+\.\d+\.se\.fc\d)", r"\1", POINTWISE),
)
_EFFICIENTNET_LITE = (
    Rule(r"stem\.conv", "conv_stem", HWIO),
    Rule(r"stem\.bn", "bn1"),
    Rule(r"stages\.0\.(\d+)\.depthwise\.conv", r"blocks.0.\1.conv_dw", HWIO),
    Rule(r"stages\.0\.(\d+)\.depthwise\.bn", r"blocks.0.\1.bn1"),
    Rule(r"stages\.0\.(\d+)\.project\.conv", r"blocks.0.\1.conv_pw", HWIO),
    Rule(r"stages\.0\.(\d+)\.project\.bn", r"blocks.0.\1.bn2"),
    Rule(r"stages\.(\d+\.\d+)\.expand\.conv", r"blocks.\1.conv_pw", HWIO),
    Rule(r"stages\.(\d+\.\d+)\.expand\.bn", r"blocks.\1.bn1"),
    Rule(r"stages\.(\d+\.\d+)\.depthwise\.conv", r"blocks.\1.conv_dw", HWIO),
    Rule(r"stages\.(\d+\.\d+)\.depthwise\.bn", r"blocks.\1.bn2"),
    Rule(r"stages\.(\d+\.\d+)\.project\.conv", r"blocks.\1.conv_pwl", HWIO),
    Rule(r"stages\.(\d+\.\d+)\.project\.bn", r"blocks.\1.bn3"),
    Rule(r"head\.conv", "conv_head", HWIO),
    Rule(r"head\.bn", "bn2"),
)
_LAYER = r"transformer.decoder.layers.\1"
_ATTENTION_HEAD = (
    Rule("query_embedding", "query_emb.weight"),
    Rule("weight", "w", ROW),
    Rule("bias", "b", ROW),
    Rule("projection", "linear_projection", POINTWISE),
    *(
        Rule(rf"layers\.(\d+)\.{here}\.{name}", f"{_LAYER}.{there}.in_proj", LINEAR, part)
        for here, there in (("self_attention", "self_attn"), ("cross_attention", "multihead_attn"))
        for part, name in enumerate(("query", "key", "value"))
    ),
    Rule(r"layers\.(\d+)\.self_attention\.out", f"{_LAYER}.self_attn.out_proj", LINEAR),
    Rule(r"layers\.(\d+)\.cross_attention\.out", f"{_LAYER}.multihead_attn.out_proj", LINEAR),
    Rule(r"layers\.(\d+)\.(linear\d|norm\d)", rf"{_LAYER}.\2", LINEAR),
    Rule("norm", "transformer.decoder.norm"),
)
_SGRAF = (  # the number of the encoder, then the name in its state dict
    Rule("image", "0.fc", LINEAR),
    Rule(r"text\.embedding", "1.embed.weight"),
    *(
        Rule(rf"text\.gru\.{direction}\.{here}", f"1.cap_rnn.{there}_l0{suffix}", transform)
        for direction, suffix in (("forward", ""), ("backward", "_reverse"))
        for here, there, transform in (
            ("input_kernel", "weight_ih", LINEAR),
            ("hidden_kernel", "weight_hh", LINEAR),
            ("input_bias", "bias_ih", SAME),
            ("hidden_bias", "bias_hh", SAME),
        )
    ),
    Rule(r"image_attention\.local", "2.v_global_w.embedding_local.0", LINEAR),
    Rule(r"image_attention\.local_norm", "2.v_global_w.embedding_local.1"),
    Rule(r"image_attention\.mean", "2.v_global_w.embedding_global.0", LINEAR),
    Rule(r"image_attention\.mean_norm", "2.v_global_w.embedding_global.1"),
    Rule(r"image_attention\.common", "2.v_global_w.embedding_common.0", LINEAR),
    Rule(r"text_attention\.local", "2.t_global_w.embedding_local.0", LINEAR),
    Rule(r"text_attention\.mean", "2.t_global_w.embedding_global.0", LINEAR),
    Rule(r"text_attention\.common", "2.t_global_w.embedding_common.0", LINEAR),
    Rule("local", "2.sim_tranloc_w", LINEAR),
    Rule("whole", "2.sim_tranglo_w", LINEAR),
    Rule(r"reasoning\.query\.(\d)", r"2.SGR_module.\1.graph_query_w", LINEAR),
    Rule(r"reasoning\.key\.(\d)", r"2.SGR_module.\1.graph_key_w", LINEAR),
    Rule(r"reasoning\.value\.(\d)", r"2.SGR_module.\1.sim_graph_w", LINEAR),
    Rule(r"reasoning\.linear", "2.SAF_module.attn_sim_w", LINEAR),
    Rule(r"reasoning\.norm", "2.SAF_module.bn"),
    Rule("score", "2.sim_eval_w", LINEAR),
)
# The rules of ("backbone", family), ("head", system) and ("sgraf", family).
TABLES: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("backbone", "tresnet"): _TRESNET,
    ("backbone", "efficientnet_lite"): _EFFICIENTNET_LITE,
    ("head", "annotator"): _ATTENTION_HEAD,
    ("head", "classifier"): (Rule("linear", "", LINEAR),),
    ("sgraf", "sgraf"): _SGRAF,
}
