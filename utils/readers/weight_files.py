"""Arrays inside weight files (``.npz``, ``.safetensors``), read piece by piece from where they
stand in the file.

Only the bytes asked for are read, into memory of the caller's size: a 1M-latent SAE is 30 GB on
disk and is never loaded. Neither format is unpickled or executed; every offset and shape is checked
against the file's size before use.
"""

from __future__ import annotations

import ast
import json
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np

from utils.runtime.errors import UserError

# what parsing a header that is not one can raise
# NotImplementedError and RecursionError are RuntimeErrors
BROKEN = (
    *(
        zipfile.BadZipFile,
        struct.error,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
    ),
    *(SyntaxError, RuntimeError, MemoryError, EOFError),
)
# bytes of a header; real ones are a few kB, and reading one takes a hundred times its size
MAX_HEADER = 4 << 20
MAX_NPY_HEADER = 10_000  # numpy's own limit
Array = TypeVar("Array")
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
# dtypes that numpy has not, by the one that holds their bits
RAW = {"bfloat16": "<u2", "float8_e4m3fn": "|u1", "float8_e5m2": "|u1"}


def itemsize(dtype: str) -> int:
    """Bytes of a number.

    >>> itemsize("<f4"), itemsize("bfloat16"), itemsize("float8_e4m3fn")
    (4, 2, 1)
    """
    return np.dtype(RAW.get(dtype, dtype)).itemsize


def _decoded(stored: np.ndarray, dtype: str) -> np.ndarray:
    """float32 of numbers as they were stored."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8_e5m2":  # the upper half of a float16
        return (stored.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "float8_e4m3fn":
        return _float8_table()[stored]
    return stored.astype(np.float32, copy=False)


@cache
def _float8_table() -> np.ndarray:
    """The 256 values of float8_e4m3fn: sign, 4 bits of exponent (bias 7), 3 of mantissa; no
    infinities, and NaN where all bits but the sign are set (arXiv 2209.05433).
    """
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, (bits & 7) / 8
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    size[(bits & 127) == 127] = np.nan
    return np.where(bits & 128, -size, size).astype(np.float32)


class WeightArray(Protocol):
    """An array [n_rows, n_columns] or a vector in a file, read piece by piece as float32."""

    @property
    def path(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def n_bytes(self) -> int: ...
    def read(self) -> np.ndarray: ...
    def rows(self, start: int, stop: int) -> np.ndarray: ...
    def columns(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class StoredArray:
    """A C-ordered float array at ``offset`` of ``path``. Reads give float32 whatever the stored
    dtype.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        return itemsize(self.dtype)

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def read(self) -> np.ndarray:
        """The whole array."""
        width = self.shape[-1] if self.shape else 1
        flat = self._read_runs(0, width, width, math.prod(self.shape) // max(width, 1))
        return flat.reshape(self.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[stop - start, n_columns]: one contiguous read."""
        n_columns = self.shape[1]
        return self._read_runs(start * n_columns, n_columns, n_columns, stop - start)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """[n_rows, stop - start]: one short read a row."""
        return self._read_runs(start, stop - start, self.shape[1], self.shape[0])

    def _read_runs(self, first: int, length: int, stride: int, n_runs: int) -> np.ndarray:
        """float32 [n_runs, length]: runs of ``length`` items, ``stride`` items apart, from item
        ``first`` on.
        """
        stored = np.empty((n_runs, length), dtype=RAW.get(self.dtype, self.dtype))
        if length == stride:
            pieces, gap = [stored.reshape(-1)], 0
        else:
            pieces, gap = list(stored), stride * self.itemsize
        with open(self.path, "rb", buffering=0) as file:
            for i, piece in enumerate(pieces):
                view = memoryview(piece.data).cast("B")
                file.seek(self.offset + first * self.itemsize + i * gap)
                n_read = 0
                while n_read < len(view):
                    got = file.readinto(view[n_read:])
                    if not got:
                        raise UserError(
                            f"{self.path} ends too early: it is truncated, fetch it again"
                        )
                    n_read += got
        return _decoded(stored, self.dtype)


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The float arrays of a ``.npz`` (uncompressed) or ``.safetensors`` file by name.

    Raises UserError when the file is missing, broken, compressed, or holds something other than
    float arrays.
    """
    try:
        arrays = _npz_arrays(path) if path.suffix == ".npz" else _safetensors_arrays(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): fetch it again") from error
    except BROKEN as error:
        raise UserError(
            f"{path} is not a readable weight file ({type(error).__name__}: {error}): fetch it"
            " again"
        ) from error
    size = path.stat().st_size
    for name, array in arrays.items():
        if array.offset + array.n_bytes > size:
            raise UserError(
                f"{path} is truncated: {name} {array.shape} ends beyond the file; fetch it again"
            )
    return unwrapped(arrays)


def unwrapped(arrays: dict[str, Array]) -> dict[str, Array]:
    """Arrays by the names they have without torch.compile's or DataParallel's wrapper."""
    for wrapper in ("_orig_mod.", "module."):
        if arrays and all(name.startswith(wrapper) for name in arrays):
            arrays = {name.removeprefix(wrapper): array for name, array in arrays.items()}
    return arrays


def _npz_arrays(path: Path) -> dict[str, StoredArray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"{path} is compressed; save it again with numpy.savez (not savez_compressed)"
                )
            file.seek(stored_at(file, member))
            array, fault = _npy_array(path, file)
            arrays[member.filename.removesuffix(".npy") + fault] = array
    return arrays


def stored_at(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where the content of an archive's member begins; its local header's name and extra lengths
    can differ from the directory's.
    """
    file.seek(member.header_offset)
    local = file.read(30)
    if local[:4] != b"PK\x03\x04":
        raise ValueError(f"no local header for {member.filename}")
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    return int(member.header_offset + 30 + name_length + extra_length)


def _npy_array(path: Path, file: IO[bytes]) -> tuple[StoredArray, str]:
    """The array whose ``.npy`` header starts at the file's position (numpy.lib.format's documented
    layout), and what keeps it from being read, or "". Only an array that is needed must be right.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise ValueError("no .npy header")
    length = (
        struct.unpack("<H", file.read(2))[0]
        if magic[6] == 1
        else struct.unpack("<I", file.read(4))[0]
    )
    if length > MAX_NPY_HEADER:
        raise ValueError("an absurd .npy header")
    header = ast.literal_eval(file.read(length).decode("latin1"))
    shape, dtype = tuple(int(n) for n in header["shape"]), str(header["descr"])
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    fault = ""
    if dtype[1:2] in ("i", "u", "b"):
        fault = f" (dtype {dtype}, not floats)"
    elif dtype not in ("<f8", "<f4", "<f2"):
        raise ValueError(f"dtype {dtype}, not floats")
    elif header["fortran_order"] and len(shape) > 1:
        fault = " (column-major: save it with numpy.ascontiguousarray)"
    return StoredArray(path, file.tell(), shape, dtype), fault


def _safetensors_arrays(path: Path) -> dict[str, StoredArray]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(MAX_HEADER, os.fstat(file.fileno()).st_size):
            raise ValueError("an absurd safetensors header")
        # bytes would be guessed to be UTF-16 too
        header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
        if entry["dtype"] not in DTYPES:
            continue  # integer bookkeeping tensors encode nothing
        array = StoredArray(path, 8 + length + begin, shape, DTYPES[entry["dtype"]])
        if begin < 0 or any(n < 0 for n in shape) or end - begin != array.n_bytes:
            raise ValueError(f"{name} declares shape {shape} in {end - begin} bytes")
        arrays[name] = array
    return arrays
