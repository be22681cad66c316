"""Convert PyTorch weights to a checkpoint of this project, or a checkpoint to PyTorch weights.

    aia convert --config corel5k --input Annotator_Corel-5k.pth --output runs/authors
    aia convert --config corel5k --input runs/corel5k --output mine.pth --reverse

The names of the arrays show what a PyTorch file contains: system A or B, SGRAF, or an ImageNet model of timm <= 0.6,
MIIL or timm >= 0.9. --verify also runs images (for SGRAF random features and captions) through both
frameworks and compares every stage.
"""

import argparse
from pathlib import Path

from ml_collections import ConfigDict

from aia_jax.cli.devices import check_devices
from aia_jax.cli.flags import Parser, add_config_argument, at_least, local, word
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, sha256_of_file


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia convert`."""
    add_config_argument(parser)
    source = "PyTorch or safetensors file, or the folder or index of a sharded one; with --reverse the folder of a run"
    target = "folder for the checkpoint; with --reverse a file, .pth or .safetensors"
    parser.add_argument("--input", required=True, type=local, metavar="FILE|DIR", help=source)
    parser.add_argument("--output", required=True, type=local, metavar="DIR|FILE", help=target)
    reverse = parser.add_argument_group("to PyTorch")
    reverse.add_argument("--reverse", action="store_true", help="write a PyTorch file for timm >= 0.9 or SGRAF")
    backbone = "write only the backbone, as timm's model with num_classes=0"
    reverse.add_argument("--backbone_only", action="store_true", help=backbone)
    check = parser.add_argument_group("comparison with PyTorch")
    check.add_argument("--verify", action="store_true", help="compare every stage with PyTorch; exit code 1 on errors")
    tolerance = "largest error, relative to the largest value of a stage; default: 1e-5"
    check.add_argument("--tolerance", type=at_least(0.0), default=1e-5, metavar="E", help=tolerance)
    images = "annotation: images to compare on; default: synthetic scenes"
    check.add_argument("--images", type=word, metavar="FOLDER", help=images)
    check.add_argument("--split", help="annotation: also score train, validation or test in both frameworks")


def run(arguments: argparse.Namespace) -> int:
    """Converts weights. With `--verify`, also compares the model with PyTorch.

    Returns the exit code: 1 if the comparison failed, otherwise 0.
    """
    check_devices()
    config, source, output = arguments.config, arguments.input, arguments.output
    if arguments.reverse:
        if arguments.verify or arguments.images or arguments.split:
            raise InputError("--reverse cannot be combined with --verify, --images or --split")
        convert_back(config, source, output, backbone_only=arguments.backbone_only)
        return 0
    if arguments.backbone_only:
        raise InputError("--backbone_only needs --reverse; the file of a backbone is recognised without this flag")
    if not arguments.verify and (arguments.images or arguments.split):
        raise InputError("--images and --split need --verify")
    check_output(output)
    passed = True
    if arguments.verify:
        from aia_jax.evaluation.verify import verify

        passed = verify(config, source, images=arguments.images, split=arguments.split, tolerance=arguments.tolerance)
    convert(config, source, output)
    return 0 if passed else 1


def convert(config: ConfigDict, source: Path, output: Path) -> None:
    """Writes the weights of a PyTorch file as a checkpoint of step 0.

    `aia train` can continue from this checkpoint. `config.init_from`, `config.init_backbone` and `aia evaluate
    --weights` can read it. For an ImageNet model, the checkpoint has the backbone without the classifier.

    Raises InputError if `source` cannot be read or is not for the model of `config`, or if `output` has checkpoints.
    """
    import jax

    from aia_jax.tasks.registry import make_task
    from aia_jax.training import sharding
    from aia_jax.training.checkpoint import Checkpointer
    from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
    from aia_jax.training.runs import write_record
    from aia_jax.weights.load import load_torch_file
    from aia_jax.weights.torch_files import find_weights_file

    check_output(output)
    task = make_task(config)
    torch_state, arrays = load_torch_file(source, task)
    backbone_only = torch_state.system == "backbone"
    abstract = select_weights(abstract_weights(task.build_model, sharding.data_mesh())[1], "raw")
    if backbone_only:
        abstract = {
            name: {"backbone": tree["backbone"]} if "backbone" in tree else {} for name, tree in abstract.items()
        }
    trees = sharding.put_replicated(replace_arrays(abstract, arrays), sharding.data_mesh())
    raw = {name: trees[name] for name in ("params", "stats")}
    info = {
        "epoch": 0,
        "weights": "raw",
        "part": "backbone" if backbone_only else "model",
        "source": {
            "file": source.name,
            "sha256": sha256_of_file(find_weights_file(source) or source),
            "names": torch_state.generation,
        },
        **task.describe(),
    }
    with Checkpointer(output) as checkpointer:
        checkpointer.save(0, {"weights": {"raw": raw, "ema": raw, "constants": trees["constants"]}}, info)
    write_record(output, config)
    if jax.process_index() == 0:
        print(f"{source} holds {torch_state.describe()}; {len(arrays)} arrays written to {output}")
        if backbone_only and torch_state.head:
            print(f"its classifier was dropped: {torch_state.list_head()}")
        if backbone_only:
            print(f"train from it with --config.init_backbone={output}", flush=True)


def check_output(output: Path) -> None:
    """Raises InputError if the workdir `output` already has checkpoints, or cannot be written."""
    if output.is_file():
        raise InputError(f"{output} is a file; --output names a folder, or with --reverse the file to write")
    check_writable(output)
    from aia_jax.training.checkpoint_recovery import saved_steps

    if saved_steps(output):
        raise InputError(f"{output} holds checkpoints already; give another --output")


def convert_back(config: ConfigDict, source: Path, output: Path, *, backbone_only: bool = False) -> None:
    """Writes the best epoch of a run as a PyTorch or safetensors file.

    An annotator or backbone is written with the array names of timm >= 0.9, a retrieval model as a checkpoint that
    SGRAF's programs can load. With `backbone_only`, writes only the backbone, as timm's model with `num_classes=0`.
    Raises InputError if `source` has no checkpoint of the model of `config`, or if a PyTorch file cannot hold it.
    """
    import jax

    from aia_jax.models.backbones import backbone_named
    from aia_jax.tasks.registry import make_task
    from aia_jax.training.runs import run_arrays
    from aia_jax.weights import name_map, sgraf_options
    from aia_jax.weights.load import model_shapes
    from aia_jax.weights.torch_files import write_torch_file

    if output.is_dir():
        raise InputError(f"{output} is a folder; with --reverse, --output must be a .pth or .safetensors file")
    if output.suffix.lower() not in (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors"):
        raise InputError(f"{output}: with --reverse, the name of --output must end with .pth or .safetensors")
    check_writable(output.parent)
    arrays, info = run_arrays(source)
    shapes = model_shapes(make_task(config).build_model, backbone_only=info.get("part") == "backbone")
    if {path: tuple(value.shape) for path, value in arrays.items()} != shapes:
        raise InputError(f"{source} holds weights of another model than this config describes")
    if backbone_only:
        arrays = {path: value for path, value in arrays.items() if path.startswith("backbone.")}
        if not arrays:
            raise InputError(f"{source} holds no backbone; leave out --backbone_only")
    elif config.model.get("head") == "text":
        raise InputError(
            f"{source} has config.model.head='text', which PyTorch files cannot hold; --backbone_only writes the rest"
        )
    system, beside = name_map.system_of(arrays), None
    if system == "retrieval":
        if config.model.backbone:
            raise InputError(
                f"{source} was trained with its backbone, which SGRAF's files cannot hold; --backbone_only writes it"
            )
        if config.model.get("text", "gru") != "gru":
            raise InputError(
                f"{source} has no GRU (config.model.text={config.model.text}); SGRAF's files must have one"
            )
        family, names = "sgraf", "SGRAF's names"
        options = sgraf_options.options_of(config, len(arrays["sgraf.text.embedding"]))
        beside = {"epoch": info.get("epoch", 0), "best_rsum": float(info.get("metric", 0)), "opt": options, "Eiters": 0}
    else:
        family, names = backbone_named(config.model.backbone).family, "timm's names"
    state = name_map.to_torch(jax.device_get(arrays), system=system, family=family)
    write_torch_file(output, state, beside=beside)
    print(f"{output}: {len(state)} arrays in {names}; it holds: {system}", flush=True)
