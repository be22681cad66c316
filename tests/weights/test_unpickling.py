"""Data are never executed: the source code calls nothing that does, and readers refuse malicious files."""

import ast
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from aia_jax.data.mapped_rows import MappedRows, map_array
from aia_jax.data.retrieval.captions import load_captions
from aia_jax.data.search.clicks import ClickedImages
from aia_jax.data.search.keyword_records import read_keyword_record
from aia_jax.data.vocabulary import SPECIAL_WORDS, Vocabulary
from aia_jax.utils.errors import InputError
from tests.helpers.malicious import Malicious
from tests.soak.mutation import npy

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "aia_jax").rglob("*.py"), *(REPOSITORY / "configs").glob("*.py")]
# Calls that execute or unpickle their argument, and keywords without which others do.
FORBIDDEN = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "yaml.load",
    "os.system",
    "os.popen",
    "runpy.run_module",
    "runpy.run_path",
)
MODULES = ("pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "_pickle")
NEVER = {"allow_pickle": True, "weights_only": False, "shell": True}
ALLOWED = {
    ("aia_jax/utils/config.py", "runpy.run_path"),  # a config is a program that the user names
    ("aia_jax/inference/ray_rows.py", "pickle.dumps"),  # between the processes of a command on Ray, which also
    ("aia_jax/inference/ray_rows.py", "pickle.loads"),  # pickles the functions that they run
}


def _calls(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        unsafe = name == "torch.load" and keywords.get("weights_only") is not True
        unsafe |= any(word in keywords and keywords[word] is value for word, value in NEVER.items())
        if unsafe or name in FORBIDDEN or name.split(".")[0] in MODULES:
            found.append(name)
    return found


def test_the_source_code_executes_no_data():
    found = {(path.relative_to(REPOSITORY).as_posix(), name) for path in SOURCES for name in _calls(path)}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "exec(text)", "pickle.load(file)", "pickle.loads(data)", "torch.load(path)", "yaml.load(text)"),
        *("torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "subprocess.run(x, shell=True)"),
    ],
)
def test_forbidden_calls_are_found(tmp_path, line):
    (tmp_path / "a.py").write_text(f"def read(path):\n    return [{line}]\n")
    assert _calls(tmp_path / "a.py")
    (tmp_path / "a.py").write_text("torch.load(path, weights_only=True), np.load(path), model.eval(), json.loads(text)")
    assert not _calls(tmp_path / "a.py")


def _files(marker: Path) -> dict[str, bytes]:
    payload, archive = np.array([Malicious(marker)], object), io.BytesIO()
    np.savez(archive, a=payload)
    return {"npy": npy(payload), "npz": archive.getvalue(), "pickle": pickle.dumps(Malicious(marker))}


@pytest.fixture(params=["npy", "npz", "pickle"])
def malicious(tmp_path, request):
    """The bytes of a malicious file; its code must not have run at the end."""
    data = _files(tmp_path / "marker")[request.param]
    yield data
    assert not (tmp_path / "marker").exists()


def test_careless_readers_would_run_the_code(tmp_path):
    for name, data in _files(tmp_path / "marker").items():
        (tmp_path / "marker").unlink(missing_ok=True)
        if name == "pickle":
            pickle.loads(data)
        else:
            found = np.load(io.BytesIO(data), allow_pickle=True)
            assert len(found["a"] if name == "npz" else found) == 1
        assert (tmp_path / "marker").exists(), name


@pytest.mark.parametrize(
    "read",
    [map_array, MappedRows, lambda path: read_keyword_record(path, np.arange(1), 1, 1), Vocabulary.load],
)
def test_readers_refuse_malicious_files(tmp_path, malicious, read):
    (tmp_path / "a.npy").write_bytes(malicious)
    with pytest.raises(InputError, match=r"a\.npy"):
        read(tmp_path / "a.npy")


def test_data_sets_refuse_malicious_files(tmp_path, malicious):
    place = tmp_path / "f30k_precomp"
    place.mkdir()
    (place / "train_caps.txt").write_text("a\n" * 5)
    (place / "train_ims.npy").write_bytes(malicious)
    words = Vocabulary({word: number for number, word in enumerate((*SPECIAL_WORDS, "a"))})
    with pytest.raises(InputError, match=r"train_ims\.npy is not a \.npy file"):
        load_captions(ConfigDict({"name": "f30k_precomp", "root": str(tmp_path)}), "train", words)
    place = tmp_path / "clickture"
    place.mkdir()
    (place / "train_maps.npy").write_bytes(malicious)
    with pytest.raises(InputError, match=r"train_maps\.npy is not a \.npy file"):
        ClickedImages(ConfigDict({"data": {"root": str(tmp_path), "name": "clickture"}})).load("train")
