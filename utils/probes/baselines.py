"""Baseline probes on model activations: the paper's five by its rules (logreg, pca, knn, xgboost,
mlp), and two that cost next to nothing (diff_of_means, lda).

Each takes dense rows [n, d_model] and a seed, and returns test_f1, test_acc, test_auc and val_auc;
``row_scores`` [n_test], and of the linear ones ``probe``, a LinearProbe.
This module does not import torch: its workers run XGBoost, and the two in one process crash on
arm64 macOS.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.probes.k_sparse import (
    PROTOCOLS,
    FoldRows,
    ProbeOptions,
    choose_C,
    final_fit,
    fit_logistic,
)
from utils.probes.linear import LinearFit, LinearProbe, of_scaled
from utils.probes.scores import (
    mean_over_folds,
    outer_folds,
    roc_auc,
    score_test_rows,
    validation_folds,
)
from utils.runtime.errors import UserError
from utils.settings import SEED, TrainTest, get_setting

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler
    from xgboost import Booster, QuantileDMatrix

MAX_PCA = 100
MAX_NEIGHBOURS = 100
XGBOOST_DRAWS = 10
XGBOOST_BINS = 32  # of 256: 5 times faster; mean AUC the same (`make benchmark-probes`)
XGBOOST_GRID = {
    "n_estimators": list(range(50, 300, 50)),
    "max_depth": [2, 3, 4, 5],
    "learning_rate": np.logspace(-3, -1, 10).tolist(),
    "subsample": np.linspace(0.7, 1.0, 5).tolist(),
    "colsample_bytree": np.linspace(0.7, 1.0, 5).tolist(),
    "reg_alpha": np.logspace(-3, 1, 10).tolist(),
    "reg_lambda": np.logspace(-3, 1, 10).tolist(),
    "min_child_weight": list(range(1, 10)),
}
# XGBClassifier's own, where there are too few rows to choose
XGBOOST_UNTUNED = {"n_estimators": 100}
# What the paper's reseeded "random" draw always gives
MLP_SETTINGS = {"hidden_layer_sizes": (16, 16, 16), "learning_rate_init": 10**-2.5, "alpha": 1e-2}


@dataclass(frozen=True)
class Machine:
    """Where trees are grown: "cpu" or "cuda", and threads of the CPU. Threads change no bit of a
    result, a GPU does.
    """

    device: str = "cpu"
    n_threads: int = 1


ONE_THREAD = Machine()


def log_steps(largest: int) -> list[int]:
    """1 … largest in 10 log steps, truncated to integers, distinct."""
    return np.unique(np.logspace(0, np.log2(largest), num=10, base=2, dtype=int)).tolist()


def logreg(rows: TrainTest, seed: int = SEED) -> dict:
    """L2 logistic regression on raw activations, C chosen on validation rows."""
    y_train = rows.y_train
    X_train, X_test, basis = _in_row_span(rows.X_train, rows.X_test)
    folds = validation_folds(y_train, seed)
    options = ProbeOptions(reg_type="l2", seed=seed)
    C, val_auc = choose_C(
        [FoldRows(*fold, X_train) for fold in folds], y_train, X_train.shape[1], options
    )
    fit = final_fit(X_train, y_train, C, options)
    if not folds:
        val_auc = roc_auc(y_train, fit.scores(X_train))
    return {
        **_linear_scores(fit, X_test, rows),
        "probe": LinearProbe(fit.coef if basis is None else basis @ fit.coef, fit.intercept),
        "val_auc": val_auc,
        "C": C,
        "converged": fit.converged,
    }


def pca(rows: TrainTest, seed: int = SEED) -> dict:
    """Logistic regression on the first principal components of all training rows, their number
    chosen on validation rows.

    The components are exact; scikit-learn's default, which the paper used, is an unseeded random
    approximation for arrays of this size, and moves test AUC by up to 0.02 from run to run on hard
    datasets.
    """
    y_train = rows.y_train
    n_most = min(*rows.X_train.shape, MAX_PCA)
    train, test, components = principal_components(rows.X_train, rows.X_test, n_most)
    folds = validation_folds(y_train, seed)
    n_components, val_auc = n_most, float("nan")
    if folds:
        numbers = log_steps(n_most)
        aucs = [
            np.mean(
                [
                    roc_auc(
                        y_train[v],
                        fit_logistic(train[t, :n], y_train[t], 1.0, "l2", seed).scores(
                            train[v, :n]
                        ),
                    )
                    for t, v in folds
                ]
            )
            for n in numbers
        ]
        best = int(np.argmax(aucs))
        n_components, val_auc = numbers[best], float(aucs[best])
    fit = fit_logistic(train[:, :n_components], y_train, 1.0, "l2", seed)
    if not folds:
        val_auc = roc_auc(y_train, fit.scores(train))
    return {
        **_linear_scores(fit, test[:, :n_components], rows),
        "probe": components.probe(fit),
        "val_auc": val_auc,
        "converged": fit.converged,
    }


@dataclass(frozen=True)
class Components:
    """Principal components of standardised rows: ``directions`` [n, d], the ``centre`` [d] of the
    standardised rows, and the rows' own ``mean`` and ``scale`` [d].
    """

    directions: np.ndarray
    centre: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def probe(self, fit: LinearFit) -> LinearProbe:
        """A fit on the first components, as a probe on the rows as they are."""
        coef = fit.coef @ self.directions[: len(fit.coef)]
        return of_scaled(coef, fit.intercept - float(self.centre @ coef), self.mean, self.scale)


def principal_components(
    X_train: np.ndarray, X_test: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, Components]:
    """Both arrays in the first ``n`` principal components [n_rows, n] of the standardised training
    rows, and what these are.
    """
    from sklearn.decomposition import PCA

    scaler = _scaler(X_train)
    model = PCA(n_components=n, svd_solver="full")
    train = model.fit_transform(scaler.transform(X_train))
    components = Components(model.components_, model.mean_, scaler.mean_, scaler.scale_)
    return train, model.transform(scaler.transform(X_test)), components


def knn(rows: TrainTest, seed: int = SEED) -> dict:
    """k nearest neighbours on standardised activations; one distance matrix serves every k and
    fold.
    """
    y_train, y_test = rows.y_train, rows.y_test
    X_train, X_test = standardised(rows.X_train, rows.X_test)
    folds = validation_folds(y_train, seed)
    between = _distances(X_train, X_train)
    n_neighbours, val_auc = 1, float("nan")
    if folds:
        largest = min(len(y_train) - 1, MAX_NEIGHBOURS, min(len(train) for train, _ in folds))
        numbers = log_steps(largest)
        aucs = np.zeros((len(folds), len(numbers)))
        for i, (train, val) in enumerate(folds):
            votes = _votes(between[np.ix_(val, train)], y_train[train], largest)
            aucs[i] = [roc_auc(y_train[val], votes[:, n - 1]) for n in numbers]
        mean = mean_over_folds(aucs)
        best = int(np.argmax(mean))
        n_neighbours, val_auc = numbers[best], float(mean[best])
    else:
        val_auc = roc_auc(y_train, _votes(between, y_train, 1)[:, 0])
    scores = _votes(_distances(X_test, X_train), y_train, n_neighbours)[:, n_neighbours - 1]
    predicted = (scores > 0.5).astype(np.int64)
    made = score_test_rows(y_test, predicted, scores, rows.fresh)
    return {**made, "row_scores": scores, "val_auc": val_auc}


def xgboost(rows: TrainTest, seed: int = SEED, on: Machine = ONE_THREAD) -> dict:
    """Gradient-boosted trees, the best of ten seeded random draws from the paper's grid; a fold is
    binned once for all draws.
    """
    y_train, y_test = rows.y_train, rows.y_test
    X_train, X_test = standardised(rows.X_train, rows.X_test)
    rng = random.Random(seed)
    draws = [
        {name: rng.choice(values) for name, values in XGBOOST_GRID.items()}
        for _ in range(XGBOOST_DRAWS)
    ]
    folds = validation_folds(y_train, seed)
    settings, val_auc = XGBOOST_UNTUNED, float("nan")
    if folds:
        aucs = np.zeros((len(folds), len(draws)))
        for i, (train, val) in enumerate(folds):
            binned = _binned(X_train[train], y_train[train], on)
            aucs[i] = [
                roc_auc(
                    y_train[val], _boosted(binned, drawn, seed, on).inplace_predict(X_train[val])
                )
                for drawn in draws
            ]
        mean = mean_over_folds(aucs)
        best = int(np.argmax(mean))
        settings, val_auc = draws[best], float(mean[best])
    model = _boosted(_binned(X_train, y_train, on), settings, seed, on)
    if not folds:
        val_auc = roc_auc(y_train, model.inplace_predict(X_train))
    scores = model.inplace_predict(X_test)
    predicted = (scores > 0.5).astype(np.int64)
    made = score_test_rows(y_test, predicted, scores, rows.fresh)
    return {**made, "row_scores": scores, "val_auc": val_auc}


def _binned(X: np.ndarray, y: np.ndarray, on: Machine) -> QuantileDMatrix:
    from xgboost import QuantileDMatrix

    return QuantileDMatrix(X, y, max_bin=XGBOOST_BINS, nthread=on.n_threads)


def _boosted(binned: QuantileDMatrix, settings: dict, seed: int, on: Machine) -> Booster:
    """XGBClassifier's model for these settings."""
    from xgboost import Booster

    params = {name: value for name, value in settings.items() if name != "n_estimators"}
    params |= {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_bin": XGBOOST_BINS,
        "nthread": on.n_threads,
        "device": on.device,
        "seed": seed,
    }
    # xgboost.train looks for callbacks at every tree, which on few rows is half of the time
    booster = Booster(params, cache=[binned])
    for number in range(settings["n_estimators"]):
        booster.update(binned, number)
    return booster


def mlp(rows: TrainTest, seed: int = SEED) -> dict:
    """A multi-layer perceptron on standardised activations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    y_train, y_test = rows.y_train, rows.y_test
    X_train, X_test = standardised(rows.X_train, rows.X_test)
    folds = validation_folds(y_train, seed)
    settings = MLP_SETTINGS if folds else {"hidden_layer_sizes": (32,)}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        val_aucs = []
        for train, val in folds:
            model = MLPClassifier(max_iter=1000, random_state=seed, **settings).fit(
                X_train[train], y_train[train]
            )
            val_aucs.append(roc_auc(y_train[val], model.predict_proba(X_train[val])[:, 1]))
        model = MLPClassifier(max_iter=1000, random_state=seed, **settings).fit(X_train, y_train)
    val_auc = (
        float(np.mean(val_aucs)) if folds else roc_auc(y_train, model.predict_proba(X_train)[:, 1])
    )
    scores = model.predict_proba(X_test)[:, 1]
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return {
        **score_test_rows(y_test, model.predict(X_test), scores, rows.fresh),
        "row_scores": scores,
        "val_auc": val_auc,
        "converged": converged,
    }


def diff_of_means(rows: TrainTest, seed: int = SEED) -> dict:
    """The direction from the mean of class 0 to that of class 1; the threshold is half way."""
    return _closed_form(mean_direction, rows, seed)


def lda(rows: TrainTest, seed: int = SEED) -> dict:
    """Linear discriminant analysis on standardised activations, its covariance shrunk by Ledoit and
    Wolf's rule.
    """
    scaler = _scaler(rows.X_train)
    X_train, X_test = scaler.transform(rows.X_train), scaler.transform(rows.X_test)
    made = _closed_form(discriminant, replace(rows, X_train=X_train, X_test=X_test), seed)
    probe = made["probe"]
    return made | {"probe": of_scaled(probe.coef, probe.intercept, scaler.mean_, scaler.scale_)}


def _closed_form(
    fit: Callable[[np.ndarray, np.ndarray], LinearFit], rows: TrainTest, seed: int
) -> dict:
    """Scores of a fit that has nothing to choose."""
    X, y = rows.X_train, rows.y_train
    aucs = [
        roc_auc(y[val], fit(X[train], y[train]).scores(X[val]))
        for train, val in validation_folds(y, seed)
    ]
    final = fit(X, y)
    val_auc = float(np.mean(aucs)) if aucs else roc_auc(y, final.scores(X))
    return {
        **_linear_scores(final, rows.X_test, rows),
        "probe": LinearProbe(final.coef, final.intercept),
        "val_auc": val_auc,
        "converged": True,
    }


def mean_direction(X: np.ndarray, y: np.ndarray) -> LinearFit:
    """The difference of the class means of X [n, d]; scores are 0 half way between them."""
    means = [X[y == label].mean(axis=0, dtype=np.float64) for label in (0, 1)]
    direction = means[1] - means[0]
    return LinearFit(direction, -float(direction @ (means[0] + means[1])) / 2, True, "means")


def discriminant(X: np.ndarray, y: np.ndarray, shrinkage: float | None = None) -> LinearFit:
    """Fisher's direction for X [n, d]: the inverse of the shrunk covariance within classes times
    the difference of means; ``shrinkage`` None: Ledoit and Wolf's.

    Solved in the span of the rows where these are fewer than the columns: a d x d matrix is never
    made.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    start = mean_direction(X, y)
    centred = X.astype(np.float64)
    for label in (0, 1):
        centred[y == label] -= centred[y == label].mean(axis=0)
    n, d = centred.shape
    variance = float((centred**2).sum()) / (n * d)
    if variance == 0:  # a row a class, or rows all alike
        return start
    if shrinkage is None:
        shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    ridge, scale = shrinkage * variance, (1 - shrinkage) / n
    ridge = max(ridge, 1e-12 * variance)
    if n < d:
        inner = ridge * np.eye(n) + scale * (centred @ centred.T)
        part = np.linalg.solve(inner, centred @ start.coef)
        coef = (start.coef - scale * (centred.T @ part)) / ridge
    else:
        coef = np.linalg.solve(ridge * np.eye(d) + scale * (centred.T @ centred), start.coef)
    middle = (X[y == 0].mean(axis=0) + X[y == 1].mean(axis=0)) / 2
    return LinearFit(coef, -float(coef @ middle), True, "lda")


@dataclass(frozen=True)
class Baseline:
    """A baseline: its name in tables, its function, and how figures show it (None: as ``looks``
    finds). ``of_paper``: one of the paper's five; ``linear``: it gives a LinearProbe.
    """

    name: str
    fit: Callable[..., dict]  # of rows and a seed; ``grows_trees``: and of a Machine
    look: Look | None = None
    grows_trees: bool = False
    of_paper: bool = True
    linear: bool = False

    def scores(self, rows: TrainTest, seed: int, on: Machine = ONE_THREAD) -> dict:
        """What the baseline scores under the paper's protocol."""
        return self.fit(rows, seed, on) if self.grows_trees else self.fit(rows, seed)

    def __call__(self, rows: TrainTest, seed: int = SEED, protocol: str = PROTOCOLS[0]) -> dict:
        """Its scores under one protocol; see ``by_protocol``."""
        scores = self.by_protocol(rows, seed, [protocol])[protocol]
        return {name: value for name, value in scores.items() if name != "seconds"}

    def by_protocol(
        self, rows: TrainTest, seed: int, protocols: Iterable[str], on: Machine = ONE_THREAD
    ) -> dict[str, dict[str, Any]]:
        """Its scores under each protocol, of one fit, with the seconds that each took. Under
        "paper" val_auc is the best of the settings tried, and so a little too good; under "nested"
        it is of the whole procedure on rows that had no part in it.
        """
        started = time.perf_counter()
        scores = self.scores(rows, seed, on)
        made = {}
        for protocol in protocols:
            val_auc = (
                nested_val_auc(self, rows, seed) if protocol == "nested" else scores["val_auc"]
            )
            seconds = round(time.perf_counter() - started, 4)
            made[protocol] = {**scores, "val_auc": val_auc, "seconds": seconds}
            started = time.perf_counter()
        return made


def nested_val_auc(
    baseline: Baseline, rows: TrainTest, seed: int, on: Machine = ONE_THREAD
) -> float:
    """Mean AUC of a baseline on outer folds: it is made on the rest, its choices included. NaN
    where there are too few rows for a fold.
    """
    X, y = rows.X_train, rows.y_train
    aucs = [
        baseline.scores(TrainTest(X[train], y[train], X[val], y[val]), seed, on)["test_auc"]
        for train, val in outer_folds(y, seed)
    ]
    return float(np.mean(aucs)) if aucs else float("nan")


@dataclass(frozen=True)
class Look:
    """A colour (Okabe and Ito's), a marker and a hatch."""

    color: str
    marker: str
    hatch: str


# A new baseline is a function and a row here; it is then trained, counted, compared and drawn.
METHODS: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("logreg", logreg, Look("#56B4E9", "s", "//"), linear=True),
        Baseline("pca", pca, Look("#E69F00", "v", ".."), linear=True),
        Baseline("knn", knn, Look("#009E73", "P", "")),
        Baseline("xgboost", xgboost, Look("#CC79A7", "X", "xx"), grows_trees=True),
        Baseline("mlp", mlp, Look("#0072B2", "D", "\\\\")),
        Baseline(
            "diff_of_means", diff_of_means, Look("#661100", "d", "++"), of_paper=False, linear=True
        ),
        Baseline("lda", lda, Look("#6699CC", "*", "**"), of_paper=False, linear=True),
    )
}
SPARE_LOOKS = (
    Look("#882255", "<", "||"),
    Look("#44AA99", ">", "--"),
    Look("#999933", "p", "oo"),
    Look("#332288", "h", "O."),
)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How figures show these methods, in the table's order, then those that no row foresaw."""
    asked = set(names)
    ordered = [name for name in METHODS if name in asked] + sorted(asked - set(METHODS))
    spare = cycle(SPARE_LOOKS)
    known = {name: METHODS[name].look for name in ordered if name in METHODS}
    return {name: known.get(name) or next(spare) for name in ordered}


def trees_on(asked: str, device: str) -> str:
    """The device that XGBoost is to use: what was ``asked`` for, where "auto" is ``device``.

    Raises UserError where this XGBoost cannot use it: it would take the CPU without an error.
    """
    from xgboost import build_info

    if device.startswith("cuda"):
        if build_info().get("USE_CUDA"):
            return device
        if asked != "auto":
            raise UserError(
                f"--device {asked}: this XGBoost was built for the CPU alone; `pip uninstall"
                " xgboost-cpu`, then `pip install xgboost`"
            )
    elif device != "cpu" and asked != "auto":
        raise UserError(f"--device {asked}: XGBoost grows its trees on cpu or cuda")
    return "cpu"


def methods_of(setting: str) -> tuple[str, ...]:
    """The baselines of a setting: the paper's choice, or all that there are."""
    return get_setting(setting).baselines or tuple(METHODS)


def paper_methods(setting: str) -> list[str]:
    """Those of the paper alone, which published tables have."""
    return [name for name in methods_of(setting) if METHODS[name].of_paper]


def _linear_scores(fit: LinearFit, X_test: np.ndarray, rows: TrainTest) -> dict:
    scores = fit.scores(X_test)
    made = score_test_rows(rows.y_test, (scores > 0).astype(np.int64), scores, rows.fresh)
    return {**made, "row_scores": scores}


def standardised(X_train: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with the training rows' mean and deviation taken out."""
    scaler = _scaler(X_train)
    return scaler.transform(X_train), scaler.transform(X_test)


def _scaler(X: np.ndarray) -> StandardScaler:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit(X)


UNLIKE = 1e4  # times the usual size of a dimension


def _in_row_span(
    X_train: np.ndarray, X_test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The same inner products in at most n_train dimensions, and their basis [d, rank]; None where
    the dimensions are kept.

    The weights of an L2 fit lie in the span of the training rows, so with fewer rows than
    dimensions the fit on an orthonormal basis of that span is the same fit, on smaller arrays.
    """
    n, d = X_train.shape
    X_train, X_test = X_train.astype(np.float64), X_test.astype(np.float64)
    if n >= d:
        return X_train, X_test, None
    norms = np.linalg.norm(X_train, axis=0)
    if norms.max() > UNLIKE * np.median(norms):
        # products of such rows lose what the small dimensions say; orthonormal columns do not
        basis = np.linalg.qr(X_train.T)[0]  # [d, n]
        return X_train @ basis, X_test @ basis, basis
    values, vectors = np.linalg.eigh(X_train @ X_train.T)
    kept = values > values.max() * 1e-12
    basis = (vectors[:, kept] / np.sqrt(values[kept])).T @ X_train  # [rank, d], orthonormal rows
    return X_train @ basis.T, X_test @ basis.T, basis.T


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [len(a), len(b)], exact to rounding."""
    from sklearn.metrics.pairwise import euclidean_distances

    return euclidean_distances(a, b, squared=True)


def _votes(distances: np.ndarray, y: np.ndarray, largest: int) -> np.ndarray:
    """[n, largest]: column m - 1 is the share of class 1 among the m nearest."""
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :largest]
    return np.cumsum(y[nearest], axis=1) / np.arange(1, nearest.shape[1] + 1)
