"""Matched comparison of SAE probes with baselines: who wins, by how much, and how sure that is.

A decision is one dataset in one condition at one layer, with one seed of its rows. Contenders are
compared only over decisions that all of them have, and a control only with those that it has too. A
contender with several probes for a decision (a quiver) takes the one with the best val_auc and is
scored by its test_auc; ties in val_auc, which decide much of the paper's scarcity setting, are
resolved in expectation over a uniformly random choice. Nothing is ever picked by test_auc.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from utils.probes.k_sparse import PROTOCOLS
from utils.results.tidy import BASELINE, CONTROL, SAE

CONTENDERS = ("quiver_baselines", "quiver_with_sae", "sae_only", "logreg")
# contender: method
CONTROL_METHODS = {"random_sae": "random_sae_probe", "raw_dims": "raw_dims", "pca_dims": "pca_dims"}
TITLES = {
    "quiver_baselines": "best baseline",
    "quiver_with_sae": "baselines + SAE",
    "sae_only": "SAE probe",
    "logreg": "logreg",
    "random_sae": "random-SAE control",
    "raw_dims": "raw dimensions",
    "pca_dims": "principal components",
}
DECISION = ["setting", "condition", "dataset", "layer", "seed"]
N_RESAMPLES = 2000
TIE = 1e-12  # val_auc this close are tied
ALL = "all"
COLUMNS = (
    "setting", "condition", "contender", "mean_test_auc", "n_datasets", "n_pairs", "protocol",
    "n_unmatched", "lowest", "highest", "tie_share", "mean_val_auc", "mean_difference", "ci_low",
    "ci_high", "wins", "ties", "losses", "p_wilcoxon", "p_holm",
)  # fmt: skip


def pick(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a decision: test_auc expected over the probes tied at the best val_auc, its range,
    and whether it was a tie.

    A probe without val_auc is not picked, unless it is the only one and needs no picking (the
    published OOD tables have one baseline a dataset, without val_auc).
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
    """The picks of every contender that has probes in the table.

    All SAE probes of a decision compete, whatever their solver, penalty and selection; ``audit``
    says where these are mixed.
    """
    rows = tidy.dropna(subset=["test_auc"])
    masks = {
        "quiver_baselines": rows["kind"] == BASELINE,
        "quiver_with_sae": rows["kind"].isin([BASELINE, SAE]),
        "sae_only": rows["kind"] == SAE,
        "logreg": (rows["kind"] == BASELINE) & (rows["method"] == "logreg"),
    }
    masks |= {
        name: (rows["kind"] == CONTROL) & (rows["method"] == method)
        for name, method in CONTROL_METHODS.items()
    }
    picks = {name: pick(rows[mask]) for name, mask in masks.items() if mask.any()}
    if {"quiver_baselines", "sae_only"} <= set(picks):
        picks["quiver_with_sae"] = _rankable(
            picks["quiver_with_sae"], picks["quiver_baselines"], picks["sae_only"]
        )
    return {name: picked for name, picked in picks.items() if len(picked)}


def _rankable(either: pd.DataFrame, *sides: pd.DataFrame) -> pd.DataFrame:
    """The decisions of ``either`` in which each side was picked by a val_auc: what has none can be
    neither first nor second.
    """
    unranked = pd.concat([side.loc[side["val_auc"].isna(), DECISION] for side in sides])
    return either[
        ~pd.MultiIndex.from_frame(either[DECISION]).isin(pd.MultiIndex.from_frame(unranked))
    ]


def matched(picks: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The picks over the decisions that all contenders have, in the same order."""
    indexes = [pd.MultiIndex.from_frame(picked[DECISION]) for picked in picks.values()]
    shared = set(indexes[0]).intersection(*indexes[1:]) if indexes else set()
    # layers are numbers and "embed"
    order = sorted(shared, key=lambda decision: tuple(map(str, decision)))
    return {
        name: (
            picked.set_index(DECISION)
            .reindex(pd.MultiIndex.from_tuples(order, names=DECISION))
            .reset_index()
            if order
            else picked.iloc[:0]
        )
        for name, picked in picks.items()
    }


def protocols(tidy: pd.DataFrame) -> list[str]:
    """The protocols of the SAE probes in a table, the paper's first."""
    found = set(tidy.loc[tidy["kind"] == SAE, "protocol"].dropna())
    return [protocol for protocol in PROTOCOLS if protocol in found]


def of_protocol(tidy: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows of a protocol: its probes on latents and controls, and all baselines, which have
    none.
    """
    return tidy[(tidy["kind"] == BASELINE) | (tidy["protocol"] == protocol)]


def compare(tidy: pd.DataFrame) -> pd.DataFrame:
    """Per setting, protocol and condition (and "all" of them), a row a contender, against the
    quiver of baselines.

    Columns: setting, condition, contender, mean_test_auc, n_datasets, n_pairs (matched decisions),
    then protocol, n_unmatched, the range of the mean over tie rules (lowest, highest), tie_share,
    mean_val_auc, and against quiver_baselines: mean_difference with a 95 % bootstrap interval over
    datasets (ci_low, ci_high), wins, ties, losses, and Wilcoxon p with Holm's correction (p_holm).
    """
    tables = []
    for setting, of_setting in tidy.groupby("setting", sort=False):
        for protocol in protocols(of_setting):
            picks = contenders(of_protocol(of_setting, protocol))
            if {"quiver_baselines", "sae_only"} <= set(picks) and len(_core(picks)["sae_only"]):
                tables.append(_compare_picks(setting, picks).assign(protocol=protocol))
    return (
        pd.concat(tables, ignore_index=True).reindex(columns=list(COLUMNS))
        if tables
        else pd.DataFrame(columns=list(COLUMNS))
    )


def _core(picks: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The contenders but the controls, over the decisions that baselines and SAE probes both have.

    Baselines and SAEs together may be rankable nowhere (published OOD tables have no val_auc): then
    they are left out.
    """
    both = matched({name: picks[name] for name in ("quiver_baselines", "sae_only")})
    wanted = {name: picks[name] for name in CONTENDERS if name in picks}
    shared = matched(wanted)
    if len(shared["sae_only"]) or not len(both["sae_only"]):
        return shared
    return matched({name: picked for name, picked in wanted.items() if name != "quiver_with_sae"})


def _compare_picks(setting: object, picks: dict[str, pd.DataFrame]) -> pd.DataFrame:
    present = _core(picks)
    pairs = {name: (picked, present["quiver_baselines"]) for name, picked in present.items()}
    for name in CONTROL_METHODS:
        if name in picks:
            both = matched({name: picks[name], "baseline": present["quiver_baselines"]})
            pairs[name] = (both[name], both["baseline"])
    conditions = [
        c
        for c in sorted(present["quiver_baselines"]["condition"].unique(), key=_sortable)
        if c != ALL
    ]
    rows = [
        row
        for c in conditions
        for row in _rows(setting, c, {n: _only(p, c) for n, p in pairs.items()})
    ]
    frame = pd.DataFrame(rows + _rows(setting, ALL, pairs))
    decisions = {
        tuple(row) for name in present for row in picks[name][DECISION].itertuples(index=False)
    }
    unmatched = len(decisions) - len(present["quiver_baselines"])
    frame["n_unmatched"] = np.where(frame["condition"] == ALL, unmatched, 0)
    return _holm(frame)


def _only(
    pair: tuple[pd.DataFrame, pd.DataFrame], condition: object
) -> tuple[pd.DataFrame, pd.DataFrame]:
    picked, reference = pair
    return picked[picked["condition"] == condition], reference[reference["condition"] == condition]


def _rows(
    setting: object, condition: object, pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]]
) -> list[dict]:
    """A row a contender; each comes with the baselines' picks for the same decisions."""
    rows = []
    for name, (picked, reference) in pairs.items():
        if not len(picked):
            continue
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
    """Mean difference [n_pairs], its interval from a bootstrap over datasets, wins, ties, losses
    and Wilcoxon's p.
    """
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
        "p_wilcoxon": (
            float(wilcoxon(per_dataset).pvalue)
            if len(moved) > 0 and len(per_dataset) > 1
            else np.nan
        ),
    }


def bootstrap_interval(
    values: np.ndarray, datasets: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of values [n], resampling whole datasets; (NaN, NaN) for fewer than
    two datasets.
    """
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


def _sortable(condition: object) -> float:
    return -1.0 if condition == ALL else float(str(condition))


def by_sae(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row a setting, protocol and SAE (controls too): its probe, k picked by val_auc, against the
    best baseline, matched.

    Columns: setting, SAE or control, protocol, mean test AUC of both sides, difference with its
    interval, ahead on, of.
    """
    rows = []
    for setting, of_setting in tidy.groupby("setting", sort=False):
        baselines = contenders(of_setting).get("quiver_baselines")
        probes = of_setting[of_setting["kind"].isin([SAE, CONTROL])].dropna(subset=["test_auc"])
        for (sae_id, protocol), of_sae in probes.groupby(["sae_id", "protocol"]):
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
                    "SAE or control": sae_id,
                    "protocol": protocol,
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


def val_test_gap(tidy: pd.DataFrame) -> pd.DataFrame:
    """How far validation AUC promises more than test rows keep: a row a setting and condition, over
    all probes, unpicked.

    Columns: setting, condition, then "val - test: …" for the SAE probes of each protocol, all
    baselines, and logreg.
    """
    rows = tidy.dropna(subset=["val_auc", "test_auc"])
    rows = rows.assign(gap=rows["val_auc"] - rows["test_auc"])
    who = {
        f"SAE probes, {protocol}": (rows["kind"] == SAE) & (rows["protocol"] == protocol)
        for protocol in protocols(rows)
    }
    who |= {"baselines": rows["kind"] == BASELINE, "logreg": rows["method"] == "logreg"}
    columns = {
        name: rows[mask].groupby(["setting", "condition"], sort=False)["gap"].mean()
        for name, mask in who.items()
    }
    table = pd.concat(columns, axis=1).dropna(thresh=2).reset_index()
    order = {setting: i for i, setting in enumerate(dict.fromkeys(rows["setting"]))}
    return table.sort_values(
        ["setting", "condition"],
        key=lambda c: c.map(order) if c.name == "setting" else c.map(_sortable),
    )


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Setting (and protocol, where there are two) by contender: mean test AUC over all matched
    decisions, and how many.
    """
    overall = table[table["condition"] == ALL]
    index = ["setting", "protocol"] if overall["protocol"].nunique() > 1 else ["setting"]
    wide = overall.pivot(index=index, columns="contender", values="mean_test_auc")
    wide = wide[[name for name in TITLES if name in wide.columns]].rename(columns=TITLES)
    n = overall.drop_duplicates(index).set_index(index)[["n_datasets", "n_pairs"]]
    return n[[]].join(wide).join(n)
