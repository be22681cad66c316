"""Import labels of your own photos for training: a table, COCO's JSON, a folder for each label, or keywords.

    aia import-labels --labels labels.csv --images photos --output mine
    aia import-labels --xmp --images photos --output mine --min_images 20
    aia import-labels --labels more.csv --images photos --output test --like mine --test_fraction 1

DIR gets train.json, test.json, channel_stats.json and images, a link to the photos.
"""

import argparse
import dataclasses
import itertools
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aia_jax.cli.flags import Parser, local, not_negative, positive
from aia_jax.cli.outputs import check_output_folder, staged_output
from aia_jax.data.annotation.annotations import CUSTOM, SPLITS, multi_hot, read_annotations, read_labels
from aia_jax.data.annotation.channel_stats import CUSTOM_STATS, ChannelStats, read_channel_stats
from aia_jax.data.annotation.datasets import stratified_split
from aia_jax.data.importing.label_checks import sample_lines, unify_labels
from aia_jax.data.importing.label_files import read_labels_of
from aia_jax.data.importing.labelled_photos import (
    SPLIT_NAMES,
    LabelList,
    LabelRow,
    combine_moments,
    measure_photos,
    merge_label_rows,
)
from aia_jax.data.importing.photo_keywords import LEVELS, read_photo_keywords
from aia_jax.data.photo_metadata.mapping import KeywordMapping, read_mapping
from aia_jax.report.label_balance import balance_report
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.utils.messages import format_count, list_problems, printable

_TEST_FRACTION = 0.2
_NUM_SHOWN = 10  # photos whose labels are printed before anything is written
_TABLE_FLAGS = ("photo_column", "label_column", "separator", "delimiter", "encoding", "rows", "ignore_columns")
_IMAGES = "images"
_FILES = (*(f"{split}.json" for split in SPLITS), CUSTOM_STATS)


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia import-labels`."""
    labels_help = "table with a header such as image,labels; file of another tool; or a folder of photos for each label"
    parser.add_argument("--labels", type=local, metavar="FILE|FOLDER", help=labels_help)
    keywords = "read the keywords of --images instead: in XMP sidecars, and in XMP and IPTC inside the photos"
    parser.add_argument("--xmp", action="store_true", help=keywords)
    parts = "label of a hierarchical keyword: its last level (default), each level, or the path, such as Animals|Dog"
    parser.add_argument("--levels", choices=LEVELS, help=parts)
    mapping = "keywords: YAML file with their labels, synonyms and keywords to ignore"
    parser.add_argument("--mapping", type=local, metavar="FILE", help=mapping)
    parser.add_argument("--output", required=True, type=local, metavar="DIR", help="folder for the imported data")
    parser.add_argument("--images", type=local, metavar="FOLDER", help="photos; default: the folder of the file")
    fraction_help = f"photos for testing; default: {_TEST_FRACTION}, or the splits of the list; 1: only for evaluation"
    parser.add_argument("--test_fraction", type=float, metavar="F", help=fraction_help)
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of the random split")
    parser.add_argument("--min_images", type=positive, metavar="N", help="leave out labels with fewer photos")
    parser.add_argument("--photo_column", default="", metavar="NAME", help="table: photo column with an unusual name")
    parser.add_argument("--label_column", default="", metavar="NAME", help="table: label column with an unusual name")
    parser.add_argument("--separator", default="", metavar="SIGN", help="table: separator of labels in a cell, or none")
    parser.add_argument("--delimiter", default="", metavar="SIGN", help="table: delimiter of cells, or tab")
    parser.add_argument("--encoding", default="", metavar="NAME", help="table: cp1252, ...; default: UTF-8 or UTF-16")
    parser.add_argument("--rows", action="append", default=[], metavar="CONDITION", help="table: 'Confidence >= 0.5'")
    parser.add_argument("--ignore_columns", nargs="+", default=(), metavar="NAME", help="table: columns to leave out")
    parser.add_argument("--like", type=local, metavar="DIR", help="use vocabulary and statistics of this output")
    parser.add_argument("--skip_bad", action="store_true", help="leave out rows, photos and labels with problems")
    parser.add_argument("--accept_labels", action="store_true", help="accept labels that look broken")
    parser.add_argument("--num_workers", type=not_negative, default=0, metavar="N", help="threads that decode photos")
    parser.add_argument("--force", action="store_true", help="replace the output of an earlier call")


def run(arguments: argparse.Namespace) -> None:
    """Reads labels and photos, splits the photos, writes all files or none, and prints a summary of the labels.

    Raises:
        InputError: a flag, label or photo cannot be used. The message lists all problems.
    """
    images = _check(arguments)
    vocabulary, stats = _read_like(arguments.like) if arguments.like else (None, None)
    listed = _read_keywords(arguments) if arguments.xmp else _read_list(arguments)
    print(listed.understood, flush=True)
    problems = list(listed.problems)
    rows, notes = unify_labels(listed.rows, vocabulary, problems, accept=arguments.accept_labels)
    if notes:
        joins = "; synonyms in the file of --mapping join them" if arguments.xmp else ""
        print(f"labels that are nearly the same{joins}:{list_problems(notes)}", file=sys.stderr)
    photos = merge_label_rows(rows, images, vocabulary, problems)
    photos = _with_split(photos if arguments.test_fraction else _folder_splits(photos), problems)
    sample = sample_lines(photos, _NUM_SHOWN)
    print(f"{len(sample)} of {len(photos):,} photos with their labels:", *sample, sep="\n", flush=True)
    photos, moments = measure_photos(photos, images, arguments.num_workers, problems)
    _report_problems(problems, len(photos), images, skip=arguments.skip_bad)
    labels = vocabulary or _vocabulary(photos, arguments.min_images or 1)
    known = set(labels)
    kept = [tuple(label for label in photo.labels if label in known) for photo in photos]
    photos = [dataclasses.replace(photo, labels=names) for photo, names in zip(photos, kept, strict=True)]
    targets = multi_hot(kept, labels)
    in_test = _split(photos, targets, moments, arguments)
    stats = stats or combine_moments(moments if in_test.all() else moments[~in_test])
    with staged_output(arguments.output) as folder:
        _write(folder, photos, labels, in_test, stats)
        link = arguments.output / _IMAGES
        if link.resolve() != images.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(images.resolve(), target_is_directory=True)
        for name in set(_FILES) - set(os.listdir(folder)):
            (arguments.output / name).unlink(missing_ok=True)  # written by an earlier call
    print(balance_report([printable(label) for label in labels], targets[~in_test], targets[in_test]))
    root = shlex.quote(str(arguments.output))
    if in_test.all():
        print(f"to evaluate a run of these labels: aia evaluate with --config.data.root={root} and another --output")
    else:
        print(f"next: aia train --config custom --workdir DIR --config.data.root={root}")


def _read_list(arguments: argparse.Namespace) -> LabelList:
    return read_labels_of(arguments.labels, **{name: getattr(arguments, name) for name in _TABLE_FLAGS})


def _read_keywords(arguments: argparse.Namespace) -> LabelList:
    mapping = read_mapping(arguments.mapping) if arguments.mapping else KeywordMapping()
    return read_photo_keywords(arguments.images, mapping, arguments.levels or LEVELS[0])


def _check(arguments: argparse.Namespace) -> Path:
    """Checks the flags and returns the folder of the photos."""
    labels, output = arguments.labels, arguments.output
    if bool(labels) == arguments.xmp:
        raise InputError("name the labels: --labels FILE, or --xmp for the keywords of the photos in --images")
    if arguments.xmp and not arguments.images:
        raise InputError("--xmp reads the keywords of photos; name their folder with --images")
    with_xmp = ("levels", "mapping") if labels else _TABLE_FLAGS
    if given := [name for name in with_xmp if getattr(arguments, name)]:
        raise InputError(f"--{given[0]} goes with {'--xmp' if labels else 'a table in --labels'}")
    if labels and not labels.exists():
        raise InputError(f"--labels {labels}: no such file or folder")
    if labels and labels.is_dir() and arguments.images:
        raise InputError("--images goes with a file of labels; a folder of labels holds the photos itself")
    if labels and labels.is_dir() and output.resolve().is_relative_to(labels.resolve()):
        raise InputError(f"--output {output} lies in --labels {labels}, whose folders are labels; name another")
    if arguments.test_fraction is not None and not 0 < arguments.test_fraction <= 1:
        raise InputError(f"--test_fraction must be above 0 and at most 1, not {arguments.test_fraction:g}")
    if arguments.like and arguments.min_images:
        raise InputError("--like gives the vocabulary; --min_images cannot leave out labels of it")
    images = arguments.images or (labels if labels.is_dir() else labels.parent)
    if not images.is_dir():
        raise InputError(f"--images {images} {'is no folder' if images.exists() else 'does not exist'}")
    check_output_folder(output, _FILES, force=arguments.force)
    link = output / _IMAGES
    if os.path.lexists(link) and link.resolve() != images.resolve() and not (arguments.force and link.is_symlink()):
        raise InputError(f"{link} is there and is not {images}; name another --output")
    return images


def _read_like(folder: Path) -> tuple[tuple[str, ...], ChannelStats]:
    files = [folder / f"{split}.json" for split in SPLITS]
    labels = next((read_labels(file) for file in files if file.is_file()), None)
    if labels is None:
        raise InputError(f"--like {folder} holds no {' or '.join(file.name for file in files)}")
    return labels, read_channel_stats(folder)


def _folder_splits(photos: list[LabelRow]) -> list[LabelRow]:
    """Gives each photo the split that its top folder names, if no entry gives a split and all photos lie in such."""
    named = [SPLIT_NAMES.get(photo.photo.partition("/")[0].lower(), "") for photo in photos]
    if any(photo.split for photo in photos) or not all(named) or len(set(named)) < 2:
        return photos
    print("the folders of the photos give the splits; --test_fraction divides the photos at random instead")
    return [dataclasses.replace(photo, split=split) for photo, split in zip(photos, named, strict=True)]


def _with_split(photos: list[LabelRow], problems: list[str]) -> list[LabelRow]:
    """Returns the photos whose entry gives a split, or all photos if no entry gives one."""
    known = [photo for photo in photos if photo.split]
    if known:
        problems += [f"{photo.where}: {photo.photo!r} has no split; others do" for photo in photos if not photo.split]
    return known or photos


def _report_problems(problems: list[str], num_photos: int, images: Path, *, skip: bool) -> None:
    count, listed = f"{len(problems):,} problem(s)", list_problems(problems)
    if not num_photos:
        absent = any("no photo" in problem for problem in problems)
        where = f"; the photos must be in {images}, --images names another folder:" if absent else ""
        raise InputError(f"no photo can be used{where}{listed}")
    if problems and not skip:
        leave = "--skip_bad leaves these rows, photos and labels out"
        raise InputError(f"{count} with labels or photos; nothing was written ({leave}):{listed}")
    if problems:
        print(f"{count}; these rows, photos and labels are left out:{listed}", file=sys.stderr)


def _vocabulary(photos: Sequence[LabelRow], min_images: int) -> tuple[str, ...]:
    counts = Counter(label for photo in photos for label in photo.labels)
    labels = tuple(sorted(label for label, count in counts.items() if count >= min_images))
    fewest = format_count(min_images, "photo")
    if not labels:
        raise InputError("no photo has a label" if not counts else f"no label has {fewest} (--min_images)")
    if rare := sorted(set(counts) - set(labels)):
        print(f"{format_count(len(rare), 'label')} of fewer than {fewest} left out: {', '.join(map(printable, rare))}")
    return labels


def _split(
    photos: Sequence[LabelRow], targets: np.ndarray, moments: np.ndarray, arguments: argparse.Namespace
) -> np.ndarray:
    """Selects the photos for testing, bool `[N]`: by the splits in the list or, if it has none, at random.

    At random, all copies of a photo are in the same part. With given splits, copies in both parts are reported.
    Photos with the same statistics of pixels are copies.
    """
    found: dict[bytes, int] = {}
    copies = np.array([found.setdefault(row.tobytes(), number) for number, row in enumerate(moments)])
    given, fraction = {photo.split for photo in photos} - {""}, arguments.test_fraction
    if len(given) > 1 and fraction:
        raise InputError(f"{arguments.labels} gives the splits itself; leave out --test_fraction")
    if given and not fraction:
        # Training makes its own validation split. So a given "validation" is for testing if no "test" is given.
        test = "test" if "test" in given else "validation"
        if test not in given:
            all_in = f"{arguments.labels} puts all photos into {', '.join(given)}; some are needed for test"
            raise InputError(f"{all_in}. --test_fraction 0.2 divides the photos at random")
        if "validation" in given:
            print(f"photos of the validation split are for {'testing' if test == 'validation' else 'training'}")
        in_test = np.array([photo.split == test for photo in photos])
        if leaked := [photo.photo for photo in itertools.compress(photos, in_test & np.isin(copies, copies[~in_test]))]:
            print(
                f"{format_count(len(leaked), 'test photo')} of {in_test.sum():,} are also training photos, under "
                f"another name, so the test results will be too good:{list_problems(list(map(printable, leaked)), 5)}"
            )
        return in_test
    if fraction == 1:
        return np.ones(len(photos), bool)
    if repeated := int((copies != np.arange(len(photos))).sum()):
        print(f"{format_count(repeated, 'photo')} with the same pixels as another photo; training and test share none")
    if not copies.any():
        raise InputError("there is one photo; at least two are needed, with different pixels, for training and test")
    _, members = np.unique(copies, return_inverse=True)
    merged = np.zeros((members.max() + 1, targets.shape[1]), targets.dtype)
    np.maximum.at(merged, members, targets)
    return stratified_split(merged, fraction or _TEST_FRACTION, arguments.seed, in_both=True)[members]


def _write(
    folder: Path, photos: Sequence[LabelRow], labels: Sequence[str], in_test: np.ndarray, stats: ChannelStats
) -> None:
    for split, chosen in zip(SPLITS, (~in_test, in_test), strict=True):
        selected = itertools.compress(photos, chosen)
        samples = [{"image_name": photo.photo, "image_labels": photo.labels} for photo in selected]
        if samples:
            write_json(folder / f"{split}.json", {"labels": labels, "samples": samples})
            read_annotations(folder, CUSTOM, split)  # raises the errors that training would raise
    mean, std = np.round(stats, 4).tolist()
    write_json(folder / CUSTOM_STATS, {"mean": mean, "std": std})
