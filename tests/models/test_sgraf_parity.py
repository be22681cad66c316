"""SGRAF and the ranking losses against PyTorch: scores, statistics, gradients."""

import jax
import numpy as np
import pytest

from aia_jax.losses.retrieval import soft_ranks, triplet, visual_semantic_loss
from aia_jax.models import sgraf
from aia_jax.training.model_arrays import flat_arrays, merge_model, split_model
from aia_jax.weights import name_map
from aia_jax.weights.torch_state import identify_state
from tests.helpers.sgraf_files import ours_of, random_batch, random_sgraf, torch_scores
from tests.helpers.torch_oracles import arrays_of, relative_error, torch

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
    theirs = random_sgraf(reasoning)
    batch = random_batch(6, LENGTHS)
    with torch.inference_mode():
        expected = torch_scores(theirs, *batch)
    assert expected.std() > 0.1  # the scores differ clearly
    found, _ = our_scores(ours_of(theirs, reasoning), *batch, train=False)
    assert relative_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("order", ["falling", "rising", "mixed"])
@pytest.mark.parametrize("reasoning", sgraf.REASONINGS)
def test_scores_and_running_statistics_in_training(reasoning, order):
    lengths = {"falling": tuple(sorted(LENGTHS)[::-1]), "rising": tuple(sorted(LENGTHS)), "mixed": LENGTHS}[order]
    theirs = random_sgraf(reasoning).train()
    ours = ours_of(theirs, reasoning)
    batch = random_batch(6, lengths)
    with torch.no_grad():
        expected = torch_scores(theirs, *batch)
    scores, weights = our_scores(ours, *batch, train=True)
    assert relative_error(scores, expected) <= TOLERANCE
    found = {path: np.asarray(leaf) for path, leaf in flat_arrays(weights).items() if path.endswith((".mean", ".var"))}
    assert len(found) == {"sgr": 4, "saf": 6}[reasoning]
    state = name_map.to_torch(found, system="retrieval", family="sgraf")
    for name in (name for name in state if "running" in name):
        assert relative_error(state[name], theirs.state_dict()[name]) <= TOLERANCE, name


@pytest.mark.slow
@pytest.mark.parametrize("reasoning", sgraf.REASONINGS)
def test_gradients_of_all_weights_in_training(reasoning):
    theirs = random_sgraf(reasoning).train()
    batch = random_batch(len(LENGTHS), LENGTHS)
    wanted = np.random.default_rng(1).normal(size=(len(LENGTHS), len(LENGTHS))).astype(np.float32)
    (torch_scores(theirs, *batch) * torch.from_numpy(wanted)).sum().backward()
    graphdef, weights = split_model(ours_of(theirs, reasoning))

    def loss(params):
        scores, _ = our_scores(merge_model(graphdef, {**weights, "params": params}), *batch, train=True)
        return (scores * wanted).sum()

    gradients = flat_arrays({"params": jax.jit(jax.grad(loss))(weights["params"])})
    state = arrays_of(theirs) | {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    shapes = {path: leaf.shape for path, leaf in flat_arrays(weights).items()}
    expected = name_map.from_torch(identify_state(state, "gradients"), shapes, "gradients")
    largest = max(np.abs(expected[path]).max() for path in gradients)
    for path, value in gradients.items():
        atol = 1e-4 * np.abs(expected[path]).max() + 1e-6 * largest
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=atol, err_msg=path)


def torch_triplet(scores, hardest):
    true, positive = torch.eye(len(scores), dtype=torch.bool), scores.diagonal()
    captions, images = ((0.2 + scores - own).clamp(min=0).masked_fill(true, 0) for own in (positive[:, None], positive))
    if hardest:
        return captions.max(1).values.sum() + images.max(0).values.sum()
    return captions.sum() + images.sum()


def torch_ranks(scores):
    above = ((scores[:, :, None] - scores[None]) / 0.001).clamp(-50, 50).sigmoid()
    return 1 + above.masked_fill(torch.eye(len(scores), dtype=torch.bool)[:, None], 0).sum(0)


def torch_disagreement(scores, meaning):
    by_score, by_meaning = torch_ranks(scores), torch_ranks(meaning)
    return 10 * (1 - (torch.minimum(by_score, by_meaning) / torch.maximum(by_score, by_meaning)).mean())


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
        "disagreement": (
            lambda s: visual_semantic_loss(s, meaning),
            lambda s: torch_disagreement(s, torch.from_numpy(meaning).double()),
        ),
    }[loss]
    value, gradient = jax.jit(jax.value_and_grad(ours))(scores)
    expected_scores = torch.from_numpy(scores).double().requires_grad_()
    expected = theirs(expected_scores)
    expected.backward()
    assert relative_error(value, expected) <= TOLERANCE
    assert relative_error(gradient, expected_scores.grad) <= TOLERANCE


@pytest.mark.parametrize("spread", ["wide", "narrow"])
def test_ranks(spread):
    for matrix in draw(spread):
        assert relative_error(soft_ranks(matrix), torch_ranks(torch.from_numpy(matrix).double())) <= TOLERANCE
