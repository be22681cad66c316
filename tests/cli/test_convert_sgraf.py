"""convert_weights and eval on SGRAF's files: from a checkpoint of the authors to recalls, and back."""

import json

import numpy as np
import pytest

from aia_jax.cli.convert import convert, convert_back
from aia_jax.configs import demo, demo_retrieval
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.evaluation.verify import verify
from aia_jax.metrics.retrieval import caption_ranks, image_ranks, retrieval_metrics
from aia_jax.tasks.registry import make_task
from aia_jax.training import runs
from aia_jax.utils.errors import InputError
from aia_jax.weights.initialization import initializer
from aia_jax.weights.load import model_shapes
from aia_jax.weights.torch_archive import write_archive
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from tests.helpers.references import HAS_TORCH, Sample, needs_torch, reference
from tests.helpers.sgraf_files import (
    checkpoint_of,
    random_sgraf,
    small_config,
    torch_scores,
    torch_sgraf,
    write_test_split,
    write_vocabulary,
)
from tests.helpers.small_annotator import VARIANT
from tests.helpers.torch_state_files import assert_same_arrays, builder, plain, signed_state


@pytest.fixture
def root(tmp_path):
    """A folder with a vocabulary and no other data."""
    write_vocabulary(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def make_file(tmp_path):
    def make(reasoning):
        state, path = random_sgraf(reasoning, seed={"sgr": 5, "saf": 6}[reasoning]), tmp_path / f"{reasoning}.pth.tar"
        write_archive(path, checkpoint_of(state, reasoning))
        return path, state

    return make


@pytest.mark.parametrize("reasoning", ["sgr", "saf"])
def test_conversion_and_training_need_no_data_but_the_vocabulary(root, make_file, tmp_path, reasoning, capsys):
    file, state = make_file(reasoning)
    config = small_config(root, reasoning)
    convert(config, file, tmp_path / "run")
    assert f"an image-text retriever (SGRAF's {reasoning.upper()}); " in capsys.readouterr().out
    for name in ("back.pth.tar", "back.safetensors"):
        convert_back(config, tmp_path / "run", tmp_path / name)
        back = read_torch_file(tmp_path / name)[0]
        assert_same_arrays(back, state)
    _, options, _ = read_torch_file(tmp_path / "back.pth.tar")
    expected = vars(checkpoint_of(state, reasoning)["opt"])
    assert {name: options[name] for name in expected} == expected
    config.init_from = str(file)
    bias = np.zeros(1, np.float32)
    weights = initializer(config, make_task(config))({"params": {"sgraf": {"score": {"bias": bias}}}})
    np.testing.assert_array_equal(weights["params"]["sgraf"]["score"]["bias"], state["2.sim_eval_w.bias"])


def recorded_scores(state, reasoning, batch):
    """PyTorch's scores `[C, I]`, in parts that are recorded whole."""

    def compute():
        scores = torch_scores(torch_sgraf(state, reasoning), *batch).detach().numpy()
        return {str(number): part for number, part in enumerate(np.split(scores, 2))}

    parts = [part for _, part in sorted(reference(f"convert_sgraf/{reasoning}", compute).items())]
    return np.concatenate([p.values[:-1].reshape(p.shape) if isinstance(p, Sample) else p for p in parts])


@pytest.mark.slow
def test_an_ensemble_of_files_scores_as_in_torch(root, make_file, tmp_path):
    files = {reasoning: make_file(reasoning) for reasoning in ("sgr", "saf")}
    batch = write_test_split(root, 6)
    scores = {reasoning: recorded_scores(state, reasoning, batch) for reasoning, (_, state) in files.items()}
    config = small_config(root, "saf")
    sources = [str(file) for file, _ in files.values()]
    evaluate(config, None, tmp_path / "both", weights=sources)
    convert(small_config(root, "sgr"), files["sgr"][0], tmp_path / "run")
    evaluate(config, None, tmp_path / "mixed", weights=[str(tmp_path / "run"), sources[1]])
    evaluate(config, None, tmp_path / "one", weights=sources[1:])
    mean = (scores["sgr"] + scores["saf"]) / 2
    for folder, expected in (("both", mean), ("mixed", mean), ("one", scores["saf"])):
        kept = np.load(tmp_path / folder / "rankings.npz")
        np.testing.assert_array_equal(kept["rank_of_images"], caption_ranks(expected) + 1)
        np.testing.assert_array_equal(kept["rank_of_captions"], image_ranks(expected) + 1)
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert metrics["rsum"] == pytest.approx(retrieval_metrics(expected)["rsum"])
    rows = json.loads((tmp_path / "both" / "metrics.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["sgr.pth.tar + saf.pth.tar", "saf.pth.tar", "sgr.pth.tar"]


@needs_torch
@pytest.mark.parametrize("reasoning", ["sgr", "saf"])
def test_verification_compares_every_stage(root, make_file, monkeypatch, capsys, reasoning):
    from aia_jax.weights import torch_sgraf

    file, _ = make_file(reasoning)
    config = small_config(root, reasoning)
    assert verify(config, file)
    shown = capsys.readouterr().out
    for stage in ("regions", "whole image", "words", "whole caption", "similarity", "passed"):
        assert stage in shown
    load = torch_sgraf.load_torch

    def disturbed(*args):
        model = load(*args)
        model[2].sim_tranloc_w.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(torch_sgraf, "load_torch", disturbed)
    assert not verify(config, file)
    assert "FAILED" in capsys.readouterr().out
    with pytest.raises(InputError, match="--images and --split are for annotation"):
        verify(config, file, split="test")


def test_files_of_another_model_are_refused(root, make_file, tmp_path):
    file, _ = make_file("saf")
    write_test_split(root, 6)
    config = small_config(root, "saf", **{"model.embed_size": 32, "model.similarity_size": 16, "model.word_size": 49})
    lines = (
        r"0\.fc\.bias: other shape: \[24\] in the file, \[32\] in the model.*",
        r"1\.embed\.weight: other shape: \[13, 10\] in the file, \[13, 49\] in the model.*",
    )
    with pytest.raises(InputError, match=r"\(SGRAF's SAF\), but config\.model\.reasoning is 'sgr'"):
        convert(small_config(root, "sgr"), file, tmp_path / "run")
    for use in (
        lambda: convert(config, file, tmp_path / "run"),
        *[lambda: verify(config, file)] * HAS_TORCH,
        lambda: evaluate(config, None, tmp_path / "out", weights=[str(file)]),
    ):
        with pytest.raises(InputError, match="(?s)" + "".join(lines)):
            use()
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused(root, tmp_path):
    write_archive(tmp_path / "a.pth", checkpoint_of(random_sgraf("saf", num_words=21), "saf")["model"])
    with pytest.raises(InputError, match=r"with a vocabulary of 21 words, but config\.data\.vocabulary has 13"):
        convert(small_config(root, "saf"), tmp_path / "a.pth", tmp_path / "run")


def test_files_of_another_system_are_refused(root, make_file, tmp_path):
    sizes = {"hidden_size": 16, "num_heads": 2, "feedforward_size": 16}
    state = plain(signed_state(builder("annotator", VARIANT, 22, **sizes)))
    write_torch_file(tmp_path / "annotator.pth", state)
    prefix = "backbone.features.0."
    body = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    write_torch_file(tmp_path / "body.pth", body)
    write_test_split(root, 6)
    config, saf = small_config(root, "saf"), str(make_file("saf")[0])
    held = r"annotator\.pth holds a whole annotator .*, but config\.task is 'retrieval'"
    with pytest.raises(InputError, match=held):
        convert(config, tmp_path / "annotator.pth", tmp_path / "run")
    for sources in ([str(tmp_path / "annotator.pth")], [saf, str(tmp_path / "annotator.pth")]):
        with pytest.raises(InputError, match=held):
            evaluate(config, None, tmp_path / "out", weights=sources)
    with pytest.raises(InputError, match=r"body\.pth holds a backbone .*, but config\.model\.backbone is ''"):
        convert(config, tmp_path / "body.pth", tmp_path / "run")
    annotation = demo.get_config()
    annotation.init_backbone = saf
    for use in (
        lambda: convert(annotation, saf, tmp_path / "run"),
        *[lambda: verify(annotation, saf)] * HAS_TORCH,
        lambda: initializer(annotation, make_task(annotation)),
    ):
        with pytest.raises(InputError, match=r"SGRAF's SAF\), but config\.task is 'annotation'"):
            use()


def test_a_retriever_with_a_backbone_has_no_pytorch_form(make_file, tmp_path, monkeypatch):
    config = demo_retrieval.get_config()
    config.data.num_train = 20
    file, _ = make_file("saf")
    for use in (lambda: convert(config, file, tmp_path / "run"), *[lambda: verify(config, file)] * HAS_TORCH):
        with pytest.raises(InputError, match=r"on given features, but .* config\.model\.backbone=tresnet_tiny"):
            use()
    shapes = model_shapes(make_task(config).build_model)
    arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    monkeypatch.setattr(runs, "run_arrays", lambda workdir: (arrays, {}))
    with pytest.raises(InputError, match=r"trained with its backbone, .*; --backbone_only writes it"):
        convert_back(config, tmp_path / "run", tmp_path / "a.pth")
    convert_back(config, tmp_path / "run", tmp_path / "a.safetensors", backbone_only=True)
    assert "body.conv1.conv.weight" in read_torch_file(tmp_path / "a.safetensors")[0]


def test_a_retriever_of_given_features_has_no_backbone(root, make_file, tmp_path):
    file, _ = make_file("saf")
    convert(small_config(root, "saf"), file, tmp_path / "run")
    with pytest.raises(InputError, match="holds no backbone; leave out --backbone_only"):
        convert_back(small_config(root, "saf"), tmp_path / "run", tmp_path / "a.pth", backbone_only=True)
    for source in (file, tmp_path / "run"):
        config = small_config(root, "saf", init_backbone=str(source))
        with pytest.raises(InputError, match=r"config\.model\.backbone is '', so the model has no backbone"):
            initializer(config, make_task(config))
