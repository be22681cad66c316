"""Keywords of images, a JSON file each, as arrays of word ids for image search."""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.data.cache import os_errors_as_input_errors
from aia_jax.data.search.keyword_layouts import KeywordSplit, clickture_split, coco_splits, folder_split
from aia_jax.data.search.keyword_records import write_keyword_records
from aia_jax.data.search.keywords import KeywordVocabulary, analyze, read_keywords
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems

LAYOUTS = ("clickture", "coco", "folder")
VOCABULARY = "keyword_vocabulary.json"

_BYTES_PER_IMAGE = 1000  # about: 30 keywords, as words on the way and as ids
_MAX_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `aia keywords`."""
    parser.add_argument(
        "--layout",
        required=True,
        choices=LAYOUTS,
        help="clickture: --list is a .lst, whose lines name files in FOLDER and end with the id; coco: --list is "
        "dataset.json, FOLDER holds keyword_train and keyword_test; folder: all .json files in FOLDER, by name",
    )
    parser.add_argument(
        "--keywords",
        required=True,
        type=Path,
        metavar="FOLDER",
        help='files {"tagging": {"keywords": [...]}}, one an image',
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help="which images there are, see --layout")
    parser.add_argument("--split", metavar="NAME", help="in the names of the files; the default is the list's, or all")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help=f"gets {VOCABULARY} and, for each split, keyword_record_SPLIT.npy, keyword_ranges_SPLIT.npy and "
        "keyword_names_SPLIT.json",
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--vocabulary", type=Path, metavar="FILE.json", help="of another run; the default is that of these images"
    )
    words.add_argument(
        "--min_count", type=int, default=6, metavar="N", help="leave out words of fewer images; the default is 6"
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that are there")


def run(arguments: argparse.Namespace) -> None:
    """Writes vocabulary, records, ranges and names, all or none, and prints what they hold.

    Raises:
        InputError: flags that do not go together, keywords, list, vocabulary or output that cannot be used.
    """
    output = arguments.output
    splits = _splits(arguments)
    vocabulary = KeywordVocabulary.load(arguments.vocabulary) if arguments.vocabulary else None
    targets = _targets(output, splits, vocabulary, arguments.force)
    num_bytes = _BYTES_PER_IMAGE * sum(map(len, splits))
    with exit_on_sigterm(), os_errors_as_input_errors(output, num_bytes, "--output names another place"):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".keywords.", dir=output) as temporary:
            whole = Path(temporary)
            words = {split.name: whole / f"{split.name}.words" for split in splits}
            _gather(splits, words)
            if vocabulary is None:
                documents = itertools.chain.from_iterable(map(_read_words, words.values()))
                vocabulary = KeywordVocabulary.fit(documents, arguments.min_count)
            vocabulary.save(whole / VOCABULARY)
            lines = [_write(split, words[split.name], vocabulary, whole) for split in splits]
            for target in targets:
                (whole / target.name).replace(target)
    print("\n".join(lines))
    print(f"{len(vocabulary):,} words in the vocabulary; written to {output}")


def _splits(arguments: argparse.Namespace) -> tuple[KeywordSplit, ...]:
    layout, folder, listed, output = arguments.layout, arguments.keywords, arguments.list, arguments.output
    if arguments.min_count < 1:
        raise InputError(f"--min_count must be at least 1, found {arguments.min_count}")
    if not folder.is_dir():
        raise InputError(f"--keywords {folder} is {'no folder' if folder.exists() else 'not there'}")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    if (listed is None) != (layout == "folder"):
        needed = "takes no --list" if listed else "needs --list, the file that says which images there are"
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


def _targets(
    output: Path, splits: Sequence[KeywordSplit], vocabulary: KeywordVocabulary | None, force: bool
) -> list[Path]:
    """The files to write; records that are there for other splits stay of use."""
    own = [output / pattern.format(split.name) for split in splits for pattern in _patterns()]
    others = sorted(set(output.glob("keyword_record_*.npy")) - set(own))
    path = output / VOCABULARY
    if vocabulary is None and others:
        raise InputError(f"{others[0]} needs {path} as it is: use it with --vocabulary, or name another --output")
    if vocabulary is None or not path.exists():
        own.append(path)
    elif KeywordVocabulary.load(path).words != vocabulary.words:
        raise InputError(f"{path} has other words than --vocabulary {vocabulary.name}; name another --output")
    for target in own:
        if target.is_dir():
            raise InputError(f"{target} is a folder; name another --output")
        if target.exists() and not force:
            raise InputError(f"{target} is there already; --force replaces it, --output names another place")
    return own


def _patterns() -> tuple[str, str, str]:
    return "keyword_record_{}.npy", "keyword_ranges_{}.npy", "keyword_names_{}.json"


def _gather(splits: Sequence[KeywordSplit], words: dict[str, Path]) -> None:
    """Reads every keyword file once and writes its words as a line; files that cannot be used are told together."""
    problems, num_problems, total = [], 0, sum(map(len, splits))
    with tqdm(total=total, desc="keywords", unit="file", mininterval=0.5, dynamic_ncols=True) as bar:
        for split in splits:
            with words[split.name].open("w", encoding="utf-8", newline="\n") as file:
                for path in split.paths():
                    try:
                        file.write(" ".join(analyze(read_keywords(path))) + "\n")
                    except InputError as error:
                        num_problems += 1
                        if num_problems <= _MAX_LISTED:
                            problems.append(str(error))
                    bar.update()
    if num_problems:
        which = ", such as" if num_problems > len(problems) else ""
        raise InputError(
            f"{num_problems:,} of {total:,} keyword files cannot be used; nothing was written. An image without "
            f"keywords has an empty list{which}:{list_problems(problems)}"
        )


def _read_words(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.split()


def _write(split: KeywordSplit, words: Path, vocabulary: KeywordVocabulary, folder: Path) -> str:
    """Writes the files of a split; a line about them."""
    record, ranges, names = (folder / pattern.format(split.name) for pattern in _patterns())
    encoded = map(vocabulary.encode, _read_words(words))
    found = write_keyword_records(record, ranges, zip(split.ids.tolist(), encoded, strict=True), split.num_ids)
    _write_names(names, split)
    num_rows = int(found.max()) + 1
    if not num_rows:
        raise InputError(f"no keyword of {split.name} is in {vocabulary.name}; is it that of these images?")
    num_empty = len(split) - int(np.count_nonzero(found[:, 0] >= 0))
    return (
        f"{split.name}: {len(split):,} images, {num_rows / len(split):.2f} keywords an image, {num_empty:,} images "
        "without any"
    )


def _write_names(path: Path, split: KeywordSplit) -> None:
    """`{name: id}` in the order of the record, a line each."""
    with path.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for name, number in zip(split.names, split.ids.tolist(), strict=True):
            file.write(f"{separator}  {json.dumps(name)}: {number}")
            separator = ",\n"
        file.write("\n}\n")
