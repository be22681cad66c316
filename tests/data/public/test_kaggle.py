"""Downloads by kagglehub, if it is installed, from a local server."""

import dataclasses
import os

import pytest

from aia_jax.data.public.acquisition import download_from_kaggle
from aia_jax.utils.errors import InputError
from tests.helpers.file_server import Served, serving, zip_file

pytestmark = pytest.mark.extras
FILES = {"Corel-5k/images/1.jpeg": bytes(3_000_000), "Corel-5k/train.json": b"{}"}


@pytest.fixture
def server(monkeypatch):
    kaggle_env = pytest.importorskip(
        "kagglesdk.kaggle_env", reason="kagglehub is not installed: pip install -e '.[download]'"
    )
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLEHUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with serving(monkeypatch) as running:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, running.url("").rstrip("/"))
        running.files["kaggle.zip"] = Served(zip_file(FILES))
        yield running


def error_of(tmp_path) -> str:
    with pytest.raises(InputError) as caught:
        download_from_kaggle("parhamsalar/corel5k", tmp_path / "cache")
    return str(caught.value)


def test_a_data_set_is_downloaded(server, tmp_path):
    folder = download_from_kaggle("parhamsalar/corel5k", tmp_path / "cache")
    assert folder.is_relative_to(tmp_path / "cache")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(FILES)
    assert "KAGGLEHUB_CACHE" not in os.environ


def test_a_broken_connection_is_continued(server, tmp_path):
    server.files["kaggle.zip"].breaks = [2_500_000]
    message = error_of(tmp_path)
    assert "https://www.kaggle.com/datasets/parhamsalar/corel5k cannot be downloaded: " in message
    assert "the same command continues" in message
    assert (download_from_kaggle("parhamsalar/corel5k", tmp_path / "cache") / "Corel-5k" / "train.json").is_file()
    assert server.ranges[-1] in ("bytes=1048576-", "bytes=2097152-")  # kagglehub's chunks


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"statuses": [401]}, "(401): make a token at https://www.kaggle.com/settings/api"),
        ({"statuses": [403]}, "~/.kaggle/access_token or the environment variable KAGGLE_API_TOKEN"),
        ({"statuses": [404]}, "404"),
        ({"statuses": [500]}, "500"),
        ({"content": b"<html>log in</html>"}, "kagglehub says: Unsupported archive type"),
        ({"content": b"<html>log in</html>"}, "If the problem persists, remove {cache}"),
    ],
)
def test_refusals(server, tmp_path, answer, text):
    server.files["kaggle.zip"] = dataclasses.replace(server.files["kaggle.zip"], **answer)
    assert text.format(cache=tmp_path / "cache") in error_of(tmp_path)


def test_a_bad_token_file_and_an_unreachable_server(server, tmp_path, monkeypatch):
    (tmp_path / "kaggle.json").write_text("{")
    with monkeypatch.context() as context:
        context.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
        assert "Invalid Kaggle credentials file" in error_of(tmp_path)
    server.shutdown()
    server.server_close()
    assert "cannot be downloaded: " in error_of(tmp_path)
