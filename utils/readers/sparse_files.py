"""Sparse rows [n_rows, d_sae] in memory and in ``.pt`` files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from utils.readers.pt_files import load_tensor, save_tensor
from utils.runtime.errors import UserError

# of a file; 5,000 rows and 1M latents are the most there are
MAX_STORED_ROWS, MAX_LATENTS = 1 << 20, 1 << 24


@dataclass
class SparseRows:
    """Rows of latents in CSR form: ``indptr`` int64 [n_rows + 1], ``columns`` int32 and ``values``
    float32 [n_nonzero].
    """

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.indptr) - 1


def to_csr(rows: SparseRows, d_sae: int) -> csr_array:
    """[n_rows, d_sae] scipy CSR of encoded rows."""
    return csr_array((rows.values, rows.columns, rows.indptr), shape=(rows.n_rows, d_sae))


def save_sparse(path: Path, rows: csr_array) -> None:
    """Write [n_rows, d_sae] as a torch CSR tensor with 32-bit indices."""
    import torch

    if rows.nnz >= 2**31:
        raise UserError(
            f"{path.name} would hold {rows.nnz} nonzeros, more than 32-bit indices allow: use fewer"
            " rows"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        tensor = torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr.astype(np.int32)),
            torch.from_numpy(rows.indices.astype(np.int32)),
            torch.from_numpy(rows.data.astype(np.float32)),
            size=rows.shape,
            check_invariants=False,  # scipy's CSR keeps them
        )
    save_tensor(path, tensor)


def load_sparse(path: Path, remedy: str) -> csr_array:
    """[n_rows, d_sae] float32 from a sparse file of ours (CSR), of the original scripts (COO), or a
    dense one.

    Raises UserError when the file is missing, broken, or holds NaN or infinite values or indices
    out of range.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        tensor = load_tensor(path, remedy)
    remedy = f"delete it, then {remedy}"
    if tensor.ndim != 2 or tensor.dense_dim() not in (0, 2) or tensor.is_complex():
        raise UserError(
            f"{path} has {tensor.ndim} dimensions of {tensor.dtype}, not [n_rows, d_sae] numbers:"
            f" {remedy}"
        )
    n_rows, n_columns = tensor.shape
    if n_rows > MAX_STORED_ROWS or n_columns > MAX_LATENTS:
        raise UserError(
            f"{path} declares shape {(n_rows, n_columns)}, more than any dataset and SAE have:"
            f" {remedy}"
        )
    if tensor.layout == torch.strided:
        rows = csr_array(tensor.float().numpy())
    elif tensor.layout == torch.sparse_csr:
        indptr, indices = tensor.crow_indices().numpy(), tensor.col_indices().numpy()
        values = tensor.values().float().numpy()
        steps = np.diff(indptr)
        if (
            len(steps) != n_rows
            or indptr[0] != 0
            or (steps < 0).any()
            or not indptr[-1] == len(indices) == len(values)
        ):
            raise UserError(f"{path} has row pointers that do not fit its values: {remedy}")
        if len(indices) and (indices.min() < 0 or indices.max() >= n_columns):
            raise UserError(f"{path} has indices out of range: {remedy}")
        rows = csr_array((values, indices, indptr), shape=(n_rows, n_columns))
    else:
        row, column = tensor._indices().numpy()
        values = tensor._values().float().numpy()
        if len(row) and (
            min(row.min(), column.min()) < 0 or row.max() >= n_rows or column.max() >= n_columns
        ):
            raise UserError(f"{path} has indices out of range: {remedy}")
        rows = csr_array((values, (row, column)), shape=(n_rows, n_columns))
    rows.sum_duplicates()
    if not np.isfinite(rows.data).all():
        raise UserError(f"{path} has NaN or infinite values: {remedy}")
    return rows
