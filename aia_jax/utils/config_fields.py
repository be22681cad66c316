"""The table of config fields: allowed values, and whether a resumed run may change them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aia_jax.utils.errors import InputError
from aia_jax.utils.paths import local_path
from aia_jax.utils.storage import is_url

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_LARGEST = 2**31 - 1  # the largest allowed whole number


class Field(NamedTuple):
    """The values that a config field may have.

    Attributes:
        least, most: the smallest and the largest allowed number.
        above: a bound that the number must exceed.
        words: the allowed strings. () allows any string.
        path: whether the value is the path of a local file or folder, or a word. A leading `~` is replaced.
        url: whether a path may also be the URL of a folder in object storage.
        resumable: whether a resumed run may change the value. This holds for fields that do not change the results.
        earlier: the value in runs of earlier versions, which do not have the field. None: these runs have it.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    words: tuple[str, ...] = ()
    path: bool = False
    url: bool = False
    resumable: bool = False
    earlier: str | None = None

    @property
    def range(self) -> str:
        """The allowed range of a number, for example "at least 1", or "" if there is no bound."""
        if self.above > -math.inf:
            return f"above {self.above:g}"
        if self.most < math.inf:
            return f"{self.least:g}..{self.most:g}"
        return f"at least {self.least:g}" if self.least > -math.inf else ""


# The order is that of docs/configs.md. A field that is not listed may have any value and is not resumable. The code
# that uses the name of a model, loss, data set or optimiser checks the name.
FIELDS = {
    "seed": Field(least=0),
    "epochs": Field(least=1),
    "batch_size": Field(least=1),
    "accumulate_steps": Field(least=1),
    "ema_decay": Field(least=0, most=1),
    "log_every": Field(least=1, resumable=True),
    "on_nonfinite": Field(words=("stop", "skip"), resumable=True),
    "max_skipped_steps": Field(least=1, resumable=True),
    "published": Field(resumable=True),
    "init_from": Field(path=True, url=True),
    "init_backbone": Field(path=True),
    "init_labels": Field(path=True, resumable=True),  # read only at the start of a run
    "weights_key": Field(resumable=True),
    "mesh.fsdp": Field(least=1, resumable=True),
    "checkpoint.keep": Field(least=1, resumable=True),
    "data.root": Field(path=True, url=True, resumable=True),
    "data.image_size": Field(least=1),
    "data.cache_dir": Field(path=True, resumable=True),
    "data.placement": Field(words=("host", "device", "stream"), resumable=True),
    "data.num_workers": Field(least=0, resumable=True),
    "data.flips": Field(words=("none", "horizontal", "both")),
    "data.validation_fraction": Field(least=0, most=1),
    "data.feature_dtype": Field(words=("float16", "float32")),
    "data.vocabulary": Field(path=True),
    "data.annotator": Field(path=True),
    "data.photos": Field(path=True, resumable=True),
    "data.captions": Field(path=True),
    "data.captions_per_image": Field(least=0, resumable=True),  # runs of earlier versions do not have it
    "data.lengths": Field(least=1),
    "data.keywords": Field(words=("annotator", "labels")),
    "data.keyword_threshold": Field(least=0, most=1),
    "data.max_keywords": Field(least=1),
    "data.keywords_left_out": Field(least=0, most=1),
    "data.keywords_added": Field(least=0, most=1),
    "data.query_words": Field(least=1),
    "data.held_out": Field(least=0, most=1),
    "data.negatives": Field(least=0),
    "data.split_seed": Field(least=0),
    "data.num_train": Field(least=1),
    "data.num_test": Field(least=1),
    "data.seed": Field(least=0),
    "model.gate_kernels": Field(resumable=True),  # exists only in runs of earlier versions
    "model.remat": Field(resumable=True),
    "model.word_vectors": Field(path=True),
    "model.hidden_size": Field(least=1),
    "model.num_heads": Field(least=1),
    "model.num_layers": Field(least=1),
    "model.feedforward_size": Field(least=1),
    "model.dropout": Field(least=0, most=1),
    "model.score": Field(words=("sigmoid", "softmax"), earlier="sigmoid"),
    "model.text": Field(words=("gru", "minilm"), earlier="gru"),
    "model.name": Field(words=("sgraf", "dual_encoder")),
    "model.image_features": Field(words=("mean", "max", "classes", "queries")),
    "model.text_features": Field(words=("sentence", "token_max", "words")),
    "model.num_queries": Field(least=1),
    "model.query_size": Field(least=1),
    "model.hidden_dropout": Field(least=0, most=1),
    "model.embed_size": Field(least=1),
    "model.word_size": Field(least=1),
    "model.similarity_size": Field(least=1),
    "model.num_regions": Field(least=1),
    "model.num_features": Field(least=1),
    "model.block": Field(least=1, resumable=True),
    "model.recompute": Field(resumable=True),
    "model.kernel_size": Field(least=1),
    "loss.margin": Field(above=0),
    "loss.visual_weight": Field(least=0),
    "optimizer.max_learning_rate": Field(least=0),
    "optimizer.pct_start": Field(least=0, most=1),
    "optimizer.initial_div": Field(above=0),
    "optimizer.final_div": Field(above=0),
    "optimizer.beta1_base": Field(least=0, most=1),
    "optimizer.beta1_max": Field(least=0, most=1),
    "optimizer.beta1": Field(least=0, most=1),
    "optimizer.beta2": Field(least=0, most=1),
    "optimizer.eps": Field(above=0),
    "optimizer.decay_epochs": Field(least=1),
    "optimizer.decay_factor": Field(above=0),
    "optimizer.weight_decay": Field(least=0),
    "optimizer.clip_norm": Field(least=0),
    "eval.batch_size": Field(least=1, resumable=True),
    "eval.block": Field(least=1, resumable=True),
    "eval.threshold": Field(least=0, most=1, resumable=True),
    "eval.split": Field(words=("validation", "test")),
    "eval.epoch": Field(words=("best", "last"), earlier="best"),
}


def check_fields(config: ConfigDict) -> None:
    """Checks that each config value is in the range or among the allowed words of its field in `FIELDS`.

    Raises:
        InputError: values are not allowed. The message lists all of them.
    """
    problems = [
        f"config.{name}={value!r:.80} {problem}"
        for name, value in flatten(config.to_dict()).items()
        if (problem := _problem(FIELDS.get(name, Field()), value))
    ]
    if problems:
        raise InputError("\n".join(problems))


def expand_paths(config: ConfigDict) -> None:
    """Replaces a leading `~` in the fields that are paths. Raises InputError if a field is not a local path."""
    for name, value in flatten(config.to_dict()).items():
        field = FIELDS.get(name, Field())
        if value and isinstance(value, str) and field.path and not (field.url and is_url(value)):
            try:
                path = str(local_path(value))
            except InputError as error:
                raise InputError(f"config.{name}: {error}") from None
            if value.startswith("~"):  # any other value stays as it was written, so that a run can continue
                config.update_from_flattened_dict({name: path})


def _problem(field: Field, value: Any) -> str:
    if isinstance(value, str):
        return f"is unknown; known: {', '.join(field.words)}" if field.words and value not in field.words else ""
    if isinstance(value, tuple | list) and field.words:
        unknown = [repr(word) for word in value if word not in field.words]
        return "" if value and not unknown else f"must be some of {', '.join(field.words)}"
    if isinstance(value, tuple | list):
        rising = all(type(number) is int for number in value) and [0, *value] == sorted({0, *value})
        return "" if rising and value else "must be whole numbers above 0 in increasing order"
    required = field.range and f"must {'lie in' if field.most < math.inf else 'be'} {field.range}"
    if value is None:
        return required
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and value > _LARGEST:
        return f"must be at most {_LARGEST}"
    return "" if field.least <= value <= field.most and value > field.above else required


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Converts nested fields to a flat dict such as `{"model.backbone": value}`. Keeps an empty mapping as a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
