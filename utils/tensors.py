"""Tensors in ``.pt`` files: read without executing anything, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.datasets import first_line
from utils.errors import UserError
from utils.runtime import atomic_path

if TYPE_CHECKING:
    import torch


def save_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Save one tensor; the same tensor gives the same bytes."""
    import torch

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(tensor, file)  # an open file: given a name, torch would write that (temporary) name into the archive


def load_tensor(path: Path, remedy: str) -> torch.Tensor:
    """A tensor from a ``.pt`` file; nothing in the file is executed.

    Raises UserError when the file is missing, broken, or not a plain tensor.
    """
    import torch

    if not path.is_file():
        raise UserError(f"no file {path}: {remedy}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything: zip, pickle, struct and torch errors
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)[:120]}): delete it, then {remedy}"
        ) from error
    if not isinstance(loaded, torch.Tensor):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a tensor: delete it, then {remedy}")
    return loaded
