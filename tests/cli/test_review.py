"""`aia review`: serves the page until Ctrl-C, keeps answers, and refuses ports that it cannot use."""

import http.client
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import webbrowser
from urllib.parse import urlsplit

import pytest
from PIL import Image

from aia_jax.cli import review
from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.inference.review.corrections import Corrections


@pytest.fixture
def photos(tmp_path):
    for number in range(3):
        Image.fromarray(scenes.draw(0, number, 48).image).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def run(annotator, photos, monkeypatch):
    """Runs the command; calls `use(get)` in a thread when the page is ready, and then presses Ctrl-C."""
    monkeypatch.setattr(review, "enable_compilation_cache", lambda: None)
    monkeypatch.setenv("BROWSER", "browser")

    def run(use, *flags):
        problems = []

        def open_browser(url):
            threading.Thread(target=visit, args=(url,)).start()

        def visit(url):
            address = urlsplit(url)
            assert address.hostname == "127.0.0.1"

            def request(path, body=None):
                connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
                headers = {"X-Review-Token": address.query.removeprefix("token="), "Content-Type": "application/json"}
                connection.request(
                    "GET" if body is None else "POST", f"/api/{path}", body and json.dumps(body), headers
                )
                return json.loads(connection.getresponse().read())

            try:
                while request("state")["loading"]:
                    time.sleep(0.02)
                use(request)
            except Exception as error:
                problems.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(webbrowser, "open", open_browser)
        code = main(["review", "--workdir", str(annotator), "--images", str(photos), *flags])
        assert problems == []
        return code

    return run


def test_answers_are_saved_and_the_same_command_continues(run, capsys):
    label = scenes.LABELS[0]

    def answer(request):
        assert request("answer", {"photos": [1], "label": label, "answer": True})["progress"]["answers"] == 1

    def continued(request):
        assert request("state")["progress"]["answers"] == 1
        assert request("state")["problems"] == [["bad.png", "the file is empty"]]
        (photo,) = request("photos?numbers=1")
        assert (photo["name"], [row[0] for row in photo["labels"] if row[3]]) == ("1.png", [0])

    assert run(answer) == 130
    captured = capsys.readouterr()
    assert "open this address in a browser on this machine: http://127.0.0.1:" in captured.out
    assert "3 photos ready; Ctrl-C stops" in captured.out
    assert "1 photo cannot be read:\n  bad.png: the file is empty" in captured.err
    assert "stopped; 1 answer saved in" in captured.err
    assert run(continued) == 130


def test_ports_in_use_and_missing_packages_are_errors(annotator, photos, failing, monkeypatch):
    monkeypatch.setattr(review, "enable_compilation_cache", lambda: None)
    command = ["review", "--workdir", str(annotator), "--images", str(photos), "--no_browser"]
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        assert f"error: --port {port} is in use; name another port" in failing(*command, "--port", str(port))
    assert "error: --port must be at most 65535, not 65536" in failing(*command, "--port", "65536")
    assert f"error: --images {photos}/no does not exist; name" in failing(*command[:-2], f"{photos}/no", "--no_browser")
    monkeypatch.delitem(sys.modules, "aia_jax.inference.review.server", raising=False)
    monkeypatch.setitem(sys.modules, "bottle", None)
    message = failing(*command)
    assert "error: aia review needs more packages" in message
    assert "pip install" in message


def test_answers_are_exchanged_with_other_programs(annotator, photos, failing, tmp_path, capsys):
    workdir, label = tmp_path / "run", scenes.LABELS[0]
    shutil.copytree(annotator, workdir, ignore=shutil.ignore_patterns("review"))
    command = ["review", "--workdir", str(workdir), "--images", str(photos)]
    csv, tasks = tmp_path / "a.csv", tmp_path / "tasks.json"
    export = [*command, "--export", "label-studio", "--output", str(tasks)]
    assert "has no answers; aia review without --export asks for them" in failing(*export)
    csv.write_text(f"image,label,answer\n1.png,{label},confirmed\n2.png,fog,rejected\nx.png,fog,rejected\n")
    assert main([*command, "--import", str(csv)]) == 0
    printed = capsys.readouterr().out
    assert (
        "2 answers stored, 0 were stored before\n1 label added that the run does not have:\n  fog: 1 answer\n"
        in printed
    )
    assert "a.csv:4: no photo 'x.png' in " in printed
    assert main(export) == 0
    assert f"answers about 2 photos written to {tasks}\nLabel Studio shows the photos if" in capsys.readouterr().out
    interface = tasks.with_suffix(".xml").read_text()
    assert interface.count("<Choice ") == len(scenes.LABELS) + 1
    shutil.rmtree(workdir / "review")
    assert main([*command, "--import", str(tasks)]) == 0
    with Corrections(workdir / "review") as corrections:
        assert corrections.answers == {"1.png": {label: True}, "2.png": {"fog": False}}
    assert f"--output {tasks} exists; name another file, or delete it" in failing(*export)
    assert "--export needs --output, such as --output answers.json" in failing(*command, "--export", "coco")
    assert "--export csv writes a .csv file" in failing(*command, "--export", "csv", "--output", str(tasks))
    assert "--output is for --export" in failing(*command, "--output", str(csv))
