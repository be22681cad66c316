"""Paths in flags, config fields, environment variables and calls."""

import argparse
from pathlib import Path

import pytest

import aia_jax
from aia_jax.cli.main import COMMANDS, main
from aia_jax.data.cache import cache_root
from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError
from aia_jax.utils.paths import local_path
from tests.cli.test_main import parser_of

REMOTE = ["gs://bucket/x", "gs:/bucket/x", "s3://b", "file:///tmp/x", "HTTPS://a/b.pth", "me@nas:/photos", r"C:\photos"]


def test_a_leading_tilde_is_the_home_folder_and_other_paths_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local_path("~/a b/c.json") == tmp_path / "a b/c.json"
    assert local_path("~root") == Path("~root").expanduser()
    for kept in ("a:b", "12:30/x", "/a/~/b", "photos (1)", "cost$5", "猫"):
        assert local_path(kept) == Path(kept)


@pytest.mark.parametrize("path", [*REMOTE, "", " ", "a\0b", "$HOME/x", "${DATA}/x", "~nosuchuser/x"])
def test_what_is_no_local_path_is_refused_before_anything_is_made(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog\n")
    assert main(["vocab", str(captions), "--min_count=1", f"--output={path}"]) == 2
    assert f"error: argument --output: {path[:200]!r}" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["captions.txt"]


def test_paths_in_configs_calls_and_the_environment_are_checked_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AIA_JAX_CACHE", "~/cache")
    assert cache_root("") == tmp_path / "cache"
    config = read_config("corel5k", ["--config.data.root=~/data", "--config.init_from=runs/a/"])
    assert (config.data.root, config.init_from) == (f"{tmp_path}/data", "runs/a/")
    with pytest.raises(InputError, match=r"config\.init_backbone: 'gs://b/x' is not a path of this machine"):
        read_config("corel5k", ["--config.init_backbone=gs://b/x"])
    for config in ("gs://b/c.py", "s3:/c.py"):
        with pytest.raises(InputError, match=r"not a path|no such file"):
            read_config(config)
    with pytest.raises(InputError, match="not a path of this machine"):
        aia_jax.load("gs:/bucket/run")
    monkeypatch.setenv("HOME", "")
    with pytest.raises(InputError, match="home folder is unknown; give the full path"):
        local_path("~/x")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_flag_of_every_command_is_checked(command):
    words = "FILE", "DIR", "FOLDER", "CAPTIONS"
    for action in parser_of(command)._actions:
        if "URL" in str(action.metavar):
            assert action.type("gs://bucket/x/") == "gs://bucket/x"
        elif action.dest != "config" and any(word in str(action.metavar) for word in words):
            with pytest.raises(argparse.ArgumentTypeError, match="not a path of this machine"):
                action.type("gs://bucket/x")
