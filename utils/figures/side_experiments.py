"""Figures of the paper's side experiments, from its published files: multi-token probes,
architectures, CoLA, pruned latents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.figures.style import (
    CHANCE,
    NoData,
    bar_look,
    draw_chance,
    legend_above,
    one_panel,
    panels_in_a_row,
    shared_legend,
)
from utils.names import named_l0, named_width
from utils.results.statistics import mean_interval
from utils.runtime.units import short_number

RELABELLED = {
    0: "original labels",
    1: "labels of an ensemble\nof language models",
    2: "only where the\ntwo disagree",
}
RELABELLED_PROBES = {
    "baseline": ("logreg", "logreg"),
    "sae_128": ("SAE probe, k = 128", "sae_only"),
    "sae_1": ("SAE probe, k = 1", "quiver_with_sae"),
}


def multi_token(table: pd.DataFrame, last_token: pd.DataFrame | None) -> Figure:
    """Mean test AUC of each multi-token method, with its datasets as points, and the best
    last-token baseline for comparison.

    ``table``: multi_token.load_multi_token; ``last_token``: picks of the quiver of baselines in the
    normal setting, on the same rows.
    """
    if not len(table):
        raise NoData("no multi-token results (consolidated_probing_…)")
    which = table["sae_id"].map(lambda i: f" ({_size(i)})" if isinstance(i, str) else "")
    aucs = {
        name: rows.set_index("dataset")["test_auc"]
        for name, rows in table.assign(bar=table["method"] + which).groupby("bar", observed=True)
    }
    shared = sorted(set.intersection(*(set(auc.index) for auc in aucs.values())))
    if last_token is not None:
        at_layer = last_token[last_token["layer"] == table["layer"].mode().iloc[0]]
        by_dataset = at_layer.groupby("dataset", observed=True)
        if set(shared) <= set(by_dataset.groups) and _same_rows(table, at_layer, shared):
            aucs["best baseline on the last token"] = by_dataset["test_auc"].mean()
    if not shared:
        raise NoData("no dataset has results of every multi-token method")
    order = sorted(aucs, key=lambda name: aucs[name].loc[shared].mean())
    figure, axes = one_panel(6.4, 0.9 + 0.36 * len(order))
    rng = np.random.default_rng(0)
    for y, name in enumerate(order):
        values = aucs[name].loc[shared].to_numpy()
        low, high = mean_interval(values)
        control = "random_sae" if "random" in name else "quiver_baselines"
        look = bar_look("sae_only" if name.startswith("SAE") else control)
        axes.barh(y, values.mean() - CHANCE, 0.7, left=CHANCE, **look)
        axes.plot(
            values,
            y + rng.uniform(-0.22, 0.22, len(values)),
            ".",
            color="black",
            markersize=2.5,
            alpha=0.45,
        )
        axes.plot([low, high], [y, y], color="black", linewidth=2.2)
        axes.text(1.015, y, f"{values.mean():.3f}", va="center", fontsize=8)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    low = min(CHANCE, *(aucs[name].loc[shared].min() for name in order))
    axes.set_xlim(np.floor(low * 10) / 10, 1.09)
    axes.set_xticks(np.arange(np.floor(low * 10), 11) / 10)
    draw_chance(axes, vertical=True, in_legend=False)
    axes.set_xlabel(
        f"test AUC; bar: mean over {len(shared)} datasets (points);\nline: its 95 % bootstrap"
        " interval",
        fontsize=9,
    )
    axes.grid(axis="x")
    figure.tight_layout()
    return figure


def _same_rows(table: pd.DataFrame, last_token: pd.DataFrame, datasets: list[str]) -> bool:
    """Whether both were tested on as many rows of each dataset, where both say on how many."""
    sizes = [
        rows.groupby("dataset", observed=True)["n_test"].max().reindex(datasets)
        for rows in (table, last_token)
    ]
    known = sizes[0].notna() & sizes[1].notna()
    return bool((sizes[0][known] == sizes[1][known]).all())


def _size(sae_id: str) -> str:
    """ "16k, L0 408" of an id that names both, else the id."""
    width, l0 = named_width(sae_id), named_l0(sae_id)
    return f"{short_number(width)}, L0 {l0}" if width and l0 else sae_id


def architecture_wins(tables: dict[str, pd.DataFrame]) -> Figure:
    """How often the SAE of a row beats the SAE of a column: a matrix a setting. ``tables``:
    {setting: sae1, sae2, win_rate}.
    """
    if not tables:
        raise NoData("no win rates of architectures (improvements/sae_win_rate_….csv)")
    first = next(iter(tables.values()))
    mean = first.groupby("sae1", observed=True)["win_rate"].mean().sort_values(ascending=False)
    names = list(mean.index)
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    size = (1.8 + 2.5 * columns, 1.3 + 2.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(tables) :]:
        axes.set_axis_off()
    for axes, (title, table) in zip(grid.flat, tables.items()):
        matrix = table.pivot(index="sae1", columns="sae2", values="win_rate").reindex(
            index=names, columns=names
        )
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
        for (i, j), value in np.ndenumerate(matrix.to_numpy()):
            if np.isfinite(value):
                axes.text(
                    j,
                    i,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if value < 0.6 else "black",
                )
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(title, fontsize=9)
    figure.supxlabel(
        "the column's SAE is beaten by the row's on this share of datasets (%)", fontsize=9
    )
    figure.colorbar(image, ax=grid, shrink=0.6, label="win rate")
    return figure


def relabelling(table: pd.DataFrame | None) -> Figure:
    """GLUE CoLA with its own labels, with cleaner ones, and on the texts where the two disagree:
    test AUC of three probes.
    """
    if table is None:
        raise NoData(
            "no results of the CoLA relabelling (investigate/87_glue_cola_investigate_probes.csv)"
        )
    figure, axes = one_panel(5.6, 3.3)
    width = 0.8 / len(RELABELLED_PROBES)
    for i, (kind, (title, contender)) in enumerate(RELABELLED_PROBES.items()):
        values = (
            table[table["run_type"] == kind]
            .set_index("run_num")["test_auc"]
            .reindex(list(RELABELLED))
        )
        places = np.arange(len(RELABELLED)) + (i - 1) * width
        axes.bar(places, values, width * 0.92, label=title, **bar_look(contender))
        for x, value in zip(places, values):
            axes.text(x, value + 0.008, f"{value:.2f}", ha="center", fontsize=7)
    draw_chance(axes, in_legend=False)
    axes.set_xticks(range(len(RELABELLED)), list(RELABELLED.values()), fontsize=8)
    axes.set_ylim(0.4, 0.95)
    axes.set_ylabel("test AUC on 87_glue_cola\n(dotted: chance)")
    axes.grid(axis="y")
    legend_above(figure, axes, 3)
    return figure


def pruned_latents(tables: dict[str, pd.DataFrame]) -> Figure:
    """OOD and validation AUC of a probe on the k latents judged most relevant. ``tables``:
    {dataset: k, ood_auc_llm, …}.
    """
    if not tables:
        raise NoData("no results of pruned latents (OOD/OOD_latents/…_pruned.csv)")
    figure, row = panels_in_a_row(len(tables), 1.0, 2.6, 3.0)
    for axes, (dataset, table) in zip(row, tables.items()):
        for judge, name, marker, face in (
            ("llm", "a language model", "o", None),
            ("human", "people", "s", "white"),
        ):
            line: dict[str, Any] = {"marker": marker, "markersize": 4, "markerfacecolor": face}
            for where, column, color, dash in (
                ("in", "val", "#0072B2", "--"),
                ("out of", "ood", "#D55E00", "-"),
            ):
                label = f"{where} distribution, judged by {name}"
                axes.plot(
                    table["k"],
                    table[f"{column}_auc_{judge}"],
                    color=color,
                    linestyle=dash,
                    label=label,
                    **line,
                )
        draw_chance(axes)
        axes.set_title(dataset, fontsize=9)
        axes.set_xlabel("k most relevant of 8 latents")
        axes.grid()
    row[0].set_ylabel("AUC")
    figure.tight_layout()
    shared_legend(figure, row[0], 2)
    return figure
