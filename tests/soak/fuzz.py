"""Gives the product damaged and hostile files, and looks at what it makes of each.

    python tests/soak/fuzz.py --cases 1000 --seed 0 --output fuzz.json [--family images] [--keep FOLDER]

Each case must be refused with an InputError or give what an independent reading of the same bytes gives. Anything else
is a finding, and so is a case that takes too long or too much memory; `--keep` gets its files. Linux only.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY)]

from tests.soak import fuzz_annotations, fuzz_arrays, fuzz_commands, fuzz_images, fuzz_own_labels, fuzz_text  # noqa: E402
from tests.soak.process_memory import forget_peak, peak  # noqa: E402

Case = Callable[[random.Random, Path], str]
# Of each family: what writes the files of a case into a folder, gives them to the product and returns "accepted" or
# "refused"; an AssertionError says what is wrong.
FAMILIES: Mapping[str, Case] = {
    **fuzz_images.FAMILIES,
    **fuzz_annotations.FAMILIES,
    **fuzz_own_labels.FAMILIES,
    **fuzz_text.FAMILIES,
    **fuzz_arrays.FAMILIES,
    **fuzz_commands.FAMILIES,
}
READY = {"prediction": fuzz_annotations.annotator, "runs": fuzz_commands.run}  # what takes long, once
SHARES = {"preparation": 24, "prediction": 24, "runs": 24, "keywords": 4}  # a case of these stands for so many
MOST_SECONDS, MOST_BYTES = 20.0, 2_500_000_000  # of a case


class TooLong(BaseException):
    """A case is not over in time; no product code catches it."""


def soak(
    folder: Path, cases: int, seed: int, *, families: Mapping[str, Case] = FAMILIES, keep: Path | None = None
) -> dict[str, Any]:
    """The report: of each family outcomes, seconds, the most memory of a case in MB, and findings.

    Args:
        cases: of each family, see `SHARES`.
        keep: gets the files of the findings.
    """
    return {name: _soak_one(folder, name, case, cases, seed, keep) for name, case in families.items()}


def _soak_one(folder: Path, name: str, case: Case, cases: int, seed: int, keep: Path | None) -> dict[str, Any]:
    READY.get(name, bool)()
    outcomes: Counter[str] = Counter(accepted=0, refused=0)
    findings, slowest, largest, start = [], 0.0, 0, time.perf_counter()
    for number in range(-(-cases // SHARES.get(name, 1))):
        place = folder / f"{name}-{number}"
        place.mkdir(parents=True)
        outcome, seconds, used = _watched(case, random.Random(f"{seed}-{name}-{number}"), place)
        slowest, largest = max(slowest, seconds), max(largest, used)
        if outcome in ("accepted", "refused"):
            outcomes[outcome] += 1
        else:
            findings.append({"case": number, "what": outcome})
            if keep:
                shutil.copytree(place, keep / place.name, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(place)
    seconds = round(time.perf_counter() - start, 1)
    report = {**outcomes, "seconds": seconds, "slowest_seconds": round(slowest, 2), "most_mb": round(largest / 1e6)}
    print(f"{name}: {json.dumps({**report, 'findings': len(findings)})}", file=sys.stderr, flush=True)
    return {**report, "findings": findings}


def _watched(case: Case, rng: random.Random, place: Path) -> tuple[str, float, int]:
    """What a case ended with, its seconds, and the most bytes of it."""
    before, start = forget_peak(), time.perf_counter()
    silent = io.StringIO()
    try:
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
            with _within(MOST_SECONDS):
                outcome = case(rng, place)
    except (Exception, SystemExit, TooLong):
        outcome = traceback.format_exc(limit=-8)
    seconds, used = time.perf_counter() - start, peak() - before
    if outcome in ("accepted", "refused") and (seconds > MOST_SECONDS or used > MOST_BYTES):
        outcome = f"{outcome} after {seconds:.1f} s with {used / 1e6:.0f} MB"
    return outcome, seconds, used


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises TooLong in Python code, and ends the process, telling where, if C code does not return."""

    def stop(*_: Any) -> None:
        raise TooLong(f"not over after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="gets the files of the findings")
    parser.add_argument("--output", type=Path, help="the report, as JSON")
    given = parser.parse_args()
    chosen = {name: FAMILIES[name] for name in given.family or FAMILIES}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        report = soak(Path(folder), given.cases, given.seed, families=chosen, keep=given.keep)
    facts = {
        "seed": given.seed,
        "cases": given.cases,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }
    text = json.dumps({**facts, "families": report}, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")
    return 1 if any(family["findings"] for family in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
