"""Figures: a table in, a figure out. Nothing here reads files; nothing is drawn from an empty table.

Each contender has one colour (Okabe and Ito's, told apart by the colour-blind), one marker and one hatch (told apart in
grey). The chance line is drawn, the number of datasets and what a band means are written on the figure.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")  # files only: no window, no display needed

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from utils.comparison import ALL, CONTENDERS, CONTROL_METHODS, TITLES
from utils.tidy_results import BASELINE, CONTROL, SAE

STYLE = {
    "quiver_baselines": {"color": "#0072B2", "marker": "o", "hatch": ""},
    "logreg": {"color": "#56B4E9", "marker": "s", "hatch": "//"},
    "sae_only": {"color": "#D55E00", "marker": "^", "hatch": "\\\\"},
    "quiver_with_sae": {"color": "#009E73", "marker": "D", "hatch": ".."},
    "random_sae": {"color": "#8C8C8C", "marker": "x", "hatch": "xx"},
    "raw_dims": {"color": "#000000", "marker": "+", "hatch": "++"},
    "pca_dims": {"color": "#CC79A7", "marker": "*", "hatch": "**"},
}
CONTROL_OF = {method: name for name, method in CONTROL_METHODS.items()}
METHOD_MARKERS = {"logreg": "s", "pca": "v", "knn": "P", "xgboost": "X", "mlp": "D"}
METHOD_COLORS = {"logreg": "#56B4E9", "pca": "#E69F00", "knn": "#009E73", "xgboost": "#CC79A7", "mlp": "#0072B2"}
SAE_MARKERS = ("^", "v", "<", ">", "d", "p")
SAE_COLORS = ("#E69F00", "#D55E00", "#CC79A7", "#882255", "#661100", "#AA4499")
CHANCE = 0.5
BAR_ORDER = ("quiver_baselines", "logreg", "sae_only", "random_sae")

plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.6,
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "pdf.fonttype": 42,
        "svg.hashsalt": "fixed",
    }
)


def setting_bars(comparison: pd.DataFrame) -> Figure:
    """The one-bar-per-setting summary: mean test AUC of each contender over matched decisions."""
    overall = comparison[comparison["condition"] == ALL]
    settings = list(dict.fromkeys(overall["setting"]))
    names = [name for name in BAR_ORDER if name in set(overall["contender"])]
    figure, axes = plt.subplots(figsize=(2.2 + 1.5 * len(settings), 3.6))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        rows = overall[overall["contender"] == name].set_index("setting").reindex(settings)
        places = np.arange(len(settings)) + (i - (len(names) - 1) / 2) * width
        style = STYLE[name]
        axes.bar(places, rows["mean_test_auc"] - CHANCE, width * 0.92, bottom=CHANCE, color=style["color"],
                 hatch=style["hatch"], edgecolor="white", label=TITLES[name])  # fmt: skip
        for x, value in zip(places, rows["mean_test_auc"]):
            if np.isfinite(value):
                axes.text(x, value + 0.006, f"{value:.2f}", ha="center", va="bottom", fontsize=7)
    counts = overall.drop_duplicates("setting").set_index("setting")
    axes.set_xticks(range(len(settings)), [f"{s}\n{_count(counts.loc[s])}" for s in settings])
    axes.set_ylim(CHANCE, 1.02)
    axes.set_ylabel("mean test AUC (0.5 is chance)")
    axes.grid(axis="y")
    _legend_above(figure, axes, len(names))
    return figure


def auc_by_k(tidy: pd.DataFrame) -> Figure:
    """Normal setting, a panel a dataset: test AUC against the number of latents, for each SAE, with baselines as lines."""
    rows = tidy[(tidy["setting"] == "normal") & tidy["kind"].isin([SAE, CONTROL]) & tidy["k"].notna()]
    layers = sorted(rows["layer"].unique())
    baselines = tidy[(tidy["setting"] == "normal") & (tidy["kind"] == BASELINE) & tidy["layer"].isin(layers)]
    datasets = list(dict.fromkeys(rows["dataset"]))
    figure, grid = _panels(len(datasets), height=2.1)
    for axes, dataset in zip(grid, datasets):
        of_dataset = rows[rows["dataset"] == dataset].sort_values(["kind", "sae_id"], ascending=[False, True])
        # trained SAEs first, so that their colours do not depend on whether there is a control
        for i, (_, curve) in enumerate(of_dataset.groupby(["kind", "sae_id"], sort=False)):
            sae_id = curve["sae_id"].iloc[0]
            control = STYLE.get(CONTROL_OF.get(curve["method"].iloc[0], ""))
            curve = curve.groupby("k")["test_auc"].mean()
            axes.plot(
                curve.index,
                curve,
                color=control["color"] if control else SAE_COLORS[i % len(SAE_COLORS)],
                marker=control["marker"] if control else SAE_MARKERS[i % len(SAE_MARKERS)],
                linestyle="--" if control else "-",
                markersize=4,
                linewidth=1.2,
                label=str(sae_id).removeprefix("layer_") + (" (control)" if control else ""),
            )
        best = baselines[(baselines["dataset"] == dataset) & (baselines["method"] == "logreg")]["test_auc"]
        if len(best):
            axes.axhline(best.max(), color=STYLE["logreg"]["color"], linewidth=1.4, linestyle="-.", label="logreg on activations")
        axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_title(dataset, fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        axes.set_ylim(0.45, 1.02)
        axes.grid()
    _shared_labels(figure, grid, "k: latents the probe may use", "test AUC")
    return figure


def quiver_scatter(best_baseline: pd.DataFrame, sae: pd.DataFrame, control: pd.DataFrame | None) -> Figure:
    """Normal setting, a point a dataset: SAE probe against best baseline, both picked by val_auc."""
    figure, axes = plt.subplots(figsize=(4.6, 4.4))
    for name, picked in (("random_sae", control), ("sae_only", sae)):
        if picked is None or not len(picked):
            continue
        both = best_baseline.merge(picked, on=["dataset", "layer"], suffixes=("_baseline", "_sae"))
        wins = int((both["test_auc_sae"] > both["test_auc_baseline"]).sum())
        style = STYLE[name]
        axes.scatter(both["test_auc_baseline"], both["test_auc_sae"], s=28, color=style["color"], marker=style["marker"],
                     label=f"{TITLES[name]}: above the line on {wins} of {len(both)}")  # fmt: skip
    low = 0.45
    axes.plot([low, 1.01], [low, 1.01], color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(low, 1.01)
    axes.set_ylim(low, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel("best baseline, test AUC")
    axes.set_ylabel("SAE probe, test AUC")
    axes.grid()
    _legend_above(figure, axes, 1)
    return figure


def condition_curves(comparison: pd.DataFrame, setting: str, label: str) -> Figure:
    """Mean test AUC over the conditions of a setting, and below it the difference from the best baseline with its interval."""
    rows = comparison[(comparison["setting"] == setting) & (comparison["condition"] != ALL)]
    names = [name for name in STYLE if name in set(rows["contender"])]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.4, 5.2), sharex=True, height_ratios=(3, 2))
    for name in names:
        curve = rows[rows["contender"] == name].sort_values("condition", key=lambda c: c.astype(float))
        x = curve["condition"].astype(float)
        style = STYLE[name]
        line = {"color": style["color"], "marker": style["marker"], "linestyle": "--" if name in CONTROL_METHODS else "-"}
        upper.plot(x, curve["mean_test_auc"], markersize=5, label=TITLES[name], **line)
        if name in CONTENDERS and name != "quiver_baselines":
            lower.plot(x, curve["mean_difference"], markersize=4, **line)
            lower.fill_between(x, curve["ci_low"], curve["ci_high"], color=style["color"], alpha=0.13, linewidth=0)
    lower.axhline(0, color=STYLE["quiver_baselines"]["color"], linewidth=1.2)
    lower.set_ylabel("difference from\nbest baseline")
    lower.set_xlabel(label)
    upper.set_ylabel("mean test AUC")
    counts = rows.groupby("condition")["n_datasets"].max()
    note = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    lower.text(0, -0.42, f"{note} datasets; bands: 95 % bootstrap over datasets", transform=lower.transAxes, fontsize=8)
    if setting == "scarcity":
        values = sorted(rows["condition"].astype(float).unique())
        lower.set_xscale("log", base=2)
        shown = values if len(values) <= 8 else values[::3]
        lower.set_xticks(shown, [f"{v:g}" for v in shown])
        lower.minorticks_off()
    for axes in (upper, lower):
        axes.grid()
    _legend_above(figure, upper, 3)
    return figure


def ood_bars(picks: dict[str, pd.DataFrame], shifts: dict[str, str]) -> Figure:
    """OOD test AUC per dataset and contender, with what was shifted."""
    names = [name for name in BAR_ORDER if name in picks and name != "quiver_baselines"]
    datasets = list(picks[names[0]]["dataset"])
    figure, axes = plt.subplots(figsize=(6.0, 0.7 + 0.62 * len(datasets)))
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        values = picks[name].set_index("dataset")["test_auc"].reindex(datasets)
        places = np.arange(len(datasets)) + (i - (len(names) - 1) / 2) * height
        style = STYLE[name]
        axes.barh(places, values, height * 0.9, color=style["color"], hatch=style["hatch"], edgecolor="white", label=TITLES[name])
        for y, value in zip(places, values):
            axes.text(value + 0.008, y, f"{value:.2f}", va="center", fontsize=7)
    axes.axvline(CHANCE, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(datasets)), [f"{d}\n{shifts.get(d, '')}".strip() for d in datasets], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0.3, 1.04)
    axes.set_xlabel("test AUC out of distribution (dotted: chance)")
    axes.grid(axis="x")
    _legend_above(figure, axes, len(names))
    return figure


def method_by_layer(tidy: pd.DataFrame) -> Figure:
    """Mean test AUC of each baseline at each layer, normal setting."""
    rows = tidy[(tidy["setting"] == "normal") & (tidy["kind"] == BASELINE)]
    layers = sorted(rows["layer"].unique(), key=lambda layer: -1 if layer == "embed" else int(layer))
    figure, axes = plt.subplots(figsize=(2.6 + 0.9 * len(layers), 3.4))
    for method, marker in METHOD_MARKERS.items():
        mean = rows[rows["method"] == method].groupby("layer")["test_auc"].mean().reindex(layers)
        axes.plot(range(len(layers)), mean, marker=marker, color=METHOD_COLORS[method], label=method, linewidth=1.2)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlim(-0.3, len(layers) - 0.7)
    axes.set_xlabel(f"layer ({rows['dataset'].nunique()} datasets)")
    axes.set_ylabel("mean test AUC")
    axes.grid()
    _legend_above(figure, axes, 3)
    return figure


def _count(row: pd.Series) -> str:
    n = f"{int(row['n_datasets'])} datasets"
    return n if row["n_pairs"] == row["n_datasets"] else f"{n},\n{int(row['n_pairs'])} conditions"


def _panels(n: int, height: float) -> tuple[Figure, list]:
    columns = min(4, n)
    rows = -(-n // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.3 * columns, height * rows + 0.5), sharex=True, sharey=True, squeeze=False
    )
    flat = list(grid.flat)
    for axes in flat[n:]:
        axes.set_axis_off()
    return figure, flat[:n]


def _shared_labels(figure: Figure, grid: list, x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)


def _legend_above(figure: Figure, axes, columns: int) -> None:
    figure.tight_layout()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=columns, frameon=False, fontsize=8)
