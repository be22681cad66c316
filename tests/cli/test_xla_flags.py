import os
import subprocess
import sys

import pytest

from aia_jax.cli.xla_flags import PRESETS, apply_preset


def parse(flags: str) -> subprocess.CompletedProcess:
    """Starts a backend, which parses the flags of every platform and aborts at those it does not know."""
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", PRESETS)
def test_the_installed_xla_knows_a_presets_flags(name, capsys):
    environment = {}
    apply_preset(name, environment)
    done = parse(environment["XLA_FLAGS"])
    assert done.returncode == 0, done.stderr


def test_an_unknown_flag_would_be_noticed():
    done = parse("--xla_gpu_no_such_flag=true")
    assert done.returncode != 0
    assert "xla_gpu_no_such_flag" in done.stderr


def test_a_preset_says_what_it_sets_and_gives_way_to_the_users_flags(capsys):
    environment = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=d"}
    apply_preset("multi_gpu", environment)
    given = environment["XLA_FLAGS"].split()
    ours = given.index("--xla_gpu_enable_latency_hiding_scheduler=true")
    assert ours < given.index("--xla_gpu_enable_latency_hiding_scheduler=false")
    assert given[-1] == "--xla_dump_to=d"
    assert capsys.readouterr().out == f"XLA_FLAGS={environment['XLA_FLAGS']!r}\n"


def test_without_a_preset_nothing_is_set(capsys):
    environment = {}
    apply_preset(None, environment)
    assert environment == {}
    assert capsys.readouterr().out == ""
