"""Gallery and report: what is drawn, what is left out and why, and that texts are untrusted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from utils.figures import explorer, study
from utils.figures.gallery import FORMATS, Material, Picture, draw_all, gallery
from utils.figures.report import Report, answers, cell, write_leaderboard, write_report
from utils.figures.side_experiments import relabelling
from utils.figures.style import LOOKS, NoData, one_panel, plotted, small_multiples
from utils.paths import Paths
from utils.results.comparison import (
    TITLES,
    Comparisons,
    Picked,
    Picks,
    by_dataset,
    compare,
    leaderboard,
    on_fresh_rows,
    val_test_gap,
)
from utils.results.findings import Finding, Kind
from utils.results.statistics import hanley_mcneil, verdict
from utils.results.tidy import TIDY_COLUMNS
from utils.runtime.errors import Failures, UserError
from visualize import of_model, selection

EMPTY = pd.DataFrame()


def table(n_datasets: int = 6, setting: str = "normal") -> pd.DataFrame:
    """Baselines at 0.8 and SAE probes at 0.7 on every dataset."""
    rows = []
    for i in range(n_datasets):
        common = {
            "setting": setting,
            "condition": "all",
            "dataset": f"{i}_d",
            "layer": 2,
            "seed": 42,
            "n_test": 100,
            "converged": True,
        }
        scores = {"val_auc": 0.8, "test_auc": 0.8 + i / 1000}
        baseline = {"kind": "baseline", "method": "logreg", "protocol": "paper"}
        rows.append({**common, **baseline, **scores})
        probe = {"kind": "sae", "method": "sae_probe", "sae_id": "s", "protocol": "paper"}
        rows += [{**common, **probe, "k": k, "val_auc": 0.7, "test_auc": 0.7} for k in (1, 16)]
    return pd.DataFrame(rows).reindex(columns=list(TIDY_COLUMNS))


def material(tidy: pd.DataFrame) -> Material:
    picked = Picks(tidy)
    picks = {setting: picked.of(setting, "paper") for setting in picked.settings()}
    compared = compare(picked)
    return Material(tidy, picks, compared, compared, val_test_gap(tidy), EMPTY)


def test_what_can_be_drawn_is_and_each_other_says_what_it_lacks(paths: Paths):
    folder = paths.figures("m")
    folder.mkdir(parents=True)
    stale = folder / "OOD.png"
    stale.write_bytes(b"of an older run")
    failures = Failures()
    drawings, left_out = draw_all(gallery(paths, "m"), material(table()), folder, failures)
    names = {drawing.name for drawing in drawings}
    assert {"settings", "normal_auc_by_k", "normal_quiver", "normal_layers"} <= names
    assert "figure OOD: OOD lacks baselines or SAE probes" in left_out
    assert len(names) + len(left_out) == len(gallery(paths, "m"))
    assert failures.lines == []
    assert not stale.exists()
    assert {path.name for path in folder.iterdir()} == {
        f"{n}.{s}" for n in names for s in (*FORMATS, "csv")
    }


def test_figures_are_the_same_bytes_on_every_run(paths: Paths, tmp_path):
    pictures = [p for p in gallery(paths, "m") if p.name in ("settings", "normal_quiver")]
    contents = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        draw_all(pictures, material(table()), tmp_path / run, Failures())
        contents.append([path.read_bytes() for path in sorted((tmp_path / run).iterdir())])
    assert contents[0] == contents[1]


def test_a_table_that_cannot_be_used_is_a_failure_and_the_next_is_drawn(tmp_path):
    def broken(_):
        raise UserError("x.csv is broken")

    def whole(_):
        figure, _axes = one_panel(2, 2)
        return figure

    failures = Failures()
    pictures = [Picture("a", "A", broken), Picture("b", "B", whole)]
    drawings, left_out = draw_all(pictures, material(table()), tmp_path, failures)
    assert [drawing.name for drawing in drawings] == ["b"]
    assert (left_out, failures.lines) == (["figure a: x.csv is broken"], ["x.csv is broken"])


def test_every_contender_has_one_name_and_one_look():
    assert set(LOOKS) == set(TITLES)
    for part in ("color", "marker", "hatch"):
        values = [getattr(look, part) for look in LOOKS.values()]
        assert len(set(values)) == len(values)


def test_panels_are_as_many_as_asked_for():
    for n in (1, 3, 5, 30):
        assert len(small_multiples(n, 2.0)[1]) == n


def test_relabelling_without_its_table_says_so():
    with pytest.raises(NoData, match="87_glue_cola"):
        relabelling(None)


def report(**parts) -> Report:
    names = ("controls", "gap", "each_sae")
    nothing = compare(Picks(table().iloc[:0]))
    tables = {"comparisons": Comparisons(nothing), **dict.fromkeys(names, EMPTY)}
    lists: dict = {name: [] for name in ("drawings", "left_out", "findings", "cards")}
    rest: dict = {"calibration": "", "settings": {}, "about": "", "leaderboard": False,
                  "selected": ""}  # fmt: skip
    shown = {"shown": table().iloc[:0]}
    return Report(**{"model_name": "m", **tables, **lists, **rest, **shown, **parts})


def test_texts_of_strangers_appear_as_text(paths: Paths, tmp_path):
    hostile = "<script>alert(1)</script> \"'& \u202e мир 🎈"
    finding = Finding(Kind.TORN, "doubt", hostile, hostile)
    page = tmp_path / "report.html"
    frame = pd.DataFrame({hostile: [hostile], "n": [1.0]})
    write_report(
        page,
        report(
            model_name=hostile,
            findings=[finding],
            left_out=[hostile],
            each_sae=frame,
            settings={"a": {"b": hostile}},
        ),
    )
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 6
    assert "мир 🎈" in text
    assert text.count("<script>") == 1  # our own


def test_the_answer_says_who_is_ahead_by_how_much():
    (answer,) = answers(Comparisons(compare(Picks(table()))))
    assert answer["where"] == "normal, all test rows"
    assert "SAE probes are 0.103 AUC below the best baseline" in answer["what"]


def test_the_answer_is_about_fresh_rows_where_they_are_known():
    """Each setting by itself: a published table does not say them."""
    ours = table().assign(test_auc_fresh=lambda t: t["test_auc"] - 0.1, n_fresh=50.0)
    ours.loc[ours["kind"] == "baseline", "test_auc_fresh"] -= 0.1  # those remember more
    theirs = table().assign(setting="class_imbalance", condition=0.5, test_auc_fresh=np.nan)
    both = pd.concat([theirs, ours], ignore_index=True)
    first, second = answers(Comparisons(compare(Picks(both)), compare(Picks(on_fresh_rows(both)))))
    assert first["where"] == "class_imbalance, all test rows"
    assert "0.103 AUC below" in first["what"]
    assert second["where"] == "normal, fresh test rows"
    assert "0.003 AUC below" in second["what"]


def test_cells_are_short_and_nothing_is_a_dash():
    assert cell(np.nan, "x") == cell(None, "x") == "–"
    assert cell(0.12345, "x") == "0.123"
    assert cell(3.0, "wins") == "3"
    assert cell(0.0001, "Holm p") == "<0.001"
    assert cell("all", "condition") == "all"


def test_a_figures_numbers_are_those_it_shows():
    figure, axes = one_panel(3, 3)
    axes.set_title("panel")
    axes.bar([0, 1], [0.2, 0.3], bottom=0.5, label="bars")
    axes.set_xticks([0, 1], ["left", "right"])
    axes.plot([0, 1], [0.9, 0.8], label="line")
    axes.scatter([0.3], [0.6], label="dots")
    axes.axhline(0.5)  # no number
    assert plotted(figure).to_dict("split")["data"] == [
        ["panel", "line", "left", 0.9],
        ["panel", "line", "right", 0.8],
        ["panel", "bars", "left", 0.7],
        ["panel", "bars", "right", 0.8],
        ["panel", "dots", "left", 0.6],
    ]


def test_dots_are_the_differences_of_the_comparison():
    compared = compare(Picks(table()))
    compared = compared[compared["condition"] == "all"]
    numbers = plotted(study.verdict_dots(compared))
    for row in compared.dropna(subset=["mean_difference"]).to_dict("records"):
        of_name = numbers[numbers["series"] == TITLES[row["contender"]]]
        shown = of_name[of_name["panel"].str.startswith(row["setting"])]
        if len(shown):
            assert shown["x"].tolist() == pytest.approx([row["mean_difference"]])
    assert TITLES["sae_only"] in set(numbers["series"])


def test_a_leaderboard_ranks_and_tells_apart(tmp_path):
    """Three SAEs: the first surely ahead of the third on 20 datasets, the second like the first."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(20):
        base = {"setting": "normal", "condition": "all", "dataset": f"d{i}", "layer": 1,
                "protocol": "paper", "seed": 42, "n_test": 300, "n_nonzero": 5.0,
                "kind": "sae", "method": "sae_probe", "k": 5.0, "val_auc": 0.8}  # fmt: skip
        level = rng.uniform(0.6, 0.9)
        for name, gain in (("<i>a</i>", 0.05), ("b", 0.05), ("c", 0.0)):
            auc = level + gain + 0.002 * rng.normal()
            rows.append({**base, "sae_id": name, "test_auc": auc})
    tidy = pd.DataFrame(rows)
    saes, pairs = leaderboard(Picks(tidy), "normal", "paper")
    means = tidy.groupby("sae_id")["test_auc"].mean().sort_values(ascending=False)
    assert saes["SAE"].tolist() == means.index.tolist()
    assert saes["mean_test_auc"].tolist() == pytest.approx(means.tolist())
    said = {(row["SAE"], row["other"]): verdict(row) for row in pairs.to_dict("records")}
    assert sorted(said.values()) == ["above", "above", "no difference seen"]
    page = tmp_path / "leaderboard.html"
    write_leaderboard(page, "m", "normal", (saes, pairs), fresh=False)
    text = page.read_text()
    assert "<i>a</i>" not in text
    assert "2 of 3 pairs can be told apart" in text


def test_a_selection_has_a_name_of_its_own():
    names = ["a", "b", "c"]
    assert selection(names, 3, "all") == ""
    assert selection(["a"], 3, "all") == "a"
    assert selection(names, 3, "scarcity") == "scarcity"
    two = {selection(pair, 3, "all") for pair in (["a", "b"], ["a", "c"], ["b", "c"])}
    assert len(two) == 3
    assert all(name.startswith("2_datasets_") for name in two)


def test_words_of_other_datasets_are_not_the_models():
    """Probes on words alone are in one table for all models."""
    tidy = table(3)
    words = tidy.iloc[:1].assign(kind="text", method="text_only", dataset="other")
    assert of_model(pd.concat([tidy, words])) == ["0_d", "1_d", "2_d"]


def test_an_interval_of_an_auc_is_that_of_many_draws():
    """Hanley and McNeil's error against the spread of AUCs of exponential scores, their model."""
    rng = np.random.default_rng(0)
    auc, n = 0.8, 100
    rate = (1 - auc) / auc  # of the positives' scores: AUC = 1 / (1 + rate)
    aucs = []
    for _ in range(2000):
        positive, negative = rng.exponential(1 / rate, n), rng.exponential(1.0, n)
        aucs.append((positive[:, None] > negative[None]).mean())
    assert np.mean(aucs) == pytest.approx(auc, abs=0.005)
    assert hanley_mcneil(auc, n, n) == pytest.approx(np.std(aucs), rel=0.06)


def test_the_explorer_shows_the_decisions_that_the_table_compares():
    """Baselines at a layer without SAEs, and a dataset with too few fresh rows."""
    tidy = table()
    elsewhere = tidy[tidy["kind"] == "baseline"].assign(layer=9, test_auc=0.99, method="mlp")
    tidy = pd.concat([tidy, elsewhere], ignore_index=True)
    tidy["test_auc_fresh"] = tidy["test_auc"].astype(float) - 0.1
    tidy["n_fresh"] = 40
    tidy.loc[tidy["dataset"] == "3_d", "test_auc_fresh"] = np.nan
    datasets = by_dataset(Picked(tidy), "paper")
    matched = explorer.matched_rows(tidy, datasets)
    drawn = explorer.curves(matched)
    for row in explorer.dataset_rows(matched, datasets):
        assert row["method"] == "logreg"
        assert row["test_rows"] == ("all" if row["dataset"] == "3_d" else "fresh")
        shown = drawn[row["dataset"]]["by_k"]
        assert shown["quiver_baselines"] == [[None, pytest.approx(row["baseline"], abs=1e-4)]]
        assert [k for k, _ in shown["sae_only"]] == [1, 16]
        assert row["k"] == 1  # the first of those that validate alike


def test_a_leaderboard_pairs_decisions_that_both_have():
    """B has one easy condition alone, and is a little worse there: it is no winner."""
    rows = []
    for i in range(10):
        base = {"setting": "scarcity", "dataset": f"d{i}", "layer": 1, "protocol": "paper",
                "seed": 42, "n_test": 300, "n_nonzero": 5.0, "val_auc": 0.8}  # fmt: skip
        probe = {**base, "kind": "sae", "method": "sae_probe", "k": 5.0}
        for condition, auc in ((2, 0.6), (20, 0.7), (1024, 0.9)):
            rows.append({**probe, "sae_id": "A", "condition": condition, "test_auc": auc})
            rows.append({**probe, "sae_id": "C", "condition": condition, "test_auc": auc - 0.02})
            if i < 2:
                baseline = {"kind": "baseline", "method": "logreg", "condition": condition}
                rows.append({**base, **baseline, "test_auc": 0.95})
        rows.append({**probe, "sae_id": "B", "condition": 1024, "test_auc": 0.89})
    saes, pairs = leaderboard(Picks(pd.DataFrame(rows)), "scarcity", "paper")
    assert saes["SAE"].tolist() == ["A", "C", "B"]
    assert np.isnan(saes["mean_test_auc"].iloc[2])
    assert saes["n_datasets"].tolist() == [2, 2, 2]
    assert {verdict(row) for row in saes.to_dict("records")} == {"too few datasets"}
    ((better, other, gain),) = pairs[["SAE", "other", "mean_difference"]].to_numpy()
    assert (better, other, gain) == ("A", "C", pytest.approx(0.02))


def test_saes_without_a_common_dataset_are_no_error(tmp_path):
    base = {"setting": "normal", "condition": "all", "layer": 1, "protocol": "paper", "seed": 42,
            "kind": "sae", "method": "sae_probe", "k": 5.0, "val_auc": 0.8, "n_test": 300,
            "n_nonzero": 5.0, "test_auc": 0.7}  # fmt: skip
    tidy = pd.DataFrame([{**base, "sae_id": "a", "dataset": "x"},
                         {**base, "sae_id": "b", "dataset": "y"}])  # fmt: skip
    page = tmp_path / "leaderboard.html"
    write_leaderboard(page, "m", "normal", leaderboard(Picks(tidy), "normal", "paper"), fresh=False)
    assert "No two of them" in page.read_text()
