"""Tensors in ``.pt`` files: read without executing anything, written whole or not at all.

A ``.pt`` file is a zip archive of a pickle and of the numbers it refers to. The pickle is read by
our restricted reader, the numbers from where they stand; ``torch.load`` is never called.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.readers.pickles import TORCH, Sparse, Storage, Strided, as_torch, load
from utils.readers.weight_files import StoredArray, WeightArray, itemsize, stored_at, unwrapped
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_path

if TYPE_CHECKING:
    import torch

MAX_PICKLE = 16 << 20  # bytes; that of an SAE with a thousand tensors has 200 kB


def save_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Save one tensor; the same tensor gives the same bytes."""
    import torch

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # an open file: given a name, torch would write that (temporary) name into the archive
        torch.save(tensor, file)


def load_tensor(path: Path, remedy: str) -> torch.Tensor:
    """A tensor from a ``.pt`` file; nothing in the file is executed.

    Raises UserError when the file is missing, broken, not a plain tensor, or would take more memory
    than disk.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: {remedy}")
    remedy = f"delete it, then {remedy}"
    found = read_pt(path, remedy)
    try:
        if isinstance(found, Strided):
            return _tensor(path, found)
        if isinstance(found, Sparse):
            return _sparse_tensor(path, found)
    except (ValueError, OSError, RuntimeError) as error:
        raise _unreadable(path, error, remedy) from error
    raise UserError(f"{path} holds a {type(found).__name__}, not a tensor: {remedy}")


def read_pt(path: Path, remedy: str) -> Any:
    """What a ``.pt`` file holds: plain values, with a ``Strided`` or ``Sparse`` for each tensor.

    Compressed members and tensors that stretch a few numbers over a huge shape are refused: both
    would fill memory from a small file.

    Raises UserError for these and for a broken file.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            members = {member.filename: member for member in archive.infolist()}
            if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
                raise ValueError("it is compressed, which torch.save never does")
            name = next(n for n in members if n.endswith("data.pkl") and n.count("/") <= 1)
            folder = name.removesuffix("data.pkl")
            if members[name].file_size > MAX_PICKLE:
                raise ValueError(f"a pickle of {members[name].file_size} bytes")
            order = members.get(f"{folder}byteorder")
            if order is not None and archive.read(order)[:8] != b"little":
                raise ValueError("its numbers are big-endian")

            def refer(pid: tuple) -> Storage:
                _, dtype, key, *_ = pid
                member = members[f"{folder}data/{key}"]
                offset = stored_at(file, member)
                return Storage(dtype, offset, member.file_size, member.CRC)

            return load(io.BytesIO(archive.read(members[name])), TORCH, refer)
    # a broken file can raise anything: zip, pickle and struct errors
    except Exception as error:
        raise _unreadable(path, error, remedy) from error


def _unreadable(path: Path, error: Exception, remedy: str) -> UserError:
    return UserError(
        f"{path} cannot be read ({type(error).__name__}: {first_line(error)[:120]}): {remedy}"
    )


def _tensor(path: Path, tensor: Strided) -> torch.Tensor:
    """The tensor in memory, its checksum compared."""
    storage = tensor.storage
    data = np.fromfile(path, np.uint8, storage.n_bytes, offset=storage.offset)
    if len(data) != storage.n_bytes or zlib.crc32(data.data) != storage.checksum:
        raise ValueError("its numbers do not have their checksum")
    return as_torch(tensor, data)


def _sparse_tensor(path: Path, sparse: Sparse) -> torch.Tensor:
    import torch

    *indices, values = (_tensor(path, part) for part in sparse.parts)
    size = sparse.shape
    if sparse.layout == "sparse_csr":
        rows, columns = indices
        return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=False)
    return torch.sparse_coo_tensor(indices[0], values, size, check_invariants=False)


@dataclass(frozen=True)
class Transposed:
    """A stored array whose rows are the columns of the one in the file."""

    array: StoredArray

    @property
    def path(self) -> Path:
        return self.array.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[::-1]

    @property
    def n_bytes(self) -> int:
        return self.array.n_bytes

    def read(self) -> np.ndarray:
        return self.array.read().T

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.array.columns(start, stop).T)

    def columns(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.array.rows(start, stop).T)


def state_dict(path: Path, remedy: str) -> tuple[dict, dict[str, WeightArray]]:
    """(all that a ``.pt`` file holds by name, its dense tensors where they stand).

    Raises UserError when it cannot be read or holds something else.
    """
    found = read_pt(path, remedy)
    if not isinstance(found, dict):
        kind = "tensor" if isinstance(found, Strided | Sparse) else type(found).__name__
        raise UserError(f"{path} holds a {kind}, not tensors by name: it is no SAE")
    try:
        return found, _arrays(found, path)
    except Exception as error:  # names and shapes are a file's own
        raise _unreadable(path, error, remedy) from error


def _arrays(found: dict, path: Path) -> dict[str, WeightArray]:
    arrays: dict[str, WeightArray] = {}
    for name, tensor in found.items():
        if not isinstance(tensor, Strided) or tensor.dtype.startswith("<c"):  # complex numbers
            continue
        offset = tensor.storage.offset + tensor.start * itemsize(tensor.dtype)
        if _in_order(tensor.shape, tensor.stride):
            arrays[str(name)] = StoredArray(path, offset, tensor.shape, tensor.dtype)
        elif len(tensor.shape) == 2 and _in_order(tensor.shape[::-1], tensor.stride[::-1]):
            stored = StoredArray(path, offset, tensor.shape[::-1], tensor.dtype)
            arrays[str(name)] = Transposed(stored)
    return unwrapped(arrays)


def _in_order(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether numbers stand one behind the other, the last axis fastest."""
    steps = (math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return all(n == 1 or found == step for n, found, step in zip(shape, stride, steps))
