"""Our reader of ``.pt`` files against ``torch.load`` on what ``torch.save`` writes; hostile files
are refused and run nothing.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Evil
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.readers.pickles import Strided
from utils.readers.pt_files import load_tensor, read_pt, state_dict
from utils.readers.weight_files import itemsize
from utils.runtime.errors import Failures, UserError

BASE = torch.arange(60, dtype=torch.float32).reshape(5, 12)
TENSORS = {
    "rows": BASE,
    "turned": BASE.T,
    "every second column": BASE[:, ::2],
    "a window": BASE[1:4, 2:9],
    "one number": torch.tensor(3.5),
    "a vector": BASE[0],
    "none": torch.empty(0, 7),
    "a parameter": torch.nn.Parameter(BASE.clone()),
    "a column": BASE[:, 3:4],
    "sparse rows": (BASE % 3 * (BASE % 5 == 0)).to_sparse(),
    **{
        str(dtype): BASE.to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
    },
    **{str(dtype): BASE.to(dtype) for dtype in (torch.int16, torch.int8, torch.uint8, torch.bool)},
    **{str(d): (BASE / 7).to(d) for d in (torch.float8_e4m3fn, torch.float8_e5m2)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_is_read_as_torch_reads_it(tmp_path, name):
    path = tmp_path / "x.pt"
    torch.save(TENSORS[name], path)
    expected = torch.load(path, weights_only=True).detach()
    found = load_tensor(path, "")
    assert found.dtype == expected.dtype
    assert found.layout == expected.layout
    assert torch.equal(found.to_dense().double(), expected.to_dense().double())


def test_csr_rows_are_read_as_torch_reads_them(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save((BASE * (BASE % 7 == 1)).to_sparse_csr(), tmp_path / "x.pt")
        found = load_tensor(tmp_path / "x.pt", "")
        assert torch.equal(found.to_dense(), BASE * (BASE % 7 == 1))


@pytest.mark.parametrize("name", [n for n, t in TENSORS.items() if t.ndim == 2 and not t.is_sparse])
def test_pieces_of_a_tensor_are_read_in_place(tmp_path, name):
    tensor = TENSORS[name]
    torch.save({"W": tensor, "note": "text", "n": 3}, tmp_path / "x.pt")
    found, arrays = state_dict(tmp_path / "x.pt", "")
    assert (found["note"], found["n"]) == ("text", 3)
    if "W" not in arrays:  # with gaps: not read in place, and not read wrong
        assert not tensor.is_contiguous()
        assert not tensor.T.is_contiguous()
        return
    W = arrays["W"]
    expected = tensor.detach().float().numpy()
    assert np.array_equal(W.read(), expected)
    assert W.n_bytes == tensor.numel() * tensor.element_size()
    if expected.size:
        assert np.array_equal(W.rows(1, 3), expected[1:3])
        assert np.array_equal(W.columns(0, 1), expected[:, :1])


def test_wrapped_state_dicts_have_their_plain_names(tmp_path):
    model = torch.nn.Linear(2, 3).state_dict()
    torch.save(OrderedDict((f"_orig_mod.{k}", v) for k, v in model.items()), tmp_path / "x.pt")
    assert set(state_dict(tmp_path / "x.pt", "")[1]) == {"weight", "bias"}


@pytest.mark.parametrize(
    "call", [os.system, eval, exec, open, torch.load, np.load, getattr, pickle.loads, Path.touch]
)
def test_a_hostile_file_runs_nothing(tmp_path, call):
    canary = tmp_path / "canary"
    torch.save({"W": Evil(call, f"touch {canary}")}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="which is not run"):
        read_pt(tmp_path / "x.pt", "fetch it again")
    assert not canary.exists()


def archive(path: Path, pickled: bytes, **data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/byteorder", data.pop("byteorder", b"little"))
        for name, content in data.items():
            file.writestr(f"x/data/{name.removeprefix('n')}", content)
    return path


def pickled_tensor(shape: str, stride: str, start: str = "K\x00", storage: str = "FloatStorage"):
    """The pickle of one tensor over storage 0, of a shape and stride in pickle's own letters."""
    text = (
        f"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n{storage}\n"
        f"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ{start}{shape}{stride}\x89N"
    )
    return b"\x80\x02" + text.encode("latin1") + b"tR."


def test_the_made_up_pickle_is_one_of_torch(tmp_path):
    path = archive(tmp_path / "x.pt", pickled_tensor("K\x04\x85", "K\x01\x85"), n0=b"\0\0\x80?" * 4)
    assert torch.equal(load_tensor(path, ""), torch.ones(4))


@pytest.mark.parametrize(
    ("shape", "stride", "start"),
    [
        ("K\x05\x85", "K\x01\x85", "K\x00"),  # one number more than there are
        ("K\x04\x85", "K\x01\x85", "K\x01"),  # shifted beyond the end
        ("K\x04\x85", "K\x00\x85", "J\xff\xff\xff\xff"),  # before the beginning
        ("J\xff\xff\xff\x7f\x85", "K\x00\x85", "K\x00"),  # two billion times one number
        ("J\xff\xff\xff\xff\x85", "K\x01\x85", "K\x00"),  # a negative size
        ("K\x02K\x02\x86", "K\x01\x85", "K\x00"),  # more sizes than strides
        ("K\x02K\x02\x86", "K\x09K\x01\x86", "K\x00"),  # steps over the end
        ("K\x04\x85", "K\x01\x85", "N"),  # nowhere
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, shape, stride, start):
    path = archive(tmp_path / "x.pt", pickled_tensor(shape, stride, start), n0=bytes(16))
    with pytest.raises(UserError, match="cannot be read"):
        load_tensor(path, "fetch it again")


@pytest.mark.parametrize("dtype", ["O", "S8", "M8[ns]", "<f4,<f4", "V8", "U2", ">f4", "int", "f4"])
@pytest.mark.parametrize("place", ["storage", "tensor"])
def test_a_dtype_that_is_no_plain_numbers_is_refused(tmp_path, dtype, place):
    """Bytes taken for objects would be places in memory."""
    name = f"X{len(dtype).to_bytes(4, 'little').decode('latin1')}{dtype}"
    storage = name if place == "storage" else "ctorch.storage\nUntypedStorage\n"
    rebuild, last = (
        ("_rebuild_tensor_v2", "") if place == "storage" else ("_rebuild_tensor_v3", name)
    )
    text = (
        f"ctorch._utils\n{rebuild}\n((X\x07\x00\x00\x00storage{storage}"
        f"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQK\x00K\x01\x85K\x01\x85\x89N{last}"
    )
    pickled = b"\x80\x02" + text.encode("latin1") + b"tR."
    path = archive(tmp_path / "x.pt", pickled, n0=bytes(64))
    for read in (load_tensor, read_pt):
        with pytest.raises(UserError, match="no dtype of plain numbers"):
            read(path, "")


def test_a_container_that_holds_itself_many_times_over_is_refused(tmp_path):
    """Nine bytes a level, and twice the memory: shown or hashed it would fill the machine."""
    nested = b"\x80\x02K\x01" + b"".join(b"q%cK\x00h%c\x86" % (i, i) for i in range(60)) + b"."
    doubled = (
        b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"."
    )
    for pickled in (nested, doubled):
        with pytest.raises(UserError, match="one container several times"):
            read_pt(archive(tmp_path / "x.pt", pickled), "")


def test_a_file_cannot_change_what_reads_it(tmp_path):
    state = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b"
    layout = b"\x80\x02ctorch.serialization\n_get_layout\n" + state + b"."
    with pytest.raises(UserError, match="changes a constructor"):
        read_pt(archive(tmp_path / "x.pt", layout), "")
    items = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb."
    assert state_dict(archive(tmp_path / "y.pt", items), "") == ({}, {})


def test_other_faults_get_one_line(tmp_path):
    whole = pickled_tensor("K\x04\x85", "K\x01\x85")
    path = archive(tmp_path / "big.pt", whole, byteorder=b"big", n0=bytes(16))
    with pytest.raises(UserError, match="big-endian"):
        load_tensor(path, "")
    with pytest.raises(UserError, match="KeyError"):
        load_tensor(archive(tmp_path / "without.pt", whole), "")
    content = archive(tmp_path / "flipped.pt", whole, n0=b"\1" * 16).read_bytes()
    (tmp_path / "flipped.pt").write_bytes(content.replace(b"\1" * 16, b"\1" * 15 + b"\2"))
    with pytest.raises(UserError, match="checksum"):
        load_tensor(tmp_path / "flipped.pt", "")
    build = whole[:-1] + b"}X\x05\x00\x00\x00shapeK\x09sb."  # sets an attribute of the tensor
    with pytest.raises(UserError, match="changes a tensor"):
        load_tensor(archive(tmp_path / "build.pt", build, n0=bytes(16)), "")
    with pytest.raises(UserError, match="holds a dict, not a tensor"):
        load_tensor(archive(tmp_path / "dict.pt", pickle.dumps({}, 2)), "")
    older = tmp_path / "older.pt"
    torch.save(torch.ones(3), older, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="cannot be read"):
        load_tensor(older, "")


@given(st.data())
@settings(max_examples=150)
def test_a_changed_byte_gives_the_same_numbers_or_one_line(data):
    buffer = io.BytesIO()
    torch.save({"W": BASE, "b": BASE[0]}, buffer)
    content = bytearray(buffer.getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"changed_{os.getpid()}.pt"
    path.write_bytes(content)
    failures, found = Failures(), None
    with failures.caught():  # anything but a UserError is a finding
        found = read_pt(path, "fetch it again")
    path.unlink()
    for tensor in found.values() if isinstance(found, dict) else []:
        if isinstance(tensor, Strided):
            n = int(np.prod(tensor.shape))
            assert n * itemsize(tensor.dtype) <= tensor.storage.n_bytes
    assert not any("\n" in line for line in failures.lines)
