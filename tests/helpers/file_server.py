"""An HTTP server for files in memory that can misbehave like real ones, and zip files for it."""

import dataclasses
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aia_jax.data.public import download


@dataclasses.dataclass
class Served:
    """A file and the behaviour of the server.

    Attributes:
        etag, last_modified: headers; "": none.
        has_ranges: whether to respect the header Range.
        statuses: status codes of the first responses, without a body.
        breaks: number of body bytes after which the connection breaks, for the first responses with a body.
        has_length: whether to send the size.
    """

    content: bytes
    etag: str = '"1"'
    last_modified: str = ""
    content_type: str = "application/zip"
    has_ranges: bool = True
    statuses: list[int] = dataclasses.field(default_factory=list)
    breaks: list[int] = dataclasses.field(default_factory=list)
    has_length: bool = True


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path, and records the header Range of all requests in `ranges` ("": none)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.ranges: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request, client_address):
        """Ignores clients that close the connection, as the tests intend."""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Runs a server on a free port. Downloads from it use no proxy, and repeat failed requests at once."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def zip_file(members: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns the content of a zip file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for member, data in members.items():
            file.writestr(member, data)
    return content.getvalue()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, format, *args):
        pass

    def do_POST(self):
        """Answers Kaggle's two calls: the version of a data set, and its download address."""
        self.rfile.read(int(self.headers["Content-Length"]))
        kaggle = self.server.files["kaggle.zip"]
        if kaggle.statuses:
            self._send(kaggle.statuses.pop(0))
        elif self.path.endswith("/GetDataset"):
            self._send(200, json.dumps({"currentVersionNumber": 1}).encode(), {"Content-Type": "application/json"})
        else:
            self._send(302, headers={"Location": self.server.url("kaggle.zip")})

    def do_GET(self):
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        served = self.server.files.get(self.path.lstrip("/"))
        if served is None:
            return self._send(404)
        if served.statuses:
            return self._send(served.statuses.pop(0))
        same = self.headers.get("If-Range") in (None, served.etag, served.last_modified)
        start, size = 0, len(served.content)
        if asked and served.has_ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                return self._send(416, headers={"Content-Range": f"bytes */{size}"})
        headers = {
            "Content-Type": served.content_type,
            "ETag": served.etag,
            "Last-Modified": served.last_modified,
            "Accept-Ranges": "bytes" if served.has_ranges else "",
            "Content-Length": str(size - start) if served.has_length else "",
            "Content-Range": f"bytes {start}-{size - 1}/{size}" if start else "",
        }
        end = start + served.breaks.pop(0) if served.breaks else None
        self._send(206 if start else 200, served.content[start:end], headers)

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
