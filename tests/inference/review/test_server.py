"""The server of the review page: who may ask, what may be asked, and what answers and trainings return."""

import http.client
import json
import re
import time

import pytest

from aia_jax.inference.review.requests import ReviewRequests
from aia_jax.inference.review.server import ReviewServer
from aia_jax.report.page_parts import content_hash
from aia_jax.utils.errors import InputError
from tests.helpers.fake_review import FakeSession

JSON = {"Content-Type": "application/json"}


class Client:
    """Sends requests as the page does; `headers` replace its headers, and None removes one."""

    def __init__(self, server):
        self.port, self.token = server._server.server_port, server.token

    def send(self, method, path, body=None, headers=()):
        given = {"X-Review-Token": self.token, **(JSON if method == "POST" else {}), **dict(headers)}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host="Host" in given)
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if method == "POST" else b""
        given = {"Content-Length": str(len(content)), **given}
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(content)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def get(self, path, **headers):
        response, content = self.send("GET", f"/api/{path}", headers=headers)
        return response.status, json.loads(content)

    def post(self, path, body=None, **headers):
        response, content = self.send("POST", f"/api/{path}", {} if body is None else body, headers)
        return response.status, json.loads(content)

    def labels_of(self, number):
        """The answers about a photo, by the number of the label."""
        _, (photo,) = self.get(f"photos?numbers={number}")
        return {label: answer for label, _, _, answer in photo["labels"] if answer is not None}


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture(scope="module")
def refused():
    """Client and session for requests that change nothing."""
    session = FakeSession()
    requests = ReviewRequests(session, "photos")
    requests.load()
    with ReviewServer(requests) as server:
        yield Client(server), session


@pytest.fixture
def client(session):
    requests = ReviewRequests(session, "photos")
    with ReviewServer(requests) as server:
        client = Client(server)
        assert client.get("order") == (503, {"error": "The photos are being read. Try again when they are ready."})
        assert client.get("state")[1] == {"title": "photos", "loading": [0, 0]}
        requests.load()
        yield client


def test_the_page_has_strict_headers_and_no_text_of_users(client):
    response, page = client.send("GET", f"/?token={client.token}", headers={"X-Review-Token": None})
    assert response.status == 200
    page = page.decode()
    style, script = (re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1] for tag in ("style", "script"))
    policy = response.headers["Content-Security-Policy"]
    assert f"style-src {content_hash(style)}; script-src {content_hash(script)};" in policy
    assert "default-src 'none'; img-src blob: data:; connect-src 'self';" in policy
    assert "base-uri 'none'; form-action 'none'; frame-ancestors 'none'" in policy
    for each in (response, client.send("GET", "/api/state")[0], client.send("GET", "/no")[0]):
        assert each.headers["Cache-Control"] == "no-store"
        assert each.headers["X-Content-Type-Options"] == "nosniff"
        assert each.headers["Referrer-Policy"] == "no-referrer"
        assert each.headers["X-Frame-Options"] == "DENY"
        assert not [name for name in each.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Review-Token": None},
        {"X-Review-Token": ""},
        {"X-Review-Token": "wrong"},
        {"X-Review-Token": "tökén".encode("latin-1")},
        {"Host": "example.org"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_other_sites_and_wrong_tokens_are_refused(refused, headers):
    client, session = refused
    body = {"photos": [0], "label": "sea", "answer": True}
    for method, path in (("GET", "/api/state"), ("POST", "/api/answer"), ("GET", "/api/picture/0"), ("GET", "/no")):
        response, content = client.send(method, path, body, headers)
        assert response.status == 403
        assert set(json.loads(content)) == {"error"}
    assert not session.answers


def test_the_page_needs_the_token_in_its_address_and_no_other_site(client):
    def status(token, **headers):
        return client.send("GET", f"/?token={token}", headers=headers)[0].status

    assert status(client.token, **{"Sec-Fetch-Site": "none"}) == 200
    assert status(client.token, Host=f"localhost:{client.port}") == 200
    assert status(client.token[:-1]) == status("") == 403
    assert status(client.token, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert status(client.token, Host="example.org") == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/picture/../../etc/passwd", 404),
        ("/api/picture/%2e%2e%2fetc%2fpasswd", 404),
        ("/api/picture/photo00.jpg", 404),
        ("/api/picture/-1", 404),
        ("/api/picture/12", 404),
        (f"/api/picture/{'9' * 30}", 404),
        ("/api/picture/0/", 404),
        ("/../pyproject.toml", 404),
        ("/api/photos?numbers=../x", 400),
        ("/api/photos?numbers=", 400),
        ("/api/photos?numbers=-1", 400),
        ("/api/photos?numbers=1,12", 404),
        (f"/api/photos?numbers={','.join(['1'] * 201)}", 400),
        ("/api/photos?numbers=1&label=nothing", 404),
        ("/api/order?label=nothing&sort=name&show=all", 404),
        ("/api/order?sort=size&show=all", 400),
        ("/api/answer", 405),
    ],
)
def test_photos_have_numbers_and_no_paths(refused, path, status):
    response, content = refused[0].send("GET", path)
    assert (response.status, set(json.loads(content))) == (status, {"error"})
    assert response.headers["Content-Type"] == "application/json"


ANSWER = {"photos": [0], "label": "sea", "answer": True}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (ANSWER, {"Content-Type": "text/plain"}, 415),
        (ANSWER, {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (ANSWER, {"Content-Length": str(2**20 + 1)}, 413),
        (ANSWER, {"Content-Length": None}, 413),
        (ANSWER, {"Content-Length": "ten"}, 413),
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        ([], {}, 400),
        ({"photos": [0], "label": "sea"}, {}, 400),
        ({**ANSWER, "path": "/etc"}, {}, 400),
        ({**ANSWER, "photos": []}, {}, 400),
        ({**ANSWER, "photos": 0}, {}, 400),
        ({**ANSWER, "photos": ["photo00.jpg"]}, {}, 400),
        ({**ANSWER, "photos": [True]}, {}, 400),
        ({**ANSWER, "photos": [0.0]}, {}, 400),
        ({**ANSWER, "photos": [0, 12]}, {}, 404),
        ({**ANSWER, "photos": [-1]}, {}, 404),
        ({**ANSWER, "label": 3}, {}, 400),
        ({**ANSWER, "label": " "}, {}, 400),
        ({**ANSWER, "label": "a\u202eb"}, {}, 400),
        ({**ANSWER, "label": "a" * 101}, {}, 400),
        ({**ANSWER, "answer": 1}, {}, 400),
        ({**ANSWER, "answer": "true"}, {}, 400),
    ],
)
def test_answers_of_another_form_are_refused_and_nothing_is_stored(refused, body, headers, status):
    client, session = refused
    response, content = client.send("POST", "/api/answer", body, headers)
    assert (response.status, set(json.loads(content))) == (status, {"error"})
    assert not session.actions


def test_answers_are_stored_undone_and_counted_for_other_pages(client, session):
    before = client.get("state")[1]["changes"]
    status, response = client.post("answer", {"photos": [3, 5], "label": " wild  dog ", "answer": True})
    assert status == 200
    assert session.answers == {"photo03.jpg": {"wild dog": True}, "photo05.jpg": {"wild dog": True}}
    assert [photo["number"] for photo in response["photos"]] == [3, 5]
    assert [5, None, False, True] in response["photos"][0]["labels"]
    assert (response["changes"], response["num_labels"]) == (before + 1, 6)
    assert client.get("labels")[1][-1] == "wild dog"
    assert client.post("answer", {**ANSWER, "photos": [3], "answer": False})[0] == 200
    assert client.labels_of(3) == {0: False, 5: True}
    assert client.post("undo")[1]["undone"] == {"label": "sea", "answer": False, "count": 1}
    assert client.labels_of(3) == {5: True}
    undone = client.post("undo")[1]
    assert (undone["undone"]["count"], undone["numbers"]) == (2, [3, 5])
    assert client.post("undo")[1]["undone"] is None
    assert client.get("state")[1]["changes"] == before + 4


def test_only_new_labels_must_be_printable(client, session):
    session.labels = known = ("سیب\u200f", "x" * 101, *session.labels[2:])
    for label, status in ((known[0], 200), (known[1], 200), ("می\u200cروم", 200), ("b\u200f", 400), ("\u200c", 400)):
        assert client.post("answer", {"photos": [0], "label": label, "answer": True})[0] == status
    assert list(session.answers[session.names[0]]) == [*known[:2], "می\u200cروم"]


def test_the_order_has_useful_photos_first_and_finished_ones_last(client, session):
    assert client.get("order?sort=useful&show=all")[1] == session.order()
    assert client.get("order?sort=uncertain&show=all")[1] == session.order(by_threshold=True)
    assert client.get("order?sort=name&show=all")[1] == list(range(12))
    assert client.get("order?label=sky&sort=useful&show=all")[1] == session.order("sky")
    first = session.order()[0]
    for label in session.labels:
        client.post("answer", {"photos": [first], "label": label, "answer": True})
    client.post("answer", {"photos": [4], "label": "sky", "answer": False})
    assert client.get("order?sort=useful&show=all")[1][-1] == first
    assert client.get("order?sort=name&show=answered")[1] == sorted({first, 4})
    assert client.get("order?label=dog&sort=name&show=answered")[1] == [first]
    assert 4 not in client.get("order?label=sky&sort=name&show=unanswered")[1]


def test_a_photo_has_predicted_labels_and_a_few_questions_and_the_wanted_label(client, session):
    session.scores[2] = [0.9, 0.1, 0.2, 0.3, 0.6]
    _, (photo,) = client.get("photos?numbers=2")
    assert photo == {
        "number": 2,
        "name": "photo02.jpg",
        "labels": [[0, 0.9, True, None], [4, 0.6, True, None]]
        + [[label, score, False, None] for label, score in ((3, 0.3), (2, 0.2), (1, 0.1))],
    }
    for label in ("tree", "sand"):
        client.post("answer", {"photos": [2], "label": label, "answer": False})
    session.scores[2, 1] = 0
    client.post("answer", {"photos": [2], "label": "new", "answer": True})
    assert [row[0] for row in client.get("photos?numbers=2")[1][0]["labels"]] == [0, 4, 3, 2, 5]
    assert [row[0] for row in client.get("photos?numbers=2&label=sky")[1][0]["labels"]] == [0, 4, 3, 2, 5, 1]
    response, picture = client.send("GET", "/api/picture/2")
    assert (response.headers["Content-Type"], picture[8:12]) == ("image/webp", b"WEBP")


def test_a_failed_write_is_reported_and_counts_as_no_change(client, session):
    session.disk_full = True
    assert client.post("answer", ANSWER) == (400, {"error": "the disk of review is full: the answer is not stored"})
    assert client.get("state")[1]["changes"] == 0
    assert client.labels_of(0) == {}


def finished(client):
    for _ in range(500):
        state = client.get("state")[1]
        if state["training"] is None:
            return state
        time.sleep(0.01)
    raise AssertionError("the training does not end")


def test_a_training_runs_beside_answers_and_only_once_at_a_time(client, session, capsys):
    assert client.get("report")[0] == 404
    assert client.post("train")[0] == 200
    failure = finished(client)["failure"]
    assert failure == "The training failed, and the model is as before. there are no answers yet"
    client.post("answer", ANSWER)
    assert client.post("train") == (200, None)
    assert client.post("train")[0] == 409
    assert client.post("answer", {**ANSWER, "label": "sky"})[0] == 200  # during the training
    assert client.get("state")[1]["training"] == 0.5
    session.trained.set()
    state = finished(client)
    assert (state["trainings"], state["failure"], state["fresh"]) == (2, "", 1)
    report = client.get("report")[1]
    assert (report["gained"], report["labels"][0]["threshold_after"]) == ({"sea": 2}, 0.4)


def test_errors_of_the_program_do_not_reach_the_page(client, session, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(session, "order", fail)
    status, error = client.get("order?sort=useful&show=all")
    assert (status, error) == (500, {"error": "aia review has an error; see its messages in the terminal."})
    assert "secret" in capsys.readouterr().err
    monkeypatch.setattr(session, "picture", fail_to_read)
    assert client.get("picture/1") == (404, {"error": "The photo cannot be read: No such file or directory"})


def fail_to_read(_):
    raise FileNotFoundError(2, "No such file or directory")


def test_a_port_in_use_is_an_error(client, session):
    with pytest.raises(InputError, match=f"--port {client.port} is in use; name another port"):
        ReviewServer(ReviewRequests(session, "photos"), client.port)
