"""Object storage by the real packages gcsfs and s3fs, against servers on this machine."""

import http.server
import json
import threading

import pytest

from aia_jax.utils.errors import InputError
from aia_jax.utils.storage import errors_of_storage, is_url, open_storage, read_url
from aia_jax.utils.storage_folders import download_folder, upload_folder

SERVERS = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto")}


@pytest.fixture
def server(request, tmp_path, monkeypatch):
    """A server for the scheme of the test. Yields the scheme."""
    for package in SERVERS[request.param]:
        pytest.importorskip(package)
    from tests.helpers.emulators import emulated_storage

    monkeypatch.setenv("AIA_JAX_CACHE", str(tmp_path / "cache"))
    with emulated_storage(request.param):
        yield request.param


def test_urls_of_object_storage_are_recognised():
    assert all(map(is_url, ("gs://b/x", "s3://b")))
    assert not any(map(is_url, ("gs:/b", "runs/gs://b", "https://a/b", "", None)))


@pytest.mark.parametrize("url", ["gs://", "s3:///x", "gs://b/../c"])
def test_a_url_without_a_bucket_is_refused(url):
    with pytest.raises(InputError, match=r"is no URL of object storage; give (gs|s3)://BUCKET/FOLDER"):
        open_storage(url)


def test_an_error_of_the_local_disk_is_none_of_the_storage(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), errors_of_storage("gs://b/x"):
        (tmp_path / "file" / "x").open("w")


def test_an_answer_that_is_no_json_is_reported():
    with (
        pytest.raises(InputError, match="gs://b/x: the storage did not answer as expected"),
        errors_of_storage("gs://b/x"),
    ):
        json.loads("<html>")


@pytest.mark.extras
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_a_folder_goes_to_a_bucket_and_back(server, tmp_path):
    files = {"empty": b"", "a [1]*?.txt": b"a", "sub/ä #%.bin": b"b" * 10, "large": b"c" * (17 << 20)}
    files |= {"end": b"ab\r", "line": b"ab\r\n", "boundary": b"a\n--==0==\nb"}
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    url = f"{server}://bucket/some/folder"
    upload_folder(tmp_path / "mine", url)
    found = download_folder(url)
    assert {name: (found / name).read_bytes() for name in files} == files
    assert read_url(f"{url}/sub/ä #%.bin") == files["sub/ä #%.bin"]
    (tmp_path / "mine" / "large").unlink()
    (tmp_path / "mine" / "a [1]*?.txt").write_bytes(b"new")
    upload_folder(tmp_path / "mine", url)
    assert download_folder(url) == found
    assert not (found / "large").exists()
    assert (found / "a [1]*?.txt").read_bytes() == b"new"
    with pytest.raises(InputError, match="no-such-bucket/x: no such bucket, folder or file; check the name"):
        download_folder(f"{server}://no-such-bucket/x")
    with pytest.raises(InputError, match="bucket/none holds no files; check the name"):
        download_folder(f"{server}://bucket/none")
    with pytest.raises(InputError, match="no-such-bucket/x: no such bucket, folder or file; check the name"):
        upload_folder(tmp_path / "mine", f"{server}://no-such-bucket/x")
    with pytest.raises(InputError, match="some/none: no such bucket, folder or file; check the name"):
        read_url(f"{server}://bucket/some/none")


@pytest.mark.extras
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("scheme", SERVERS)
def test_missing_rights_are_reported(scheme, tmp_path, monkeypatch):
    pytest.importorskip(SERVERS[scheme][0])
    from tests.helpers.emulators import storage_settings

    monkeypatch.setenv("AIA_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("a")
    answers = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    threading.Thread(target=answers.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{answers.server_port}"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with storage_settings({"STORAGE_EMULATOR_HOST": address, "AWS_ENDPOINT_URL": address, **keys}):
            for work in (download_folder, read_url, lambda url: upload_folder(tmp_path, url)):
                with pytest.raises(InputError, match=f"{scheme}://bucket/x: no permission; check the credentials"):
                    work(f"{scheme}://bucket/x")
    finally:
        answers.shutdown()
        answers.server_close()


class Forbidding(http.server.BaseHTTPRequestHandler):
    """Answers every request like storage without rights."""

    def answer(self) -> None:
        xml = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(xml)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else xml)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *_args: object) -> None:
        pass
