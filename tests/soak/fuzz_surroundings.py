"""Photos, captions and weights of known content, as other programs write them, and the environment of a process."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_dtypes import bfloat16

from aia_jax.data.photo_folder import photo_names
from aia_jax.data.retrieval.captions import load_captions
from aia_jax.data.vocabulary import Vocabulary
from aia_jax.weights.torch_archive import write_archive
from aia_jax.weights.torch_files import read_torch_file
from tests.helpers.torch_save import torch_bytes
from tests.soak import plain
from tests.soak.fuzz_text import SCAN
from tests.soak.mutation import write_files
from tests.soak.process import REPOSITORY

PHOTOS = ("a.jpg", "sub/b.JPG", "日本.jpg", "IMG 0001.jpeg", "d-e_f.png", "Zoë.webp", "000012.jpg", "x.y.jpg")
PHOTOS += ("sub/deep/10.jpg", "P1010042.JPG", "it's.jpg", "(copy).png")
JUNK = ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/gone.jpg", "$RECYCLE.BIN/S-1/x.jpg", ".Trashes/501/x.jpg")
JUNK += ("lost+found/x.jpg", ".thumbnails/x.png", "Thumbs.db", "._a.jpg", ".DS_Store", "__MACOSX/._a.jpg")
JUNK += ("Lightroom Previews.lrdata/1/x.jpg", "@Recycle/x.jpg", ".@__thumb/a.jpg", "System Volume Information/x.jpg")
JUNK += (".Trash-1000/files/x.jpg", ".dtrash/files/x.jpg", "desktop.ini", ".git/x.png", "notes.txt", "movie.mp4")
JUNK += (".stversions/x.jpg", ".picasaoriginals/a.jpg", ".comments/a.jpg.xml", "labels.bak", ".AppleDouble/a.jpg")
_BODY = ("backbone.features.0.conv1.conv.weight", "backbone.features.0.layer1.0.conv1.conv.weight", "head.fc.weight")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "network.model.")
_WRAPPERS = (["state_dict"], ["model"], ["model_state_dict"], ["net"], ["checkpoint", "model"], ["student"])
_AVERAGES = ("ema", "state_dict_ema", "model_ema", "ema_state_dict")


def photo_folders(rng: random.Random, folder: Path) -> None:
    """A folder of photos with what systems and programs put beside photos."""
    names = rng.sample(PHOTOS, rng.randrange(1, len(PHOTOS)))
    tops = ("", "", *rng.sample(("recycled", "eaDir", "lost and found", "my previews", "trash cans"), 2))
    names = sorted(
        {f"{top}/{name}".lstrip("/") for name, top in zip(names, rng.choices(tops, k=len(names)), strict=True)}
    )
    below = sorted({"", *(os.path.dirname(name) for name in names)})
    junk = [f"{rng.choice(below)}/{name}".lstrip("/") for name in rng.sample(JUNK, rng.randrange(8))]
    write_files(dict.fromkeys((*names, *junk), b"photo"), folder / "photos")
    with plain.may_refuse(right=False):
        assert sorted(photo_names(folder / "photos")) == names


def caption_counts(rng: random.Random, folder: Path) -> None:
    """SCAN's files with several numbers of captions of an image, and rows per image or per caption."""
    images, given = rng.randrange(1, 12), rng.choice((1, 1, 2, 3, 5, 5))
    features = np.random.default_rng(rng.randrange(99)).normal(size=(images, 2, 3)).astype(np.float32)
    per_caption = rng.random() < 0.5
    rows = np.repeat(features, given, 0) if per_caption else features
    kinds = ("f30k_precomp", "cc_precomp", "coco_precomp")
    config = ConfigDict({"name": rng.choice(kinds), "root": str(folder), "vocabulary": "", "captions_per_image": 0})
    right = not per_caption and given < 6
    if rng.random() < 0.4:
        config.captions_per_image, right = given, True
    if wrong := rng.random() < 0.2:  # a truncated or repeated list
        rows, right = rows[: rng.randrange(len(rows))], False
    captions = [f"a dog runs {n}" for n in range(images * given)]
    (folder / config.name).mkdir()
    np.save(folder / config.name / "train_ims.npy", rows)
    (folder / config.name / "train_caps.txt").write_text("\n".join(captions) + "\n")
    with plain.may_refuse("train_ims.npy", "captions_per_image", right=not right):
        split = load_captions(config, "train", Vocabulary(dict(SCAN["word2idx"])))
    if not wrong:
        assert split.per_image == given, (split.per_image, given)
        np.testing.assert_array_equal(split.images[:], features)
    assert list(split.captions) == captions


def wrapped_weights(rng: random.Random, folder: Path) -> None:
    """Weights under prefixes, in wrappers, beside other arrays, with an average, or in shards."""
    state = _state(rng)
    prefix = rng.choice(("", "", *_PREFIXES))
    content: dict[str, Any] = {prefix + name: value for name, value in state.items()}
    average = None
    if rng.random() < 0.4:
        path = _write_safetensors(folder, content, rng)
    else:
        names = rng.choice(([], *_WRAPPERS))
        for name in reversed(names):
            content = {name: content}
        if names:
            content |= _beside(rng)
            if rng.random() < 0.3:
                average = _state(rng)
                content[rng.choice(_AVERAGES)] = {prefix + name: value for name, value in average.items()}
        path = folder / rng.choice(("weights.pth", "best.pth.tar", "last.ckpt", "pytorch_model.bin"))
        if rng.random() < 0.3:
            write_archive(path, content)
        else:
            path.write_bytes(torch_bytes(content, old=rng.random() < 0.4))
    with plain.may_refuse(folder):
        found, *_, notes = read_torch_file(path)
    expected = [one for one in (state, average) if one is not None]
    assert any(_equal(found, one) for one in expected), (sorted(found), sorted(state))
    assert average is None or notes, "one of two sets of weights was taken without a word"


def environments(rng: random.Random, folder: Path) -> None:
    """A command in a process whose environment lacks something or says something unusual."""
    (folder / "photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        (folder / "photos" / f"{number}.ppm").write_bytes(b"P6 8 8 255\n" + pixels.tobytes())
    rows = ["image,label", *(f"{number}.ppm,{('日本', 'straße')[number % 2]}" for number in range(4))]
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    flags = {"labels": "labels.csv", "images": "photos", "output": "mine"}
    command = ["import-labels", *(f"--{flag}={folder / name}" for flag, name in flags.items())]
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    for name, value in rng.sample(_ENVIRONMENTS, rng.randrange(1, 4)):
        environment |= {name: value}
        if value is None:
            del environment[name]
    command = [sys.executable, "-m", "aia_jax", *command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=15)
    printed = (done.stdout + done.stderr).decode(errors="replace")
    assert b"Traceback" not in done.stderr, (environment, printed)
    assert done.returncode in (0, 2), (environment, printed)
    if done.returncode:
        assert "error: " in printed, (environment, printed)
        raise plain.Refused
    written = json.loads((folder / "mine" / "train.json").read_text(encoding="utf-8"))
    assert written["labels"] == ["straße", "日本"], written


_ENVIRONMENTS = (
    *(("JAX_PLATFORMS", name) for name in ("", "cuda", "tpu", "nonsense", "cpu,cuda")),
    *(("HOME", name) for name in (None, "/nonexistent", "/proc", "")),
    *(("LC_ALL", name) for name in ("C", "POSIX", "de_DE.ISO-8859-1", "xx_XX")),
    *(("PYTHONIOENCODING", name) for name in ("latin-1", "ascii", "utf-16", "cp1252:strict")),
    *(("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0"), ("JAX_ENABLE_X64", "1"), ("COLUMNS", "1"), ("TERM", "dumb")),
    *(("TMPDIR", "/nonexistent"), ("AIA_JAX_CACHE", "/proc/none"), ("XLA_FLAGS", ""), ("JAX_DISABLE_JIT", "1")),
    *(
        ("PYTHONOPTIMIZE", "2"),
        ("PYTHONWARNINGS", "always"),
        ("OMP_NUM_THREADS", "0"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ),
)


def _state(rng: random.Random) -> dict[str, np.ndarray]:
    kind = rng.choice((np.float32, np.float32, np.float16, bfloat16))
    return {name: np.array([[rng.random(), rng.random()]], np.float32).astype(kind) for name in _BODY}


def _beside(rng: random.Random) -> dict[str, Any]:
    """What training programs save beside weights."""
    moments = {"state": {0: {"exp_avg": np.ones(2, np.float32), "step": np.array(3)}}, "param_groups": [{"lr": 0.1}]}
    others = {"optimizer": moments, "epoch": 3, "best": 0.5, "args": {"lr": 0.1}, "pytorch-lightning_version": "2.1"}
    others |= {"scheduler": {"last_epoch": 3, "_last_lr": [0.1]}, "amp": {"scale": 65536.0}, "callbacks": {"x": {}}}
    return {name: others[name] for name in rng.sample(sorted(others), rng.randrange(len(others)))}


def _write_safetensors(folder: Path, content: dict[str, np.ndarray], rng: random.Random) -> Path:
    from safetensors.numpy import save

    if rng.random() < 0.4:
        write_files({"model.safetensors": save(content)}, folder)
        return folder / "model.safetensors"
    parts: list[dict[str, np.ndarray]] = [{}, {}]
    for number, (name, value) in enumerate(content.items()):
        parts[number % 2][name] = value
    shards = {f"model-0000{number}-of-00002.safetensors": part for number, part in enumerate(parts, 1)}
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    write_files({shard: save(part) for shard, part in shards.items()}, folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    chosen = rng.choice(("model.safetensors.index.json", "", *shards))
    if rng.random() < 0.2:
        with contextlib.suppress(FileNotFoundError):
            (folder / rng.choice(list(shards))).unlink()
            return folder / "model.safetensors.index.json"
    return folder / chosen


def _equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    same = found.keys() == expected.keys()
    return same and all(np.array_equal(found[name], value.astype(np.float32)) for name, value in expected.items())
