"""Build a vocabulary in SCAN's JSON format from captions.

aia vocab train_caps.txt --output vocab/mine_precomp_vocab.json
"""

import argparse

from aia_jax.cli.flags import Parser, local, positive
from aia_jax.cli.outputs import check_output_folder
from aia_jax.data.vocabulary import Vocabulary, read_captions, word_counts
from aia_jax.utils.errors import InputError


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia vocab`."""
    parser.add_argument("captions", nargs="+", type=local, metavar="CAPTIONS", help="text files, one caption per line")
    parser.add_argument("--output", type=local, required=True, metavar="FILE", help="file for the vocabulary")
    count_help = "smallest number of occurrences of a word to keep; default: 4"
    parser.add_argument("--min_count", type=positive, default=4, metavar="N", help=count_help)
    parser.add_argument("--force", action="store_true", help="overwrite the output")


def run(arguments: argparse.Namespace) -> None:
    """Builds the vocabulary, writes it and prints the fraction of tokens that it covers.

    Raises InputError if the captions cannot be read, no word is frequent enough, or the output cannot be written.
    """
    output = arguments.output
    if output.resolve() in [path.resolve() for path in arguments.captions]:
        raise InputError(f"--output {output} is one of the files of captions; name another")
    check_output_folder(output.parent, (output.name,), force=arguments.force)
    captions = [caption for path in arguments.captions for caption in read_captions(path)]
    vocabulary = Vocabulary.build(captions, arguments.min_count)
    counts = word_counts(captions)
    covered = sum(count for word, count in counts.items() if word in vocabulary)
    vocabulary.save(output)
    print(
        f"{len(vocabulary):,} words, the special ones included, cover {covered / counts.total():.2%}"
        f" of {counts.total():,} tokens in {len(captions):,} captions"
    )
    print(f"written to {output}")
