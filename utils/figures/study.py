"""Figures of the study: a table in, a figure out. Nothing here reads files; a table that lacks what
a figure shows raises NoData.

The chance line is drawn, the number of datasets and what a band means are written on the figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.style import (
    CHANCE,
    LOOKS,
    SAE_COLORS,
    SAE_MARKERS,
    NoData,
    bar_look,
    draw_chance,
    legend_above,
    line_look,
    log2_axis,
    one_panel,
    panels_in_a_row,
    shared_labels,
    shared_legend,
    small_multiples,
)
from utils.names import Layer, layer_order, named_l0, named_width, sae_family
from utils.probes.baselines import looks
from utils.results.comparison import (
    ALL,
    BASELINES,
    CONTROL_OF,
    CONTROLS,
    CORE,
    DECISION,
    PROBES,
    TITLES,
    matched,
)
from utils.results.statistics import TIE
from utils.results.tidy import BASELINE, CONTROL, SAE
from utils.runtime.units import short_number
from utils.settings import NORMAL, get_setting

SHUFFLED = "shuffled_labels"  # made at one k alone: no curve
MOST_CURVES = 8  # of SAEs: more are one curve, with their range
MOST_PANELS = 12  # of datasets
MOST_NAMED = 30  # datasets of a matrix
INTERVAL = "95 % interval"
UNFILLED = ("x", "+", "1", "2")  # markers without an inside
DOT_ORDER = (PROBES, *CONTROLS[:1], *CONTROLS[2:])
BAR_ORDER = (BASELINES, "quiver_with_sae", "logreg", PROBES, "text_only", "random_sae")


def verdict_dots(stated: pd.DataFrame) -> Figure:
    """Each contender's mean difference from the best baseline with its 95 % interval, a panel a
    setting; of ``compare``, rows over all conditions.
    """
    rows = stated[(stated["contender"] != BASELINES) & stated["mean_difference"].notna()]
    if not len(rows):
        raise NoData("no setting has both baselines and SAE probes")
    settings = list(dict.fromkeys(rows["setting"]))
    names = [name for name in DOT_ORDER if name in set(rows["contender"])]
    height = 1.1 + 0.27 * len(names)
    figure, panels = panels_in_a_row(len(settings), left=1.6, width=2.3, height=height)
    for axes, setting in zip(panels, settings):
        of_setting = rows[rows["setting"] == setting].set_index("contender")
        axes.axvline(0, color=LOOKS[BASELINES].color, linewidth=1.2)
        for place, name in enumerate(names):
            if name not in of_setting.index:
                continue
            row = of_setting.loc[name]
            look = LOOKS[name]
            if np.isfinite(row["ci_low"]):
                ends = [row["ci_low"], row["ci_high"]]
                axes.plot(ends, [place, place], color=look.color, linewidth=2.2, label=INTERVAL)
            dot: dict[str, Any] = {"markersize": 7, "markeredgecolor": "black", "linewidth": 0}
            axes.plot(
                [row["mean_difference"]], [place], marker=look.marker, color=look.color,
                markeredgewidth=1.2 if look.marker in UNFILLED else 0.5, label=TITLES[name], **dot,
            )  # fmt: skip
        n = int(of_setting["n_datasets"].max())
        axes.set_title(f"{setting} ({n} dataset{'s' if n > 1 else ''})", fontsize=9)
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(names)), [TITLES[name] for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("test AUC less that of the best baseline", fontsize=9)
    figure.tight_layout()
    return figure


def transfer(table: pd.DataFrame | None) -> Figure:
    """Test AUC of each dataset's probe (rows) on every dataset's texts (columns), a panel a kind of
    probe; ``table``: of checks.transfer.
    """
    if table is None or not len(table):
        raise NoData("no transfer matrix (`make transfer`)")
    kinds = list(dict.fromkeys(table["probe"]))
    trained = list(dict.fromkeys(table["trained_on"]))
    tested = list(dict.fromkeys(table["tested_on"]))
    size = 0.32 if len(tested) <= MOST_NAMED else 0.08
    width, height = 2.2 + size * len(tested), 1.8 + size * len(trained)
    figure, panels = panels_in_a_row(len(kinds), left=1.5, width=width, height=height)
    for axes, kind in zip(panels, kinds):
        of_kind = table[table["probe"] == kind]
        cells = of_kind.pivot_table(index="trained_on", columns="tested_on", values="test_auc")
        cells = cells.reindex(index=trained, columns=tested)
        image = axes.imshow(cells, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        axes.set_title(kind, fontsize=9)
        axes.set_xlabel("tested on")
        if len(tested) <= MOST_NAMED:
            axes.set_xticks(range(len(tested)), tested, rotation=90, fontsize=7)
            for (i, j), value in np.ndenumerate(cells.to_numpy()):
                if np.isfinite(value):
                    ink = "white" if abs(value - CHANCE) > 0.35 else "black"
                    shown = f"{value:.2f}".removeprefix("0")[:3]
                    axes.text(j, i, shown, ha="center", va="center", fontsize=6, color=ink)
    few = len(trained) <= MOST_NAMED
    panels[0].set_yticks(range(len(trained)) if few else [], trained if few else [], fontsize=7)
    panels[0].set_ylabel("trained on")
    figure.tight_layout()
    figure.colorbar(image, ax=panels, label="test AUC", shrink=0.8)
    return figure


def setting_bars(comparison: pd.DataFrame) -> Figure:
    """The one-bar-per-setting summary: mean test AUC of each contender over matched decisions."""
    overall = comparison[comparison["condition"] == ALL]
    if not len(overall):
        raise NoData("no setting has both baselines and SAE probes")
    settings = list(dict.fromkeys(overall["setting"]))
    names = [name for name in BAR_ORDER if name in set(overall["contender"])]
    figure, axes = one_panel(2.2 + 1.5 * len(settings), 3.6)
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        rows = overall[overall["contender"] == name].set_index("setting").reindex(settings)
        places = np.arange(len(settings)) + (i - (len(names) - 1) / 2) * width
        heights = rows["mean_test_auc"] - CHANCE
        look = bar_look(name)
        axes.bar(places, heights, width * 0.92, bottom=CHANCE, label=TITLES[name], **look)
        for x, value in zip(places, rows["mean_test_auc"]):
            if np.isfinite(value):
                axes.text(x, value + 0.006, f"{value:.2f}", ha="center", va="bottom", fontsize=7)
    counts = overall.drop_duplicates("setting").set_index("setting")
    axes.set_xticks(range(len(settings)), [f"{s}\n{_count(counts.loc[s])}" for s in settings])
    axes.set_ylim(CHANCE, 1.02)
    axes.set_ylabel("mean test AUC (0.5 is chance)")
    axes.grid(axis="y")
    legend_above(figure, axes, min(3, len(names)))
    return figure


def auc_by_k(tidy: pd.DataFrame) -> Figure:
    """Normal setting: test AUC against the number of latents, the mean over datasets first, then
    datasets from the one where SAE probes gain most to the one where they lose most.
    """
    normal = tidy[tidy["setting"] == NORMAL.name]
    rows = normal[normal["kind"].isin([SAE, CONTROL]) & normal["k"].notna()]
    if not (rows["kind"] == SAE).any():
        raise NoData("no SAE probes in the normal setting")
    layers = sorted(set(rows["layer"].unique()), key=layer_order)
    logreg = normal[(normal["method"] == "logreg") & normal["layer"].isin(layers)]
    lines = logreg.groupby(["layer", "dataset"], observed=True)["test_auc"].mean()
    curves = _curves(rows)
    chosen = _telling(curves, lines)
    figure, grid = small_multiples(len(chosen) + 1, height=2.1)
    n_datasets = rows["dataset"].nunique()
    for axes, dataset in zip(grid, [None, *chosen]):
        for curve in curves:
            _draw_curve(axes, curve, dataset)
        for layer in layers if len(lines) else ():
            of_layer = lines[lines.index.get_level_values("layer") == layer].droplevel("layer")
            value = of_layer.mean() if dataset is None else of_layer.get(dataset, np.nan)
            where = f" (layer {layer})" if len(layers) > 1 else ""
            look: dict[str, Any] = {"color": LOOKS["logreg"].color, "linestyle": "-."}
            axes.axhline(value, linewidth=1.4, label=f"logreg on activations{where}", **look)
        draw_chance(axes)
        title = f"mean of {n_datasets} datasets" if dataset is None else _in_two_lines(dataset)
        axes.set_title(title, fontsize=8, fontweight="bold" if dataset is None else "normal")
        axes.grid()
    # panels share their axes: setting them in each would set all of them each time
    log2_axis(grid[0], [1, 4, 16, 64, 256])
    grid[0].set_ylim(0.45, 1.02)
    shared_labels(figure, grid, "k: latents the probe may use", "test AUC")
    return figure


@dataclass(frozen=True)
class _Curve:
    """Of one SAE or control, or of many together: ``aucs``, by dataset and k the columns mean, low
    and high over them, and whether the probes have no weight (empty).
    """

    name: str
    color: str
    marker: str
    control: bool
    aucs: pd.DataFrame


def _curves(rows: pd.DataFrame) -> list[_Curve]:
    """A curve an SAE where these are few, else one for all of them; controls behind them."""
    key = ["kind", "method", "sae_id", "dataset", "k"]
    scored = rows.groupby(key, sort=True, observed=True).agg(
        test_auc=("test_auc", "mean"), n_nonzero=("n_nonzero", "max")
    )
    scored = scored.assign(empty=scored["n_nonzero"] == 0).reset_index()
    trained = scored[scored["kind"] == SAE]
    n_saes = trained["sae_id"].nunique()
    of_saes = list(trained.groupby("sae_id", observed=True))
    if n_saes > MOST_CURVES:
        of_saes = [(f"{n_saes} SAEs, mean and range", trained)]
    curves = []
    for i, (name, part) in enumerate(of_saes):
        color, marker = SAE_COLORS[i % len(SAE_COLORS)], SAE_MARKERS[i % len(SAE_MARKERS)]
        label = str(name).removeprefix("layer_")
        curves.append(_Curve(label, color, marker, False, _by_dataset(part)))
    controls = scored[(scored["kind"] == CONTROL) & (scored["method"] != SHUFFLED)]
    by = "sae_id" if controls["sae_id"].nunique() <= MOST_CURVES else "method"
    alone = controls.groupby("method", observed=True)["sae_id"].nunique() == 1
    for name, part in controls.groupby(by, observed=True):
        method = part["method"].iloc[0]
        who = CONTROL_OF.get(method, "random_sae")
        look = LOOKS[who]
        label = TITLES[who] if alone[method] else f"{str(name).removeprefix('layer_')} (control)"
        curves.append(_Curve(label, look.color, look.marker, True, _by_dataset(part)))
    return curves


def _by_dataset(part: pd.DataFrame) -> pd.DataFrame:
    grouped = part.groupby(["dataset", "k"], observed=True)
    aucs = grouped["test_auc"].agg(mean="mean", low="min", high="max")
    return aucs.assign(empty=grouped["empty"].all())


def _draw_curve(axes: Axes, curve: _Curve, dataset: str | None) -> None:
    """The curve on a dataset, or its mean over all of them."""
    if dataset is None:
        aucs = curve.aucs.groupby("k", observed=True).mean()
        empty = aucs["empty"] == 1
    else:
        there = curve.aucs.index.get_level_values("dataset") == dataset
        aucs = curve.aucs[there].droplevel("dataset")
        empty = aucs["empty"].astype(bool)
    look: dict[str, Any] = {"color": curve.color, "markersize": 4}
    dash = "--" if curve.control else "-"
    name = curve.name
    axes.plot(
        aucs.index, aucs["mean"], dash, marker=curve.marker, linewidth=1.2, label=name, **look
    )
    if (aucs["high"] > aucs["low"]).any():
        band: dict[str, Any] = {"color": curve.color, "alpha": 0.13, "linewidth": 0}
        axes.fill_between(aucs.index, aucs["low"], aucs["high"], **band)
    # probes without any weight are hollow: their AUC is 0.5 whatever the data
    axes.plot(aucs["mean"][empty], marker="o", linestyle="", markerfacecolor="white", **look)


def _telling(curves: list[_Curve], lines: pd.Series) -> list[str]:
    """All datasets where they are few, else some evenly spaced from the one where SAE probes are
    ahead of logistic regression by most to the one where they are behind by most.
    """
    of_saes = pd.concat([curve.aucs["mean"] for curve in curves if not curve.control])
    datasets = list(dict.fromkeys(of_saes.index.get_level_values("dataset")))
    if len(datasets) <= MOST_PANELS:
        return datasets
    ahead = of_saes.groupby("dataset", observed=True).mean()
    if len(lines):
        ahead = (ahead - lines.groupby("dataset", observed=True).mean()).dropna()
    order = ahead.sort_values(ascending=False).index
    return order[np.linspace(0, len(order) - 1, MOST_PANELS).round().astype(int)].tolist()


def quiver_scatter(picks: dict[str, pd.DataFrame]) -> Figure:
    """Normal setting, a point a dataset: SAE probe against best baseline, both picked by val_auc
    (``comparison.contenders``).
    """
    if not {BASELINES, PROBES} <= set(picks):
        raise NoData("the normal setting lacks baselines or SAE probes")
    names = [name for name in (BASELINES, PROBES, "random_sae", "text_only") if name in picks]
    figure, axes = one_panel(4.6, 4.6)
    for name in reversed(names[1:]):
        # a point a dataset: the mean of its layers and seeds
        pairs = picks[BASELINES].merge(picks[name], on=DECISION, suffixes=("_baseline", "_sae"))
        points = pairs.groupby("dataset", observed=True)[
            ["test_auc_baseline", "test_auc_sae"]
        ].mean()
        empty = pairs.groupby("dataset", observed=True)["empty_sae"].all()
        above = (points["test_auc_sae"] > points["test_auc_baseline"] + TIE) & ~empty
        label = f"{TITLES[name]}: above the line on {int(above.sum())} of {len(points)}"
        for rows, face in ((points[~empty], LOOKS[name].color), (points[empty], "none")):
            axes.scatter(
                rows["test_auc_baseline"],
                rows["test_auc_sae"],
                s=28,
                marker=LOOKS[name].marker,
                edgecolors=None if LOOKS[name].marker == "x" else LOOKS[name].color,
                color=LOOKS[name].color if LOOKS[name].marker == "x" else None,
                facecolors=None if LOOKS[name].marker == "x" else face,
                label=label if face != "none" else None,
            )
    low = 0.45
    axes.plot([low, 1.01], [low, 1.01], color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(low, 1.01)
    axes.set_ylim(low, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel("best baseline, test AUC")
    axes.set_ylabel("SAE probe, test AUC")
    axes.grid()
    legend_above(figure, axes, 1)
    return figure


def condition_curves(
    comparison: pd.DataFrame, setting: str, label: str, score: str = "test AUC"
) -> Figure:
    """The mean of a score over the conditions of a setting, and below it the difference from the
    best baseline with its interval.
    """
    rows = comparison[(comparison["setting"] == setting) & (comparison["condition"] != ALL)]
    if not len(rows):
        raise NoData(f"{setting} lacks baselines or SAE probes")
    names = [name for name in LOOKS if name in set(rows["contender"])]
    figure = Figure(figsize=(5.4, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for name in names:
        curve = rows[rows["contender"] == name].sort_values(
            "condition", key=lambda c: c.astype(float)
        )
        x = curve["condition"].astype(float)
        look = {**line_look(name), "linestyle": "--" if name in CONTROLS else "-"}
        baselines = set(" ".join(curve["baselines"]).split())
        if name == BASELINES and len(baselines) == 1:
            look["label"] += f" ({baselines.pop()} alone)"
        upper.plot(x, curve["mean_test_auc"], markersize=5, **look)
        if name in CORE and name != BASELINES:
            lower.plot(x, curve["mean_difference"], markersize=4, **look)
            band = {"color": LOOKS[name].color, "alpha": 0.13, "linewidth": 0}
            lower.fill_between(x, curve["ci_low"], curve["ci_high"], **band)
    lower.axhline(0, color=LOOKS[BASELINES].color, linewidth=1.2)
    lower.set_ylabel("difference from\nbest baseline")
    lower.set_xlabel(label)
    upper.set_ylabel(f"mean {score}")
    counts = rows.groupby("condition", observed=True)["n_datasets"].max()
    note = (
        f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    )
    lower.text(
        0,
        -0.42,
        f"{note} datasets; bands: Student's 95 % interval over datasets",
        transform=lower.transAxes,
        fontsize=8,
    )
    if get_setting(setting).log_axis:
        values = sorted(rows["condition"].astype(float).unique())
        log2_axis(lower, values if len(values) <= 8 else values[::3])
    for axes in (upper, lower):
        axes.grid()
    legend_above(figure, upper, 4 if len(names) == 4 else 3)
    return figure


def ood_bars(picks: dict[str, pd.DataFrame], shifts: dict[str, str]) -> Figure:
    """OOD test AUC per dataset and contender, with what was shifted."""
    if not {BASELINES, PROBES} <= set(picks):
        raise NoData("OOD lacks baselines or SAE probes")
    baseline = "logreg" if "logreg" in picks else BASELINES
    names = [baseline, PROBES, *(n for n in ("random_sae", "text_only") if n in picks)]
    # a control that lacks datasets takes none from the others
    picks = {**picks, **matched({name: picks[name] for name in names[:2]})}
    datasets = list(dict.fromkeys(picks[PROBES]["dataset"]))
    figure, axes = one_panel(6.0, 0.7 + 0.62 * len(datasets))
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        values = picks[name].groupby("dataset", observed=True)["test_auc"].mean().reindex(datasets)
        places = np.arange(len(datasets)) + (i - (len(names) - 1) / 2) * height
        axes.barh(places, values, height * 0.9, label=TITLES[name], **bar_look(name))
        for y, value in zip(places, values):
            if np.isfinite(value):
                axes.text(value + 0.008, y, f"{value:.2f}", va="center", fontsize=7)
    draw_chance(axes, vertical=True, in_legend=False)
    axes.set_yticks(
        range(len(datasets)), [f"{d}\n{shifts.get(d, '')}".strip() for d in datasets], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlim(0.3, 1.04)
    axes.set_xlabel("test AUC out of distribution (dotted: chance)")
    axes.grid(axis="x")
    legend_above(figure, axes, min(3, len(names)))
    return figure


def method_by_layer(tidy: pd.DataFrame) -> Figure:
    """Mean test AUC of each baseline at each layer, normal setting."""
    rows, layers = _normal_baselines(tidy)
    figure, axes = one_panel(2.6 + 0.9 * len(layers), 3.4)
    for method, look in looks(rows["method"]).items():
        mean = (
            rows[rows["method"] == method]
            .groupby("layer", observed=True)["test_auc"]
            .mean()
            .reindex(layers)
        )
        axes.plot(
            range(len(layers)),
            mean,
            marker=look.marker,
            color=look.color,
            label=method,
            linewidth=1.2,
        )
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlim(-0.3, len(layers) - 0.7)
    axes.set_xlabel(f"layer ({rows['dataset'].nunique()} datasets)")
    axes.set_ylabel("mean test AUC")
    axes.grid()
    legend_above(figure, axes, 3)
    return figure


def _normal_baselines(tidy: pd.DataFrame) -> tuple[pd.DataFrame, list[Layer]]:
    rows = tidy[(tidy["setting"] == NORMAL.name) & (tidy["kind"] == BASELINE)]
    if not len(rows):
        raise NoData("no baselines in the normal setting")
    return rows, sorted(rows["layer"].unique(), key=layer_order)


def best_method_by_layer(tidy: pd.DataFrame) -> Figure:
    """On how many datasets each baseline has the best val_auc, at each layer of the normal setting;
    ties are shared.
    """
    rows, layers = _normal_baselines(tidy)
    by_dataset = ["layer", "dataset", "seed"]
    best = rows[
        rows["val_auc"] >= rows.groupby(by_dataset, observed=True)["val_auc"].transform("max") - TIE
    ]
    best = best.assign(
        share=1 / best.groupby(by_dataset, observed=True)["method"].transform("size")
    )
    shares = (
        best.groupby(["layer", "method"], observed=True)["share"].sum()
        / best.groupby("layer", observed=True)["share"].sum()
    )
    figure, axes = one_panel(2.6 + 0.9 * len(layers), 3.4)
    below = np.zeros(len(layers))
    for method, look in looks(rows["method"]).items():
        heights = np.array([shares.get((layer, method), 0.0) for layer in layers])
        axes.bar(
            range(len(layers)),
            heights,
            0.75,
            bottom=below,
            color=look.color,
            hatch=look.hatch,
            edgecolor="white",
            label=method,
        )
        below += heights
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel(f"layer ({rows['dataset'].nunique()} datasets)")
    axes.set_ylabel("share of datasets where best\nby validation AUC (ties shared)")
    legend_above(figure, axes, 3)
    return figure


def auc_by_size(tidy: pd.DataFrame, size: str) -> Figure:
    """Mean test AUC against the ``size`` of SAEs, "width" or "L0", a panel a setting and a line a
    k.

    Over datasets that have all the sizes of a panel; for L0, SAEs of the width that has the most
    values of it.
    """
    mine = (tidy["kind"] == SAE) & tidy["k"].notna()
    rows = tidy.loc[mine, [*DECISION, "sae_id", "k", "test_auc"]]
    read = {"width": named_width, "L0": named_l0}[size]
    rows = rows.assign(
        size=_of_words(rows["sae_id"], read),
        width=_of_words(rows["sae_id"], named_width),
        # SAEs that differ in nothing but their size: a Gemma Scope id without its numbers, an
        # architecture's name
        family=_families(rows["sae_id"]),
    )
    rows = rows[rows["size"].notna()]
    panels = []
    for setting, of_setting in rows.groupby("setting", sort=False, observed=True):
        of_setting = of_setting[of_setting["layer"] == of_setting["layer"].mode().iloc[0]]
        if size == "L0":
            most = of_setting.groupby("width", observed=True)["size"].nunique()
            of_setting = (
                of_setting[of_setting["width"] == most.idxmax()] if len(most) else of_setting
            )
        if of_setting["size"].nunique() > 1:
            panels.append((setting, of_setting))
    if not panels:
        raise NoData(f"no setting has SAE probes of more than one {size}")
    figure, row = panels_in_a_row(len(panels), 1.2, 2.5, 3.0)
    for axes, (setting, of_panel) in zip(row, panels):
        complete = _with_all_sizes(of_panel)
        ks = sorted(of_panel["k"].unique())
        shown = ks if len(ks) <= 4 else [k for k in (1, 16, 128, 512) if k in ks]
        families = sorted(map(str, of_panel["family"].unique()))
        if len(families) == 1:
            lines = [(f"k = {k:.0f}", of_panel["k"] == k) for k in shown]
        else:  # of different architectures: a line each
            k = 16 if 16 in ks else ks[0]
            lines = [
                (f"{family}, k = {k:.0f}", (of_panel["family"] == family) & (of_panel["k"] == k))
                for family in families
            ]
        for (label, mask), look in zip(lines, cycle(zip(SAE_MARKERS, SAE_COLORS))):
            # each dataset once, however many SAEs of a size it has
            by_dataset = of_panel[complete & mask].groupby(["size", "dataset"], observed=True)
            curve = by_dataset["test_auc"].mean().groupby(level="size").mean()
            axes.plot(
                curve.index,
                curve,
                marker=look[0],
                color=look[1],
                linewidth=1.2,
                markersize=5,
                label=label,
            )
        values = sorted(of_panel["size"].unique())
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        ticks = (
            values
            if len(values) <= 6
            else [2**i for i in range(4, 21) if values[0] <= 2**i <= values[-1]]
        )
        axes.set_xticks(ticks, [short_number(value) for value in ticks])
        axes.set_title(
            f"{setting} ({of_panel[complete]['dataset'].nunique()} datasets)", fontsize=9
        )
        axes.set_xlabel(
            "latents of the SAE"
            if size == "width"
            else f"L0 of the SAE ({short_number(of_panel['width'].iloc[0])} latents)"
        )
        axes.grid()
    row[0].set_ylabel("mean test AUC")
    figure.tight_layout()
    shared_legend(figure, row[0], 2 if len(panels) == 1 else 4)
    return figure


def _with_all_sizes(rows: pd.DataFrame) -> np.ndarray:
    """bool [n_rows]: whether dataset, condition and seed of a row have all sizes of its family."""
    family, families = pd.factorize(rows["family"])
    key = ["dataset", "condition", "seed", "family"]
    group = rows.groupby(key, observed=True, dropna=False).ngroup()
    size, sizes = pd.factorize(rows["size"])
    seen = np.zeros((group.max() + 1, len(sizes)), dtype=bool)
    seen[group, size] = True
    of_family = np.zeros((len(families), len(sizes)), dtype=bool)
    of_family[family, size] = True
    return seen.sum(axis=1)[group] == of_family.sum(axis=1)[family]


def _families(sae_ids: pd.Series) -> pd.Categorical:
    """Of each row's SAE its family: what its id says but for the sizes."""
    codes, distinct = pd.factorize(sae_ids)
    of_each, families = pd.factorize(np.array([sae_family(str(name)) for name in distinct], object))
    return pd.Categorical.from_codes(np.append(of_each, -1)[codes], families)


def _of_words(words: pd.Series, function: Callable[[str], int | None]) -> np.ndarray:
    """``function`` of each row's word, called once for each distinct one; NaN for None."""
    codes, distinct = pd.factorize(words)
    numbers = [function(str(word)) for word in distinct]
    known = [np.nan if number is None else number for number in numbers]
    return np.array([*known, np.nan])[codes]  # of no word the code is -1


def selected_datasets(picks: dict[str, pd.DataFrame], setting: str, label: str) -> Figure:
    """A setting's conditions on eight datasets, evenly spaced from the one where SAE probes gain
    most to where they lose most.
    """
    if not {BASELINES, PROBES} <= set(picks):
        raise NoData(f"{setting} lacks baselines or SAE probes")
    sides = matched({name: picks[name] for name in (BASELINES, PROBES)})
    if not len(sides[PROBES]):
        raise NoData(f"baselines and SAE probes of {setting} share no dataset and condition")
    gain = sides[PROBES]["test_auc"] - sides[BASELINES]["test_auc"]
    order = (
        gain.groupby(sides[PROBES]["dataset"], observed=True).mean().sort_values(ascending=False)
    )
    chosen = order.index[
        np.unique(np.linspace(0, len(order) - 1, min(8, len(order))).round().astype(int))
    ]
    figure, grid = small_multiples(len(chosen), height=2.1)
    for axes, dataset in zip(grid, chosen):
        for name in (BASELINES, "logreg", PROBES):
            if name not in picks:
                continue
            rows = picks[name][picks[name]["dataset"] == dataset]
            curve = rows.groupby(rows["condition"].astype(float), observed=True)["test_auc"].mean()
            axes.plot(curve.index, curve, markersize=3.5, linewidth=1.1, **line_look(name))
        draw_chance(axes)
        axes.set_title(f"{dataset}\n({order[dataset]:+.3f})", fontsize=8)
        axes.grid()
    grid[0].set_ylim(min(0.35, grid[0].get_ylim()[0]), 1.02)
    if get_setting(setting).log_axis:
        log2_axis(grid[0], [4, 32, 256])
    shared_labels(
        figure,
        grid,
        f"{label} (in brackets: mean difference of the SAE probe from the best baseline)",
        "test AUC",
    )
    return figure


def validation_gaps(gap: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Validation AUC less test AUC over the conditions of each setting that has several; ``gap``:
    comparison.val_test_gap.
    """
    settings = [s for s in labels if (gap["setting"] == s).sum() > 1] if len(gap) else []
    if not settings:
        raise NoData("no setting with several conditions has validation AUCs")
    figure, row = panels_in_a_row(len(settings), 1.0, 2.9, 3.0)
    shown = gap[gap["setting"].isin(settings)]
    names = [
        column
        for column in gap.columns
        if column not in ("setting", "condition") and shown[column].notna().any()
    ]
    looks = {
        "SAE probes, paper": ("#D55E00", "^", "-"),
        "SAE probes, nested": ("#E69F00", "v", "--"),
        "baselines": ("#0072B2", "o", "-"),
        "baselines, nested": ("#009E73", "D", "--"),
        "logreg": ("#56B4E9", "s", "-."),
        "logreg, nested": ("#332288", "*", ":"),
    }
    styles = {name: looks[name] for name in names}
    for axes, setting in zip(row, settings):
        rows = gap[gap["setting"] == setting]
        for name, (color, marker, line) in styles.items():
            axes.plot(
                rows["condition"].astype(float),
                rows[name],
                color=color,
                marker=marker,
                linestyle=line,
                markersize=4,
                label=name,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel(labels[setting])
        axes.set_title(setting, fontsize=9)
        if get_setting(setting).log_axis:
            sizes = rows["condition"].astype(float).tolist()
            log2_axis(axes, sizes if len(sizes) <= 8 else sizes[::4])
        axes.grid()
    row[0].set_ylabel("validation AUC - test AUC\n(mean over all probes)")
    figure.tight_layout()
    shared_legend(figure, row[0], 2 if len(settings) == 1 else 4)
    return figure


def _in_two_lines(name: str, longest: int = 28) -> str:
    """A long dataset name broken after the underscore or space nearest its middle."""
    breaks = [i + 1 for i, letter in enumerate(name) if letter in "_ -"]
    if len(name) <= longest or not breaks:
        return name
    middle = min(breaks, key=lambda i: abs(i - len(name) / 2))
    return f"{name[:middle]}\n{name[middle:]}"


def _count(row: pd.Series) -> str:
    n = f"{int(row['n_datasets'])} datasets"
    return n if row["n_pairs"] == row["n_datasets"] else f"{n},\n{int(row['n_pairs'])} conditions"


def calibration(table: pd.DataFrame) -> Figure:
    """SAEs of known quality: mean test AUC of their probes, with its interval over labels, against
    how well their directions stand for the true features.
    """
    if not len(table):
        raise NoData("no calibration (`make calibrate`)")
    figure, axes = one_panel(5.0, 3.4)
    look = LOOKS[PROBES]
    half = 1.96 * table["sd"] / np.sqrt(table["n_labels"])
    style: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": ""}
    axes.errorbar(table["quality"], table["mean_test_auc"], half, capsize=2, **style)
    for row in table.to_dict("records"):
        if not str(row["SAE"]).startswith("cosine"):
            place = (row["quality"], row["mean_test_auc"])
            axes.annotate(
                str(row["SAE"]), place, (-4, -12), textcoords="offset points", fontsize=7,
                ha="right" if row["quality"] > CHANCE else "left",
            )  # fmt: skip
    draw_chance(axes)
    axes.set_xlabel("quality: mean best cosine with the true directions")
    axes.set_ylabel("mean test AUC, k = 16")
    axes.grid()
    return figure
