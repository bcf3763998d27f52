"""Figures draw what they say: asserted on the artists, with two seeds and layers in the tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from utils.figures import study
from utils.figures.side_experiments import multi_token
from utils.figures.style import LOOKS, NoData
from utils.results.comparison import TITLES, Picks, compare, contenders
from utils.results.tidy import TIDY_COLUMNS

DATASETS, LAYERS, SEEDS = [f"{i}_d" for i in range(6)], (2, 5), (42, 43)


def value(*parts: object) -> float:
    """An AUC of its own for each row, the same in every run."""
    return 0.6 + 0.3 * (hash_of(parts) % 1000) / 1000


def hash_of(parts: tuple) -> int:
    return sum(ord(letter) * (i + 7) ** 2 for i, letter in enumerate(str(parts)))


def tidy(setting: str = "normal", conditions=("all",)) -> pd.DataFrame:
    rows = []
    for dataset, layer, seed, condition in product(DATASETS, LAYERS, SEEDS, conditions):
        common = {"setting": setting, "condition": condition, "dataset": dataset, "layer": layer}
        common |= {"seed": seed, "protocol": "paper", "n_test": 100}
        for method in ("logreg", "pca"):
            auc = value(dataset, layer, seed, condition, method)
            scores = {"val_auc": 0.9 if method == "logreg" else 0.1, "test_auc": auc}
            rows.append({**common, "kind": "baseline", "method": method, **scores})
        for k in (1, 16):
            probe = {"kind": "sae", "method": "sae_probe", "sae_id": f"layer_{layer}/s", "k": k}
            empty = dataset == "0_d" and k == 1
            auc = 0.5 if empty else value(dataset, layer, seed, condition, k)
            scores = {"val_auc": k / 20, "test_auc": auc, "n_nonzero": 0 if empty else k}
            rows.append({**common, **probe, **scores})
    return pd.DataFrame(rows).reindex(columns=list(TIDY_COLUMNS))


def lines(axes) -> dict:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def hollow_ks(axes) -> list[list[float]]:
    """The k at which each line has hollow markers, where it has any."""
    white = [line for line in axes.get_lines() if str(line.get_markerfacecolor()) == "white"]
    ks = [np.asarray(line.get_xdata()).tolist() for line in white]
    return [of_line for of_line in ks if of_line]


def mean(table: pd.DataFrame, **where) -> float:
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    return table["test_auc"].mean()


def test_auc_by_k_shows_means_over_seeds_and_picks_nothing():
    table = tidy()
    figure = study.auc_by_k(table)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [f"mean of {len(DATASETS)} datasets", *DATASETS]
    over_all = lines(panels.pop(f"mean of {len(DATASETS)} datasets"))
    for layer in LAYERS:
        of_each = [
            [mean(table, dataset=d, sae_id=f"layer_{layer}/s", k=k) for k in (1, 16)]
            for d in DATASETS
        ]
        assert over_all[f"{layer}/s"] == pytest.approx(np.mean(of_each, axis=0))
    for dataset, axes in panels.items():
        drawn = lines(axes)
        for layer in LAYERS:
            logreg = mean(table, dataset=dataset, layer=layer, method="logreg")
            assert drawn[f"logreg on activations (layer {layer})"] == pytest.approx(logreg)
            curve = [mean(table, dataset=dataset, sae_id=f"layer_{layer}/s", k=k) for k in (1, 16)]
            assert drawn[f"{layer}/s"] == pytest.approx(curve)
    assert hollow_ks(panels["0_d"]) == [[1], [1]]
    assert hollow_ks(panels["1_d"]) == []


def test_auc_by_k_of_many_saes_and_datasets_shows_their_range_and_twelve_datasets():
    """It does not grow with the study; the datasets shown are spread from best to worst."""
    rng = np.random.default_rng(0)
    common = {"setting": "normal", "condition": "all", "layer": 2, "seed": 42, "n_nonzero": 1.0}
    rows = [
        {**common, "dataset": f"d{d:02}", "kind": "sae", "method": "sae_probe", "sae_id": f"s{i}",
         "k": k, "test_auc": 0.5 + d / 100 + rng.uniform(-0.1, 0.1)}
        for d in range(40) for i in range(20) for k in (1, 16)
    ]  # fmt: skip
    rows += [
        {**common, "dataset": f"d{d:02}", "kind": "baseline", "method": "logreg", "test_auc": 0.7}
        for d in range(40)
    ]
    table = pd.DataFrame(rows)
    figure = study.auc_by_k(table)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    shown = list(panels)[1:]
    assert len(shown) == 12
    gain = table[table["kind"] == "sae"].groupby("dataset")["test_auc"].mean()
    assert shown == gain[shown].sort_values(ascending=False).index.tolist()
    assert (shown[0], shown[-1]) == (gain.idxmax(), gain.idxmin())
    of_first = table[(table["dataset"] == shown[0]) & (table["kind"] == "sae")].groupby("k")
    expected = of_first["test_auc"].agg(["mean", "min", "max"])
    axes = panels[shown[0]]
    assert lines(axes)["20 SAEs, mean and range"] == pytest.approx(expected["mean"].tolist())
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.min() == pytest.approx(expected["min"].min())
    assert heights.max() == pytest.approx(expected["max"].max())


def test_the_quiver_has_a_point_a_dataset():
    table = tidy()
    figure = study.quiver_scatter(contenders(table))
    (axes,) = figure.axes
    points = np.concatenate([c.get_offsets() for c in axes.collections])
    expected = sorted(
        (mean(table, dataset=d, method="logreg"), mean(table, dataset=d, k=16)) for d in DATASETS
    )
    assert np.allclose(sorted(points.tolist()), expected)
    above = sum(sae > baseline for baseline, sae in expected)
    (label,) = [x for x in axes.get_legend_handles_labels()[1] if x.startswith(TITLES["sae_only"])]
    assert label == f"{TITLES['sae_only']}: above the line on {above} of {len(DATASETS)}"


def test_bars_are_the_comparisons_means():
    comparison = compare(Picks(tidy()))
    (axes,) = study.setting_bars(comparison).axes
    drawn = {str(c.get_label()): c[0].get_height() + 0.5 for c in axes.containers}
    overall = comparison[comparison["condition"] == "all"].set_index("contender")
    expected = {TITLES[n]: overall.loc[n, "mean_test_auc"] for n in overall.index}
    assert {name: expected[name] for name in drawn} == pytest.approx(drawn)
    assert len(drawn) == 4


def test_curves_over_conditions_are_the_comparisons():
    comparison = compare(Picks(tidy("scarcity", (10, 20, 53))))
    upper, lower = study.condition_curves(comparison, "scarcity", "training rows").axes
    rows = comparison[comparison["condition"] != "all"]
    for name in ("quiver_baselines", "sae_only"):
        of_name = rows[rows["contender"] == name]
        assert lines(upper)[TITLES[name]] == pytest.approx(of_name["mean_test_auc"].to_numpy())
    probes = rows[rows["contender"] == "sae_only"]
    drawn = [np.asarray(line.get_ydata()) for line in lower.get_lines()]
    assert any(
        len(line) == 3 and np.allclose(line, probes["mean_difference"].to_numpy()) for line in drawn
    )
    assert "Student's" in lower.texts[0].get_text()


def test_a_single_baseline_is_named_and_drawn_once():
    table = tidy("label_noise", (0.1, 0.2, 0.3))
    comparison = compare(Picks(table[table["method"] != "pca"]))
    upper, _ = study.condition_curves(comparison, "label_noise", "flipped").axes
    names = upper.get_legend_handles_labels()[1]
    assert names == ["best baseline (logreg alone)", "SAE probe", "baselines + SAE"]


def test_ood_bars_are_means_over_layers_and_seeds():
    table = tidy("OOD")
    (axes,) = study.ood_bars(contenders(table), {"0_d": "in French"}).axes
    widths = [bar.get_width() for bar in axes.containers[-1]]
    assert widths == pytest.approx([mean(table, dataset=d, k=16) for d in DATASETS])
    assert axes.get_yticklabels()[0].get_text() == "0_d\nin French"


def test_layers_and_best_methods_share_their_ties():
    table = tidy()
    (axes,) = study.method_by_layer(table).axes
    expected = [mean(table, layer=layer, method="pca") for layer in LAYERS]
    assert lines(axes)["pca"] == pytest.approx(expected)
    table["val_auc"] = 0.5  # all are best
    (axes,) = study.best_method_by_layer(table).axes
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axes.containers}
    assert heights == {"logreg": [0.5, 0.5], "pca": [0.5, 0.5]}


def test_multi_token_bars_stand_beside_baselines_of_the_same_rows():
    table = pd.DataFrame(
        [
            {"dataset": d, "layer": 2, "method": m, "sae_id": None, "test_auc": auc, "n_test": n}
            for d in ("a", "b", "c")
            for m, auc, n in (("attention probe", 0.9, np.nan), ("attention probe (ours)", 0.8, 99))
        ]
    )
    last = pd.DataFrame({"dataset": ["a", "b", "c"], "layer": 2, "test_auc": 0.7, "n_test": 99})
    (axes,) = multi_token(table, last).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["best baseline on the last token", "attention probe (ours)", "attention probe"]
    (axes,) = multi_token(table, last.assign(n_test=400)).axes
    assert "best baseline on the last token" not in [x.get_text() for x in axes.get_yticklabels()]


def test_every_look_is_used_for_one_name_alone():
    assert len({(look.color, look.marker) for look in LOOKS.values()}) == len(LOOKS)


def test_ood_bars_keep_the_only_baseline_and_every_dataset():
    table = tidy("OOD")
    table = table[table["method"] != "pca"]
    control = table[(table["kind"] == "sae") & (table["dataset"] == "1_d")].assign(
        kind="control", method="random_sae_probe", sae_id="layer_2/random_s"
    )
    picks = contenders(pd.concat([table, control], ignore_index=True))
    (axes,) = study.ood_bars(picks, {}).axes
    names = axes.get_legend_handles_labels()[1]
    assert names[:2] == ["best baseline", "SAE probe"]
    assert "random twin" in names
    assert [label.get_text() for label in axes.get_yticklabels()] == DATASETS


def sized(dataset: str, sae_id: str | None, auc: float, condition: float = 20.0) -> dict:
    return {
        "setting": "scarcity", "condition": condition, "dataset": dataset, "layer": 2, "seed": 42,
        "kind": "sae", "method": "sae_probe", "sae_id": sae_id, "k": 16, "test_auc": auc,
    }  # fmt: skip


def curve_by_width(rows: list[dict]) -> list[float]:
    figure = study.auc_by_size(pd.DataFrame(rows), "width")
    (line,) = figure.axes[0].lines
    return np.round(np.asarray(line.get_ydata(), dtype=float), 6).tolist()


def test_size_is_of_sae_probes_that_have_one():
    ids = ("layer_2/width_16k/topk_32", "layer_2/width_65k/topk_32")
    rows = [sized(d, i, auc) for d, auc in (("a", 0.9), ("b", 0.5)) for i in ids]
    assert curve_by_width(rows) == [0.7, 0.7]
    nameless = [sized("a", None, 0.1), sized("b", None, 0.1)]
    assert curve_by_width(rows + nameless) == [0.7, 0.7]
    with pytest.raises(NoData):
        study.auc_by_size(pd.DataFrame(nameless), "width")
    # a dataset counts once, however many seeds of an SAE it has
    assert curve_by_width([*rows, sized("a", f"{ids[0]}_seed_43", 0.9)]) == [0.7, 0.7]
    without_condition = [sized(d, i, 0.3, np.nan) for d in "ab" for i in ids]
    assert curve_by_width(rows + without_condition) == [0.5, 0.5]
