"""PyTorch files to checkpoints of this project, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from aia_jax.models.backbones import backbone_named
from aia_jax.tasks import make_task
from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.model_arrays import Arrays, abstract_weights, replace_arrays, select_weights
from aia_jax.training.run_record import saved_steps, write_record
from aia_jax.training.runs import run_arrays
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import sha256_of_file
from aia_jax.weights import name_map, sgraf_name_map
from aia_jax.weights.load import check_model, model_shapes, read_torch_state
from aia_jax.weights.torch_files import write_torch_file
from aia_jax.weights.torch_state import TorchStateDict


def convert(config: ConfigDict, source: Path, output: Path) -> None:
    """Writes the model in the PyTorch file `source` as the checkpoint of step 0 in the workdir `output`.

    `train.py` continues from there, and `config.init_from`, `config.init_backbone` and `eval.py --weights` take it. A
    file of an ImageNet model gives a backbone, its classifier is dropped.

    Raises:
        InputError: the file cannot be used or is of another model, or `output` holds checkpoints already.
    """
    check_output(output)
    torch_state = read_torch_state(source)
    task = make_task(config)
    backbone_only = torch_state.system == "backbone"
    shapes = model_shapes(task.build_model, backbone_only=backbone_only)
    check_model(torch_state, config, shapes, str(source))
    arrays = name_map.from_torch(torch_state, shapes, str(source))
    weights = replace_arrays(_abstract(task, backbone_only), arrays)
    trees = sharding.put_replicated(weights, sharding.data_mesh())
    raw = {name: trees[name] for name in ("params", "stats")}
    info = {
        "epoch": 0,
        "weights": "raw",
        "part": "backbone" if backbone_only else "model",
        "source": {"file": source.name, "sha256": sha256_of_file(source), "names": torch_state.generation},
        **task.describe(),
    }
    with Checkpointer(output) as checkpointer:
        checkpointer.save(0, {"weights": {"raw": raw, "ema": raw, "constants": trees["constants"]}}, info)
    write_record(output, config)
    if jax.process_index() == 0:
        print(_summary(torch_state, source, output, len(arrays), backbone_only), flush=True)


def check_output(output: Path) -> None:
    """Raises InputError if a workdir to be written holds checkpoints."""
    if saved_steps(output):
        raise InputError(f"{output} holds checkpoints already; give another --output")


def convert_back(config: ConfigDict, source: Path, output: Path, *, backbone_only: bool) -> None:
    """Writes the best epoch of the workdir `source` as a PyTorch or safetensors file in timm's names (>= 0.9).

    Of retrieval a PyTorch file is the checkpoint that SGRAF's programs load, options included.

    Args:
        backbone_only: write timm's own model without classifier (`num_classes=0`), not the system's.

    Raises:
        InputError: no checkpoint, one of another model than the config's, or one that has no form there.
    """
    if output.is_dir():
        raise InputError(f"{output} is a folder; with --reverse --output names a file, .pth or .safetensors")
    arrays, info = run_arrays(source)
    shapes = model_shapes(make_task(config).build_model, backbone_only=info.get("part") == "backbone")
    if {path: tuple(value.shape) for path, value in arrays.items()} != shapes:
        raise InputError(f"{source} holds weights of another model than this config describes")
    if backbone_only:
        arrays = {path: value for path, value in arrays.items() if path.startswith("backbone.")}
        if not arrays:
            raise InputError(f"{source} holds no backbone; leave out --backbone_only")
    system = name_map.system_of(arrays)
    if system == "retrieval":
        if config.model.backbone:
            raise InputError(
                f"{source} was trained with its backbone, for which SGRAF's files have no place; "
                "--backbone_only writes the backbone"
            )
        family, names = "sgraf", "SGRAF's names"
    else:
        family, names = backbone_named(config.model.backbone).family, "timm's names"
    state = name_map.to_torch(jax.device_get(arrays), system=system, family=family)
    write_torch_file(output, state, beside=_beside(config, info, arrays) if system == "retrieval" else None)
    print(f"{output}: {len(state)} arrays in {names}; it holds: {system}", flush=True)


def _beside(config: ConfigDict, info: dict[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What SGRAF's checkpoints hold beside the weights."""
    options = sgraf_name_map.options_of(config, len(arrays["sgraf.text.embedding"]))
    return {"epoch": info.get("epoch", 0), "best_rsum": float(info.get("metric", 0)), "opt": options, "Eiters": 0}


def _abstract(task: Any, backbone_only: bool) -> Arrays:
    weights = select_weights(abstract_weights(task.build_model, sharding.data_mesh())[1], "raw")
    if not backbone_only:
        return weights
    return {name: {"backbone": tree["backbone"]} if "backbone" in tree else {} for name, tree in weights.items()}


def _summary(torch_state: TorchStateDict, source: Path, output: Path, num_arrays: int, backbone_only: bool) -> str:
    lines = [f"{source} holds {torch_state.describe()}; {num_arrays} arrays written to {output}"]
    if backbone_only:
        lines += [f"its classifier was dropped: {torch_state.list_head()}"] if torch_state.head else []
        lines += [f"train from it with --config.init_backbone={output}"]
    return "\n".join(lines)
