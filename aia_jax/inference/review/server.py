"""Serves the review page to the browsers of this machine, and to nobody else.

The server listens on the loopback address. Each request needs the random token of the address that `aia review`
prints, a Host header with this address (pages of other sites could reach the server under their own names), and no
sign of another site in the headers Origin and Sec-Fetch-Site. Photos are addressed by numbers, never by paths.
"""

import errno
import hmac
import json
import re
import secrets
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import bottle

from aia_jax.inference.review.requests import RefusedError, ReviewRequests
from aia_jax.report.review.page import review_page
from aia_jax.utils.errors import InputError

ADDRESS = "127.0.0.1"
TOKEN_HEADER = "X-Review-Token"
_LARGEST_BODY = 2**20  # bytes: the numbers of all photos of a large folder
_IDLE = 30  # seconds until a connection without a request is closed
_WRONG_TOKEN = "This address has no valid token. Open the address that aia review printed."
_WRONG_SITE = "This server answers only its own page. Open the address that aia review printed."
_HEADERS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]


class ReviewServer:
    """Context manager that serves `requests` in threads until the end of the block.

    Args:
        port: port of the loopback address; 0: a free one.

    Attributes:
        token: what each request must have.
        url: address of the page.

    Raises:
        InputError: the port cannot be used.
    """

    def __init__(self, requests: ReviewRequests, port: int = 0):
        self.token = secrets.token_urlsafe()
        self._page, policy = review_page()
        self._headers = [*_HEADERS, ("Content-Security-Policy", policy)]
        self._app = _application(requests, self._page)
        try:
            self._server = make_server(ADDRESS, port, self._respond, _Server, _Handler)
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise InputError(f"--port {port} {why}; name another port, or leave --port out for a free one") from None
        self._hosts = {f"{name}:{self._server.server_port}" for name in (ADDRESS, "localhost")}
        self.url = f"http://{ADDRESS}:{self._server.server_port}/?token={self.token}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> "ReviewServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _respond(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Checks a request before bottle reads it, and adds the headers for the browser to each response."""

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            return start_response(status, headers + self._headers, *exc_info)

        if problem := self._refusal(environ):
            body = _json({"error": problem})
            start("403 Forbidden", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        return self._app(environ, start)

    def _refusal(self, environ: dict[str, Any]) -> str:
        """Returns why a request is refused, or ""."""
        if environ.get("HTTP_HOST") not in self._hosts:
            return _WRONG_SITE
        is_page = environ["PATH_INFO"] == "/"
        if environ.get("HTTP_ORIGIN", f"http://{environ['HTTP_HOST']}") != f"http://{environ['HTTP_HOST']}":
            return _WRONG_SITE
        # "none": a person typed the address or opened it from the terminal.
        if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none" if is_page else ""):
            return _WRONG_SITE
        header = environ.get(f"HTTP_{TOKEN_HEADER.upper().replace('-', '_')}", "")
        given = parse_qs(environ.get("QUERY_STRING", "")).get("token", [""])[0] if is_page else header
        return "" if hmac.compare_digest(given.encode(errors="replace"), self.token.encode()) else _WRONG_TOKEN


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False  # a browser keeps connections open that it may need
    request_queue_size = 128

    def server_bind(self) -> None:
        """Binds the address without asking for its name, which takes seconds on some networks."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores browsers that close a connection, or send nothing until it is closed."""


class _Handler(WSGIRequestHandler):
    timeout = _IDLE

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: addresses have the token."""


def _application(requests: ReviewRequests, page: str) -> bottle.Bottle:
    """Returns the WSGI application with the page and its requests, without the checks of `ReviewServer`."""
    app = bottle.Bottle()
    app.default_error_handler = _error_response

    def route(method: str, path: str, function: Callable[..., Any]) -> None:
        app.route(path, method, lambda **given: _answered(function, **given))

    app.route("/", "GET", lambda: page)
    route("GET", "/api/state", requests.state)
    route("GET", "/api/labels", requests.labels)
    route("GET", "/api/report", requests.report)
    route("GET", "/api/order", lambda: requests.order(*map(_query, ("label", "sort", "show"))))
    route("GET", "/api/photos", lambda: requests.photos(_numbers(_query("numbers")), _query("label")))
    route("GET", "/api/picture/<number:int>", lambda number: _picture(requests.picture(number)))
    route("POST", "/api/answer", lambda: requests.answer(*_body("photos", "label", "answer")))
    route("POST", "/api/undo", lambda: (_body(), requests.undo())[1])
    route("POST", "/api/train", lambda: (_body(), requests.train())[1])
    return app


def _answered(function: Callable[..., Any], **given: Any) -> Any:
    """Calls a function for a request, and returns its value as JSON. Expected errors become responses."""
    try:
        value = function(**given)
    except RefusedError as error:
        raise bottle.HTTPError(error.status, str(error)) from None
    except (InputError, MemoryError) as error:
        raise bottle.HTTPError(400, str(error) or "There is not enough memory.") from None
    except OSError as error:
        raise bottle.HTTPError(500, f"{error.strerror or error}. Nothing was changed.") from None
    if isinstance(value, bottle.HTTPResponse):
        return value
    return bottle.HTTPResponse(_json(value), 200, {"Content-Type": "application/json"})


def _error_response(error: bottle.HTTPError) -> bytes:
    bottle.response.content_type = "application/json"
    known = {404: "There is no such address.", 405: "The address has no such method."}
    text = "aia review has an error; see its messages in the terminal." if error.exception else str(error.body)
    if error.status_code in known and str(error.body).startswith(("Not found:", "Method not allowed")):
        text = known[error.status_code]
    return _json({"error": text})


def _json(value: Any) -> bytes:
    """Returns ASCII JSON. Bytes of file names that are not UTF-8 become escapes."""
    return json.dumps(value, separators=(",", ":"), default=lambda number: number.item()).encode()


def _query(name: str) -> str:
    return bottle.request.query.getunicode(name, "") or ""


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise RefusedError(400, "The numbers of photos must be whole numbers, separated by commas.")
    return [int(part) for part in parts]


def _picture(content: bytes) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(content, 200, {"Content-Type": "image/webp"})


def _body(*fields: str) -> list[Any]:
    """Returns the fields of the JSON object in the body of a request. Refuses other bodies, and large ones."""
    request = bottle.request
    if request.content_type.partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "A request must be JSON.")
    length = request.environ.get("CONTENT_LENGTH") or ""
    if not (re.fullmatch("[0-9]{1,9}", length) and int(length) <= _LARGEST_BODY):
        raise RefusedError(413, "The request is too large, or does not state its length.")
    try:
        content = json.loads(request.environ["wsgi.input"].read(int(length)))
    except (ValueError, RecursionError):
        raise RefusedError(400, "The request is not JSON.") from None
    if not isinstance(content, dict) or set(content) != set(fields):
        raise RefusedError(400, f"A request must have the fields {', '.join(fields) or 'of an empty object'}.")
    return [content[name] for name in fields]
