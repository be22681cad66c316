import socket
import subprocess
import sys
import time

import pytest

from aia_jax.cli.distributed import join_hosts
from aia_jax.utils.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), r"--num_processes and --process_id need --distributed=HOST:PORT"),
        ((None, None, 0), r"--num_processes and --process_id need --distributed=HOST:PORT"),
        (("auto", 2, 0), r"--distributed=auto finds --num_processes and --process_id itself"),
        (("there", 2, 0), r"--distributed=there: neither auto nor HOST:PORT"),
        (("there:", 2, 0), r"neither auto nor HOST:PORT"),
        ((":1234", 2, 0), r"neither auto nor HOST:PORT"),
        (("there:99999", 2, 0), r"neither auto nor HOST:PORT"),
        (("there:1234", None, 0), r"--distributed=there:1234 needs --num_processes and --process_id too"),
        (("there:1234", 2, 2), r"--process_id=2 --num_processes=2: the processes are numbered from 0"),
        (("there:1234", 2, -1), r"the processes are numbered from 0"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        join_hosts(*arguments)


def test_one_process_joins_nobody():
    join_hosts(None, None, None)


def join_alone(address: str, process: int) -> subprocess.CompletedProcess:
    call = f"join_hosts({address!r}, 2, {process}, timeout_s=2)"
    command = [sys.executable, "-c", f"from aia_jax.cli.distributed import join_hosts; {call}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("process", "who"), [(0, "the other processes"), (1, "process 0 at 127.0.0.1:{port}")])
def test_who_does_not_come_is_named(process, who):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    start = time.perf_counter()
    done = join_alone(f"127.0.0.1:{port}", process)
    assert time.perf_counter() - start < 30
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {who.format(port=port)} did not answer within 2 s; start all processes")
    assert len(done.stderr.splitlines()) == 1
