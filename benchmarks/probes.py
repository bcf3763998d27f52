"""Benchmark of the probes on the demo's data: each side by side with the paper's procedure in
scikit-learn, on one thread.

    python -m benchmarks.probes
    python -m benchmarks.probes --datasets 87_glue_cola 96_spam_is --only ladder

Three parts. ladder: SAE probes with ten k in the normal setting, and with two k on 10, 20 and 143
rows, our path solver against saga.
baselines: the five baselines on activations widened to 3,584 dimensions (a fixed random ReLU
layer), ours against scikit-learn's and XGBoost's plain classes. xgboost: the AUC of both on the
activations as they are. Needs the demo's activations (`make demo`). Writes no results.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from benchmarks.measurements import hand_on
from utils import cli
from utils.activations import load_activations
from utils.datasets import choose_datasets, load_dataset
from utils.models import get_model
from utils.names import hook_name
from utils.paths import Paths
from utils.probes.baselines import (
    METHODS,
    MLP_SETTINGS,
    XGBOOST_DRAWS,
    XGBOOST_GRID,
    log_steps,
    standardised,
)
from utils.probes.k_sparse import Cs, ProbeOptions, fit_sae_probes
from utils.probes.scores import roc_auc, validation_folds
from utils.runtime.errors import UserError
from utils.runtime.progress import progress
from utils.saes.store import SaeActivations
from utils.settings import KS_NORMAL, KS_OTHER, Condition, TrainTest, split

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

MODEL = "all-MiniLM-L6-v2"
SAE_ID = "layer_2/width_1k/topk_32"  # of the demo
WIDE = 3584
PARTS = ("ladder", "baselines", "xgboost")
REMEDY = "run `make demo` first"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_datasets(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts")
    parser.add_argument(
        "--n_wide",
        type=cli.positive,
        default=2,
        help="datasets of the baselines part (minutes each)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    from threadpoolctl import threadpool_limits

    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    hook = hook_name(get_model(MODEL).probe_layer)
    there = {
        path.name.removesuffix(f"_{hook}.pt")
        for path in paths.model_activations_folder(MODEL).glob(f"*_{hook}.pt")
    }
    names = (
        choose_datasets(paths, args.datasets)
        if args.datasets
        else sorted(there & set(choose_datasets(paths, None)))
    )
    if not names:
        raise UserError(f"no activations of {MODEL} in {paths.data_dir}: {REMEDY}")
    with threadpool_limits(1):
        if "ladder" in args.only:
            ladder(paths, names)
        if "baselines" in args.only:
            baselines(paths, names[: args.n_wide])
        if "xgboost" in args.only:
            trees(paths, names)
    return 0


def ladder(paths: Paths, names: list[str]) -> pd.DataFrame:
    """Seconds of both solvers for all k of a dataset, and the difference in test AUC."""
    rng = np.random.default_rng(0)
    warm = csr_array(rng.random((40, 4)))  # loads what both import
    for solver in ("path", "saga"):
        fit_sae_probes(
            TrainTest(warm, np.arange(40) % 2, warm, np.arange(40) % 2),
            [1],
            ProbeOptions(solver=solver),
        )
    rows, few = [], []
    for name in progress(names, desc="path and saga", unit="dataset"):
        activations = SaeActivations(paths, MODEL, name, SAE_ID)
        normal = activations.condition(Condition("normal"))
        rows.append({"dataset": name, **_path_and_saga(normal, KS_NORMAL)})
        for n_train in (10, 20, 143):
            scarce = activations.condition(Condition("scarcity", n_train))
            few.append({"dataset": name, "rows": n_train, **_path_and_saga(scarce, KS_OTHER)})
    tables = pd.DataFrame(rows), pd.DataFrame(few)
    for table, what in zip(tables, ("normal setting, k = 1 to 512", "scarcity, k = 16 and 128")):
        print(f"\nSAE probes, {what}, {SAE_ID}, one thread:")
        print(table.to_string(index=False, float_format="{:.3f}".format))
        ratios = table["ratio"]
        print(f"median ratio {ratios.median():.0f} ({ratios.min():.0f} to {ratios.max():.0f})")
    normal, few_rows = tables
    hand_on(
        ladder_ratio=float(normal["ratio"].median()),
        ladder_least=float(normal["ratio"].min()),
        ladder_apart=float(normal["mean_auc_difference"].mean()),
        ladder_furthest=float(normal["largest"].max()),
        few_rows_ratio=float(few_rows["ratio"].median()),
    )
    return tables[0]


def _path_and_saga(rows: TrainTest, ks: tuple[int, ...]) -> dict[str, float]:
    """Seconds of both solvers, and how far their test AUCs are apart."""
    seconds, aucs = {}, {}
    for solver in ("path", "saga"):
        started = time.perf_counter()
        probes = fit_sae_probes(rows, ks, ProbeOptions(solver=solver))
        seconds[solver] = time.perf_counter() - started
        aucs[solver] = np.array([probe["test_auc"] for probe in probes])
    difference = np.abs(aucs["path"] - aucs["saga"])
    return {
        "path_s": seconds["path"],
        "saga_s": seconds["saga"],
        "ratio": seconds["saga"] / seconds["path"],
        "mean_auc_difference": difference.mean(),
        "largest": difference.max(),
    }


def baselines(paths: Paths, names: list[str]) -> pd.DataFrame:
    """Seconds and test AUC of each baseline, ours and plain, on widened activations."""
    rows = []
    for name in names:
        data = normal_split(paths, name, widen=True)
        for method, plain in progress(PLAIN.items(), desc=f"baselines, {name}", unit="method"):
            ours, theirs = timed(METHODS[method], data), timed(plain, data)
            rows.append(
                {
                    "dataset": name,
                    "method": method,
                    "ours_s": ours[1],
                    "plain_s": theirs[1],
                    "ours_auc": ours[0],
                    "plain_auc": theirs[0],
                    "difference": ours[0] - theirs[0],
                }
            )
    table = pd.DataFrame(rows)
    print(f"\nBaselines on {len(data.y_train)} x {data.X_train.shape[1]}, one thread:")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"ratio of the sums {table['plain_s'].sum() / table['ours_s'].sum():.1f}")
    hand_on(baselines_ratio=table["plain_s"].sum() / table["ours_s"].sum())
    return table


def trees(paths: Paths, names: list[str]) -> pd.DataFrame:
    """Test AUC of XGBoost with our bins and with its own, from the same draws."""
    rows = []
    for name in progress(names, desc="XGBoost", unit="dataset"):
        data = normal_split(paths, name, widen=False)
        ours, theirs = timed(METHODS["xgboost"], data), timed(plain_xgboost, data)
        rows.append(
            {
                "dataset": name,
                "ours_auc": ours[0],
                "plain_auc": theirs[0],
                "ratio": theirs[1] / ours[1],
            }
        )
    table = pd.DataFrame(rows)
    means = table[["ours_auc", "plain_auc"]].mean()
    print(f"\nXGBoost on {len(names)} datasets, {data.X_train.shape[1]} wide:")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(
        f"mean AUC: ours {means['ours_auc']:.4f}, plain {means['plain_auc']:.4f},"
        f" {means['ours_auc'] - means['plain_auc']:+.4f}"
    )
    return table


def normal_split(paths: Paths, name: str, widen: bool) -> TrainTest:
    """The rows of the normal setting, dense."""
    texts = load_dataset(paths, name)
    X = load_activations(
        paths.model_activations(MODEL, name, hook_name(get_model(MODEL).probe_layer)), texts, REMEDY
    )
    if widen:
        layer = np.random.default_rng(0).standard_normal(
            (X.shape[1], WIDE), dtype=np.float32
        ) / np.float32(X.shape[1] ** 0.5)
        X = np.maximum((X - X.mean(axis=0)) / X.std(axis=0) @ layer, 0)
    return split(Condition("normal"), texts.labels[: len(X)]).take(X)


def timed(method: Callable[[TrainTest], dict], rows: TrainTest) -> tuple[float, float]:
    """(test AUC, seconds)."""
    started = time.perf_counter()
    auc = method(rows)["test_auc"]
    return auc, time.perf_counter() - started


# The paper's procedures in the libraries' plain classes, for training sets with a validation fold
# (n > 3).


def plain_logreg(rows: TrainTest) -> dict:
    from sklearn.linear_model import LogisticRegression

    def make(C: float) -> LogisticRegression:
        return LogisticRegression(C=C, max_iter=1000, random_state=42)

    return _choose_and_score([make(C) for C in Cs], rows)


def plain_pca(rows: TrainTest) -> dict:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    rows = _standardised(rows)
    n_most = min(*rows.X_train.shape, 100)
    pca = PCA(n_components=n_most).fit(rows.X_train)
    rows = replace(rows, X_train=pca.transform(rows.X_train), X_test=pca.transform(rows.X_test))
    models = [
        make_pipeline(
            FunctionTransformer(lambda X, n=n: X[:, :n]), LogisticRegression(max_iter=1000)
        )
        for n in log_steps(n_most)
    ]
    return _choose_and_score(models, rows)


def plain_knn(rows: TrainTest) -> dict:
    from sklearn.neighbors import KNeighborsClassifier

    rows = _standardised(rows)
    models = [KNeighborsClassifier(n, n_jobs=1) for n in log_steps(100)]
    return _choose_and_score(models, rows)


def plain_xgboost(rows: TrainTest) -> dict:
    from xgboost import XGBClassifier

    rows = _standardised(rows)
    rng = random.Random(42)
    draws = [
        {name: rng.choice(values) for name, values in XGBOOST_GRID.items()}
        for _ in range(XGBOOST_DRAWS)
    ]
    models = [
        XGBClassifier(n_jobs=1, random_state=42, eval_metric="logloss", **drawn) for drawn in draws
    ]
    return _choose_and_score(models, rows)


def plain_mlp(rows: TrainTest) -> dict:
    from sklearn.neural_network import MLPClassifier

    rows = _standardised(rows)
    return _choose_and_score([MLPClassifier(max_iter=1000, random_state=42, **MLP_SETTINGS)], rows)


def _standardised(rows: TrainTest) -> TrainTest:
    X_train, X_test = standardised(rows.X_train, rows.X_test)
    return replace(rows, X_train=X_train, X_test=X_test)


def _choose_and_score(models: list, rows: TrainTest) -> dict:
    """Test AUC of the model with the best mean validation AUC, refitted on all training rows."""
    X, y = rows.X_train, rows.y_train
    folds = validation_folds(y)
    aucs = [
        np.mean([roc_auc(y[v], _fit_scores(m, X[t], y[t], X[v])) for t, v in folds]) for m in models
    ]
    best = models[int(np.argmax(aucs))]
    return {"test_auc": roc_auc(rows.y_test, _fit_scores(best, X, y, rows.X_test))}


def _fit_scores(model: Any, X_train: np.ndarray, y_train: np.ndarray, X: np.ndarray) -> np.ndarray:
    return model.fit(X_train, y_train).predict_proba(X)[:, 1]


PLAIN = {
    "logreg": plain_logreg,
    "pca": plain_pca,
    "knn": plain_knn,
    "xgboost": plain_xgboost,
    "mlp": plain_mlp,
}


if __name__ == "__main__":
    cli.run(main)
