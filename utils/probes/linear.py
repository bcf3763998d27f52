"""Linear probes as they are applied: columns, weights and an intercept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from utils.probes import compiled


@dataclass(frozen=True)
class LinearFit:
    """A fitted probe: weights [k] and intercept, whether its solver converged, and which one it
    was.
    """

    coef: np.ndarray
    intercept: float
    converged: bool
    solver: str

    def scores(self, X: np.ndarray) -> np.ndarray:
        return X @ self.coef + self.intercept


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe as it is kept and applied to rows as they are on disk: any scaling of its
    columns is in its weights.

    ``columns`` int64 [k]: the latents or dimensions that it reads, None for all; ``coef`` float64
    [k]; ``binarize``: it reads (latent > 1). The sign of a score is the class.
    """

    coef: np.ndarray
    intercept: float
    columns: np.ndarray | None = None
    binarize: bool = False

    def read(self, X: Any) -> np.ndarray:
        """The columns that it reads, float64 [n_rows, k], of X [n_rows, n_columns], dense or
        sparse.
        """
        if self.columns is None:
            return np.asarray(X.toarray() if issparse(X) else X, dtype=np.float64)
        read = (
            dense_columns(X, self.columns)
            if issparse(X)
            else np.asarray(X[:, self.columns], dtype=np.float64)
        )
        return (read > 1).astype(np.float64) if self.binarize else read

    def scores(self, X: Any) -> np.ndarray:
        """float64 [n_rows], the same for a row whatever rows stand beside it."""
        return (self.read(X) * self.coef).sum(axis=1) + self.intercept


def of_scaled(
    coef: np.ndarray, intercept: float, mean: np.ndarray, scale: np.ndarray
) -> LinearProbe:
    """The probe on plain columns that equals one on (column - mean) / scale, arrays [k]."""
    weights = coef / scale
    return LinearProbe(weights, float(intercept - mean @ weights))


def dense_columns(X: csr_array, columns: np.ndarray) -> np.ndarray:
    """float64 [n_rows, n_columns]: the chosen latents, in the order chosen."""
    place = np.full(X.shape[1], -1, dtype=np.int64)
    place[columns] = np.arange(len(columns))
    dense = np.zeros((X.shape[0], len(columns)))
    kept_as = np.float32 if X.data.dtype == np.float32 else np.float64
    starts, indices = compiled.plain(X.indptr, np.int64), compiled.plain(X.indices, np.int32)
    compiled.spread(starts, indices, compiled.plain(X.data, kept_as), place, dense)
    return dense
