"""Matched comparison of SAE probes with baselines: who wins, by how much, and how sure that is.

A decision is one dataset in one condition at one layer. Contenders are compared only over decisions that all of them have.
A contender with several probes for a decision (a quiver) takes the one with the best val_auc and is scored by its test_auc;
ties in val_auc, which decide much of the paper's scarcity setting, are resolved in expectation over a uniformly random
choice. Nothing is ever picked by test_auc.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from utils.tidy_results import BASELINE, CONTROL, SAE

CONTENDERS = ("quiver_baselines", "quiver_with_sae", "sae_only", "logreg", "random_sae")
TITLES = {
    "quiver_baselines": "best baseline",
    "quiver_with_sae": "baselines + SAE",
    "sae_only": "SAE probe",
    "logreg": "logreg",
    "random_sae": "random-SAE control",
}
DECISION = ["setting", "condition", "dataset", "layer"]
N_RESAMPLES = 2000
TIE = 1e-12  # val_auc this close are tied
ALL = "all"


def pick(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a decision: test_auc expected over the probes tied at the best val_auc, its range, and whether it was a tie.

    A decision between several probes without val_auc cannot be made and is left out; a single probe needs no decision (the
    published OOD table has one SAE probe and one baseline, and no val_auc).
    """
    by_decision = rows.groupby(DECISION)
    best = by_decision["val_auc"].transform("max")
    alone = by_decision["test_auc"].transform("size") == 1
    tied = rows[(rows["val_auc"] >= best - TIE) | alone]
    grouped = tied.groupby(DECISION)
    picked = grouped["test_auc"].agg(test_auc="mean", lowest="min", highest="max", n_tied="size")
    picked["val_auc"] = grouped["val_auc"].max()
    return picked.reset_index()


def contenders(tidy: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The picks of every contender that has probes in the table."""
    rows = tidy.dropna(subset=["test_auc"])
    masks = {
        "quiver_baselines": rows["kind"] == BASELINE,
        "quiver_with_sae": rows["kind"].isin([BASELINE, SAE]),
        "sae_only": rows["kind"] == SAE,
        "logreg": (rows["kind"] == BASELINE) & (rows["method"] == "logreg"),
        "random_sae": rows["kind"] == CONTROL,
    }
    picks = {name: pick(rows[mask]) for name, mask in masks.items() if mask.any()}
    return {name: picked for name, picked in picks.items() if len(picked)}


def matched(picks: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The picks over the decisions that all contenders have, in the same order."""
    shared = None
    for picked in picks.values():
        index = pd.MultiIndex.from_frame(picked[DECISION])
        shared = index if shared is None else shared.intersection(index)
    shared = shared.sort_values() if shared is not None else shared
    return {name: picked.set_index(DECISION).loc[shared].reset_index() for name, picked in picks.items()}


def compare(tidy: pd.DataFrame) -> pd.DataFrame:
    """Per setting and condition (and "all" of them), a row a contender, against the quiver of baselines.

    Columns: setting, condition, contender, mean_test_auc, n_datasets, n_pairs (matched decisions), then n_unmatched, the range
    of the mean over tie rules (lowest, highest), tie_share, and against quiver_baselines: mean_difference with a 95 %
    bootstrap interval over datasets (ci_low, ci_high), wins, ties, losses, and Wilcoxon p with Holm's correction (p_holm).
    """
    tables = []
    for setting, of_setting in tidy.groupby("setting", sort=False):
        picks = contenders(of_setting)
        if not {"quiver_baselines", "sae_only"} <= set(picks):
            continue
        present = matched({name: picks[name] for name in picks})
        decisions = {tuple(row) for p in picks.values() for row in p[DECISION].itertuples(index=False)}
        conditions = sorted(present["quiver_baselines"]["condition"].unique(), key=str)
        groups = [c for c in conditions if c != ALL]
        table = [_rows(setting, c, {n: p[p["condition"] == c] for n, p in present.items()}) for c in groups]
        table.append(_rows(setting, ALL, present))
        frame = pd.DataFrame([row for rows in table for row in rows])
        unmatched = len(decisions) - len(present["quiver_baselines"])
        frame["n_unmatched"] = np.where(frame["condition"] == ALL, unmatched, 0)
        tables.append(_holm(frame))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _rows(setting: str, condition: object, picks: dict[str, pd.DataFrame]) -> list[dict]:
    reference = picks["quiver_baselines"]
    rows = []
    for name in CONTENDERS:
        if name not in picks or not len(picks[name]):
            continue
        picked = picks[name]
        row = {
            "setting": setting,
            "condition": condition,
            "contender": name,
            "mean_test_auc": picked["test_auc"].mean(),
            "n_datasets": picked["dataset"].nunique(),
            "n_pairs": len(picked),
            "lowest": picked["lowest"].mean(),
            "highest": picked["highest"].mean(),
            "tie_share": float((picked["n_tied"] > 1).mean()),
            "mean_val_auc": picked["val_auc"].mean(),
        }
        if name != "quiver_baselines":
            difference = picked["test_auc"].to_numpy() - reference["test_auc"].to_numpy()
            row |= difference_statistics(difference, reference["dataset"].to_numpy())
        rows.append(row)
    return rows


def difference_statistics(difference: np.ndarray, datasets: np.ndarray) -> dict:
    """Mean difference [n_pairs], its interval from a bootstrap over datasets, wins, ties, losses and Wilcoxon's p."""
    from scipy.stats import wilcoxon

    low, high = bootstrap_interval(difference, datasets)
    # one value a dataset: conditions of a dataset are not independent
    per_dataset = pd.Series(difference).groupby(datasets).mean().to_numpy()
    moved = per_dataset[np.abs(per_dataset) > TIE]
    return {
        "mean_difference": difference.mean(),
        "ci_low": low,
        "ci_high": high,
        "wins": int((difference > TIE).sum()),
        "ties": int((np.abs(difference) <= TIE).sum()),
        "losses": int((difference < -TIE).sum()),
        "p_wilcoxon": float(wilcoxon(per_dataset).pvalue) if len(moved) > 0 and len(per_dataset) > 1 else np.nan,
    }


def bootstrap_interval(values: np.ndarray, datasets: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values [n], resampling whole datasets; (NaN, NaN) for fewer than two datasets."""
    names, codes = np.unique(datasets, return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    sums, counts = np.bincount(codes, weights=values), np.bincount(codes)
    drawn = np.random.default_rng(seed).integers(len(names), size=(N_RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _holm(frame: pd.DataFrame) -> pd.DataFrame:
    """Add p_holm: Holm's correction over the conditions of a setting, contender by contender."""
    frame = frame.copy()
    frame["p_holm"] = np.nan
    for _, group in frame[frame["condition"] != ALL].groupby("contender"):
        p = group["p_wilcoxon"].dropna().sort_values()
        corrected = np.minimum(1.0, np.maximum.accumulate(p.to_numpy() * np.arange(len(p), 0, -1)))
        frame.loc[p.index, "p_holm"] = corrected
    return frame


def by_sae(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row a setting and SAE (controls too): its probe (k picked by val_auc) against the best baseline on matched decisions.

    Columns: setting, SAE, SAE probe and best baseline (mean test AUC), difference with its interval, ahead on, of.
    """
    rows = []
    for setting, of_setting in tidy.groupby("setting", sort=False):
        baselines = contenders(of_setting).get("quiver_baselines")
        probes = of_setting[of_setting["kind"].isin([SAE, CONTROL])].dropna(subset=["test_auc"])
        for sae_id, of_sae in probes.groupby("sae_id"):
            picked = pick(of_sae)
            if baselines is None or not len(picked):
                continue
            both = matched({"sae": picked, "baseline": baselines})
            difference = (both["sae"]["test_auc"] - both["baseline"]["test_auc"]).to_numpy()
            if not len(difference):
                continue
            low, high = bootstrap_interval(difference, both["sae"]["dataset"].to_numpy())
            rows.append(
                {
                    "setting": setting,
                    "SAE": sae_id,
                    "SAE probe": both["sae"]["test_auc"].mean(),
                    "best baseline": both["baseline"]["test_auc"].mean(),
                    "difference": difference.mean(),
                    "95 % from": low,
                    "to": high,
                    "ahead on": int((difference > TIE).sum()),
                    "of": len(difference),
                }
            )
    return pd.DataFrame(rows)


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Setting by contender: mean test AUC over all matched decisions, with the number of datasets."""
    overall = table[table["condition"] == ALL]
    wide = overall.pivot(index="setting", columns="contender", values="mean_test_auc")
    wide = wide[[name for name in CONTENDERS if name in wide.columns]].rename(columns=TITLES)
    n = overall.drop_duplicates("setting").set_index("setting")[["n_datasets", "n_pairs"]]
    return wide.join(n).reindex(list(dict.fromkeys(overall["setting"])))
