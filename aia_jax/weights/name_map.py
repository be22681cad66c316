"""Converts arrays with PyTorch's names to arrays with the paths of this project, and back.

Each `Rule` contains a PyTorch name. The names for TResNet and EfficientNet-Lite are timm's, and those for MiniLM are
the names of BERT in transformers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import MAX_LISTED, list_problems, nearest, printable
from aia_jax.weights.torch_state import TorchStateDict, full_name


class Transform(NamedTuple):
    """Two functions that change the axes of an array: from PyTorch to JAX, and from JAX to PyTorch."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


CONV = Transform(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))  # PyTorch: OIHW, JAX: OHWI
HWIO = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
LINEAR = Transform(lambda x: x.T, lambda x: x.T)
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # 1x1 convolution to linear layer
ROW = Transform(lambda x: x[0], lambda x: x[None])
SAME = Transform(lambda x: x, lambda x: x)


class Rule(NamedTuple):
    """The PyTorch name of an array, or of all arrays of a module.

    Attributes:
        pattern: regular expression for our path of the array or module, after its area, such as "head.".
        target: the PyTorch name, a template for `re.Match.expand`.
        transform: changes the axes of the array, or of the module's `kernel`. Other arrays of a module keep their axes.
        part: 0 for the query, 1 for the key, 2 for the value, if PyTorch packs these three into one array.
    """

    pattern: str
    target: str
    transform: Transform = SAME
    part: int | None = None


# Our names of the arrays in a module, and PyTorch's names. Other names, such as `bias`, are equal.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

_TRESNET = (  # `find_place` first changes our `stages.0` to `layer1`
    Rule(r"conv1\.(conv|bn)", r"conv1.\1", CONV),
    Rule(r"(layer\d+\.\d+\.conv\d)\.(conv|bn)", r"\1.\2", CONV),
    Rule(r"(layer1\.\d+\.downsample)\.(conv|bn)", r"\1.0.\2", CONV),
    Rule(r"(layer\d+\.\d+\.downsample)\.(conv|bn)", r"\1.1.\2", CONV),  # module 0 is an average pool
    Rule(r"(layer\d+\.\d+\.se\.fc\d)", r"\1", POINTWISE),
)
_EFFICIENTNET_LITE = tuple(
    rule
    for here, conv, norm in (
        ("stem", "conv_stem", "bn1"),
        (r"stages\.(0\.\d+)\.depthwise", r"blocks.\1.conv_dw", r"blocks.\1.bn1"),  # stage 0 has no expansion
        (r"stages\.(0\.\d+)\.project", r"blocks.\1.conv_pw", r"blocks.\1.bn2"),
        (r"stages\.(\d+\.\d+)\.expand", r"blocks.\1.conv_pw", r"blocks.\1.bn1"),
        (r"stages\.(\d+\.\d+)\.depthwise", r"blocks.\1.conv_dw", r"blocks.\1.bn2"),
        (r"stages\.(\d+\.\d+)\.project", r"blocks.\1.conv_pwl", r"blocks.\1.bn3"),
        ("head", "conv_head", "bn2"),
    )
    for rule in (Rule(rf"{here}\.conv", conv, HWIO), Rule(rf"{here}\.bn", norm))
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
_SGRAF = (  # a target is the encoder's number and the name in this encoder's state dict
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
    Rule(r"image_attention\.(local|common)", r"2.v_global_w.embedding_\1.0", LINEAR),
    Rule(r"image_attention\.mean", "2.v_global_w.embedding_global.0", LINEAR),
    Rule(r"image_attention\.local_norm", "2.v_global_w.embedding_local.1"),
    Rule(r"image_attention\.mean_norm", "2.v_global_w.embedding_global.1"),
    Rule(r"text_attention\.(local|common)", r"2.t_global_w.embedding_\1.0", LINEAR),
    Rule(r"text_attention\.mean", "2.t_global_w.embedding_global.0", LINEAR),
    Rule("local", "2.sim_tranloc_w", LINEAR),
    Rule("whole", "2.sim_tranglo_w", LINEAR),
    Rule(r"reasoning\.(query|key)\.(\d)", r"2.SGR_module.\2.graph_\1_w", LINEAR),
    Rule(r"reasoning\.value\.(\d)", r"2.SGR_module.\1.sim_graph_w", LINEAR),
    Rule(r"reasoning\.linear", "2.SAF_module.attn_sim_w", LINEAR),
    Rule(r"reasoning\.norm", "2.SAF_module.bn"),
    Rule("score", "2.sim_eval_w", LINEAR),
)
_BERT_LAYER = r"encoder.layer.\1"
_MINILM = (
    Rule(r"words\.embedding", "embeddings.word_embeddings.weight"),
    Rule(r"positions\.embedding", "embeddings.position_embeddings.weight"),
    Rule(r"segments\.embedding", "embeddings.token_type_embeddings.weight"),
    Rule("norm", "embeddings.LayerNorm"),
    Rule(r"layers\.(\d+)\.(query|key|value)", rf"{_BERT_LAYER}.attention.self.\2", LINEAR),
    Rule(r"layers\.(\d+)\.out", f"{_BERT_LAYER}.attention.output.dense", LINEAR),
    Rule(r"layers\.(\d+)\.attention_norm", f"{_BERT_LAYER}.attention.output.LayerNorm"),
    Rule(r"layers\.(\d+)\.expand", f"{_BERT_LAYER}.intermediate.dense", LINEAR),
    Rule(r"layers\.(\d+)\.project", f"{_BERT_LAYER}.output.dense", LINEAR),
    Rule(r"layers\.(\d+)\.norm", f"{_BERT_LAYER}.output.LayerNorm"),
)
# The keys are ("backbone", family), ("head", system), ("sgraf", family) and ("text", family).
TABLES: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("backbone", "tresnet"): _TRESNET,
    ("backbone", "efficientnet_lite"): _EFFICIENTNET_LITE,
    ("head", "annotator"): _ATTENTION_HEAD,
    ("head", "classifier"): (Rule("linear", "", LINEAR),),
    ("head", "backbone"): (Rule("linear", "", LINEAR),),  # the classifier of ImageNet's classes
    ("sgraf", "sgraf"): _SGRAF,
    ("text", "minilm"): _MINILM,
}

Key = tuple[str, str]  # area ("backbone", "head", "sgraf" or "text") and PyTorch name in this area


class Place(NamedTuple):
    """Where a PyTorch state dict has an array of this project. `transform` and `part` are as in `Rule`."""

    key: Key
    transform: Transform
    part: int | None


def find_place(path: str, *, system: str, family: str) -> Place:
    """Returns the `Place` of our array `path`, such as "backbone.stem.bn.scale". Raises ValueError if no rule fits."""
    area, _, inner = path.partition(".")
    if area == "backbone" and family == "tresnet":
        inner = re.sub(r"^stages\.(\d+)", lambda match: f"layer{int(match[1]) + 1}", inner)
    module, _, leaf = inner.rpartition(".")
    for rule in TABLES[area, system if area == "head" else family]:
        if match := re.fullmatch(rule.pattern, inner):
            return Place((area, match.expand(rule.target)), rule.transform, rule.part)
        if match := re.fullmatch(rule.pattern, module):
            separator = "." if rule.part is None else "_"
            name = f"{match.expand(rule.target)}{separator}{LEAVES.get(leaf, leaf)}".lstrip(".")
            return Place((area, name), rule.transform if leaf == "kernel" else SAME, rule.part)
    raise ValueError(f"no rule for {path}")


def system_of(paths: Iterable[str]) -> str:
    """Returns a model's system, from the paths of its arrays: "annotator", "classifier", "retrieval" or "backbone"."""
    marks = {"head.query_embedding": "annotator", "head.linear.bias": "classifier", "sgraf.score.bias": "retrieval"}
    return next((system for path, system in marks.items() if path in paths), "backbone")


def from_torch(torch_state: TorchStateDict, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, np.ndarray]:
    """Converts a `TorchStateDict` to arrays with the paths of this project, `{path: array}`.

    The first part of a path is its area: "backbone", "head" or "sgraf". The file must have an array for each path in
    `shapes`. If `shapes` has an area, every array of this area in the file must have a path. Other areas are ignored.

    Raises:
        InputError: arrays are missing or unexpected, have a wrong shape or type, or hold variances below 0. The
            message lists all these arrays.
    """
    areas = {path.partition(".")[0] for path in shapes}
    given = {(area, name): value for area in sorted(areas) for name, value in getattr(torch_state, area).items()}
    unused, arrays, missing, unfit = set(given), {}, {}, {}
    for path, shape in shapes.items():
        key, transform, part = find_place(path, system=torch_state.system, family=torch_state.family)
        expected = transform.to_torch(np.broadcast_to(np.float32(0), shape)).shape
        expected = expected if part is None else (3 * expected[0], *expected[1:])
        if key not in given:
            missing[key] = expected
            continue
        unused.discard(key)
        if problem := _problem(given[key], expected, key[1]):
            unfit[key] = problem
            continue
        value = given[key] if part is None else np.split(given[key], 3)[part]
        arrays[path] = np.ascontiguousarray(transform.to_jax(value))
    if missing or unfit or unused or torch_state.others:
        raise InputError(_report(torch_state, where, missing, unfit, unused))
    return arrays


def to_torch(arrays: Mapping[str, np.ndarray], *, system: str, family: str) -> dict[str, np.ndarray]:
    """Converts arrays to a PyTorch state dict. Adds `num_batches_tracked` with the value 0 for each batch norm.

    Args:
        arrays: `{path: array}` with our paths: of a backbone, of a head, of both, or of SGRAF.
        system: "annotator", "classifier", "backbone" or "retrieval".
        family: "tresnet", "efficientnet_lite" or "sgraf".
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, value in arrays.items():
        (area, name), transform, part = find_place(path, system=system, family=family)
        value = transform.to_torch(np.asarray(value))
        parts.setdefault(full_name(system, family, area, name), {})[part or 0] = value
    joined = {name: np.concatenate([found[part] for part in sorted(found)]) for name, found in parts.items()}
    state = {name: np.ascontiguousarray(value) for name, value in joined.items()}
    norms = [name for name in state if name.endswith("running_var")]
    return state | {name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64) for name in norms}


def _problem(value: np.ndarray, shape: tuple[int, ...], name: str) -> str:
    if value.shape != shape:
        return f"other shape: {list(value.shape)} in the file, {list(shape)} in the model"
    if value.dtype.kind != "f":
        return f"other type: {value.dtype} in the file, floating in the model"
    if name.endswith("running_var") and (value < 0).any():
        return "variances below 0"
    return ""


def _report(torch_state: TorchStateDict, where: str, missing: dict, unfit: dict, unused: Iterable[Key]) -> str:
    left_over = sorted([*map(torch_state.name_in_file, unused), *torch_state.others])
    absent = []
    for number, (key, shape) in enumerate(missing.items()):
        name = torch_state.name_in_file(key)
        near = nearest(name, left_over) if number < MAX_LISTED else []
        absent.append(f"missing: {name} {list(shape)}" + (f"; nearest: {printable(near[0])}" if near else ""))
    other = [f"{torch_state.name_in_file(key)}: {problem}" for key, problem in unfit.items()]
    listed = list_problems(absent) + list_problems(other)
    listed += list_problems([f"left over: {printable(name)}" for name in left_over])
    return f"{where} does not fit this config; it holds {torch_state.describe()}{listed}"
