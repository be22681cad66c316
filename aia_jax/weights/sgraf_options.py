"""Reads and creates the options in PyTorch files of SGRAF.

An array name is the encoder's number (0 image, 1 text, 2 similarity), a dot, and the name in the encoder's state dict.
For example: `0.fc.weight`, `1.embed.weight` and `2.sim_eval_w.weight`.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from aia_jax.utils.errors import InputError

_MARKS = ("0.fc.weight", "1.embed.weight", "2.sim_eval_w.weight")
_REASONINGS = {"sgr": "2.SGR_module.", "saf": "2.SAF_module."}  # reasoning: start of its array names
_FIXED = {"num_layers": 1, "bi_gru": True, "no_imgnorm": False, "no_txtnorm": False}  # the only values supported here
_FIXED_OF = {"sgr": {"sgr_step": 3, **_FIXED}, "saf": _FIXED}


def prefixes(names: Collection[str]) -> list[str]:
    """Returns each prefix after which `names` has at least two of the names that only SGRAF has."""
    found = Counter(name.removesuffix(mark) for name in names for mark in _MARKS if name.endswith(mark))
    return [prefix for prefix, count in found.items() if count > 1 and (not prefix or prefix.endswith("."))]


def reasoning_of(names: Collection[str], options: Mapping[str, Any] | None, where: str) -> str:
    """Returns "sgr" or "saf", from the options of a file or, if the file has no options, from the array names.

    Raises InputError if the file does not determine "sgr" or "saf", or if this project has no model with its options.
    """
    if options is None:
        found = [reasoning for reasoning, start in _REASONINGS.items() if any(name.startswith(start) for name in names)]
        if len(found) == 1:
            return found[0]
        starts = " and ".join(f"{start}*" for start in _REASONINGS.values())
        raise InputError(f"{where} must hold arrays of one of {starts}, found {'both' if found else 'neither'}")
    if "module_name" not in options:
        raise InputError(f"{where}: its opt lacks module_name, which says whether it is SGR or SAF")
    name = options["module_name"]
    reasoning = name.lower() if isinstance(name, str) else ""
    if reasoning not in _REASONINGS:
        raise InputError(f"{where}: its opt says module_name={_shown(name)}; known: SGR, SAF")
    differing = [
        f"  opt.{name}={_shown(options[name])}; here it is always {value!r}"
        for name, value in _FIXED_OF[reasoning].items()
        if not (isinstance(given := options.get(name, value), int) and given == value)
    ]
    if differing:
        raise InputError(
            "\n".join([f"{where} holds a model with options that this project does not have:", *differing])
        )
    return reasoning


def _shown(value: Any) -> str:
    """Returns the text of a value, or only its type if the text can be very long."""
    return repr(value) if isinstance(value, str | int | float | None) else f"({type(value).__name__})"


def options_of(config: ConfigDict, num_words: int) -> dict[str, Any]:
    """Returns the options `opt` of a weights file for `config`. The authors' programs read them from the file."""
    model, optimizer, data = config.model, config.optimizer, config.data
    return {
        "data_name": data.name,
        "data_path": data.root,
        "vocab_path": f"{data.root}/vocab",
        "vocab_size": num_words,
        "batch_size": config.batch_size,
        "learning_rate": optimizer.max_learning_rate,
        "grad_clip": optimizer.clip_norm,
        "margin": config.loss.margin,
        "max_violation": config.loss.hardest,
        "workers": 0,
        "img_dim": model.num_features,
        "word_dim": model.word_size,
        "embed_size": model.embed_size,
        "sim_dim": model.similarity_size,
        "module_name": model.reasoning.upper(),
        "sgr_step": 3,
        **_FIXED,
    }
