"""Pickles read without trusting them: the paper's results, and what ``.pt`` files are made of.

A pickle is a program. This reader runs only the handful of constructors that the published files
and ``torch.save`` use, each replaced by one of our own that checks what it gets; any other name in
a file is refused, and nothing of the file is called. Neither ``torch.load`` nor Python's own
unpickler sees a byte.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from utils.readers.weight_files import itemsize
from utils.runtime.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

MAX_BYTES = 1 << 20  # of a file; the published ones have at most 30 kB
# Instructions of a pickle that values of the kinds below need, in protocols 2 to 5. Not among them:
# those that build objects by other ways than a call of a named constructor, and those that set
# aside memory for lengths that the file does not have.
INSTRUCTIONS = {
    *(
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "MEMOIZE",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
    ),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    "BINPERSID",  # a storage, which only ``torch.save`` refers to; refused where none may be
}
# torch's storages by the dtype of their numbers, as numpy or StoredArray spells it
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
}
DTYPES = frozenset({*STORAGES.values(), "float8_e4m3fn", "float8_e5m2"})
# What puts a container on the stack. One that is taken twice from the memo may hold itself many
# times over: a file of a hundred bytes would fill memory when it is shown or hashed.
CONTAINERS = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT"}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # begins what torch.save writes without a zip archive


class _Dtype:
    """Stands for numpy.dtype: a plain number's type and byte order, whatever else a file says of
    it.
    """

    def __init__(self, code: str, *_: object) -> None:
        if (
            not isinstance(code, str)
            or len(code) > 8
            or np.dtype(code).kind not in "biuf"
            or np.dtype(code).itemsize > 8
        ):
            raise pickle.UnpicklingError("a dtype is no plain number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.dtype = self.dtype.newbyteorder(order if order in ("<", ">") else "=")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    """Stands for numpy's scalar constructor: one number of these bytes."""
    if (
        not isinstance(dtype, _Dtype)
        or not isinstance(data, bytes)
        or len(data) != dtype.dtype.itemsize
    ):
        raise pickle.UnpicklingError("a number has not the bytes of its type")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _check_dtype(dtype: object) -> None:
    """Raise UnpicklingError unless numbers of a dtype are bytes alone: an object's would be taken
    for places in memory.
    """
    if type(dtype) is not str or dtype not in DTYPES:
        raise pickle.UnpicklingError("a tensor has no dtype of plain numbers")


@dataclass(frozen=True)
class Storage:
    """Numbers of one dtype at ``offset`` of a file; ``checksum``: their CRC-32, None if not known.
    ``data`` holds them where they were read already.
    """

    dtype: str
    offset: int
    n_bytes: int
    checksum: int | None = None
    data: bytes = b""

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it changes a storage")


@dataclass(frozen=True)
class Strided:
    """A tensor: places ``start`` + multiples of ``stride`` of a storage, in numbers of ``dtype``.

    Raises UnpicklingError unless it stays inside its storage and every number has its own place.
    """

    storage: Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        numbers = (self.start, *self.shape, *self.stride)
        if (
            not isinstance(self.storage, Storage)
            or len(self.shape) != len(self.stride)
            or not all(type(n) is int and n >= 0 for n in numbers)
        ):
            raise pickle.UnpicklingError("a tensor has no proper shape")
        last = self.start + sum((n - 1) * step for n, step in zip(self.shape, self.stride))
        needed = max(math.prod(self.shape), last + 1 if 0 not in self.shape else 0)
        if needed * itemsize(self.dtype) > self.storage.n_bytes:
            raise pickle.UnpicklingError(
                f"shape {self.shape} declared over {self.storage.n_bytes} bytes: a tensor is larger"
                " than its storage"
            )

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it changes a tensor")


@dataclass(frozen=True)
class Sparse:
    """A sparse tensor, "sparse_coo" or "sparse_csr", of index and value tensors."""

    layout: str
    parts: tuple[Strided, ...]
    shape: tuple[int, ...]

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it changes a tensor")


def _strided(storage: Storage, start: int, shape: tuple, stride: tuple, *_: object) -> Strided:
    """Stands for torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return Strided(storage, start, tuple(shape), tuple(stride), storage.dtype)


def _strided_as(
    storage: Storage, start: int, shape: tuple, stride: tuple, _: object, __: object, dtype: str
) -> Strided:
    """Stands for torch._utils._rebuild_tensor_v3, for dtypes without a storage of their own."""
    return Strided(storage, start, tuple(shape), tuple(stride), dtype)


def _parameter(tensor: Strided, *_: object) -> Strided:
    """Stands for torch._utils._rebuild_parameter."""
    return tensor


def _layout(name: str) -> str:
    """Stands for torch.serialization._get_layout."""
    if type(name) is not str or name not in ("torch.sparse_coo", "torch.sparse_csr"):
        raise pickle.UnpicklingError("a tensor has a layout that is not known")
    return name.removeprefix("torch.")


def _sparse(layout: str, parts: tuple) -> Sparse:
    """Stands for torch._utils._rebuild_sparse_tensor."""
    n_parts = {"sparse_coo": 2, "sparse_csr": 3}[layout]
    tensors, shape = parts[:n_parts], tuple(parts[n_parts])
    if not all(isinstance(part, Strided) for part in tensors) or not all(
        type(n) is int and n >= 0 for n in shape
    ):
        raise pickle.UnpicklingError("a sparse tensor has no proper parts")
    return Sparse(layout, tuple(tensors), shape)


def _legacy_storage(data: bytes) -> Storage:
    """Stands for torch.storage._load_from_bytes, which would run any pickle: the one storage that
    torch.save wrote without an archive, of any device.
    """
    file = io.BytesIO(data)
    found: list[Storage] = []

    def refer(pid: tuple) -> Storage:
        _, dtype, _, _, n_numbers, *_ = pid
        found.append(Storage(dtype, 0, int(n_numbers) * itemsize(dtype)))
        return found[-1]

    magic, _, system, storage, keys = (load(file, TORCH, refer) for _ in range(5))
    if magic != LEGACY_MAGIC or not system["little_endian"] or len(found) != 1 or len(keys) != 1:
        raise pickle.UnpicklingError("it holds no single storage")
    (n_numbers,) = struct.unpack("<q", file.read(8))
    rest = file.read()
    if len(rest) != storage.n_bytes or n_numbers * itemsize(storage.dtype) != storage.n_bytes:
        raise pickle.UnpicklingError("a storage has not the bytes that it says")
    return Storage(storage.dtype, 0, len(rest), data=rest)


def _read_tensor(storage: Storage, start: int, shape: tuple, stride: tuple, *_: object) -> Any:
    """Stands for torch._utils._rebuild_tensor_v2 where the numbers are in the pickle itself."""
    tensor = _strided(storage, start, shape, stride)
    return as_torch(tensor, bytearray(storage.data))


def as_torch(tensor: Strided, data: bytearray | np.ndarray) -> torch.Tensor:
    """A torch tensor of the bytes of its storage, which it keeps as its memory."""
    import torch

    kind = getattr(torch, tensor.dtype, None) or torch.from_numpy(np.empty(0, tensor.dtype)).dtype
    if not tensor.storage.n_bytes:
        return torch.empty(tensor.shape, dtype=kind)
    n_bytes = tensor.storage.n_bytes // itemsize(tensor.dtype) * itemsize(tensor.dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8)[:n_bytes].view(kind)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.start)


class _Constructor:
    """A function that a file may call, and not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it changes a constructor")


class _Ordered(OrderedDict):
    """Stands for OrderedDict: what a file sets on it beside its items (torch: versions of modules)
    is left out.
    """

    def __setstate__(self, _: object) -> None:
        pass


NUMBERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Constructor(_Ordered),
    ("numpy", "dtype"): _Constructor(_Dtype),
    ("numpy.core.multiarray", "scalar"): _Constructor(_scalar),
    ("numpy._core.multiarray", "scalar"): _Constructor(_scalar),
}
# in a .pt file
TORCH: dict[tuple[str, str], Any] = {
    **NUMBERS,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): "|u1",
    ("torch", "float8_e4m3fn"): "float8_e4m3fn",
    ("torch", "float8_e5m2"): "float8_e5m2",
    ("torch", "Size"): _Constructor(tuple),
    ("torch._utils", "_rebuild_tensor_v2"): _Constructor(_strided),
    ("torch._utils", "_rebuild_tensor_v3"): _Constructor(_strided_as),
    ("torch._utils", "_rebuild_parameter"): _Constructor(_parameter),
    ("torch._utils", "_rebuild_sparse_tensor"): _Constructor(_sparse),
    ("torch.serialization", "_get_layout"): _Constructor(_layout),
}
# in a pickled result
RESULTS: dict[tuple[str, str], Any] = {
    **NUMBERS,
    ("torch.storage", "_load_from_bytes"): _Constructor(_legacy_storage),
    ("torch._utils", "_rebuild_tensor_v2"): _Constructor(_read_tensor),
}


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file: IO[bytes],
        admitted: Mapping[tuple[str, str], Any],
        refer: Callable[[tuple], Storage] | None,
    ) -> None:
        super().__init__(file)
        self.admitted, self.refer = admitted, refer

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return self.admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if (
            self.refer is None
            or type(pid) is not tuple
            or len(pid) < 5
            or not all(type(word) is str for word in pid[:3])
            or pid[0] != "storage"
        ):
            raise pickle.UnpicklingError("it refers to an object outside itself")
        return self.refer(pid)


def load(
    file: IO[bytes],
    admitted: Mapping[tuple[str, str], Any],
    refer: Callable[[tuple], Storage] | None = None,
) -> Any:
    """What the pickle at a file's position holds; ``refer`` finds a storage that it refers to.

    Raises UnpicklingError, or anything that a broken pickle raises.
    """
    start = file.tell()
    _check_instructions(file.read())
    file.seek(start)
    return _Unpickler(file, admitted, refer).load()


def _check_instructions(content: bytes) -> None:
    """Raise for an instruction that values need not, or a place in the memo that the file is too
    short to reach: Python's unpickler sets aside room for all places up to it, gigabytes for a file
    of a hundred bytes.
    """
    memo: dict[int, str] = {}
    before = ""
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name not in INSTRUCTIONS:
            raise pickle.UnpicklingError(f"instruction {name} is none that values need")
        if name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(
                f"place {argument} of the memo in a file of {len(content)} bytes"
            )
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = before
        elif name in ("BINGET", "LONG_BINGET") and memo.get(int(argument or 0)) in CONTAINERS:
            raise pickle.UnpicklingError("it holds one container several times")
        before = name


def read_pickle(path: Path) -> dict:
    """The dict in a pickle of the paper: text, numbers, tensors on the CPU.

    Raises UserError when the file cannot be read, is no dict, or names anything that these files do
    not need.
    """
    loaded = _read(path)
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a dict of results: delete it")
    return loaded


def read_rows(path: Path) -> list[dict]:
    """The rows in a pickle of one run of the original scripts: a list of dicts.

    Raises UserError as ``read_pickle`` does.
    """
    loaded = _read(path)
    if not isinstance(loaded, list) or not all(isinstance(row, dict) for row in loaded):
        raise UserError(f"{path} holds no list of results: delete it")
    return loaded


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} is larger than {MAX_BYTES >> 20} MiB, more than any published result:"
                " refused"
            )
        return load(io.BytesIO(path.read_bytes()), RESULTS)
    except UserError:
        raise
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise UserError(
            f"{path} cannot be read ({first_line(error)[:160]}): delete it, or fetch it again"
        ) from error
