"""Sparse probes: rank latents, fit logistic regression on the first k, choose C on validation rows,
score on test rows.

Works on sparse rows: a [n_rows, d_sae] array is never made dense, only its k chosen columns are.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from utils.probes import compiled
from utils.probes.l1_path import (
    KKT_ACCEPTED,
    L1Fit,
    kkt_violation,
    l1_logistic_path,
    validation_aucs,
)
from utils.probes.linear import LinearFit, LinearProbe, dense_columns
from utils.probes.scores import (
    Fold,
    inner_folds,
    mean_over_folds,
    roc_auc,
    score_test_rows,
    validation_folds,
)
from utils.settings import TrainTest

Cs = np.logspace(5, -5, 10)
RANK_BITS = (
    20  # of a latent's rank value that count: where these agree, the lower index comes first
)
FINAL_SEED = 1  # of the final fit's shuffle and solver
SELECTIONS = ("mean_diff_normalized", "mean_diff")
PROTOCOLS = ("paper", "nested")
SOLVERS = ("path", "saga")
REG_TYPES = ("l1", "l2")


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe is made; the defaults are the paper's, but for the solver (``path`` reaches the
    optimum, saga does not).

    protocol: "paper" ranks latents on all training rows before validation, which inflates val_auc.
    "nested" ranks inside each fold, and its val_auc is honest: it scores a fold by a probe in whose
    making, the choice of C included, the fold had no part.
    """

    reg_type: str = "l1"
    binarize: bool = False
    solver: str = "path"
    latent_selection: str = "mean_diff_normalized"
    protocol: str = "paper"
    seed: int = 42


@dataclass(frozen=True)
class Ranking:
    """Latents in the order in which probes take them.

    ``latents`` int64 [n_keep]. ``n_tied`` int64 [n_keep]: where a probe that takes the first i + 1
    latents takes some of a group of equal rank and leaves others, the size of that group; else 0.
    """

    latents: np.ndarray
    n_tied: np.ndarray


def rank_latents(
    X: csr_array, y: np.ndarray, selection: str = "mean_diff_normalized", n_keep: int | None = None
) -> Ranking:
    """The ``n_keep`` latents (default: all) whose class means are furthest apart, furthest first;
    ties: lower index first.

    X: sparse [n_rows, d_sae]; y: [n_rows] in {0, 1}. "mean_diff_normalized" divides each latent by
    its mean absolute value over the rows where it is not zero.

    Values that agree in their first 20 bits (1 to 2 parts in a million) are tied. On 2 to 20 rows
    hundreds of latents are: all that fire in equally many rows of one class and in none of the
    other. The paper's code adds 1e-6 to both denominators and sorts by ``torch.argsort``, which is
    unstable: among tied latents its choice depends on the scale of activations, on the last bit of
    a float32 and on the machine. From about 53 rows on both choose alike.
    """
    d_sae = X.shape[1]
    n_keep = d_sae if n_keep is None else min(n_keep, d_sae)
    value = _rounded(_class_difference(X, y, normalized=selection == "mean_diff_normalized"))
    cut = np.partition(value, d_sae - n_keep)[d_sae - n_keep]
    candidates = np.flatnonzero(value >= cut)
    order = candidates[np.argsort(-value[candidates], kind="stable")]
    falling = -value[order]
    first, end = (
        np.searchsorted(falling, falling[:n_keep], side=side) for side in ("left", "right")
    )
    leaves_some = np.arange(1, n_keep + 1) < end
    return Ranking(order[:n_keep], np.where(leaves_some, end - first, 0))


def _class_difference(X: csr_array, y: np.ndarray, normalized: bool) -> np.ndarray:
    """|mean over positives - mean over negatives| of each latent, float64 [d_sae]."""
    d_sae = X.shape[1]
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    positive = y[rows] == 1
    values = X.data.astype(np.float64)
    sums = [
        np.bincount(X.indices[side], weights=values[side], minlength=d_sae)
        for side in (positive, ~positive)
    ]
    difference = np.abs(sums[0] / max(int(y.sum()), 1) - sums[1] / max(int(len(y) - y.sum()), 1))
    if normalized:
        n_fired = np.bincount(X.indices[values != 0], minlength=d_sae)
        total = np.bincount(X.indices, weights=np.abs(values), minlength=d_sae)
        fires = n_fired > 0
        difference[fires] *= n_fired[fires] / total[fires]
    return difference


def _rounded(values: np.ndarray) -> np.ndarray:
    """Values to 20 bits. By their own bits: a logarithm's last digit would differ from processor to
    processor.
    """
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, RANK_BITS)), exponent - RANK_BITS)


@dataclass(frozen=True)
class FoldRows:
    """A fold: its training and validation rows, and all rows as its probe sees them, ``X`` [n_rows,
    n_columns].

    ``inner``: folds of its training rows, on which the C of an honest score is chosen; empty where
    none is wanted.
    """

    train: np.ndarray
    val: np.ndarray
    X: np.ndarray
    inner: tuple[FoldRows, ...] = ()


def fit_sae_probes(rows: TrainTest, ks: Sequence[int], options: ProbeOptions) -> list[dict]:
    """One row of scores for each k: published columns and how the fit went; ``probe``, a
    LinearProbe, and its ``row_scores`` [n_test]. ``seconds``: of its fits, and its share of the
    ranking, which all k have in common.

    rows: sparse, [n_rows, d_sae], both classes in y_train. val_auc of up to 3 training rows,
    which have no folds: of the training rows under the paper's protocol, NaN under "nested".
    """
    started = time.perf_counter()
    X_train, y_train = rows.X_train, rows.y_train
    n_keep = min(max(ks), X_train.shape[1])
    ranking = rank_latents(X_train, y_train, options.latent_selection, n_keep)
    train = _prepared(X_train, ranking.latents, options)
    test = _prepared(rows.X_test, ranking.latents, options)
    folds = validation_folds(y_train, options.seed)
    if options.protocol == "nested":
        fold_rows = [_nested_fold(X_train, y_train, fold, n_keep, options) for fold in folds]
    else:
        fold_rows = [FoldRows(*fold, train) for fold in folds]
    share = (time.perf_counter() - started) / len(ks)
    results = []
    for k in ks:  # a k beyond d_sae uses every latent: slices below end there
        started = time.perf_counter()
        C, val_auc = choose_C(fold_rows, y_train, k, options)
        fit = final_fit(train[:, :k], y_train, C, options)
        scores = fit.scores(test[:, :k])
        if options.protocol == "nested":
            val_auc = honest_auc(fold_rows, y_train, k, options)
        elif not folds:
            val_auc = roc_auc(y_train, fit.scores(train[:, :k]))
        results.append(
            {
                **score_test_rows(rows.y_test, (scores > 0).astype(np.int64), scores, rows.fresh),
                "val_auc": val_auc,
                "k": k,
                "C": C,
                "n_nonzero": int(np.count_nonzero(fit.coef)),
                "fitted_by": fit.solver,
                "converged": fit.converged,
                "n_train": len(y_train),
                "n_test": len(rows.y_test),
                "n_tied_at_cut": int(ranking.n_tied[min(k, n_keep) - 1]),
                "latents": " ".join(map(str, ranking.latents[:k][:16])),
                "probe": LinearProbe(
                    fit.coef, fit.intercept, ranking.latents[:k], options.binarize
                ),
                "row_scores": scores,
                "seconds": round(share + time.perf_counter() - started, 4),
            }
        )
    return results


def _nested_fold(
    X: csr_array, y: np.ndarray, fold: Fold, n_keep: int, options: ProbeOptions
) -> FoldRows:
    """A fold whose latents are ranked on its own training rows, and those of its inner folds on
    theirs.
    """

    def ranked(train: np.ndarray, val: np.ndarray, inner: tuple[FoldRows, ...] = ()) -> FoldRows:
        ranking = rank_latents(X[train], y[train], options.latent_selection, n_keep)
        return FoldRows(train, val, _prepared(X, ranking.latents, options), inner)

    train, val = fold
    inner = [ranked(train[part], train[rest]) for part, rest in inner_folds(y[train], options.seed)]
    return ranked(train, val, tuple(inner))


def choose_C(
    folds: Sequence[FoldRows], y: np.ndarray, k: int, options: ProbeOptions
) -> tuple[float, float]:
    """(C, its mean validation AUC): the first C, from the largest down, with the best one; (1, NaN)
    without folds.

    The AUC is the best of ten, and so a little too good.
    """
    if not folds:
        return 1.0, float("nan")
    aucs = np.zeros((len(folds), len(Cs)))
    by_path = options.reg_type == "l1" and options.solver == "path"
    X = before = np.empty(0)
    for i, fold in enumerate(folds):
        if fold.X is not before:  # under the paper's protocol the folds share their rows
            X, before = compiled.plain(fold.X[:, :k], np.float64), fold.X
        if by_path:
            aucs[i] = validation_aucs(X, y, (fold.train, fold.val), Cs)
        else:
            fits = [
                fit_logistic(X[fold.train], y[fold.train], C, options.reg_type, options.seed)
                for C in Cs
            ]
            aucs[i] = [roc_auc(y[fold.val], fit.scores(X[fold.val])) for fit in fits]
    mean = mean_over_folds(aucs)
    best = int(np.argmax(mean))
    return float(Cs[best]), float(mean[best])


def honest_auc(folds: Sequence[FoldRows], y: np.ndarray, k: int, options: ProbeOptions) -> float:
    """Mean validation AUC of probes whose C was chosen on their fold's inner folds (1 where it has
    none); NaN without folds.

    0.5 on average where labels mean nothing: no row that is scored had a part in ranking, C or
    weights.
    """
    aucs = []
    for fold in folds:
        X = fold.X[:, :k]
        C, _ = choose_C(fold.inner, y, k, options)
        fit = final_fit(X[fold.train], y[fold.train], C, options)
        aucs.append(roc_auc(y[fold.val], fit.scores(X[fold.val])))
    return float(np.mean(aucs)) if aucs else float("nan")


def final_fit(X: np.ndarray, y: np.ndarray, C: float, options: ProbeOptions) -> LinearFit:
    """The fit at the chosen C on all training rows, shuffled by the paper's seed where the solver
    heeds their order.
    """
    if options.reg_type == "l1" and options.solver == "path":
        fit = l1_logistic_path(X, y, np.array([C]))[0]
        if not fit.converged:  # a start from stronger penalties gets further
            fit = l1_logistic_path(X, y, Cs[Cs <= C * 1.0001])[0]
        return _checked(X, y, fit)
    order = np.random.RandomState(FINAL_SEED).permutation(len(y))
    return fit_logistic(X[order], y[order], C, options.reg_type, FINAL_SEED)


def _checked(X: np.ndarray, y: np.ndarray, fit: L1Fit) -> LinearFit:
    """A path's fit if it meets the optimality conditions, else the better of it and liblinear's
    coordinate descent.
    """
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
        # whether it converged is judged by the optimality conditions
        warnings.simplefilter("always")
        model = LogisticRegression(
            C=C,
            intercept_scaling=1e4,
            max_iter=200,
            tol=1e-8,
            random_state=FINAL_SEED,
            **_penalty("l1", "liblinear"),
        ).fit(X, y)
    return LinearFit(model.coef_[0], float(model.intercept_[0]), False, "liblinear")


def fit_logistic(X: np.ndarray, y: np.ndarray, C: float, reg_type: str, seed: int) -> LinearFit:
    """scikit-learn's logistic regression as the paper runs it: saga for L1, lbfgs for L2, at most
    1,000 iterations.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=C, max_iter=1000, random_state=seed, **_penalty(reg_type)).fit(
            X, y
        )
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
