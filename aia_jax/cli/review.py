"""Correct the labels of your photos in the browser, and retrain the model with the corrections.

    aia review --workdir runs/mine --images photos
    aia review --workdir runs/mine --images photos --port 8000 --no_browser
    aia review --workdir runs/mine --images photos --export label-studio --output tasks.json
    aia review --workdir runs/mine --images photos --import project-1.json

Prints the address of a page that only this machine can open. The page shows the photos with their predicted labels,
first the photos whose answers are expected to improve the model most. Each answer is saved at once in DIR/review.
Ctrl-C stops the command, and the same command continues.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import webbrowser
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from aia_jax.cli.answer_flags import add_answer_arguments, exchange_answers
from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import Parser, add_photo_arguments, local, positive
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.messages import format_count, list_problems, printable
from aia_jax.utils.packages import import_with_extra

_LAST_PORT = 65_535


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia review`."""
    workdir = "run of an annotator, whose labels are corrected and whose head is retrained"
    parser.add_argument("--workdir", required=True, type=local, metavar="DIR", help=workdir)
    add_photo_arguments(parser)
    parser.add_argument("--port", type=positive, metavar="N", help="port of the page; default: a free one")
    parser.add_argument("--no_browser", action="store_true", help="print the address, and open no browser")
    add_answer_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C or SIGTERM, or exchanges answers with other programs.

    Raises:
        InputError: a flag cannot be used, a package is missing, or another process reviews the run.
        Interrupted: Ctrl-C or SIGTERM stopped the command.
    """
    if exchange_answers(arguments):
        return
    if arguments.port and arguments.port > _LAST_PORT:
        raise InputError(f"--port must be at most {_LAST_PORT}, not {arguments.port}")
    if not arguments.images.is_dir():
        reason = "is no folder" if arguments.images.exists() else "does not exist"
        raise InputError(f"--images {arguments.images} {reason}; name a folder of photos")
    server = import_with_extra("aia_jax.inference.review.server", "aia review", "review", "bottle")
    from aia_jax.inference.review.requests import ReviewRequests
    from aia_jax.inference.review.session import ReviewSession

    enable_compilation_cache()
    options = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers}
    with exit_on_sigterm(), ReviewSession(arguments.workdir, arguments.images, **options) as session:
        requests = ReviewRequests(session, Path(os.path.abspath(arguments.images)).name)
        with server.ReviewServer(requests, arguments.port or 0) as served:
            print(f"open this address in a browser on this machine: {served.url}", flush=True)
            if not arguments.no_browser and _has_display():
                webbrowser.open(served.url)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts start commands that ignore it
            try:
                _load(requests)
                _report(session, arguments.images)
                threading.Event().wait()
            except KeyboardInterrupt:
                _stop(session, arguments.workdir, signal.SIGINT)
            except SystemExit:
                _stop(session, arguments.workdir, signal.SIGTERM)


def _load(requests) -> None:
    with tqdm(desc="read photos", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        requests.load(progress)


def _report(session, images: Path) -> None:
    print(f"{format_count(len(session.names), 'photo')} ready; Ctrl-C stops, and all answers are saved", flush=True)
    if session.problems:
        listed = [f"{printable(name)}: {problem}" for name, problem in session.problems.items()]
        print(f"{format_count(len(listed), 'photo')} cannot be read:{list_problems(listed, 5)}", file=sys.stderr)
    if elsewhere := session.progress()["elsewhere"]:
        about = f"{format_count(elsewhere, 'answer')} about photos that are not in {images}, or cannot be read"
        print(f"not used: {about}; all answers stay saved, but retraining leaves these out", file=sys.stderr)


def _stop(session, workdir: Path, signum: int) -> NoReturn:
    answers = format_count(sum(map(len, session.answers.values())), "answer")
    raise Interrupted(signum, f"stopped; {answers} saved in {workdir}; the same command continues") from None


def _has_display() -> bool:
    """Whether a browser would open a window, and not run in this terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
