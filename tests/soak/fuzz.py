"""Reads damaged and malicious files with the product and checks the results.

    python tests/soak/fuzz.py --cases 1000 --seed 0 --output fuzz.json [--family images] [--keep FOLDER]

The product must refuse a case with an InputError, or agree with an independent reader of the same bytes. Anything else
is a finding, also if a case takes too long or too much memory. `--keep` saves the files of findings. Linux only.
"""

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from tests.soak import (  # noqa: E402
    fuzz_annotations,
    fuzz_arrays,
    fuzz_commands,
    fuzz_dialects,
    fuzz_images,
    fuzz_surroundings,
    fuzz_text,
)
from tests.soak.plain import Refused  # noqa: E402
from tests.soak.process import forget_peak, make_parser, memory, write_report  # noqa: E402

Case = Callable[[random.Random, Path], None]
# A function per family writes the files of a case into a folder, and reads them with the product. It raises Refused if
# the product refuses them. Other errors are findings.
FAMILIES: Mapping[str, Case] = {
    case.__name__: case
    for case in (
        *(fuzz_images.images, fuzz_annotations.authors, fuzz_annotations.ssgrl, fuzz_annotations.labels),
        *(fuzz_annotations.preparation, fuzz_annotations.prediction),
        *(fuzz_annotations.tables, fuzz_annotations.coco, fuzz_annotations.channel_stats),
        *(fuzz_text.thresholds, fuzz_text.results, fuzz_text.keywords, fuzz_text.lists, fuzz_text.scan),
        *(fuzz_text.vectors, fuzz_arrays.weights, fuzz_arrays.safetensors, fuzz_arrays.records),
        *(fuzz_arrays.caption_features, fuzz_arrays.clicks, fuzz_commands.overrides, fuzz_commands.runs),
        *(fuzz_dialects.dialects, fuzz_dialects.exports),
        *(fuzz_surroundings.caption_counts, fuzz_surroundings.wrapped_weights),
        fuzz_surroundings.environments,
    )
}
TRAINED = ("prediction", "runs")  # need a run; compilation takes longer than all other families together
COSTS = {
    "preparation": 24,
    "prediction": 24,
    "runs": 24,
    "keywords": 4,
    "environments": 40,
}  # a case counts as this many
MOST_SECONDS, MOST_BYTES = 20.0, 2_500_000_000  # per case


class TooLong(BaseException):
    """A case takes too long. No product code catches this."""


def soak(folder: Path, name: str, case: Case, cases: int, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Runs the cases of a family and returns outcomes, seconds, peak memory per case in MB, and findings.

    Args:
        cases: number of cases, see `COSTS`.
        keep: folder for the files of the findings.
    """
    if name in TRAINED:
        fuzz_commands.run()  # slow, only once
    findings, measured = [], []
    for number in range(-(-cases // COSTS.get(name, 1))):
        place = folder / f"{name}-{number}"
        place.mkdir(parents=True)
        measured.append(_watched(case, random.Random(f"{seed}-{name}-{number}"), place))
        if (outcome := measured[-1][0]) not in ("accepted", "refused"):
            findings.append({"case": number, "what": outcome})
            if keep:
                shutil.copytree(place, keep / place.name, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(place)
    outcomes, seconds, used = zip(*measured, strict=True)
    report = {outcome: outcomes.count(outcome) for outcome in ("accepted", "refused")}
    report |= {"seconds": round(sum(seconds), 1), "slowest_seconds": round(max(seconds), 2)}
    report["most_mb"] = round(max(used) / 1e6)
    print(f"{name}: {json.dumps({**report, 'findings': len(findings)})}", file=sys.stderr, flush=True)
    return {**report, "findings": findings}


def _watched(case: Case, rng: random.Random, place: Path) -> tuple[str, float, int]:
    """The outcome of a case, its seconds, and its peak memory in bytes."""
    before, start = forget_peak(), time.perf_counter()
    silent = io.StringIO()
    try:
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata.
            with _within(MOST_SECONDS):
                case(rng, place)
        outcome = "accepted"
    except Refused:
        outcome = "refused"
    except (Exception, SystemExit, TooLong):
        outcome = traceback.format_exc(limit=-8)
    seconds, used = time.perf_counter() - start, memory() - before
    if outcome in ("accepted", "refused") and (seconds > MOST_SECONDS or used > MOST_BYTES):
        outcome = f"{outcome} after {seconds:.1f} s with {used / 1e6:.0f} MB"
    return outcome, seconds, used


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises TooLong in Python code. If C code does not return, prints a traceback and exits."""

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
    parser = make_parser(__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="number of cases per family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this family; may be repeated")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for the files of the findings")
    given = parser.parse_args()
    names = given.family or FAMILIES
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        report = {name: soak(Path(folder), name, FAMILIES[name], given.cases, given.seed, given.keep) for name in names}
    peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    write_report({"seed": given.seed, "cases": given.cases, "peak_mb": peak_mb, "families": report}, given.output)
    return 1 if any(family["findings"] for family in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
