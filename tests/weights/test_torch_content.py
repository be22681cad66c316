"""What a checkpoint of another training program holds: prefixes, wrappers, several sets of weights, shards."""

import argparse
import collections
import datetime
import functools
import io
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from aia_jax.utils.errors import InputError
from aia_jax.weights.load import is_run, read_torch_state
from aia_jax.weights.torch_content import find_weights
from aia_jax.weights.torch_files import find_weights_file, read_torch_file, write_torch_file
from tests.helpers.references import needs_torch
from tests.helpers.torch_save import WRITERS, torch_bytes, zip_bytes

ANNOTATOR = ("backbone.features.0.conv1.conv.weight", "backbone.features.0.layer1.0.conv1.conv.weight", "head.w")
CLASSIFIER = ("net.body.conv1.0.weight", "net.body.layer1.0.conv1.0.weight", "net.head.fc.1.weight")
BACKBONE = ("body.conv1.conv.weight", "body.layer1.0.conv1.conv.weight", "head.fc.weight")
BARE = ("conv1.0.weight", "layer2.0.conv1.0.weight")
LITE = ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_fc.weight")
SGRAF = ("0.fc.weight", "1.embed.weight", "2.sim_eval_w.weight")
MODELS = (ANNOTATOR, CLASSIFIER, BACKBONE, BARE, LITE, SGRAF)


def state_of(names, value=1.0, prefix=""):
    return {prefix + name: np.full((2, 2), value, np.float32) for name in names}


def found(content, key=""):
    """The names, the value of the first array, and the sentences."""
    state, _, notes = find_weights(content, key, "a.pth")
    return sorted(state), state[next(iter(state))].flat[0], " ".join(notes)


@pytest.mark.parametrize(
    "prefix",
    [
        *(
            "",
            "module.",
            "_orig_mod.",
            "module._orig_mod.model.",
            "_orig_mod.module.",
            "net.",
            "backbone.",
            "ema.module.",
        ),
        *("_forward_module.model.", "_module.", "student.backbone.", "my_network.0."),
    ],
)
def test_prefixes_are_removed_from_the_names_of_each_model(prefix):
    for names in MODELS:
        expected = (sorted(names), 1.0, "")
        assert found(state_of(names, prefix=prefix)) == expected
        assert found({"state_dict": state_of(names, prefix=prefix), "epoch": 3}) == expected


def test_parts_that_wrappers_insert_within_a_name_are_removed():
    for part in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"):
        state = {name.replace(".", f".{part}.", 1): value for name, value in state_of(ANNOTATOR).items()}
        assert found(state) == (sorted(ANNOTATOR), 1.0, "")
    with pytest.raises(InputError, match=r"a\.pth: some arrays have the same name after prefixes are removed"):
        find_weights(state_of(ANNOTATOR) | state_of(["module.head.w"]), "", "a.pth")


def test_a_model_inside_another_module_is_told_from_a_classifier_by_its_head():
    assert found(state_of(BACKBONE, prefix="net."))[0] == sorted(BACKBONE)
    assert found(state_of(CLASSIFIER))[0] == sorted(CLASSIFIER)


@pytest.mark.parametrize(
    "wrap",
    [lambda state, key=key: {key: state, "epoch": np.array(3), "optimizer": {"state": {0: {"exp_avg": np.ones(2)}}}}
     for key in ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params")]
    + [lambda state: {"ema": state}, lambda state: {"state": {"model": {"state_dict": state}}}]
    + [lambda state: {"module": state, "ds_version": "0.14"}, lambda state: {"epoch": 1, "models": [state]}],
)  # fmt: skip
def test_weights_are_found_in_wrappers(wrap):
    for names in MODELS:
        assert found(wrap(state_of(names)))[:2] == (sorted(names), 1.0)


def test_arrays_of_a_loss_a_metric_or_another_head_are_not_used_and_listed():
    more = state_of(["criterion.pos_weight", "loss_fn.weight", "train_metric.tp", "online_finetuner.weight"])
    names, _, notes = found({"state_dict": state_of(ANNOTATOR, prefix="model.") | more})
    assert names == sorted(ANNOTATOR)
    assert notes == (
        "a.pth: arrays outside of the model are not used: state_dict.criterion.pos_weight, state_dict.loss_fn.weight, "
        "state_dict.train_metric.tp, state_dict.online_finetuner.weight"
    )
    names, _, notes = found(state_of(ANNOTATOR) | state_of(["criterion.pos_weight", "ema_backbone_conv1_weight"]))
    assert (names, notes.count("criterion.pos_weight, ema_backbone")) == (sorted(ANNOTATOR), 1)
    assert found(state_of(ANNOTATOR) | state_of(["stray.weight"]))[0] == sorted([*ANNOTATOR, "stray.weight"])


def test_of_two_sets_the_average_is_taken_and_a_key_takes_the_other():
    for raw, average in (
        ("state_dict", "state_dict_ema"),
        ("model", "ema"),
        ("model", "model_ema"),
        ("net", "swa.model"),
    ):
        content = {raw: state_of(ANNOTATOR, 1.0), average: state_of(ANNOTATOR, 2.0), "optimizer": state_of(ANNOTATOR)}
        names, value, notes = found(content)
        assert (names, value) == (sorted(ANNOTATOR), 2.0)
        assert f"holds 2 sets of weights: {raw}, {average}. The moving average {average} is taken" in notes
        assert f"--config.weights_key={raw} takes the other" in notes
        assert found(content, raw)[1] == 1.0
        assert found(content, average)[1] == 2.0
    flat = {"state_dict": state_of(BARE, 1.0, "model.") | state_of(BARE, 2.0, "ema_model.module.")}
    assert found(flat)[:2] == (sorted(BARE), 2.0)
    assert found(flat, "state_dict.model")[1] == 1.0
    assert found(state_of(BARE, 1.0) | state_of(BARE, 2.0, "ema."), ".")[:2] == (sorted(BARE), 1.0)


def test_mmengine_saves_the_average_as_the_state_dict_and_the_raw_weights_beside_it():
    counters = {name: np.array(3) for name in ("steps", "num_updates", "initted", "decay")}
    content = {"state_dict": state_of(BARE, 2.0), "ema_state_dict": state_of(BARE, 1.0, "module.") | counters}
    names, value, notes = found({**content, "message_hub": {}, "meta": {"epoch": 1}})
    assert (names, value) == (sorted(BARE), 2.0)
    assert "The moving average state_dict is taken; --config.weights_key=ema_state_dict takes the other" in notes
    names, value, notes = found(content)
    assert (names, value) == (sorted(BARE), 1.0)
    assert "arrays outside of the model are not used: ema_state_dict.steps, " in notes


@pytest.mark.parametrize("names", [ANNOTATOR, BARE, SGRAF])
def test_weights_with_and_without_a_wrapper_are_two_sets(names):
    plain, wrapped = state_of(names, 1.0), state_of(names, 2.0, "module.")
    for content in (plain | wrapped, wrapped | plain):
        with pytest.raises(InputError, match=r"2 sets of weights: (\., module|module, \.); choose one"):
            find_weights(content, "", "a.pth")
        assert found(content, ".")[:2] == (sorted(names), 1.0)
        assert found(content, "module")[:2] == (sorted(names), 2.0)
    three = {"model": plain | wrapped | state_of(names, 3.0, "_orig_mod.")}
    assert found(three, "model._orig_mod")[:2] == (sorted(names), 3.0)


def test_sets_without_one_average_are_listed():
    content = {"student": state_of(ANNOTATOR), "teacher": state_of(ANNOTATOR, 2.0)}
    with pytest.raises(InputError, match=r"2 sets of weights: student, teacher; .* --config\.weights_key=student$"):
        find_weights(content, "", "a.pth")
    assert found(content, "teacher")[1] == 2.0
    with pytest.raises(InputError, match=r"no weights in config\.weights_key='x'; it holds 2 sets of weights: stu"):
        find_weights(content, "x", "a.pth")


class Settings:
    """A class of a training program."""

    def __init__(self, **fields):
        vars(self).update(fields)


class Module(Settings):
    """A pickled model."""


BESIDE = {
    "best": np.float64(0.5),
    "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("a/b")),
    "config": Settings(sizes=[1, 2], inner=Settings(kind=Settings)),
    "more": [collections.deque([1]), Settings(x=collections.defaultdict(list, a=[1])), {1, 2}, datetime.timedelta(1)],
    "step": functools.partial(Settings, a=1),
    "_extra_state": io.BytesIO(b"x"),
}


@pytest.mark.parametrize("to_bytes", WRITERS)
def test_objects_of_the_training_program_are_skipped(tmp_path, to_bytes):
    (tmp_path / "a.pth").write_bytes(to_bytes({"state_dict": state_of(ANNOTATOR), **BESIDE}))
    assert read_torch_file(tmp_path / "a.pth")[0].keys() == set(ANNOTATOR)
    (tmp_path / "a.pth").write_bytes(to_bytes({**state_of(ANNOTATOR), **BESIDE}))
    assert read_torch_file(tmp_path / "a.pth")[0].keys() == set(ANNOTATOR)


def test_a_pickled_model_is_named_with_the_way_to_save_its_weights(tmp_path):
    model = Module(_modules={}, _parameters=state_of(ANNOTATOR))
    for content in (model, {"epoch": 1, "model": model, "optimizer": {"state": {0: np.ones(2, np.float32)}}}):
        (tmp_path / "a.pth").write_bytes(torch_bytes(content))
        with pytest.raises(InputError, match=r"a whole pickled model \(.*Module\).*save model\.state_dict\(\)"):
            read_torch_file(tmp_path / "a.pth")


@needs_torch
def test_what_torch_writes_in_rare_forms_is_read_or_named(tmp_path):
    import torch

    path = tmp_path / "a.pth"
    model = torch.nn.Sequential(collections.OrderedDict(conv_stem=torch.nn.Linear(2, 2)))
    torch.save(torch.nn.DataParallel(model).state_dict(), path, pickle_protocol=4)
    assert read_torch_file(path)[0].keys() == {"conv_stem.weight", "conv_stem.bias"}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_torch_file(path)[0].keys() == {"conv_stem.weight", "conv_stem.bias"}
    for is_zip in (True, False):
        torch.save(model, path, _use_new_zipfile_serialization=is_zip)
        with pytest.raises(InputError, match=r"a whole pickled model \(torch\.nn\.modules\.container\.Sequential\)"):
            read_torch_file(path)
    torch.save({"a": torch.ones(2).to_sparse()}, path)
    with pytest.raises(InputError, match="holds a tensor that is sparse, quantized"):
        read_torch_file(path)


def test_archives_without_checksums_and_newer_pickles_are_read(tmp_path):
    data = torch_bytes(state_of(BARE))
    archive = zipfile.ZipFile(io.BytesIO(data))
    for part in archive.infolist():
        data = data.replace(part.CRC.to_bytes(4, "little"), bytes(4))
    (tmp_path / "a.pth").write_bytes(data)
    assert read_torch_file(tmp_path / "a.pth")[0].keys() == set(BARE)
    content = {"a": Settings(x=1), "b": [b"x", {1}, frozenset({2}), "text", (1,), 2**40]}
    for protocol in (3, 4, 5):
        (tmp_path / "a.pth").write_bytes(zip_bytes(pickle.dumps(content, protocol)))
        with pytest.raises(InputError, match=r"holds no state dict but tests\.weights\.test_torch_content\.Settings"):
            read_torch_file(tmp_path / "a.pth")


@pytest.fixture
def sharded(tmp_path):
    """A folder with the index and two shards of an annotator."""
    for number, names in enumerate((ANNOTATOR[:1], ANNOTATOR[1:]), start=1):
        write_torch_file(tmp_path / "m" / f"model-0000{number}-of-00002.safetensors", state_of(names, number))
    files = {name: f"model-0000{1 + (name != ANNOTATOR[0])}-of-00002.safetensors" for name in ANNOTATOR}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return tmp_path / "m"


def test_shards_are_joined_by_their_index(sharded):
    index = sharded / "model.safetensors.index.json"
    for source in (sharded, index):
        state = read_torch_file(source)[0]
        assert {name: value.flat[0] for name, value in state.items()} == dict(zip(ANNOTATOR, (1, 2, 2), strict=True))
        assert read_torch_state(source).system == "annotator"
        assert not is_run(source)
    first, second = sorted(sharded.glob("*-of-*"))
    with pytest.raises(InputError, match=r"is one of 2 shards of a model; give their index, .*\.index\.json$"):
        read_torch_file(first)
    second.unlink()
    with pytest.raises(InputError, match=r"lists 2 shards; missing: model-00002-of-00002\.safetensors$"):
        read_torch_file(sharded)
    index.write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(InputError, match="its weight_map does not list files beside it"):
        read_torch_file(sharded)


def test_other_weights_in_a_folder_are_named(sharded):
    for name in ("optimizer.bin", "scheduler.pt", "training_args.bin", "rng_state.pth", "config.json"):
        (sharded / name).touch()
    assert not read_torch_file(sharded)[2]
    for name in ("ema.safetensors", "model.safetensors", "pytorch_model.bin"):
        (sharded / name).touch()
    message = f"{sharded} also holds ema.safetensors, model.safetensors, pytorch_model.bin; "
    message += "model.safetensors.index.json is taken. To take another file, name it"
    assert read_torch_file(sharded)[2] == [message]
    assert not read_torch_file(sharded / "model.safetensors.index.json")[2]


def test_the_one_weights_file_of_a_folder_is_read_and_several_are_listed(sharded, tmp_path):
    names = ["model.safetensors.index.json", *(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))]
    for name in names:
        text = (sharded / name).read_bytes().replace(b"model-", b"diffusion_pytorch_model-")
        (sharded / f"diffusion_pytorch_{name}").write_bytes(text)
        (sharded / name).unlink()
    assert read_torch_file(sharded)[0].keys() == set(ANNOTATOR)
    assert not is_run(sharded)
    (sharded / f"diffusion_pytorch_{names[0]}").unlink()
    with pytest.raises(InputError, match=r"is one of 2 shards of a model; put their index beside them, .*\.json$"):
        read_torch_file(sharded)
    (tmp_path / "runs" / "global_step3").mkdir(parents=True)
    place = tmp_path / "runs" / "global_step3" / "mp_rank_00_model_states.pt"
    place.write_bytes(torch_bytes({"module": state_of(BARE)}))
    (tmp_path / "runs" / "._a.pth").touch()
    assert read_torch_file(tmp_path / "runs")[0].keys() == set(BARE)
    for name in ("epoch_1.pth", "epoch_2.pth"):
        (tmp_path / "runs" / name).write_bytes(place.read_bytes())
    with pytest.raises(InputError, match=r"holds several weights files, epoch_1\.pth, epoch_2\.pth; give one of them"):
        is_run(tmp_path / "runs")
    (tmp_path / "runs" / "epoch_2.pth").unlink()
    assert read_torch_file(tmp_path / "runs")[0].keys() == set(BARE)


def test_folders_of_other_tools_are_read_or_named(tmp_path):
    assert find_weights_file(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(torch_bytes(state_of(BARE)))
    assert read_torch_file(tmp_path)[0].keys() == set(BARE)
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(InputError, match=r"python -m torch\.distributed\.checkpoint\.format_utils dcp_to_torch"):
        read_torch_file(tmp_path)
    (tmp_path / "__0_0.distcp").rename(tmp_path / "zero_to_fp32.py")
    with pytest.raises(InputError, match=r"a distributed checkpoint; .* in DeepSpeed with its zero_to_fp32\.py, "):
        is_run(tmp_path)


def archive_of(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            "only a pointer to a file of Git LFS; run git lfs",
        ),
        (b"\n<!DOCTYPE html>\n<html>", "a web page, perhaps of a failed download; download it again"),
        (b"<?xml version='1.0'?><Error>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "in HDF5, the format of Keras"),
        (b"\x89PNG\r\n\x1a\n", "a photo"),
        (b"\xff\xd8\xff\xe0", "a photo"),
        (b"\x81\xa6params\x81", "in msgpack, the format of Flax"),
        (b"\x08\x07\x12\x07pytorch", "a program of ONNX or TensorFlow"),
        (b"\x1f\x8b\x08\0", "compressed; decompress it first"),
        (b"pickle\0".ljust(257, b"\0") + b"ustar", "a tar archive; unpack it first"),
        (archive_of("arr_0.npy"), r"a zip archive \(arr_0\.npy\)"),
        (archive_of("metadata.json", "model.weights.h5"), r"a zip archive \(metadata\.json, model\.weights\.h5\)"),
        (archive_of("weights/a.pth"), r"a zip archive \(weights/a\.pth\); unpack it"),
        (archive_of("a/data.pkl", "a/constants.pkl"), r"a TorchScript program; save model\.state_dict\(\)"),
    ],
)
def test_other_formats_are_named(tmp_path, suffix, start, message):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(start)
    with pytest.raises(InputError, match=rf"a\.{suffix} is (refused: it is )?{message}"):
        read_torch_file(path)


def test_a_file_of_torch_with_the_name_of_safetensors_is_read(tmp_path):
    for old in (False, True):
        (tmp_path / "a.safetensors").write_bytes(torch_bytes(state_of(BARE), old=old))
        assert read_torch_file(tmp_path / "a.safetensors")[0].keys() == set(BARE)
