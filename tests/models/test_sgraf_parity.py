"""SGRAF and the ranking losses against PyTorch: scores, statistics, gradients."""

import jax
import numpy as np
import pytest

from aia_jax.losses.retrieval import soft_ranks, triplet, visual_semantic_loss
from aia_jax.models import sgraf
from aia_jax.training.model_arrays import flat_arrays, merge_model, split_model
from aia_jax.weights import name_map
from tests.helpers.references import largest, largest_error, our_arrays, reference, relative_error
from tests.helpers.sgraf_files import builder, ours_of, random_batch, random_sgraf, torch_scores, torch_sgraf

LENGTHS = (8, 3, 7, 9, 4, 7, 9, 5)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def no_dropout(monkeypatch):
    monkeypatch.setattr(sgraf, "_DROPOUT", 0.0)


def our_scores(model, features, tokens, lengths, *, train):
    """Scores, and the weights with updated statistics."""
    graphdef, weights = split_model(model)

    @jax.jit
    def score(weights):
        model = merge_model(graphdef, weights)
        images = model.encode_images(features, train=train)
        captions = model.encode_captions(tokens, lengths, train=train)
        scores = model.similarity(images, captions, lengths, train=train, block=20)
        return scores, split_model(model)[1]

    return score(weights)


@pytest.mark.parametrize("reasoning", sgraf.REASONINGS)
def test_scores_in_evaluation(reasoning):
    state, batch = random_sgraf(reasoning), random_batch(6, LENGTHS)

    def compute():
        import torch

        with torch.inference_mode():
            return {"scores": torch_scores(torch_sgraf(state, reasoning), *batch)}

    expected = reference(f"sgraf/{reasoning}", compute)["scores"]
    found, _ = our_scores(ours_of(state, reasoning), *batch, train=False)
    assert relative_error(found, expected) <= TOLERANCE
    assert found.std() > 0.1  # the scores differ clearly


@pytest.mark.parametrize("order", ["falling", "rising", "mixed"])
@pytest.mark.parametrize("reasoning", sgraf.REASONINGS)
def test_scores_and_running_statistics_in_training(reasoning, order):
    lengths = {"falling": tuple(sorted(LENGTHS)[::-1]), "rising": tuple(sorted(LENGTHS)), "mixed": LENGTHS}[order]
    state, batch = random_sgraf(reasoning), random_batch(6, lengths)

    def compute():
        from tests.helpers.torch_oracles import arrays_of, torch

        theirs = torch_sgraf(state, reasoning).train()
        with torch.no_grad():
            scores = torch_scores(theirs, *batch)
        return {"scores": scores} | {name: value for name, value in arrays_of(theirs).items() if "running" in name}

    expected = reference(f"sgraf/{reasoning}-training-{order}", compute)
    scores, weights = our_scores(ours_of(state, reasoning), *batch, train=True)
    assert relative_error(scores, expected.pop("scores")) <= TOLERANCE
    found = {path: np.asarray(leaf) for path, leaf in flat_arrays(weights).items() if path.endswith((".mean", ".var"))}
    assert len(found) == len(expected) == {"sgr": 4, "saf": 6}[reasoning]
    found = name_map.to_torch(found, system="retrieval", family="sgraf")
    for name, value in expected.items():
        assert relative_error(found[name], value) <= TOLERANCE, name


@pytest.mark.slow
@pytest.mark.parametrize("reasoning", sgraf.REASONINGS)
def test_gradients_of_all_weights_in_training(reasoning):
    state, batch = random_sgraf(reasoning), random_batch(len(LENGTHS), LENGTHS)
    wanted = np.random.default_rng(1).normal(size=(len(LENGTHS), len(LENGTHS))).astype(np.float32)
    graphdef, weights = split_model(ours_of(state, reasoning))

    def loss(params):
        scores, _ = our_scores(merge_model(graphdef, {**weights, "params": params}), *batch, train=True)
        return (scores * wanted).sum()

    gradients = flat_arrays({"params": jax.jit(jax.grad(loss))(weights["params"])})

    def compute():
        from tests.helpers.torch_oracles import gradients_of, torch

        theirs = torch_sgraf(state, reasoning).train()
        (torch_scores(theirs, *batch) * torch.from_numpy(wanted)).sum().backward()
        found = our_arrays(builder(reasoning), state | gradients_of(theirs), "sgraf")
        return {path: found[path] for path in gradients}

    expected = reference(f"sgraf/{reasoning}-gradients", compute)
    scale = max(map(largest, expected.values()))
    for path, value in gradients.items():
        assert largest_error(value, expected[path]) <= 1e-4 * largest(expected[path]) + 1e-6 * scale, path


def torch_triplet(scores, hardest):
    true, positive = scores.new_ones(len(scores)).diag().bool(), scores.diagonal()
    captions, images = ((0.2 + scores - own).clamp(min=0).masked_fill(true, 0) for own in (positive[:, None], positive))
    if hardest:
        return captions.max(1).values.sum() + images.max(0).values.sum()
    return captions.sum() + images.sum()


def torch_ranks(scores):
    above = ((scores[:, :, None] - scores[None]) / 0.001).clamp(-50, 50).sigmoid()
    return 1 + above.masked_fill(scores.new_ones(len(scores)).diag().bool()[:, None], 0).sum(0)


def torch_disagreement(scores, meaning):
    by_score, by_meaning = torch_ranks(scores), torch_ranks(scores.new_tensor(meaning))
    return 10 * (1 - (by_score.minimum(by_meaning) / by_score.maximum(by_meaning)).mean())


def draw(spread):
    """Random scores, and cosines of random rows. Rows 3 and 5 are equal."""
    rng = np.random.default_rng(0)
    wide = rng.uniform(size=(24, 24))
    rows = rng.uniform(size=(24, 9)) ** 3
    rows[5] = rows[3]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = wide if spread == "wide" else 0.5 + 0.01 * (wide - 0.5)
    return scores.astype(np.float32), (rows @ rows.T).astype(np.float32)


@pytest.mark.parametrize("spread", ["wide", "narrow"])
@pytest.mark.parametrize("loss", ["hardest", "all", "disagreement"])
def test_losses_and_their_gradients(loss, spread):
    scores, meaning = draw(spread)
    ours, theirs = {
        "hardest": (lambda s: triplet(s, margin=0.2, hardest=True), lambda s: torch_triplet(s, True)),
        "all": (lambda s: triplet(s, margin=0.2, hardest=False), lambda s: torch_triplet(s, False)),
        "disagreement": (lambda s: visual_semantic_loss(s, meaning), lambda s: torch_disagreement(s, meaning)),
    }[loss]

    def compute():
        import torch

        inputs = torch.from_numpy(scores).double().requires_grad_()
        value = theirs(inputs)
        value.backward()
        return {"value": value.detach(), "gradient": inputs.grad}

    value, gradient = jax.jit(jax.value_and_grad(ours))(scores)
    expected = reference(f"sgraf/{loss}-{spread}", compute)
    assert relative_error(value, expected["value"]) <= TOLERANCE
    assert relative_error(gradient, expected["gradient"]) <= TOLERANCE


@pytest.mark.parametrize("spread", ["wide", "narrow"])
def test_ranks(spread):
    matrices = dict(zip(("scores", "meaning"), draw(spread), strict=True))

    def compute():
        import torch

        return {name: torch_ranks(torch.from_numpy(matrix).double()) for name, matrix in matrices.items()}

    expected = reference(f"sgraf/ranks-{spread}", compute)
    for name, matrix in matrices.items():
        assert relative_error(soft_ranks(matrix), expected[name]) <= TOLERANCE
