"""Labels of one's own photos, from a table, COCO's JSON or a folder for each label, made ready for training."""

import argparse
import itertools
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import not_negative, positive
from aia_jax.data.annotation.annotations import CUSTOM, SPLITS, read_annotations, read_labels
from aia_jax.data.annotation.datasets import CUSTOM_STATS, ChannelStats, read_channel_stats
from aia_jax.data.annotation.stratification import stratified_split
from aia_jax.data.cache import os_errors_as_input_errors
from aia_jax.data.importing.label_lists import LabelList, read_coco, read_folders
from aia_jax.data.importing.label_tables import read_table
from aia_jax.data.importing.labelled_photos import LabelledPhoto, combine_moments, measure_photos, merge_label_rows
from aia_jax.report.label_balance import balance_report
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.utils.messages import format_count, list_problems, printable

_TEST_FRACTION = 0.2
_IMAGES = "images"
_FILES = (*(f"{split}.json" for split in SPLITS), CUSTOM_STATS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `aia import-labels`."""
    parser.add_argument(
        "--labels",
        required=True,
        type=Path,
        metavar="FILE|FOLDER",
        help="a table (.csv, .tsv) with a header and columns such as image,labels or image,label or image and a column "
        "of 0 and 1 for each label, perhaps split; COCO's instances (.json); or a folder of folders of photos, one "
        "for each label",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="that photos' names are relative to; the default is the folder of the file. They are not copied: "
        "DIR/images is a link to it",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help=f"gets train.json, test.json, {CUSTOM_STATS}, images"
    )
    parser.add_argument(
        "--test_fraction",
        type=_fraction,
        metavar="F",
        help="share of photos for testing, drawn so that each label is parted alike; rare labels, of two photos or "
        f"more, may take more; the default is {_TEST_FRACTION}, or what the list says; 1: all, to evaluate on",
    )
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of the drawing")
    parser.add_argument("--min_images", type=positive, metavar="N", help="leave out labels of fewer photos")
    parser.add_argument("--photo_column", default="", metavar="NAME", help="of a table, where it is called otherwise")
    parser.add_argument("--label_column", default="", metavar="NAME", help="of a table, where it is called otherwise")
    parser.add_argument(
        "--separator",
        default="",
        metavar="SIGN",
        help="between the labels of a cell; none: a cell is one label; the default is | or ; or a comma, whichever is "
        "there, or blanks in columns called labels, tags and the like",
    )
    parser.add_argument(
        "--like", type=Path, metavar="DIR", help="take the vocabulary and channel statistics of this earlier output"
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave out rows, photos and labels with problems")
    parser.add_argument("--num_workers", type=not_negative, default=0, metavar="N", help="processes that decode photos")
    parser.add_argument("--force", action="store_true", help="replace what an earlier call wrote to --output")


def run(arguments: argparse.Namespace) -> None:
    """Reads labels and photos, parts them, writes all files or none, and tells how balanced the labels are.

    Raises:
        InputError: flags, labels or photos that cannot be used, told together.
    """
    images = _check(arguments)
    vocabulary, stats = _read_like(arguments.like) if arguments.like else (None, None)
    listed = _read(arguments)
    print(listed.understood, flush=True)
    problems = list(listed.problems)
    photos = _of_known_split(merge_label_rows(listed.rows, images, vocabulary, problems), problems)
    photos, moments = measure_photos(photos, images, arguments.num_workers, problems)
    _tell(problems, len(photos), images, skip=arguments.skip_bad)
    labels = vocabulary or _vocabulary(photos, arguments.min_images or 1)
    targets = _targets(photos, labels)
    in_test = _part(photos, targets, arguments)
    stats = stats or combine_moments(moments if in_test.all() else moments[~in_test])
    with exit_on_sigterm(), os_errors_as_input_errors(arguments.output, None, "--output names another place"):
        _write(arguments.output, images, photos, labels, in_test, stats)
    print(balance_report([printable(label) for label in labels], targets[~in_test], targets[in_test]))
    folder = shlex.quote(str(arguments.output))
    if in_test.all():
        print(f"to evaluate a run of these labels: eval.py with --config.data.root={folder} and an --output of its own")
    else:
        print(f"next: python train.py --config configs/custom.py --workdir DIR --config.data.root={folder}")


def _check(arguments: argparse.Namespace) -> Path:
    """The folder of the photos."""
    labels, output = arguments.labels, arguments.output
    if not labels.exists():
        raise InputError(f"--labels {labels}: no such file or folder")
    if labels.is_dir() and arguments.images:
        raise InputError("--images goes with a file of labels; a folder of labels holds the photos itself")
    if labels.is_dir() and output.resolve().is_relative_to(labels.resolve()):
        raise InputError(f"--output {output} lies in --labels {labels}, whose folders are labels; name another")
    if (labels.is_dir() or labels.suffix.lower() == ".json") and (
        arguments.photo_column or arguments.label_column or arguments.separator
    ):
        raise InputError(f"--photo_column, --label_column and --separator are of tables, which {labels} is not")
    if arguments.like and arguments.min_images:
        raise InputError("--like gives the vocabulary, from which --min_images can leave nothing out")
    images = arguments.images or (labels if labels.is_dir() else labels.parent)
    if not images.is_dir():
        raise InputError(f"--images {images} is {'no folder' if images.exists() else 'not there'}")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    there = [output / name for name in _FILES if (output / name).exists()]
    if there and not arguments.force:
        raise InputError(f"{there[0]} is there already; --force replaces it, --output names another place")
    link = output / _IMAGES
    if os.path.lexists(link) and link.resolve() != images.resolve() and not (arguments.force and link.is_symlink()):
        raise InputError(f"{link} is there and is not {images}; name another --output")
    return images


def _read(arguments: argparse.Namespace) -> LabelList:
    labels = arguments.labels
    if labels.is_dir():
        return read_folders(labels)
    if labels.suffix.lower() == ".json":
        return read_coco(labels)
    return read_table(
        labels,
        photo_column=arguments.photo_column,
        label_column=arguments.label_column,
        separator=arguments.separator,
    )


def _read_like(folder: Path) -> tuple[tuple[str, ...], ChannelStats]:
    files = [folder / f"{split}.json" for split in SPLITS]
    labels = next((read_labels(file) for file in files if file.is_file()), None)
    if labels is None:
        raise InputError(f"--like {folder} holds no {' or '.join(file.name for file in files)}")
    return labels, read_channel_stats(folder)


def _of_known_split(photos: list[LabelledPhoto], problems: list[str]) -> list[LabelledPhoto]:
    """All photos, if none has a split; else those that have one."""
    known = [photo for photo in photos if photo.split]
    if known:
        problems += [f"{photo.where}: {photo.name!r} has no split; others have" for photo in photos if not photo.split]
    return known or photos


def _tell(problems: list[str], num_photos: int, images: Path, *, skip: bool) -> None:
    listed = list_problems(problems)
    if not num_photos:
        where = f"; they are looked for in {images}, --images names another folder:" if problems else ""
        raise InputError(f"no photo can be used{where}{listed}")
    if problems and not skip:
        raise InputError(
            f"{len(problems):,} problem(s) with labels or photos; nothing was written (--skip_bad leaves out what they "
            f"are about):{listed}"
        )
    if problems:
        print(f"{len(problems):,} problem(s); what they are about is left out:{listed}", file=sys.stderr)


def _vocabulary(photos: Sequence[LabelledPhoto], min_images: int) -> tuple[str, ...]:
    counts = Counter(label for photo in photos for label in photo.labels)
    labels = tuple(sorted(label for label, count in counts.items() if count >= min_images))
    fewest = format_count(min_images, "photo")
    if not labels:
        raise InputError("no photo has a label" if not counts else f"no label has {fewest} (--min_images)")
    if rare := sorted(set(counts) - set(labels)):
        print(f"{format_count(len(rare), 'label')} of fewer than {fewest} left out: {', '.join(map(printable, rare))}")
    return labels


def _targets(photos: Sequence[LabelledPhoto], labels: Sequence[str]) -> np.ndarray:
    """bool `[N, C]`."""
    columns = {label: column for column, label in enumerate(labels)}
    targets = np.zeros((len(photos), len(labels)), bool)
    for row, photo in enumerate(photos):
        targets[row, [columns[label] for label in photo.labels if label in columns]] = True
    return targets


def _part(photos: Sequence[LabelledPhoto], targets: np.ndarray, arguments: argparse.Namespace) -> np.ndarray:
    """bool `[N]`, which photos are for testing: as the list says, or drawn."""
    given, fraction = {photo.split for photo in photos} - {""}, arguments.test_fraction
    if given and fraction:
        raise InputError(f"{arguments.labels} tells the splits itself; leave out --test_fraction")
    if given:
        # Training takes a validation part of its own, so that one that is given serves where something lacks.
        test = "test" if "test" in given else "validation"
        if test not in given:
            raise InputError(f"{arguments.labels} puts all photos into {', '.join(given)}; some are needed for test")
        if "validation" in given:
            print(f"photos of the validation split are for {'testing' if test == 'validation' else 'training'}")
        return np.array([photo.split == test for photo in photos])
    if fraction == 1:
        return np.ones(len(photos), bool)
    if len(photos) < 2:
        raise InputError("there is one photo; at least two are needed, one for training and one for testing")
    fraction = fraction or _TEST_FRACTION
    in_test = stratified_split(targets, fraction, arguments.seed, in_both=True)
    if in_test.sum() > 1.25 * np.ceil(fraction * len(photos)):
        print(
            f"{in_test.mean():.2f} of the photos are for testing, not {fraction:g}: labels of two photos or more are "
            "tested where that can be, and many are rare; --min_images leaves such out"
        )
    return in_test


def _write(
    output: Path,
    images: Path,
    photos: Sequence[LabelledPhoto],
    labels: Sequence[str],
    in_test: np.ndarray,
    stats: ChannelStats,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import.", dir=output) as temporary:
        whole, known = Path(temporary), set(labels)
        for split, chosen in zip(SPLITS, (~in_test, in_test), strict=True):
            samples = [
                {"image_name": photo.name, "image_labels": [label for label in photo.labels if label in known]}
                for photo in itertools.compress(photos, chosen)
            ]
            if samples:
                write_json(whole / f"{split}.json", {"labels": list(labels), "samples": samples})
                read_annotations(whole, CUSTOM, split)  # refuses what training would refuse
        mean, std = ([round(float(value), 4) for value in values] for values in stats)
        write_json(whole / CUSTOM_STATS, {"mean": mean, "std": std})
        link = output / _IMAGES
        if not os.path.lexists(link) or link.resolve() != images.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(images.resolve(), target_is_directory=True)
        for name in _FILES:
            if (whole / name).exists():
                (whole / name).replace(output / name)
            else:
                (output / name).unlink(missing_ok=True)


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return number
