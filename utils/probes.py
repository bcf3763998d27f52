"""Sparse probes: rank latents, fit logistic regression on the first k, choose C on validation rows, score on test rows.

Works on sparse rows: a [n_rows, d_sae] array is never made dense, only its k chosen columns are.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from utils.l1_path import KKT_ACCEPTED, L1Fit, kkt_violation, l1_logistic_path
from utils.scores import Fold, mean_over_folds, roc_auc, score_test_rows, validation_folds

Cs = np.logspace(5, -5, 10)
EPSILON = 1e-6  # keeps the normalisation of latents finite
FINAL_SEED = 1  # of the final fit's shuffle and solver
SELECTIONS = ("mean_diff_normalized", "mean_diff")
PROTOCOLS = ("paper", "nested")
SOLVERS = ("path", "saga")
REG_TYPES = ("l1", "l2")
KS_NORMAL = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
KS_OTHER = (16, 128)


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe is made; the defaults are the paper's, but for the solver (``path`` reaches the optimum, saga does not).

    protocol: "paper" ranks latents on all training rows before validation, which inflates val_auc; "nested" ranks inside
    each fold, and scores a fold at the C that the others choose, so that val_auc is honest.
    """

    reg_type: str = "l1"
    binarize: bool = False
    solver: str = "path"
    latent_selection: str = "mean_diff_normalized"
    protocol: str = "paper"
    seed: int = 42


@dataclass(frozen=True)
class LinearFit:
    """A fitted probe: weights [k] and intercept, whether its solver converged, and which one it was."""

    coef: np.ndarray
    intercept: float
    converged: bool
    solver: str

    def scores(self, X: np.ndarray) -> np.ndarray:
        return X @ self.coef + self.intercept


def rank_latents(X: csr_array, y: np.ndarray, selection: str = "mean_diff_normalized", n_keep: int | None = None) -> np.ndarray:
    """The ``n_keep`` latents (default: all) whose class means are furthest apart, furthest first; ties: lower index first.

    X: sparse [n_rows, d_sae]; y: [n_rows] in {0, 1}. "mean_diff_normalized" divides each latent by its mean absolute value
    over the rows where it is not zero. Class sums and counts of the nonzeros name the candidates; only these are then
    ordered by the paper's dense float32 arithmetic, because on few rows many latents are within rounding of each other.
    """
    d_sae = X.shape[1]
    n_keep = d_sae if n_keep is None else min(n_keep, d_sae)
    normalized = selection == "mean_diff_normalized"
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    positive = y[rows] == 1
    values = X.data.astype(np.float64)
    sums = [np.bincount(X.indices[side], weights=values[side], minlength=d_sae) for side in (positive, ~positive)]
    difference = np.abs(sums[0] / max(int(y.sum()), 1) - sums[1] / max(int(len(y) - y.sum()), 1))
    n_fired = np.bincount(X.indices[values != 0], minlength=d_sae)
    if normalized:
        mean = np.bincount(X.indices, weights=np.abs(values), minlength=d_sae) / (n_fired + EPSILON)
        difference /= mean + EPSILON
    cutoff = np.partition(difference, d_sae - n_keep)[d_sae - n_keep] * (1 - 1e-5)
    candidates = np.flatnonzero((difference >= cutoff) & (n_fired > 0))
    exact = _float32_difference(dense_columns(X, candidates), y, normalized)
    ranking = candidates[np.argsort(-exact, kind="stable")][:n_keep]
    if len(ranking) < n_keep:  # latents that never fire come last
        ranking = np.concatenate([ranking, np.flatnonzero(n_fired == 0)[: n_keep - len(ranking)]])
    return ranking


def _float32_difference(X: np.ndarray, y: np.ndarray, normalized: bool) -> np.ndarray:
    """|mean over positives - mean over negatives| of X [n_rows, n_columns] in torch's float32, as the paper computes it."""
    import torch

    n_columns = X.shape[1]
    # whole vector registers of columns: torch sums the columns left over in another order
    dense = torch.from_numpy(np.pad(X, ((0, 0), (0, -n_columns % 64)))).float()
    if normalized:
        dense = dense / (dense.abs().sum(dim=0) / ((dense != 0).sum(dim=0) + EPSILON) + EPSILON)
    positive = torch.from_numpy(y == 1)
    return (dense[positive].mean(dim=0) - dense[~positive].mean(dim=0)).abs().nan_to_num().numpy()[:n_columns]


def dense_columns(X: csr_array, columns: np.ndarray) -> np.ndarray:
    """float64 [n_rows, n_columns]: the chosen latents, in the order chosen."""
    place = np.full(X.shape[1], -1, dtype=np.int64)
    place[columns] = np.arange(len(columns))
    at = place[X.indices]
    kept = at >= 0
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    dense = np.zeros((X.shape[0], len(columns)))
    dense[rows[kept], at[kept]] = X.data[kept]
    return dense


def fit_sae_probes(
    X_train: csr_array, y_train: np.ndarray, X_test: csr_array, y_test: np.ndarray, ks: Sequence[int], options: ProbeOptions
) -> list[dict]:
    """One row of scores for each k: published columns and how the fit went.

    X_train, X_test: sparse [n_rows, d_sae]; y: [n_rows] in {0, 1}, both classes in y_train.
    """
    n_keep = min(max(ks), X_train.shape[1])
    ranking = rank_latents(X_train, y_train, options.latent_selection, n_keep)
    train = _prepared(X_train, ranking, options)
    test = _prepared(X_test, ranking, options)
    folds = validation_folds(y_train, options.seed)
    fold_data = []
    for fold in folds:
        if options.protocol == "nested":
            fold_ranking = rank_latents(X_train[fold[0]], y_train[fold[0]], options.latent_selection, n_keep)
            fold_data.append(_prepared(X_train, fold_ranking, options))
        else:
            fold_data.append(train)
    results = []
    for k in ks:  # a k beyond d_sae uses every latent: slices below end there
        started = time.perf_counter()
        C, val_auc = choose_C(fold_data, y_train, folds, k, options)
        fit = final_fit(train[:, :k], y_train, C, options)
        scores = fit.scores(test[:, :k])
        if not folds:
            val_auc = roc_auc(y_train, fit.scores(train[:, :k]))
        results.append(
            {
                **score_test_rows(y_test, (scores > 0).astype(np.int64), scores),
                "val_auc": val_auc,
                "k": k,
                "C": C,
                "n_nonzero": int(np.count_nonzero(fit.coef)),
                "fitted_by": fit.solver,
                "converged": fit.converged,
                "n_train": len(y_train),
                "n_test": len(y_test),
                "latents": " ".join(map(str, ranking[:k][:16])),
                "seconds": round(time.perf_counter() - started, 4),
            }
        )
    return results


def choose_C(fold_data: list[np.ndarray], y: np.ndarray, folds: list[Fold], k: int, options: ProbeOptions) -> tuple[float, float]:
    """(C, val_auc): the first C, from the largest down, with the best mean validation AUC; (1, NaN) without folds.

    val_auc is that AUC under the paper's protocol, which is the best of ten and so a little too good. Under "nested" it is
    cross-fitted: the mean over folds of the AUC at the C chosen by the folds that share no validation row with it (a single
    fold is scored in two halves).
    """
    if not folds:
        return 1.0, float("nan")
    aucs = np.zeros((len(folds), len(Cs)))
    halves = np.zeros((2, len(Cs)))
    for i, (train, val) in enumerate(folds):
        X = fold_data[i][:, :k]
        scores = [fit.scores(X[val]) for fit in fit_ladder(X[train], y[train], options)]
        aucs[i] = [roc_auc(y[val], of_fit) for of_fit in scores]
        if options.protocol == "nested" and len(folds) == 1:
            halves = np.array([[roc_auc(y[val][half], s[half]) for s in scores] for half in _stratified_halves(y[val])])
    mean = mean_over_folds(aucs)
    best = int(np.argmax(mean))
    if options.protocol == "paper":
        return float(Cs[best]), float(mean[best])
    if len(folds) == 1:
        return float(Cs[best]), _cross_fitted(halves, np.eye(2) == 0)
    shared = [[bool(np.intersect1d(a, b).size) for _, b in folds] for _, a in folds]
    return float(Cs[best]), _cross_fitted(aucs, ~np.array(shared))


def _stratified_halves(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of y [n] in two halves, each class shared between them; twice all rows where a class has a single one."""
    if min(y.sum(), len(y) - y.sum()) < 2:
        return np.arange(len(y)), np.arange(len(y))
    by_class = [np.flatnonzero(y == label) for label in (0, 1)]
    return np.concatenate([rows[::2] for rows in by_class]), np.concatenate([rows[1::2] for rows in by_class])


def _cross_fitted(aucs: np.ndarray, apart: np.ndarray) -> float:
    """Mean over the rows of aucs [n_parts, n_C] of the AUC at the C chosen by the parts that are ``apart`` [n_parts, n_parts]."""
    others = apart.astype(np.float64) @ aucs
    return float(aucs[np.arange(len(aucs)), np.argmax(others, axis=1)].mean())


def fit_ladder(X: np.ndarray, y: np.ndarray, options: ProbeOptions) -> list[LinearFit]:
    """A fit for each of the ten C."""
    if options.reg_type == "l1" and options.solver == "path":
        # only choosing among them: a fit a little short of its optimum orders the validation rows as well
        fits = l1_logistic_path(X, y, Cs, target=KKT_ACCEPTED)
        return [LinearFit(fit.coef, fit.intercept, fit.converged, "path") for fit in fits]
    return [fit_logistic(X, y, C, options.reg_type, options.seed) for C in Cs]


def final_fit(X: np.ndarray, y: np.ndarray, C: float, options: ProbeOptions) -> LinearFit:
    """The fit at the chosen C on all training rows, shuffled by the paper's seed where the solver heeds their order."""
    if options.reg_type == "l1" and options.solver == "path":
        fit = l1_logistic_path(X, y, np.array([C]))[0]
        if not fit.converged:  # a warm start from stronger penalties gets further than a cold one
            fit = l1_logistic_path(X, y, Cs[Cs <= C * 1.0001])[0]
        return _checked(X, y, fit)
    order = np.random.RandomState(FINAL_SEED).permutation(len(y))
    return fit_logistic(X[order], y[order], C, options.reg_type, FINAL_SEED)


def _checked(X: np.ndarray, y: np.ndarray, fit: L1Fit) -> LinearFit:
    """A path's fit if it meets the optimality conditions, else the better of it and liblinear's coordinate descent."""
    if not fit.converged:
        other = fit_liblinear(X, y, fit.C)
        kkt = kkt_violation(X, y, other.coef, other.intercept, fit.C)
        if kkt < fit.kkt:
            return LinearFit(other.coef, other.intercept, kkt <= KKT_ACCEPTED, "liblinear")
    return LinearFit(fit.coef, fit.intercept, fit.converged, "path")


def fit_liblinear(X: np.ndarray, y: np.ndarray, C: float) -> LinearFit:
    """scikit-learn's liblinear, its penalty on the intercept made negligible."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")  # whether it converged is judged by the optimality conditions
        model = LogisticRegression(
            C=C, intercept_scaling=1e4, max_iter=200, tol=1e-8, random_state=FINAL_SEED, **_penalty("l1", "liblinear")
        ).fit(X, y)
    return LinearFit(model.coef_[0], float(model.intercept_[0]), False, "liblinear")


def fit_logistic(X: np.ndarray, y: np.ndarray, C: float, reg_type: str, seed: int) -> LinearFit:
    """scikit-learn's logistic regression as the paper runs it: saga for L1, lbfgs for L2, at most 1,000 iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=C, max_iter=1000, random_state=seed, **_penalty(reg_type)).fit(X, y)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    solver = "saga" if reg_type == "l1" else "lbfgs"
    return LinearFit(model.coef_[0], float(model.intercept_[0]), converged, solver)


def _penalty(reg_type: str, solver: str = "saga") -> dict:
    """scikit-learn 1.8 renamed penalty="l1" to l1_ratio=1."""
    import sklearn

    if reg_type == "l2":
        return {}
    old = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) < (1, 8)
    return {"solver": solver, "penalty": "l1"} if old else {"solver": solver, "l1_ratio": 1.0}


def _prepared(X: csr_array, columns: np.ndarray, options: ProbeOptions) -> np.ndarray:
    dense = dense_columns(X, columns)
    return (dense > 1).astype(np.float64) if options.binarize else dense
