import numpy as np
import pytest
from ml_collections import ConfigDict

from aia_jax.data.retrieval.captions import (
    PairBatches,
    feature_photo_names,
    load_captions,
    load_vocabulary,
    semantic_similarity,
)
from aia_jax.data.vocabulary import Vocabulary
from aia_jax.utils.errors import InputError

IMAGES = 6
CAPTIONS, FEATURES = "tiny_precomp/train_caps.txt", "tiny_precomp/train_ims.npy"
TEXTS = [f"a {colour} dog {'runs ' * (k % 4)}here" for colour in ("red", "blue", "big") for k in range(10)]


@pytest.fixture
def data(tmp_path):
    """A data set of six images in SCAN's layout, and its config."""
    folder = tmp_path / "tiny_precomp"
    folder.mkdir()
    features = np.arange(IMAGES * 4 * 3, dtype=np.float32).reshape(IMAGES, 4, 3)
    for stem in ("train", "dev", "test"):
        (folder / f"{stem}_caps.txt").write_text("\n".join(TEXTS) + "\n")
        np.save(folder / f"{stem}_ims.npy", features)
    config = ConfigDict({"name": "tiny_precomp", "root": str(tmp_path), "vocabulary": str(tmp_path / "vocab.json")})
    Vocabulary.build(TEXTS, min_count=1).save(tmp_path / "vocab.json")
    return config


def load(data, split="train"):
    return load_captions(data, split, load_vocabulary(data))


def test_a_split_has_five_captions_an_image(data):
    split = load(data)
    assert (len(split), len(split.images)) == (30, IMAGES)
    assert split.captions == tuple(TEXTS)
    assert split.tokens.shape == (30, split.lengths.max())
    np.testing.assert_array_equal((split.tokens > 0).sum(1), split.lengths)
    np.testing.assert_array_equal(split.images[:], np.load(split.images.path))


def test_features_may_be_repeated_for_each_caption(data, tmp_path):
    path = tmp_path / "tiny_precomp" / "train_ims.npy"
    once = np.load(path)
    np.save(path, np.repeat(once, 5, axis=0))
    split = load(data)
    np.testing.assert_array_equal(split.images[:], once)
    batch = PairBatches(split, (8, 16))({"index": np.arange(30)}, slice(None))
    np.testing.assert_array_equal(batch["image"], once[batch["index"] // 5])


ROWS = np.random.default_rng(0).normal(size=(30, 4, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).uniform(0.9999, 1.0001, (30, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "stated", "images", "per_image"),
    [
        (ROWS, 0, ROWS, 1),
        (ROWS[:10], 0, ROWS[:10], 3),
        (np.repeat(ROWS[:15], 2, axis=0), 0, ROWS[:15], 2),
        (np.repeat(ROWS[:15], 2, axis=0), 1, np.repeat(ROWS[:15], 2, axis=0), 1),
        (np.repeat(ROWS[:6], 5, axis=0) * NOISE, 0, ROWS[:6], 5),  # computed in other batches
        (np.repeat(ROWS[:6], 5, axis=0), 5, ROWS[:6], 5),
        (np.repeat(ROWS[:3], 10, axis=0), 0, ROWS[[0, 0, 1, 1, 2, 2]], 5),
        (ROWS[:6], 5, ROWS[:6], 5),
    ],
)
def test_the_number_of_captions_of_an_image_is_read_from_the_rows(data, write, rows, stated, images, per_image):
    data.captions_per_image = stated
    write(rows.astype(np.float32), FEATURES)
    split = load(data)
    assert split.per_image == per_image
    np.testing.assert_allclose(split.images[:], images, rtol=3e-4)
    batch = PairBatches(split, (8, 16), similarity=semantic_similarity(split, ("image",)))(
        {"index": np.arange(30)}, np.s_[:]
    )
    np.testing.assert_array_equal(batch["image"], split.images[:][batch["index"] // per_image])
    assert len(split.take(np.array([2, 0]))) == 2 * per_image


@pytest.mark.parametrize(
    ("rows", "stated", "message"),
    [
        (ROWS[np.r_[:25, 24, 24, 27:30]], 0, "rows 25 to 27 are alike|rows 1 to 1 are alike"),
        (ROWS[np.r_[[0] * 5, [1] * 4, [2] * 6, [3] * 15]], 0, "rows 6 to 9 are alike: a run of 4, no multiple of 5"),
        (np.tile(ROWS[:6], (5, 1, 1)), 0, "row 7 and the next ones repeat row 1"),
        (ROWS, 5, "rows 1 to 1 are alike: a run of 1, no multiple of 5"),
        (ROWS[:10], 5, "captions_per_image=5 needs 6 or 30 rows"),
        (ROWS[:6], 4, "captions_per_image=4 needs 7.5 or 30 rows"),
    ],
)
def test_rows_that_repeat_unevenly_are_refused_with_both_readings(data, write, rows, stated, message):
    data.captions_per_image = stated
    write(rows, FEATURES)
    with pytest.raises(InputError, match=message) as caught:
        load(data)
    assert len(rows) < 30 or ("5 captions" in str(caught.value) and "captions_per_image=1" in str(caught.value))


def test_features_that_begin_alike_are_compared_by_their_last_region(data, write):
    rows = np.zeros((30, 40, 300), np.float32)
    rows[:, -1, 0] = np.arange(30)
    write(rows, FEATURES)
    assert load(data).per_image == 1
    write(np.repeat(rows[1:7], 5, axis=0), FEATURES)
    assert load(data).per_image == 5


def test_testall_is_used_if_it_exists(data, write):
    write("\n".join(TEXTS[:10]).encode(), "tiny_precomp/testall_caps.txt")
    write(np.zeros((2, 4, 3), np.float32), "tiny_precomp/testall_ims.npy")
    assert len(load(data, "test").images) == 2


def test_a_batch_has_its_longest_captions_first_and_one_of_a_few_widths(data):
    split = load(data)
    index = np.array([0, 3, 12, 25, 7])
    batch = PairBatches(split, (4, 10, 16))({"index": index}, slice(None))
    order = index[np.argsort(-split.lengths[index], kind="stable")]
    np.testing.assert_array_equal(batch["index"], order)
    np.testing.assert_array_equal(batch["length"], split.lengths[order])
    assert batch["tokens"].shape == (5, 10)
    np.testing.assert_array_equal(batch["image"], split.images[order // 5])
    wider = PairBatches(split, (2,))({"index": index}, slice(None))
    assert wider["tokens"].shape == (5, 16)


def test_processes_get_parts_of_a_batch(data):
    split = load(data)
    make = PairBatches(split, (4, 8), similarity=semantic_similarity(split, ("image", "caption")))
    columns = {"index": np.array([9, 1, 28, 14])}
    whole, parts = make(columns, slice(None)), [make(columns, part) for part in (slice(0, 2), slice(2, 4))]
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)


def test_similarities_are_mean_cosines_between_captions(data):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    split = load(data)
    rows = TfidfTransformer().fit_transform(CountVectorizer().fit_transform(TEXTS)).toarray()
    made = PairBatches(split, (8,), similarity=semantic_similarity(split, ("image", "caption")))
    batch = made({"index": np.arange(0, 30, 5)}, slice(None))
    of = batch["index"]
    cosines = rows @ rows.T
    np.testing.assert_allclose(batch["caption_similarity"], cosines[np.ix_(of, of)], atol=1e-6)
    expected = cosines.reshape(IMAGES, 5, IMAGES, 5).mean(axis=(1, 3))[np.ix_(of // 5, of // 5)]
    np.testing.assert_allclose(batch["image_similarity"], expected, atol=1e-6)


def test_captions_can_be_ordered_by_length(data):
    split = load(data)
    make = PairBatches(split, (8,), order=np.argsort(split.lengths, kind="stable"), images=False)
    columns = {"index": np.array([0, 1, 29, 0]), "mask": np.array([True, True, True, False])}
    batch = make(columns, slice(None))
    assert "image" not in batch
    assert batch["length"].tolist() == [split.lengths.max()] + [split.lengths.min()] * 3
    assert sorted(batch["mask"].tolist()) == [False, True, True, True]


def test_photo_names_are_read_from_beside_the_features(data, write):
    split = load(data)
    with pytest.raises(InputError, match="which names the photos of the features, does not exist"):
        feature_photo_names(split)
    for content in (b"[", 3, {"images": 3}, {"images": [3, 4]}):
        write(content, "tiny_precomp/train_ims.json")
        with pytest.raises(InputError, match=r"train_ims\.json"):
            feature_photo_names(split)
    names = [f"{k}.jpg" for k in range(IMAGES)]
    write({"images": names}, "tiny_precomp/train_ims.json")
    assert feature_photo_names(split) == names
    assert feature_photo_names(split.take(np.array([4, 1]))) == ["4.jpg", "1.jpg"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CAPTIONS, b"a red dog here\n" * 7, "of 6 images, but there are 7 captions beside it: no whole number"),
        (CAPTIONS, b"a red dog here\n" * 4 + b"\n", r"train_caps.txt.*5"),
        (CAPTIONS, b"wholly other words\n" * 30, r"train_caps.txt.*vocab.json"),
        (CAPTIONS, None, "train_caps.txt"),
        (FEATURES, np.zeros((7, 4, 3), np.float32), "of 7 images, but there are 30 captions"),
        (FEATURES, np.zeros((6, 12), np.float32), r"must be a float array \[images, regions, f"),
        (FEATURES, np.zeros((6, 4, 3), np.int32), "must be a float array"),
        (FEATURES, b"\x93NUMPY", "is not a .npy file, or is truncated"),
        (FEATURES, np.array(3, np.float32), "holds a single number, not rows"),
        (FEATURES, None, "does not exist; aia features creates it from photos"),
        ("vocab.json", {}, "vocab.json"),
        ("vocab.json", None, "build it with: aia vocab"),
    ],
)
def test_files_that_do_not_match_are_refused(data, write, file, content, message):
    write(content, file)
    with pytest.raises(InputError, match=message):
        load(data)
