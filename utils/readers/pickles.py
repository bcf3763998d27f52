"""The paper's pickled results, read without trusting them.

A pickle is a program. This reader runs only the handful of constructors that the published files
use, each replaced by one of our own that checks what it gets; any other name in a file is refused,
and nothing of the file is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from utils.runtime.errors import UserError, first_line

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
}


class _Dtype:
    """Stands for numpy.dtype: a plain number's type and byte order, whatever else a file says of
    it.
    """

    def __init__(self, code: str, *_: object) -> None:
        if (
            not isinstance(code, str)
            or np.dtype(code).kind not in "biuf"
            or np.dtype(code).itemsize > 8
        ):
            raise pickle.UnpicklingError(f"dtype {code!r} is no plain number")
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


def _storage(data: bytes) -> Any:
    """Stands for torch.storage._load_from_bytes, which would run any pickle; a storage of any
    device, on the CPU.
    """
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: object) -> Any:
    """Stands for torch._utils._rebuild_tensor_v2: a tensor that stays inside its storage."""
    import torch

    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor has no storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor has no proper shape")
    empty, untyped = torch.empty(0, dtype=storage.dtype), storage._untyped_storage
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) * empty.element_size() > untyped.nbytes():
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    if 0 not in size and (last + 1) * empty.element_size() > untyped.nbytes():
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return empty.set_(untyped, offset, size, stride)


ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return ADMITTED[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside itself")


def _check_instructions(content: bytes) -> None:
    """Raise for an instruction that values need not, or a place in the memo that the file is too
    short to reach: Python's unpickler sets aside room for all places up to it, gigabytes for a file
    of a hundred bytes.
    """
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name not in INSTRUCTIONS:
            raise pickle.UnpicklingError(f"instruction {instruction.name} is none that values need")
        if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(
                f"place {argument} of the memo in a file of {len(content)} bytes"
            )


def read_pickle(path: Path) -> dict:
    """The dict in a pickle of the paper: text, numbers, tensors on the CPU.

    Raises UserError when the file cannot be read, is no dict, or names anything that these files do
    not need.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} is larger than {MAX_BYTES >> 20} MiB, more than any published result:"
                " refused"
            )
        content = path.read_bytes()
        _check_instructions(content)
        loaded = _Unpickler(io.BytesIO(content)).load()
    except UserError:
        raise
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise UserError(
            f"{path} cannot be read ({first_line(error)[:160]}): delete it, or fetch it again"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a dict of results: delete it")
    return loaded
