"""The files of SGRAF and of Visual Semantic Loss: an image, a text and a similarity encoder, and the options of a run.

Names here are those in the encoders' state dicts behind the encoder's number: `0.fc.weight`, `1.embed.weight`,
`2.sim_eval_w.weight`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from aia_jax.utils.errors import InputError
from aia_jax.weights.axis_layouts import LEAVES, LINEAR, SAME, Layout

_MARKS = ("0.fc.weight", "1.embed.weight", "2.sim_eval_w.weight")
_HEADS = {"sgr": "2.SGR_module.", "saf": "2.SAF_module."}
# (pattern of our module below `sgraf`, theirs)
_MODULES = (
    ("image", "0.fc"),
    (r"image_attention\.local", "2.v_global_w.embedding_local.0"),
    (r"image_attention\.local_norm", "2.v_global_w.embedding_local.1"),
    (r"image_attention\.mean", "2.v_global_w.embedding_global.0"),
    (r"image_attention\.mean_norm", "2.v_global_w.embedding_global.1"),
    (r"image_attention\.common", "2.v_global_w.embedding_common.0"),
    (r"text_attention\.local", "2.t_global_w.embedding_local.0"),
    (r"text_attention\.mean", "2.t_global_w.embedding_global.0"),
    (r"text_attention\.common", "2.t_global_w.embedding_common.0"),
    ("local", "2.sim_tranloc_w"),
    ("whole", "2.sim_tranglo_w"),
    (r"reasoning\.query\.(\d)", r"2.SGR_module.\1.graph_query_w"),
    (r"reasoning\.key\.(\d)", r"2.SGR_module.\1.graph_key_w"),
    (r"reasoning\.value\.(\d)", r"2.SGR_module.\1.sim_graph_w"),
    (r"reasoning\.linear", "2.SAF_module.attn_sim_w"),
    (r"reasoning\.norm", "2.SAF_module.bn"),
    ("score", "2.sim_eval_w"),
)
_PARAMETERS = {"text.embedding": ("1.embed.weight", SAME)} | {
    f"text.gru.{direction}.{ours}": (f"1.cap_rnn.{theirs}_l0{suffix}", layout)
    for direction, suffix in (("forward", ""), ("backward", "_reverse"))
    for ours, theirs, layout in (
        ("input_kernel", "weight_ih", LINEAR),
        ("hidden_kernel", "weight_hh", LINEAR),
        ("input_bias", "bias_ih", SAME),
        ("hidden_bias", "bias_hh", SAME),
    )
}
_SIZES = {
    # field of config.model: where an array of the file shows it
    "embed_size": ("0.fc.weight", 0),
    "num_features": ("0.fc.weight", 1),
    "word_size": ("1.embed.weight", 1),
    "similarity_size": ("2.sim_eval_w.weight", 1),
    "num_regions": ("2.v_global_w.embedding_local.1.weight", 0),
}
_EMBEDDING = "1.embed.weight"
_FIXED = {"num_layers": 1, "bi_gru": True, "no_imgnorm": False, "no_txtnorm": False}  # options that are one way here
_FIXED_OF = {"sgr": {"sgr_step": 3, **_FIXED}, "saf": _FIXED}


def place(inner: str) -> tuple[str, Layout]:
    """The name and the layout in a file of our array `sgraf.<inner>`.

    Raises:
        ValueError: there is no rule for it.
    """
    if inner in _PARAMETERS:
        return _PARAMETERS[inner]
    module, _, leaf = inner.rpartition(".")
    for pattern, target in _MODULES:
        match = re.fullmatch(pattern, module)
        if match:
            return f"{match.expand(target)}.{LEAVES.get(leaf, leaf)}", LINEAR if leaf == "kernel" else SAME
    raise ValueError(f"no rule for sgraf.{inner}")


def is_retrieval(names: Collection[str]) -> bool:
    """Whether arrays of these names are of such a file."""
    return any(mark in names for mark in _MARKS)


def reasoning_of(names: Collection[str], options: Mapping[str, Any] | None, where: str) -> str:
    """ "sgr" or "saf", as the options say or, where the file has none, the names.

    Args:
        names: of the arrays.
        options: the file's `opt`.
        where: the file, for messages.

    Raises:
        InputError: neither, or options of a model that this project does not have.
    """
    if options is None:
        found = [reasoning for reasoning, head in _HEADS.items() if any(name.startswith(head) for name in names)]
        if len(found) == 1:
            return found[0]
        heads = " and ".join(f"{head}*" for head in _HEADS.values())
        raise InputError(f"{where} must hold arrays of one of {heads}, found {'both' if found else 'neither'}")
    if "module_name" not in options:
        raise InputError(f"{where}: its opt lacks module_name, which says whether it is SGR or SAF")
    reasoning = str(options["module_name"]).lower()
    if reasoning not in _HEADS:
        raise InputError(f"{where}: its opt says module_name={options['module_name']!r}; known: SGR, SAF")
    differing = [
        f"  opt.{name}={options[name]!r}; here it is always {value!r}"
        for name, value in _FIXED_OF[reasoning].items()
        if not (isinstance(given := options.get(name, value), int) and given == value)
    ]
    if differing:
        raise InputError(
            "\n".join([f"{where} holds a model with options that this project does not have:", *differing])
        )
    return reasoning


def check_sizes(
    arrays: Mapping[str, np.ndarray], reasoning: str, model: ConfigDict, num_words: int, where: str
) -> None:
    """Raises InputError, naming the fields, if a file is of other sizes or another reasoning than a config's `model`.

    Args:
        arrays, reasoning: of the file; sizes whose arrays are absent are left to others to miss.
        model: the part of a config.
        num_words: of the vocabulary.
        where: the file, for messages.
    """
    there = {
        field: arrays[name].shape[axis]
        for field, (name, axis) in _SIZES.items()
        if name in arrays and arrays[name].ndim > axis
    }
    there["reasoning"] = reasoning
    differing = [
        f"  config.model.{field}: {value} in the file, {model[field]} given"
        for field, value in there.items()
        if value != model[field]
    ]
    words = len(arrays[_EMBEDDING]) if _EMBEDDING in arrays and arrays[_EMBEDDING].ndim else num_words
    if words != num_words:
        differing.append(
            f"  config.data.vocabulary: {words} words in the file, {num_words} in the vocabulary given; "
            "name that of the data it was trained on"
        )
    if differing:
        raise InputError("\n".join([f"{where} holds another model than this config describes:", *differing]))


def options_of(config: ConfigDict, num_words: int) -> dict[str, Any]:
    """What the authors' programs expect as `opt` beside the weights of a model of `config`."""
    model, optimizer, data = config.model, config.optimizer, config.data
    return {
        "data_name": data.name,
        "data_path": data.root,
        "vocab_path": f"{data.root}/vocab",
        "vocab_size": num_words,
        "batch_size": config.batch_size,
        "num_epochs": config.epochs,
        "learning_rate": optimizer.max_learning_rate,
        "lr_update": optimizer.decay_epochs,
        "grad_clip": optimizer.clip_norm,
        "margin": config.loss.margin,
        "max_violation": config.loss.hardest,
        "workers": 0,
        "log_step": config.log_every,
        "img_dim": model.num_features,
        "word_dim": model.word_size,
        "embed_size": model.embed_size,
        "sim_dim": model.similarity_size,
        "module_name": model.reasoning.upper(),
        "sgr_step": 3,
        **_FIXED,
    }
