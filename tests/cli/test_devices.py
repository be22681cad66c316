import os
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax import monitoring

from aia_jax.cli import devices
from aia_jax.cli.devices import PRESETS, apply_preset, check_devices, join_hosts
from aia_jax.utils.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), r"--num_processes and --process_id need --distributed=HOST:PORT"),
        (("auto", 2, 0), r"--distributed=auto finds --num_processes and --process_id itself"),
        (("there", 2, 0), r"--distributed=there: neither auto nor HOST:PORT"),
        ((":1234", 2, 0), r"neither auto nor HOST:PORT"),
        (("there:99999", 2, 0), r"neither auto nor HOST:PORT"),
        (("there:1234", None, 0), r"--distributed=there:1234 needs --num_processes and --process_id too"),
        (("there:1234", 2, 2), r"--process_id=2 --num_processes=2: process IDs range from 0"),
        (("there:1234", 2, -1), r"process IDs range from 0"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        join_hosts(*arguments)


@pytest.mark.parametrize(("process", "who"), [(0, "the other processes"), (1, "process 0 at 127.0.0.1:{port}")])
def test_a_process_that_does_not_answer_is_named(process, who):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    call = f"join_hosts('127.0.0.1:{port}', 2, {process}, timeout_s=2)"
    command = [sys.executable, "-c", f"from aia_jax.cli.devices import join_hosts; {call}"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - start < 30
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {who.format(port=port)} did not answer within 2 s; start all processes")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1(x3)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, None),  # mpirun starts one step a node
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
    ],
)
@pytest.mark.parametrize("arguments", [("auto", None, None), ("there:1234", 2, 0)])
def test_a_process_that_is_alone_on_its_host_uses_all_devices(variables, devices, arguments, monkeypatch):
    for name in ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    join_hosts(*arguments)
    address = None if arguments[0] == "auto" else arguments[0]
    assert calls == [(address, *arguments[1:], devices)]


@pytest.mark.parametrize(("tasks", "gpus"), [("1(x2)", "all"), ("2", "{process}")])
def test_two_tasks_of_slurm_find_each_other_and_their_devices(tasks, gpus):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = "import jax; from aia_jax.cli.devices import join_hosts; join_hosts('auto', None, None, timeout_s=60); "
    program += "print(jax.process_index(), len(jax.local_devices()), jax.device_count(), "
    program += "jax.config.read('jax_cuda_visible_devices'))"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost,other", "SLURM_NTASKS": "2"}
    slurm |= {"SLURM_STEP_TASKS_PER_NODE": tasks, "JAX_COORDINATOR_PORT": str(port), "JAX_PLATFORMS": "cpu"}
    slurm |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = []
    for process in range(2):
        local = 0 if tasks == "1(x2)" else process
        variables = os.environ | slurm | {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(local)}
        command = [sys.executable, "-c", program]
        processes.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=90)[0] for process in processes]
    assert printed == [f"{process} 4 8 {gpus.format(process=process)}\n" for process in range(2)]


def test_the_installed_xla_knows_the_flags_of_the_presets(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    for name in PRESETS:
        apply_preset(name)
    for flags, unknown in ((os.environ["XLA_FLAGS"], ""), ("--xla_gpu_no_such_flag=true", "xla_gpu_no_such_flag")):
        # The start of a backend parses the flags of every platform and aborts at those it does not know.
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        variables = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == (not unknown), done.stderr
        assert unknown in done.stderr


def test_a_preset_says_what_it_sets_and_gives_way_to_the_users_flags(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=d")
    apply_preset("multi_gpu")
    given = os.environ["XLA_FLAGS"].split()
    ours = given.index("--xla_gpu_enable_latency_hiding_scheduler=true")
    assert ours < given.index("--xla_gpu_enable_latency_hiding_scheduler=false")
    assert given[-1] == "--xla_dump_to=d"
    assert capsys.readouterr().out == f"XLA_FLAGS={os.environ['XLA_FLAGS']!r}\n"


def test_without_flags_nothing_is_set(capsys):
    before = dict(os.environ)
    join_hosts(None, None, None)
    apply_preset(None)
    assert dict(os.environ) == before
    assert capsys.readouterr().out == ""


def test_a_program_that_compiles_for_long_is_announced_while_it_compiles(monkeypatch, capsys):
    check_devices()
    monkeypatch.setattr(devices, "_SLOW", 0.05)
    monitoring.record_scalar(devices._COMPILATION, time.time(), fun_name="step")
    while not (printed := capsys.readouterr().err):
        time.sleep(0.01)
    assert printed == "compiling the program step takes more than 0.05 s\n"
    monitoring.record_event_duration_secs(devices._COMPILATION, 0.1, fun_name="step")
    monkeypatch.setattr(devices, "_SLOW", 30)
    started = []
    monitoring.register_event_duration_secs_listener(listener := lambda *_, **__: started.extend(_timers()))
    jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()
    monitoring.unregister_event_duration_listener(listener)
    assert started  # JAX still sends the events
    for timer in started:
        timer.join(20)
    assert not _timers()


def _timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
