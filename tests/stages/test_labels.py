"""Label audit and transfer matrix on rows whose labels are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from checks.labels import (
    Views,
    as_table,
    before_and_after,
    corrected_labels,
    deny,
    planted,
    require_unfilled,
)
from checks.pruning import judged_order, pruned
from checks.transfer import FEWEST_ROWS, ON_LATENTS, OtherRows, Trained, scores, summary
from utils.datasets import Dataset
from utils.figures.study import transfer
from utils.figures.style import NoData, plotted
from utils.probes.linear import LinearProbe
from utils.runtime.errors import UserError
from utils.settings import TrainTest


def made(n: int = 400, with_latents: bool = True) -> tuple[Views, np.ndarray, Dataset]:
    """(views whose labels have 20 flips, which ones, the texts): latent 3 tells the true label."""
    rng = np.random.default_rng(0)
    truth = np.arange(n) % 2
    X = np.maximum(rng.normal(size=(n, 30)), 0)
    X[:, 3] = truth * (1 + 0.2 * rng.random(n))
    flipped = np.zeros(n, dtype=bool)
    flipped[rng.choice(n, 20, replace=False)] = True
    y = np.where(flipped, 1 - truth, truth)
    dense = np.hstack([X, rng.normal(size=(n, 5))]).astype(np.float32)
    latents = csr_array(X) if with_latents else None
    texts = [f"text {i}" for i in range(n)]
    return (
        Views(dense, latents, y, np.arange(n)),
        flipped,
        Dataset("d", texts, y, ("ham", "spam"), ()),
    )


def test_the_labels_that_are_wrong_are_denied_first():
    views, flipped, dataset = made()
    denial = deny(views, views.y, 4, 42, "audit")
    table = as_table(dataset, views.y, denial)
    assert set(table["row"][:20]) == set(np.flatnonzero(flipped))
    first = table.iloc[0]
    assert first["text"] == f"text {first['row']}"
    assert first["label"] == ("ham", "spam")[views.y[first["row"]]]
    # a row with label 0 that fires latent 3 is denied by it
    said_ham = [i for i in np.flatnonzero(flipped) if views.y[i] == 0]
    assert all(denial.deniers[i][0][0] == 3 for i in said_ham)
    assert "denial_sae" not in as_table(dataset, views.y, deny(made(with_latents=False)[0],
                                        views.y, 4, 42, "audit"))  # fmt: skip


def test_no_row_is_judged_by_a_probe_that_was_trained_on_its_text():
    """Labels that are pure noise, each text twice: copies in other folds would give them away."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(100, 60)).repeat(2, axis=0)
    y = rng.integers(0, 2, 100).repeat(2)
    groups = np.arange(100).repeat(2)
    denial = deny(Views(X.astype(np.float32), None, y, groups), y, 4, 42, "audit")
    assert 0.3 < (denial.dense > 0).mean() < 0.7


def test_planted_flips_are_counted():
    views, flipped, _ = made()
    clean = Views(views.dense, views.latents, np.where(flipped, 1 - views.y, views.y), views.groups)
    line = planted(clean, 0.1, 4, 42)
    assert "tried with 40 labels flipped" in line
    assert float(line.split("most denied, ")[1].split()[0]) > 0.95
    with pytest.raises(UserError, match="needs at least 10"):
        deny(
            Views(views.dense[:12], None, views.y[:12], views.groups[:12]), views.y[:12], 4, 42, ""
        )


def test_corrections_are_fed_back(tmp_path):
    views, flipped, dataset = made()
    path = tmp_path / "corrected.csv"
    rows = np.flatnonzero(flipped)
    new = [dataset.classes[1 - views.y[row]] for row in rows]
    pd.DataFrame({"row": [*rows, 0], "corrected": [*new, ""]}).to_csv(path, index=False)
    changed = corrected_labels(dataset, views.y, path)
    assert (changed != views.y).tolist() == flipped.tolist()
    said = before_and_after(dataset, views, path, 4, 42)
    assert said.startswith("20 labels corrected")
    lines = [line for line in said.splitlines() if "trained on labels corrected" in line]
    assert len(lines) == 2
    for line in lines:
        before, after = (float(part.split()[-1].rstrip(",")) for part in line.split(", corrected"))
        assert after > 0.99 > before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("row,label\n1,ham\n", "lacks the columns corrected"),
        ("row,corrected\n999,ham\n", "row 999 is no row"),
        ("row,corrected\n1.5,ham\n", "is no row"),
        ("row,corrected\n1,eggs\n", r"'eggs' is no class of d \(ham, spam\)"),
        ("row,corrected\ninf,ham\n", "is no row"),
        ("row,corrected\n1,ham\n1,spam\n", "corrects row 1 to 'ham' and to 'spam'"),
        ("row,corrected,text\n1,ham,text 2\n", "its text is not that of d now"),
        ("row,corrected,text\n1,ham,a,b\n", "more cells than its header"),
    ],
)
def test_corrections_that_make_no_sense_are_refused(tmp_path, content, said):
    views, _, dataset = made()
    path = tmp_path / "corrected.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        corrected_labels(dataset, views.y, path)


def test_an_empty_cell_leaves_number_classes_as_they_were_written(tmp_path):
    views, _, dataset = made()
    numbers = Dataset("d", dataset.texts, dataset.labels, ("0", "1"), ())
    path = tmp_path / "corrected.csv"
    path.write_text("row,corrected\n0,1\n1,\n")
    assert corrected_labels(numbers, views.y, path)[0] == 1


def test_what_was_filled_in_by_hand_is_not_written_over(tmp_path):
    path = tmp_path / "audit.csv"
    require_unfilled(path, "corrected")
    path.write_text("row,corrected\n0,\n")
    require_unfilled(path, "corrected")
    for content in ("row,corrected\n0,ham\n", "row;corrected\n0;ham\n"):
        path.write_text(content)
        with pytest.raises(UserError, match="has been filled in"):
            require_unfilled(path, "corrected")
    path.write_bytes("row,corrected\n0,ham\n".encode("utf-16"))
    with pytest.raises(UserError, match="cannot be read"):
        require_unfilled(path, "corrected")


def transferred() -> tuple[OtherRows, Trained]:
    rng = np.random.default_rng(0)
    X = csr_array(np.maximum(rng.normal(size=(100, 10)), 0))
    y = (X.toarray()[:, 2] > 0.3).astype(np.int64)
    texts = [f"text {i}" for i in range(100)]
    probe = LinearProbe(np.array([1.0]), 0.0, np.array([2]))
    return (
        OtherRows("b", X.toarray(), X, y, texts),
        Trained("a", ON_LATENTS, probe, frozenset(texts[:60])),
    )


def test_texts_that_a_probe_was_trained_on_are_left_out():
    tested, trained = transferred()
    (row,) = scores(tested, [trained])
    assert row["n_test"] == 40
    expected = roc_auc_score(tested.y[60:], tested.latents.toarray()[60:, 2])
    assert row["test_auc"] == pytest.approx(expected)
    everything = Trained("a", ON_LATENTS, trained.probe, frozenset(tested.texts[FEWEST_ROWS - 1 :]))
    assert scores(tested, [everything]) == []


def test_the_matrix_is_drawn_as_it_is():
    names = ["a", "b"]
    rows = [
        {"trained_on": i, "tested_on": j, "probe": kind, "test_auc": value}
        for kind, shift in ((ON_LATENTS, 0.0), ("logreg", 0.05))
        for (i, j), value in zip(
            [(i, j) for i in names for j in (*names, "a_OOD")], np.linspace(0.3, 0.9, 6) + shift
        )
    ]
    table = pd.DataFrame(rows)
    numbers = plotted(transfer(table))
    for row in rows:
        shown = numbers[
            (numbers["panel"] == row["probe"])
            & (numbers["y"] == row["trained_on"])
            & (numbers["x"] == row["tested_on"])
        ]
        if row["probe"] == ON_LATENTS:  # panels share their names on the left one
            assert shown["value"].tolist() == pytest.approx([row["test_auc"]])
    assert "on its OOD texts (1)" in summary(table)
    with pytest.raises(NoData):
        transfer(None)


def pruned_rows() -> TrainTest:
    """Latent 2 tells the class everywhere; latent 5 tells it in training rows, and lies outside."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    X = np.maximum(rng.normal(size=(600, 8)), 0)
    X[:, 2] = np.maximum(y + 0.6 * rng.normal(size=600), 0)
    X[:, 5] = np.maximum(np.where(np.arange(600) < 400, y, 1 - y) + 0.2 * rng.normal(size=600), 0)
    return TrainTest(csr_array(X[:400]), y[:400], csr_array(X[400:]), y[400:])


def test_pruning_keeps_the_first_latents_of_an_order():
    rows = pruned_rows()
    table = pruned(rows, np.array([2, 5]), 42)
    assert table["k"].tolist() == [1, 2]
    alone = roc_auc_score(rows.y_test, rows.X_test.toarray()[:, 2])
    assert table["ood_auc"][0] == pytest.approx(alone)  # one latent: its sign is all there is
    assert table["ood_auc"][0] > 0.7 > table["ood_auc"][1]
    assert table["val_auc"][1] > table["val_auc"][0]


def test_a_judge_orders_the_latents(tmp_path):
    path = tmp_path / "judged.csv"
    latents = np.array([7, 3, 9])
    path.write_text("latent,relevance\n9,1\n3,\n7,2\n")
    assert judged_order(path, latents).tolist() == [9, 7, 3]
    for content, said in (
        ("latent\n7\n", "lacks the columns relevance"),
        ("latent,relevance\n7,\n", "judges no latent"),
        ("latent,relevance\n8,1\n", "latent 8, which is none"),
        ("latent,relevance\n7.5,1\n", "latent 7.5, which is none"),
        ("latent,relevance\n7,high\n", "relevance 'high' is no number"),
        ("latent,relevance\n7,1\n7,2\n", "latent 7 twice"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            judged_order(path, latents)
