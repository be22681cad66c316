"""Encode keywords of images, one JSON file per image, as arrays of word ids for image search.

    aia keywords --layout folder --keywords annotated/keywords --output records
    aia keywords --layout coco --keywords keywords --list dataset.json --output records

FOLDER holds files {"tagging": {"keywords": [...]}}. DIR gets keyword_vocabulary.json and, for each split,
keyword_record_SPLIT.npy, keyword_ranges_SPLIT.npy and keyword_names_SPLIT.json.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from aia_jax.cli.flags import Parser, local, positive
from aia_jax.cli.outputs import check_output_folder, staged_output
from aia_jax.data.search.keyword_records import write_keyword_records
from aia_jax.data.search.keywords import (
    KeywordSplit,
    KeywordVocabulary,
    analyze,
    clickture_split,
    coco_splits,
    folder_split,
    read_keywords,
)
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.utils.messages import list_problems

VOCABULARY = "keyword_vocabulary.json"
_PATTERNS = "keyword_record_{}.npy", "keyword_ranges_{}.npy", "keyword_names_{}.json"
_BYTES_PER_IMAGE = 1000  # estimate for 30 keywords: the words in a temporary file, and the ids


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia keywords`."""
    layout = "clickture: --list is a .lst whose lines name files in FOLDER and end with the id; coco: --list is "
    layout += (
        "dataset.json, FOLDER holds keyword_train and keyword_test; folder: all .json files in FOLDER, sorted by name"
    )
    parser.add_argument("--layout", required=True, choices=("clickture", "coco", "folder"), help=layout)
    parser.add_argument("--keywords", required=True, type=local, metavar="FOLDER", help="keyword files, one per image")
    parser.add_argument("--list", type=local, metavar="FILE", help="list of the images, see --layout")
    parser.add_argument("--split", metavar="NAME", help="part of the file names; default: the list's name, or all")
    parser.add_argument("--output", required=True, type=local, metavar="DIR", help="folder for the arrays")
    words = parser.add_mutually_exclusive_group()
    vocabulary = "existing vocabulary; default: built from the images"
    words.add_argument("--vocabulary", type=local, metavar="FILE.json", help=vocabulary)
    words.add_argument("--min_count", type=positive, default=6, metavar="N", help="minimum images per word; default: 6")
    parser.add_argument("--force", action="store_true", help="replace existing outputs")


def run(arguments: argparse.Namespace) -> None:
    """Encodes the keyword files, writes the arrays, and prints a summary. After an error, nothing is written.

    Raises:
        InputError: the flags contradict each other, or a file or folder that a flag names cannot be used.
    """
    output = arguments.output
    splits = _splits(arguments)
    vocabulary = KeywordVocabulary.load(arguments.vocabulary) if arguments.vocabulary else None
    _check_outputs(output, splits, vocabulary, arguments.force)
    with staged_output(output, _BYTES_PER_IMAGE * sum(map(len, splits))) as folder:
        with TemporaryDirectory(dir=folder) as temporary:
            words = {split.name: Path(temporary) / split.name for split in splits}
            _gather(splits, words)
            if vocabulary is None:
                documents = itertools.chain.from_iterable(map(_read_words, words.values()))
                vocabulary = KeywordVocabulary.fit(documents, arguments.min_count)
            lines = [_write(split, words[split.name], vocabulary, folder) for split in splits]
        vocabulary.save(folder / VOCABULARY)
    print("\n".join(lines))
    print(f"{len(vocabulary):,} words in the vocabulary; written to {output}")


def _splits(arguments: argparse.Namespace) -> tuple[KeywordSplit, ...]:
    layout, folder, listed, output = arguments.layout, arguments.keywords, arguments.list, arguments.output
    if not folder.is_dir():
        raise InputError(f"--keywords {folder} {'is no folder' if folder.exists() else 'does not exist'}")
    if (listed is None) != (layout == "folder"):
        needed = "takes no --list" if listed else "needs --list, the file that lists the images"
        raise InputError(f"--layout {layout} {needed}")
    if layout == "coco":
        if arguments.split:
            raise InputError("--layout coco takes no --split, it has train and test")
        return coco_splits(listed, folder)
    name = arguments.split or (listed.stem if listed else "all")
    if "/" in name:
        raise InputError(f"--split {name} is part of file names; it must hold no slash")
    if layout == "clickture":
        return (clickture_split(listed, folder, name),)
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--output {output} lies in --keywords {folder}, whose .json files are keywords; name another")
    return (folder_split(folder, name),)


def _check_outputs(
    output: Path, splits: Sequence[KeywordSplit], vocabulary: KeywordVocabulary | None, force: bool
) -> None:
    """Checks that no output exists, and that other splits in `output` keep their vocabulary."""
    own = [pattern.format(split.name) for split in splits for pattern in _PATTERNS]
    others = sorted({path.name for path in output.glob("keyword_record_*.npy")} - set(own))
    path = output / VOCABULARY
    if vocabulary is None and others:
        raise InputError(f"{output / others[0]} needs {path} as it is: use it with --vocabulary, or another --output")
    if vocabulary is not None and path.exists() and KeywordVocabulary.load(path).words != vocabulary.words:
        raise InputError(f"{path} has other words than --vocabulary {vocabulary.name}; name another --output")
    check_output_folder(output, own if vocabulary else [*own, VOCABULARY], force=force)


def _gather(splits: Sequence[KeywordSplit], words: dict[str, Path]) -> None:
    """Reads each keyword file once. Writes its words as a line of `words[split.name]`. An error lists bad files."""
    problems, total = [], sum(map(len, splits))
    with tqdm(total=total, desc="keywords", unit="file", mininterval=0.5, dynamic_ncols=True) as bar:
        for split in splits:
            with words[split.name].open("w", encoding="utf-8", newline="\n") as file:
                for path in split.paths():
                    try:
                        file.write(" ".join(analyze(read_keywords(path))) + "\n")
                    except InputError as error:
                        problems.append(str(error))
                    bar.update()
    if problems:
        raise InputError(
            f"{len(problems):,} of {total:,} keyword files cannot be used; nothing was written. An image without "
            f"keywords has an empty list:{list_problems(problems)}"
        )


def _read_words(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.split()


def _write(split: KeywordSplit, words: Path, vocabulary: KeywordVocabulary, folder: Path) -> str:
    """Writes the arrays and file names of a split, and returns a line for the summary."""
    record, ranges, names = (folder / pattern.format(split.name) for pattern in _PATTERNS)
    encoded = map(vocabulary.encode, _read_words(words))
    found = write_keyword_records(record, ranges, zip(split.ids.tolist(), encoded, strict=True), split.num_ids)
    write_json(names, dict(zip(split.names, split.ids.tolist(), strict=True)))
    num_rows = int(found.max()) + 1
    if not num_rows:
        raise InputError(f"no keyword of {split.name} is in {vocabulary.name}; is it that of these images?")
    num_empty = len(split) - int(np.count_nonzero(found[:, 0] >= 0))
    mean = num_rows / len(split)
    return f"{split.name}: {len(split):,} images, {mean:.2f} keywords an image, {num_empty:,} images without any"
