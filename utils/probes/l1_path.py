"""L1-regularised logistic regression along a ladder of C, to its optimum.

The problem is scikit-learn's (``LogisticRegression`` with an L1 penalty), the intercept
unpenalised:

    F(w, b) = ||w||_1 + C * sum_i log(1 + exp(-s_i (x_i . w + b))),   s_i in {-1, +1}

It is solved from the strongest penalty to the weakest, each solution starting the next, by an
active-set Newton method: inside the orthant of the current signs F is smooth, so a Newton step on
the nonzero weights (and on those zero weights whose gradient exceeds the penalty) converges in a
handful of steps, however badly conditioned the columns are. That is what first-order solvers (saga)
and coordinate descent struggle with at large C. Related: Byrd et al. 2012, "A family of
second-order methods for convex l1-regularized optimization".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.sparse import csr_array
from scipy.special import expit

from utils.probes import compiled
from utils.probes.linear import dense_columns
from utils.probes.scores import Fold

KKT_TARGET = 1e-6  # the solver stops here
KKT_ACCEPTED = 1e-4  # a fit worse than this is not called converged


@dataclass(frozen=True)
class L1Fit:
    """One solution: ``coef`` [n_columns], ``intercept``, and how far it is from optimal (``kkt``,
    in units of the penalty).
    """

    C: float
    coef: np.ndarray
    intercept: float
    objective: float
    kkt: float
    n_steps: int

    @property
    def converged(self) -> bool:
        return self.kkt <= KKT_ACCEPTED

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores [n_rows] for X [n_rows, n_columns]; higher means class 1."""
        return X @ self.coef + self.intercept


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, C: float) -> float:
    """F(coef, intercept) as defined above; X [n_rows, n_columns], y [n_rows] in {0, 1}."""
    z = X @ coef + intercept
    return float(np.abs(coef).sum() + C * np.logaddexp(0.0, np.where(y == 1, -z, z)).sum())


def kkt_violation(
    X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, C: float
) -> float:
    """Largest violation of the optimality conditions, in units of the penalty (0 at the optimum).

    With g = C (X - its columns' means)^T (p - y): |g_j + sign(w_j)| where w_j != 0, max(|g_j| - 1,
    0) where w_j = 0, and
    |C sum(p - y)|. (At the optimum sum(p - y) is 0, and the means take nothing from g.)
    """
    residual = C * (expit(X @ coef + intercept) - y)
    gradient = (X - X.mean(axis=0)).T @ residual
    violation = np.where(coef != 0, np.abs(gradient + np.sign(coef)), np.abs(gradient) - 1)
    return float(max(violation.max(initial=0.0), abs(residual.sum()), 0.0))


def l1_logistic_path(
    X: np.ndarray, y: np.ndarray, Cs: np.ndarray, target: float = KKT_TARGET
) -> list[L1Fit]:
    """Fits for each C of ``Cs``, in the order of ``Cs``, each until it is within ``target`` of
    optimal or gets no further.

    X: [n_rows, n_columns] float; y: [n_rows] in {0, 1}, both classes present.
    """
    if not 0 < np.sum(y) < len(y):
        raise ValueError("both classes must be present in y")
    rising = np.unique(np.asarray(Cs, dtype=np.float64))
    fits, told = compiled.ladder(
        routines(), compiled.plain(X, np.float64), compiled.plain(y, np.int64), rising, target
    )
    of = {
        C: L1Fit(C, fit[:-1], float(fit[-1]), float(objective), float(violation), int(n_steps))
        for C, fit, (objective, violation, n_steps) in zip(rising.tolist(), fits, told)
    }
    return [of[float(C)] for C in Cs]


def validation_aucs(X: np.ndarray, y: np.ndarray, fold: Fold, Cs: np.ndarray) -> np.ndarray:
    """Validation AUC of the fits on a fold's training rows for each C of ``Cs``.

    X: float64 [n_rows, n_columns] in C's order, y: [n_rows] in {0, 1}.

    For choosing a C: a fit a little short of its optimum (KKT_ACCEPTED) orders the validation rows
    as well.
    """
    rising, place = np.unique(np.asarray(Cs, dtype=np.float64), return_inverse=True)
    train, val = fold
    aucs = compiled.fold_aucs(
        routines(), X, compiled.plain(y, np.int64), train, val, rising, KKT_ACCEPTED
    )
    return aucs[place]


@cache
def routines() -> np.ndarray:
    """Where the BLAS and LAPACK of this process are."""
    return compiled.routines()


def warm_up() -> None:
    """Compile the solver, or read what is kept of it, so that workers need not all do it at once.

    Takes a quarter of a minute once, and a tenth of a second after that.
    """
    X, y = np.eye(4), np.array([0, 1, 0, 1])
    l1_logistic_path(X, y, np.ones(1))
    for kind in (np.float32, np.float64):
        dense_columns(csr_array(X.astype(kind)), np.arange(2))
    validation_aucs(X, y, (np.arange(4), np.arange(4)), np.ones(1))
