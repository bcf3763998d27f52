"""SAE activations on disk, sparse: one set of files a dataset and SAE, from which every condition takes its rows.

``normal_setting/{stem}_X_train_sae.pt`` and ``_X_test_sae.pt`` hold the rows of the paper's normal split in the paper's
order, ``_X_rest_sae.pt`` the rows that split leaves out, so that together they are the whole dataset once: scarcity, class
imbalance and label noise only draw other rows from it. ``OOD_setting`` holds the OOD split. All are sparse CSR tensors of
8 bytes a nonzero; ``torch.load(path, weights_only=True).to_dense().float()`` reads them.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from utils.errors import UserError
from utils.paths import Paths
from utils.runtime import write_json
from utils.saes import SparseRows
from utils.settings import Condition, Split, split
from utils.tensors import load_tensor, save_tensor

X_PARTS = {"normal": ("X_train_sae", "X_rest_sae", "X_test_sae"), "OOD": ("X_train_sae", "X_test_sae")}


@dataclass(frozen=True)
class SaeFiles:
    """The files of one dataset and SAE in the normal or OOD setting."""

    paths: Paths
    model_name: str
    setting: str
    dataset: str
    sae_id: str

    def path(self, part: str) -> Path:
        return self.paths.sae_activations(self.model_name, self.setting, self.dataset, self.sae_id, part)

    @property
    def description_path(self) -> Path:
        return self.path("X").with_name(self.path("X").name.removesuffix("_X.pt") + ".json")

    def description(self) -> dict:
        """What the files were made from; {} where others made them or they are unfinished."""
        try:
            return json.loads(self.description_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def is_done(self, made_from: dict) -> bool:
        """Whether all files are there and were made from this."""
        parts = (*X_PARTS[self.setting], "y_train", "y_test")
        return self.description() == made_from and all(self.path(part).is_file() for part in parts)

    def write(
        self, rows: csr_array, condition_split: Split, rest: np.ndarray | None, ood_rows: csr_array | None, made_from: dict
    ) -> None:
        """Write X and y of the split; the description comes last and says that the set is whole.

        rows: [n_rows, d_sae] of the dataset; ood_rows: those of the OOD file, which the OOD split's test indexes.
        """
        self.description_path.unlink(missing_ok=True)
        test_rows = rows if ood_rows is None else ood_rows
        save_sparse(self.path("X_train_sae"), rows[condition_split.train])
        save_sparse(self.path("X_test_sae"), test_rows[condition_split.test])
        if rest is not None:
            save_sparse(self.path("X_rest_sae"), rows[rest])
        save_tensor(self.path("y_train"), torch.tensor(condition_split.y_train))
        save_tensor(self.path("y_test"), torch.tensor(condition_split.y_test))
        write_json(self.description_path, made_from)


def to_csr(rows: SparseRows, d_sae: int) -> csr_array:
    """[n_rows, d_sae] scipy CSR of encoded rows."""
    return csr_array((rows.values, rows.columns, rows.indptr), shape=(rows.n_rows, d_sae))


def rest_rows(condition_split: Split, n_rows: int) -> np.ndarray:
    """The rows that a split neither trains nor tests on, ascending."""
    return np.setdiff1d(np.arange(n_rows), np.concatenate([condition_split.train, condition_split.test]))


def save_sparse(path: Path, rows: csr_array) -> None:
    """Write [n_rows, d_sae] as a torch CSR tensor with 32-bit indices."""
    if rows.nnz >= 2**31:
        raise UserError(f"{path.name} would hold {rows.nnz} nonzeros, more than 32-bit indices allow: use fewer rows")
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
    """[n_rows, d_sae] float32 from a sparse file of ours (CSR), of the original scripts (COO), or a dense one.

    Raises UserError when the file is missing, broken, or holds NaN or infinite values or indices out of range.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        tensor = load_tensor(path, remedy)
    if tensor.ndim != 2:
        raise UserError(f"{path} has {tensor.ndim} dimensions, not [n_rows, d_sae]: {remedy}")
    if tensor.layout == torch.sparse_csr:
        indptr, indices = tensor.crow_indices().numpy(), tensor.col_indices().numpy()
        rows = csr_array((tensor.values().float().numpy(), indices, indptr), shape=tuple(tensor.shape))
    elif tensor.layout == torch.sparse_coo:
        row, column = tensor._indices().numpy()
        values = tensor._values().float().numpy()
        if len(row) and (min(row.min(), column.min()) < 0 or row.max() >= tensor.shape[0] or column.max() >= tensor.shape[1]):
            raise UserError(f"{path} has indices out of range: {remedy}")
        rows = csr_array((values, (row, column)), shape=tuple(tensor.shape))
    else:
        rows = csr_array(tensor.float().numpy())
    if rows.nnz and (rows.indices.min() < 0 or rows.indices.max() >= rows.shape[1]):
        raise UserError(f"{path} has indices out of range: {remedy}")
    if not np.isfinite(rows.data).all():
        raise UserError(f"{path} has NaN or infinite values: {remedy}")
    return rows


class SaeActivations:
    """The latents of one dataset and SAE, from which every condition takes its rows.

    ``rows``: sparse [n_rows, d_sae] in dataset order; ``labels`` [n_rows]: theirs (the files may cover only the first rows
    of a dataset). Raises UserError when files are missing or do not belong to these labels.
    """

    def __init__(self, paths: Paths, model_name: str, dataset: str, sae_id: str, labels: np.ndarray, remedy: str) -> None:
        files = SaeFiles(paths, model_name, "normal", dataset, sae_id)
        pieces = [load_sparse(files.path(part), remedy) for part in ("X_train_sae", "X_test_sae", "X_rest_sae")]
        stacked = vstack(pieces, format="csr")
        if stacked.shape[0] > len(labels):
            raise UserError(
                f"{files.path('X_train_sae')}: {stacked.shape[0]} rows, but {dataset} has {len(labels)} texts: {remedy}"
            )
        self.labels = labels[: stacked.shape[0]]
        normal = split(Condition("normal"), self.labels)
        _check_labels(files, normal, remedy)
        order = np.empty(len(self.labels), dtype=np.int64)
        order[np.concatenate([normal.train, normal.test, rest_rows(normal, len(self.labels))])] = np.arange(len(order))
        self.rows: csr_array = stacked[order]


def load_ood_split(
    paths: Paths, model_name: str, dataset: str, sae_id: str, labels: np.ndarray, ood_labels: np.ndarray, remedy: str
) -> tuple[csr_array, csr_array, Split]:
    """(training rows, OOD test rows, their labels) as the OOD files hold them.

    Raises UserError when they are missing or have other labels.
    """
    files = SaeFiles(paths, model_name, "OOD", dataset, sae_id)
    n_rows = files.description().get("n_rows") or len(labels)
    ood_split = split(Condition("OOD"), labels[:n_rows], ood_labels=ood_labels)
    _check_labels(files, ood_split, remedy)
    return load_sparse(files.path("X_train_sae"), remedy), load_sparse(files.path("X_test_sae"), remedy), ood_split


def _check_labels(files: SaeFiles, expected: Split, remedy: str) -> None:
    for name, labels in (("y_train", expected.y_train), ("y_test", expected.y_test)):
        found = load_tensor(files.path(name), remedy).numpy()
        if not np.array_equal(found, labels):
            raise UserError(f"{files.path(name)} has other labels than the texts of {files.dataset}: delete it; {remedy}")
