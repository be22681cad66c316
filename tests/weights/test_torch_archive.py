"""The reader and the writer of torch's files, compared with torch where it is installed."""

import argparse
import collections
import io
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest

from aia_jax.utils.errors import InputError
from aia_jax.weights.torch_archive import read_archive, write_archive
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_pickle import DTYPES, Opaque
from tests.helpers.references import HAS_TORCH, needs_torch
from tests.helpers.torch_save import old_bytes, torch_bytes, zip_bytes

BASE = np.arange(24, dtype=np.float64)
# Views of one storage: a part, every third element, a transposed and an expanded one.
VIEWS = [BASE, BASE[2:5], BASE[::3], BASE.reshape(2, 3, 4).T, np.ndarray((4, 2), BASE.dtype, BASE, 8, (0, 8))]
PLAIN = {
    "numbers": [0, -1, 255, 256, 65535, 65536, 2**31, -(2**31), 2**64, -(2**90), 0.1, -0.0, 1e308, float("inf")],
    "others": (None, True, False, "", "日本\ud800", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}),
    "nested": {1: [({"a": ([None],)},)], ("b", 2): {}, None: argparse.Namespace(x=1, y=argparse.Namespace(z=[2]))},
}


def every_dtype():
    """Arrays of every dtype in several shapes and layouts, by name."""
    found = {}
    for kind, dtype in DTYPES.items():
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        forms = [array, array.T, array[:, ::-1], array[:, 1:2, 3:2:-1], np.array(array[0, 0, 1])]
        found |= {f"{kind}{number}": form for number, form in enumerate([*forms, array[:0], array[0, :, :0]])}
    return found


def torch_load(path, **options):
    """What torch reads, with arrays for tensors."""
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return simple(torch.load(path, weights_only=True, **options))


def simple(value):
    """The same content with arrays for tensors, and types that the reader gives."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:
            return value.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.detach().numpy()
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**simple(vars(value)))
    if isinstance(value, dict):
        return {name: simple(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(simple, value))
    return str(value) if isinstance(value, torch.device) else value


def assert_same(found, expected):
    """Compares types, values and the order of entries."""
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, argparse.Namespace):
        assert_same(vars(found), vars(expected))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert (type(found), repr(found)) == (type(expected), repr(expected))


def test_what_is_written_is_read(tmp_path):
    content = every_dtype() | PLAIN | {"views": VIEWS}
    write_archive(tmp_path / "a.pth", content)
    assert_same(read_archive(tmp_path / "a.pth"), content)
    if HAS_TORCH:
        for mmap in (False, True):
            assert_same(torch_load(tmp_path / "a.pth", mmap=mmap), content)


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_would_write_is_read(tmp_path, old):
    """Also checks `torch_bytes`, which other tests use."""
    state = collections.OrderedDict(a=BASE)
    state._metadata = {"": {"version": 1}}
    content = every_dtype() | PLAIN | {"views": VIEWS, "state": state}
    (tmp_path / "a.pth").write_bytes(torch_bytes(content, old=old))
    assert_same(read_archive(tmp_path / "a.pth"), content)
    if HAS_TORCH:
        assert_same(torch_load(tmp_path / "a.pth"), content)


@needs_torch
@pytest.mark.parametrize("old", [False, True])
def test_what_torch_writes_is_read(tmp_path, old):
    import torch

    base, module = torch.arange(24.0), torch.nn.BatchNorm1d(3)
    content = {
        "views": [base, base[2:5], base[::3], base.view(2, 3, 4).mT, base[1].expand(4, 2), base.view(4, 6)[:, 1]],
        "dtypes": [base.to(getattr(torch, np.dtype(dtype).name)) for dtype in DTYPES.values()],
        "shapes": [torch.tensor(1), torch.ones(0), torch.ones(2, 0, 3), torch.ones(1, 1)],
        "parameters": [module.state_dict(), module.state_dict(keep_vars=True), torch.nn.Parameter(base[:2])],
        **PLAIN,
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    expected = simple(content)
    assert_same(read_archive(tmp_path / "a.pth"), expected)
    assert_same(torch_load(tmp_path / "a.pth"), expected)
    more = [base.shape, torch.device("cuda", 1), b"a\xff", collections.Counter("aab"), {1}, torch.float32]
    torch.save({"a": more, "b": base}, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    assert_same(read_archive(tmp_path / "a.pth")["b"], simple(base))


KEYS = (b"X\1\0\0\x000", b"X\1\0\0\x001")  # "0" and "1" in a pickle


def array_pickle(offset=0, size=4, stride=1, *, num_elements=4, key=KEYS[0], last=b""):
    """A pickle of an array on a storage of four elements; `last` are more arguments."""
    identity = b"(X\7\0\0\0storagectorch\nFloatStorage\n%bX\3\0\0\0cpuK%ctQ" % (key, num_elements)
    view = b"K%cK%c\x85J%b\x85\x89N" % (offset, size, stride.to_bytes(4, "little", signed=True))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + view + last + b"tR."


REFUSED = (  # by torch too
    *(b"cposix\nsystem\n)R.", b"c__builtin__\neval\n)R.", b"c__builtin__\ngetattr\n)R.", b"ctorch\nload\n)R."),
    *(b"N0N.", b"N2.", b"(l.", b"(d.", b"(iposix\nsystem\n.", b"(cposix\nsystem\no.", b"\x82\1.", b"I1\n."),
    *(b"X\5\0\0\0posixX\6\0\0\0system\x93)R.", b"\x8d" + b"\x7f" * 8, b"\x8e" + b"\x7f" * 8, b"P0\n."),
    *(b"K\1)R.", b"ctorch\nfloat32\n)R.", b"ctorch\nFloatStorage\n)R.", b"]}b.", b"}Na.", b"]NNs.", b"(](NNe]NNu."),
    *(b"X\1\0\0\0aQ.", b"](X\7\0\0\0storageeQ.", b"(X\6\0\0\0modulectorch\nFloatStorage\nNNNtQ."),
    *(b"ccollections\nOrderedDict\n)RNb.", b"", b".", b"N", b"h\5.", b"\0.", b"0.", b"e.", b"t.", b"X\xff\xff\0\0a."),
    *(array_pickle(2), array_pickle(3, 4, -1), array_pickle(0, 4, 2), array_pickle(9, 1), array_pickle(key=KEYS[1])),
)
STRICT = (  # torch ignores surplus values, trusts the number of elements, and may compute a hash for ever
    *(b"\x80\6N.", b"NN.", array_pickle(num_elements=3), array_pickle(last=b"}X\3\0\0\0neg\x88s"), b"})\x85\x85Ns."),
    array_pickle(key=b"K\0"),
    b"ccollections\nOrderedDict\n](](K\1)\x85\x85Nee\x85R.",
)
SKIPPED = (  # objects of other classes, without a call of their names
    *(b"cnumpy._core.multiarray\n_reconstruct\n)R.", b"c__builtin__\nbytes\n)R.", b"ccopy_reg\n_reconstructor\n)R."),
    *(b"cmy.module\nThing\n)\x81}X\1\0\0\0aNsb.", b"cmy.module\nThing\n)R(NNe."),
    *(
        b"c__builtin__\nset\n](N)\x85\x85e\x85R.",
        b"ccollections\nCounter\n}\x85R.",
        b"(N)\x85\x85\x91.",
        b"\x8f(N\x90.",
    ),
)


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_wrote_in_python_2_is_read(tmp_path, old):
    array = array_pickle(1, 2, 2)[:-1].replace(b"tQ", b"NtQ" if old else b"tQ")
    for text in (b"storage", b"cpu", b"0"):  # strings of Python 2
        array = array.replace(b"X%c\0\0\0%b" % (len(text), text), b"U%c%b" % (len(text), text))
    state = b"ccollections\nOrderedDict\nq\0(](]q\1(U\1a" + array + b"e]q\2(U\4b.\xc3\xa9" + array + b"eetRq\3"
    content = b"\x80\2}(U\5modelh\3U\5epochK\7u.".replace(b"h\3", state)
    storages = {"0": np.arange(4, dtype=np.float32)}
    (tmp_path / "a.pth").write_bytes((old_bytes if old else zip_bytes)(content, storages))
    found = read_archive(tmp_path / "a.pth")
    values = np.float32([1, 3])
    assert_same(found, {"model": {"a": values, "b.é": values}, "epoch": 7})


def is_refused(read, path):
    try:
        read(path)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("to_bytes", [zip_bytes, old_bytes])
def test_other_pickles_are_refused(tmp_path, to_bytes):
    path, storages = tmp_path / "a.pth", {"0": np.arange(4, dtype=np.float32)}

    def write(content):
        data = content if to_bytes is zip_bytes else content.replace(b"tQ", b"NtQ")
        path.write_bytes(to_bytes(b"\x80\2" + data, storages if b"_rebuild" in content else {}))

    for content in (*REFUSED, *STRICT):
        write(content)
        assert is_refused(read_archive, path), content
        assert content in STRICT or not HAS_TORCH or is_refused(torch_load, path), content
    for content in SKIPPED:
        write(content)
        assert isinstance(read_archive(path), Opaque), content
    for content, expected in ((array_pickle(1, 2, 2), [1, 3]), (b"N.", None)):  # the others differ from these
        write(content)
        found = read_archive(path)
        assert (found if expected is None else found.tolist()) == expected


HUGE = b"\x8a\x09" + (2**60).to_bytes(9, "little")  # as an integer in a pickle
TEXT = b"X\x40\x42\x0f\0" + b"a" * 10**6 + b"q\1"  # stored in the memo


def large_array(size, stride):
    """A pickle of an array on a storage of four elements, with a size and a stride of any number of bytes."""
    identity = array_pickle().partition(b"tQ")[0]
    return identity + b"tQK\0" + size + b"\x85" + stride + b"\x85\x89NtR"


@pytest.mark.parametrize(
    "content",
    [
        large_array(b"K\5", HUGE),
        large_array(HUGE, b"K\1"),
        *(b"c%b\n%b\x85R" % (name, large_array(HUGE, b"K\0")) for name in (b"torch\nSize", b"__builtin__\nset")),
        *(b"ccollections\n%b\n%b\x85R" % (name, large_array(HUGE, b"K\0")) for name in (b"OrderedDict", b"Counter")),
        array_pickle()[:-1].replace(b"K\4tQ", large_array(HUGE, b"K\0") + b"tQ"),
        b"](" + TEXT + b"c_codecs\nencode\nh\1X\6\0\0\0latin1\x86R" * 20 + b"e",
        b"}(" + TEXT + b"(" + b"h\1" * 10**5 + b"tK\1u",
    ],
    ids=["overflow", "size", "Size", "set", "OrderedDict", "Counter", "elements", "encode", "key"],
)
def test_small_files_cannot_take_much_memory_or_time(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(zip_bytes(b"\x80\2" + content + b".", {"0": np.arange(4, dtype=np.float32)}))
    with pytest.raises(InputError):
        read_torch_file(path)


def test_arrays_share_memory_within_limits(tmp_path):
    values = np.arange(10_000, dtype=np.float32)
    for count in (2, 10):  # tied weights, and many copies of one array
        (tmp_path / "a.pth").write_bytes(torch_bytes({f"w{number}": values[:] for number in range(count)}))
        if count == 2:
            np.testing.assert_array_equal(read_torch_file(tmp_path / "a.pth")[0]["w1"], values)
        else:
            with pytest.raises(InputError, match="its arrays share memory and have 400,000 bytes in all"):
                read_torch_file(tmp_path / "a.pth")


def test_the_storages_of_an_old_file_are_compared_in_little_time(tmp_path):
    first, second = ["x"], ["x"]
    for _ in range(45):
        first, second = [first, first], [second, second]
    data = old_bytes(pickle.dumps({}, 2), {})
    end = pickle.dumps([], 2)
    assert data.endswith(end)
    (tmp_path / "a.pth").write_bytes(data.removesuffix(end) + pickle.dumps([first, second], 2))
    with pytest.raises(ValueError, match="other storages"):
        read_archive(tmp_path / "a.pth")


@pytest.mark.parametrize("old", [False, True])
def test_all_truncated_files_are_refused(tmp_path, old):
    data = torch_bytes({"a": np.ones(1, np.int8), "b": np.ones(2, np.float32)}, old=old)
    for length in range(len(data)):
        (tmp_path / "a.pth").write_bytes(data[:length])
        assert is_refused(read_archive, tmp_path / "a.pth"), length


def test_an_old_file_lists_its_storages(tmp_path):
    data = torch_bytes({"a": np.ones(2, np.float32)}, old=True)
    place = data.rindex(KEYS[0])
    (tmp_path / "a.pth").write_bytes(data[:place] + data[place:].replace(*KEYS))
    with pytest.raises(ValueError, match="other storages"):
        read_archive(tmp_path / "a.pth")


def test_arrays_of_machines_with_the_other_byte_order_are_refused(tmp_path):
    """In a zip archive, the storages have the byte order of the machine; before, they were little-endian."""
    for kind, dtype in DTYPES.items():
        value = np.array([1, 2], dtype)
        content = b"\x80\2" + array_pickle(0, 2, num_elements=2).replace(b"FloatStorage", f"{kind}Storage".encode())
        (tmp_path / "a.pth").write_bytes(zip_bytes(content, {"0": value.byteswap()}, "big"))
        with pytest.raises(ValueError, match="its byte order is not little-endian"):
            read_archive(tmp_path / "a.pth")
        content = content.replace(b"tQ", b"NtQ")
        (tmp_path / "a.pth").write_bytes(old_bytes(content, {"0": value}, little_endian=False))
        assert_same(read_archive(tmp_path / "a.pth"), value)
        if HAS_TORCH:
            assert_same(torch_load(tmp_path / "a.pth"), value)


@needs_torch
def test_lazily_conjugated_arrays_are_refused(tmp_path):
    import torch

    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="not yet conjugated"):
        read_archive(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([None]), np.ones(1, ">f4"), {1, 2}, b"a", np.int64(1), 1j])
def test_what_torch_cannot_hold_is_not_written(value):
    with pytest.raises(TypeError):
        write_archive(io.BytesIO(), {"a": [value]})
