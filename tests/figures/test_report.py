"""Gallery and report: what is drawn, what is left out and why, and that texts are untrusted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from utils.figures.gallery import FORMATS, Material, Picture, draw_all, gallery
from utils.figures.report import Report, answers, cell, write_report
from utils.figures.side_experiments import relabelling
from utils.figures.style import LOOKS, NoData, one_panel, small_multiples
from utils.paths import Paths
from utils.results.comparison import TITLES, Comparisons, compare, on_fresh_rows, val_test_gap
from utils.results.findings import Finding, Kind
from utils.results.tidy import TIDY_COLUMNS
from utils.runtime.errors import Failures, UserError

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
    return Material(tidy, compare(tidy), val_test_gap(tidy), EMPTY)


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
    assert {path.name for path in folder.iterdir()} == {f"{n}.{s}" for n in names for s in FORMATS}


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
    nothing = compare(table().iloc[:0])
    tables = {"comparisons": Comparisons(nothing), **dict.fromkeys(names, EMPTY)}
    rest: dict = {"calibration": "", "drawings": [], "left_out": [], "findings": [], "settings": {}}
    return Report(**{"model_name": "m", **tables, **rest, **parts})


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
    (answer,) = answers(Comparisons(compare(table())))
    assert answer["where"] == "normal, all test rows"
    assert "SAE probes are 0.103 AUC below the best baseline" in answer["what"]


def test_the_answer_is_about_fresh_rows_where_they_are_known():
    """Each setting by itself: a published table does not say them."""
    ours = table().assign(test_auc_fresh=lambda t: t["test_auc"] - 0.1, n_fresh=50.0)
    ours.loc[ours["kind"] == "baseline", "test_auc_fresh"] -= 0.1  # those remember more
    theirs = table().assign(setting="class_imbalance", condition=0.5, test_auc_fresh=np.nan)
    both = pd.concat([theirs, ours], ignore_index=True)
    first, second = answers(Comparisons(compare(both), compare(on_fresh_rows(both))))
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
