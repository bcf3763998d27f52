"""Tensors in ``.pt`` files: read without executing anything, written whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_path

if TYPE_CHECKING:
    import torch


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
    import torch

    if not path.is_file():
        raise UserError(f"no file {path}: {remedy}")
    loaded = load_plain(path, f"delete it, then {remedy}")
    if not isinstance(loaded, torch.Tensor):
        raise UserError(
            f"{path} holds a {type(loaded).__name__}, not a tensor: delete it, then {remedy}"
        )
    return loaded


def load_plain(path: Path, remedy: str, mmap: bool = False) -> Any:
    """What a ``.pt`` file holds, by torch's restricted reader. Compressed members and tensors that
    stretch a few numbers over a huge shape are refused: both would fill memory from a small file.

    Raises UserError for these and for a broken file.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        for tensor in loaded.values() if isinstance(loaded, dict) else [loaded]:
            if isinstance(tensor, torch.Tensor):
                _check_extent(tensor)
    # a broken file can raise anything: zip, pickle, struct and torch errors
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)[:120]}): {remedy}"
        ) from error
    return loaded.detach() if isinstance(loaded, torch.Tensor) else loaded


def _check_extent(tensor: torch.Tensor) -> None:
    """Raise ValueError unless every number of a tensor has its own place in the file."""
    import torch

    if (
        tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_neg()
        or tensor.is_conj()
        or tensor.is_nested
    ):
        raise ValueError("a tensor without plain numbers of its own")
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout == torch.sparse_csr:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout == torch.strided:
        parts = [tensor]
    else:
        raise ValueError(f"layout {tensor.layout}")
    for part in parts:
        if part.numel() * part.element_size() > part.untyped_storage().nbytes():
            raise ValueError(
                f"shape {tuple(part.shape)} declared over {part.untyped_storage().nbytes()} bytes"
            )
