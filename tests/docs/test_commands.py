"""The parsers and configs of this project accept every command that README, docs, configs and `--help` print."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from aia_jax.cli.main import COMMANDS
from aia_jax.utils.config import packaged_configs, read_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [path for folder in ("aia_jax/cli", "benchmarks", "configs") for path in sorted((ROOT / folder).glob("*.py"))]
PROGRAM = re.compile(r"aia [a-z]|python (train|eval|convert_weights|tests/soak/\w+)\.py|python -m benchmarks\.\w")


def read(page):
    """Reads a page without the table columns "theirs" and "before", which name commands and modules of other code."""
    lines, column = [], None
    for line in page.read_text().splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        names = [cell.strip() for cell in cells]
        found = next((names.index(name) for name in ("theirs", "before") if name in names), column)
        column = found if line.startswith("|") else None
        lines.append("|".join(cells[:column] + cells[column + 1 :]) if column else line)
    return "\n".join(lines)


def printed_commands(text):
    """Yields each command with whether it is complete: true for a line of its own, false for inline code."""
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"^ *(.+)$", joined, re.MULTILINE):
        for part in re.sub(r"\s+#.*", "", line).split("&&"):
            if PROGRAM.match(part.strip()):
                yield part.strip(), True
    prose = re.sub(r"^```.*?^```", "", joined, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        command = " ".join(span.replace("\\|", "|").split())
        if PROGRAM.match(command):
            yield command, False


def arguments(command):
    """Splits a command; of alternatives takes the first, and for a placeholder such as N the number 1."""
    tokens = [token.split("|")[0] for token in shlex.split(re.sub(r"[][]", "", command))]
    return [re.sub(r"^(--\w+=)?[A-Z]$", r"\g<1>1", token) for token in tokens if token != "..."]


def all_commands():
    texts = {str(page.relative_to(ROOT)): read(page) for page in PAGES}
    for path in MODULES:
        texts[str(path.relative_to(ROOT))] = ast.get_docstring(ast.parse(path.read_text())) or ""
    return [(name, *command) for name, text in texts.items() for command in dict.fromkeys(printed_commands(text))]


@pytest.mark.parametrize(("place", "command", "complete"), all_commands())
def test_a_printed_command_parses(place, command, complete, parse, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    parsed = parse(arguments(command))
    error = capsys.readouterr().err
    if parsed is None and not complete:  # inline code may leave out required flags, and the value of the last flag
        assert re.search("^$|the following arguments are required|expected (one|at least one) argument", error), error
        return
    assert parsed, error
    config = getattr(parsed, "config", None) or ""
    if (config.startswith("configs/") or config.split(":")[0] in packaged_configs()) and "runs/" not in config:
        read_config(config, getattr(parsed, "overrides", ()))


def test_the_page_of_commands_lists_every_command_and_benchmark():
    page = (ROOT / "docs" / "commands.md").read_text()
    benchmarks = [
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()
    ]
    scripts = {"train": "python train.py ", "evaluate": "python eval.py ", "convert": "python convert_weights.py "}
    shown = page.replace("`aia configs`", "`aia configs `")
    assert [name for name in COMMANDS if scripts.get(name, f"aia {name} ") not in shown] == []
    assert [name for name in benchmarks if f"python -m benchmarks.{name}" not in page] == []


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not anchor or anchor in anchors, f"{page.name}: {link}"


def test_files_and_modules_that_the_pages_name_exist():
    for page in PAGES:
        text = read(page)
        for path in re.findall(r"`((?:aia_jax|benchmarks|configs|docs|tests|\.ci)/[\w./*-]+)`", text):
            assert list(ROOT.glob(path)), f"{page.name}: {path}"
        for name in re.findall(r"`(aia_jax(?:\.\w+)+)`", text):
            module, _, attribute = name.rpartition(".")
            assert importlib.util.find_spec(name) or hasattr(importlib.import_module(module), attribute), name
