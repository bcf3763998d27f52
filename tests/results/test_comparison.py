"""The comparison against a second route in plain Python, and its rules on small tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from utils.figures.report import answers
from utils.results.comparison import (
    Comparisons,
    Picked,
    Picks,
    against,
    against_controls,
    by_dataset,
    by_sae,
    compare,
    compare_all,
    headline,
    leaderboard,
    pick,
    val_test_gap,
)
from utils.results.statistics import verdict


def probe(
    dataset,
    kind,
    method,
    val_auc,
    test_auc,
    condition="all",
    setting="normal",
    layer=2,
    k=np.nan,
    protocol="paper",
    seed=42,
    sae_id="s",
    n_nonzero=3,
):
    return {
        "setting": setting, "condition": condition, "dataset": dataset, "layer": layer,
        "kind": kind, "method": method, "k": k, "val_auc": val_auc, "test_auc": test_auc,
        "seed": seed, "protocol": protocol,
        "sae_id": None if kind == "baseline" else sae_id,
        "n_nonzero": np.nan if kind == "baseline" else n_nonzero,
    }  # fmt: skip


def random_table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for dataset, size in product("abcdef", (10, 20, 50)):
        for method in ("logreg", "pca", "knn"):
            rows.append(
                probe(
                    dataset,
                    "baseline",
                    method,
                    rng.integers(0, 4) / 4,
                    rng.random(),
                    size,
                    "scarcity",
                )
            )
        for k in (16, 128):
            rows.append(
                probe(
                    dataset,
                    "sae",
                    "sae_probe",
                    rng.integers(0, 4) / 4,
                    rng.random(),
                    size,
                    "scarcity",
                    k=k,
                )
            )
    return pd.DataFrame(rows)


def expected_pick(rows: list[dict]) -> float:
    best = max(row["val_auc"] for row in rows)
    tied = [row["test_auc"] for row in rows if row["val_auc"] == best]
    return sum(tied) / len(tied)


@pytest.mark.parametrize("seed", range(5))
def test_means_equal_a_plain_second_route(seed):
    table = random_table(seed)
    found = compare(Picks(table)).set_index(["condition", "contender"])["mean_test_auc"]
    kinds = {
        "quiver_baselines": ("baseline",),
        "quiver_with_sae": ("baseline", "sae"),
        "sae_only": ("sae",),
    }
    for contender, allowed in kinds.items():
        values = []
        for dataset, size in product("abcdef", (10, 20, 50)):
            rows = [
                r
                for r in table.to_dict("records")
                if (r["dataset"], r["condition"]) == (dataset, size)
            ]
            values.append(expected_pick([r for r in rows if r["kind"] in allowed]))
        assert found["all", contender] == pytest.approx(np.mean(values), abs=1e-9)


def test_only_decisions_that_all_have_are_compared():
    rows = [probe("a", "baseline", "logreg", 0.9, 0.8), probe("a", "sae", "sae_probe", 0.9, 0.7)]
    rows += [probe("b", "baseline", "logreg", 0.9, 0.1), probe("c", "sae", "sae_probe", 0.9, 1.0)]
    rows += [probe("a", "baseline", "logreg", 0.9, 0.2, layer=5)]
    table = compare(Picks(pd.DataFrame(rows)))
    overall = table[table["condition"] == "all"].set_index("contender")
    assert overall.loc["quiver_baselines", "mean_test_auc"] == 0.8
    assert overall.loc["sae_only", "n_pairs"] == 1
    assert overall.loc["sae_only", "n_unmatched"] == 3


def test_ties_give_the_expectation_and_its_range():
    rows = [
        probe("a", "baseline", "pca", 0.9, 0.6),
        probe("a", "baseline", "knn", 0.9, 0.8),
        probe("a", "baseline", "mlp", 0.5, 1.0),
    ]
    picked = pick(pd.DataFrame(rows)).iloc[0]
    assert (picked["test_auc"], picked["lowest"], picked["highest"], picked["n_tied"]) == (
        pytest.approx(0.7),
        0.6,
        0.8,
        2,
    )


def test_controls_stay_out_of_the_quivers():
    rows = [probe("a", "baseline", "logreg", 0.5, 0.5), probe("a", "sae", "sae_probe", 0.6, 0.6)]
    rows += [probe("a", "control", "random_sae_probe", 0.99, 0.99)]
    wide = headline(compare(Picks(pd.DataFrame(rows))))
    assert wide.loc["baselines + SAE", "normal"] == "0.600"
    assert wide.loc["random twin", "normal"] == "0.990"


def test_a_control_that_lacks_decisions_takes_none_from_the_others():
    rows = [
        probe(d, kind, method, 0.5, auc)
        for d in "ab"
        for kind, method, auc in (("baseline", "logreg", 0.5), ("sae", "sae_probe", 0.6))
    ]
    rows += [probe("a", "control", "raw_dims", 0.9, 0.9)]
    overall = compare(Picks(pd.DataFrame(rows))).set_index("contender")
    assert overall.loc["sae_only", "n_pairs"] == 2
    assert overall.loc["raw_dims", "n_pairs"] == 1
    assert overall.loc["raw_dims", "mean_difference"] == pytest.approx(0.4)


def test_protocols_are_compared_apart():
    rows = [probe("a", "baseline", "logreg", 0.5, 0.5), probe("a", "sae", "sae_probe", 0.9, 0.6)]
    rows += [probe("a", "sae", "sae_probe", 0.45, 0.7, protocol="nested")]
    table = compare(Picks(pd.DataFrame(rows))).set_index(["protocol", "contender"])["mean_test_auc"]
    assert (table["paper", "quiver_with_sae"], table["nested", "quiver_with_sae"]) == (0.6, 0.5)
    gap = val_test_gap(pd.DataFrame(rows)).iloc[0]
    assert (gap["SAE probes, paper"], gap["SAE probes, nested"]) == (
        pytest.approx(0.3),
        pytest.approx(-0.25),
    )


def test_seeds_are_decisions_of_their_own():
    rows = [probe("a", "baseline", "logreg", 0.5, 0.5), probe("a", "sae", "sae_probe", 0.9, 0.6)]
    rows += [probe("a", "sae", "sae_probe", 0.9, 0.9, seed=43)]
    overall = compare(Picks(pd.DataFrame(rows))).set_index("contender")
    assert (overall.loc["sae_only", "n_pairs"], overall.loc["sae_only", "mean_test_auc"]) == (
        1,
        0.6,
    )


def test_nothing_matched_is_no_comparison():
    """Baselines at one layer and SAE probes at another: an ordinary state, not an error."""
    rows = [
        probe("a", "baseline", "logreg", 0.5, 0.5, layer=8),
        probe("a", "sae", "sae_probe", 0.6, 0.6, layer=16),
    ]
    table = compare(Picks(pd.DataFrame(rows)))
    assert not len(table)
    assert {"setting", "contender", "mean_test_auc"} <= set(table.columns)


def test_what_has_no_val_auc_is_not_ranked_against_what_has():
    """The published OOD baselines have none: baselines and SAEs together are then no contender,
    each alone is.
    """
    rows = [probe("a", "baseline", "logreg", np.nan, 0.8), probe("a", "sae", "sae_probe", 0.9, 0.6)]
    overall = compare(Picks(pd.DataFrame(rows))).set_index("contender")
    assert overall.loc["quiver_baselines", "mean_test_auc"] == 0.8
    assert overall.loc["sae_only", "mean_test_auc"] == 0.6
    assert "quiver_with_sae" not in overall.index


def eight_datasets(sae: float = 0.05, seeds=(42,)) -> list[dict]:
    """Baselines at 0.8 or so, SAE probes ``sae`` ahead of them."""
    rng = np.random.default_rng(0)
    rows = []
    for dataset, seed in product("abcdefgh", seeds):
        auc = 0.8 + rng.normal() / 100
        gain = sae + rng.normal() / 100
        rows.append(probe(dataset, "baseline", "logreg", 0.9, auc, seed=seed))
        rows.append(probe(dataset, "baseline", "pca", 0.2, 0.99, seed=seed))
        rows.append(probe(dataset, "sae", "sae_probe", 0.9, auc + gain, k=16, seed=seed))
        rows.append(probe(dataset, "sae", "sae_probe", 0.2, 0.01, k=1, seed=seed))
    return rows


@pytest.mark.parametrize(("sae", "expected"), [(0.05, "above"), (-0.05, "below")])
def test_a_clear_difference_is_clear_and_has_the_right_sign(sae, expected):
    row = compare(Picks(pd.DataFrame(eight_datasets(sae)))).set_index("contender").loc["sae_only"]
    assert np.sign(row["mean_difference"]) == np.sign(sae)
    assert row["ci_low"] < row["mean_difference"] < row["ci_high"]
    assert verdict(row.to_dict()) == expected
    ahead, behind = (row["wins"], row["losses"]) if sae > 0 else (row["losses"], row["wins"])
    assert (ahead, behind) == (8, 0)
    (answer,) = answers(Comparisons(compare(Picks(pd.DataFrame(eight_datasets(sae))))))
    assert f"AUC {expected} the best baseline" in answer["what"]
    assert ("surely ahead" if sae > 0 else "surely behind") in answer["what"]
    assert f"Ahead on {8 if sae > 0 else 0} of 8 datasets" in answer["what"]


def test_what_eight_datasets_cannot_see_is_said():
    rng = np.random.default_rng(1)
    rows = []
    for dataset in "abcdefgh":
        rows.append(probe(dataset, "baseline", "logreg", 0.9, 0.8))
        rows.append(probe(dataset, "baseline", "pca", 0.1, 0.8))
        rows.append(probe(dataset, "sae", "sae_probe", 0.9, 0.8 + rng.normal() / 10, k=16))
    table = compare(Picks(pd.DataFrame(rows)))
    row = table.set_index("contender").loc["sae_only"]
    (answer,) = answers(Comparisons(table))
    assert "cannot tell from none" in answer["what"]
    assert f"8 datasets can show a difference of {row['mde']:.3f} or more" in answer["what"]
    assert 0.05 < row["mde"] < 0.3


def test_holm_is_over_all_sentences_and_over_all_rows():
    rows = [{**row, "setting": s} for s in ("normal", "OOD") for row in eight_datasets()]
    table = compare(Picks(pd.DataFrame(rows)))
    listed = table["p_wilcoxon"].notna()
    assert listed.sum() == 4  # two settings, with SAE probe and both together
    smallest = table["p_wilcoxon"].min()
    assert smallest == pytest.approx(2 / 2**8)
    sentences = table["contender"] == "sae_only"
    assert table.loc[sentences, "p_holm"].tolist() == pytest.approx([2 * smallest] * 2)
    others = table.loc[listed & ~sentences, "p_holm"]
    assert others.tolist() == pytest.approx([4 * smallest] * 2)
    # a condition's row is of the table, not of the sentences
    scarce = [{**r, "setting": "scarcity", "condition": c} for c in (10, 20) for r in rows[:32]]
    table = compare(Picks(pd.DataFrame(scarce)))
    conditions = table[(table["condition"] != "all") & (table["contender"] == "sae_only")]
    n_tests = table["p_wilcoxon"].notna().sum()
    assert conditions["p_holm"].min() == pytest.approx(min(1, n_tests * smallest))


def test_candidates_are_counted_on_both_sides():
    row = compare(Picks(pd.DataFrame(eight_datasets()))).set_index("contender").loc["sae_only"]
    assert (row["n_candidates"], row["n_candidates_baseline"]) == (2, 2)


def test_a_probe_without_weights_wins_nothing():
    rows = [probe(d, "baseline", "logreg", 0.9, 0.4) for d in "abcdef"]
    rows += [probe(d, "sae", "sae_probe", 0.5, 0.5, k=16, n_nonzero=0) for d in "abc"]
    rows += [probe(d, "sae", "sae_probe", 0.5, 0.5, k=16, n_nonzero=2) for d in "def"]
    row = compare(Picks(pd.DataFrame(rows))).set_index("contender").loc["sae_only"]
    assert (row["wins"], row["ties"], row["losses"], row["n_empty"]) == (3, 3, 0, 3)
    # where it is behind, it has lost
    rows = [{**row, "test_auc": 0.6 if row["kind"] == "baseline" else 0.5} for row in rows]
    row = compare(Picks(pd.DataFrame(rows))).set_index("contender").loc["sae_only"]
    assert (row["wins"], row["ties"], row["losses"]) == (0, 0, 6)


def test_logreg_alone_is_the_best_baseline_and_stands_once():
    rows = [probe(d, "baseline", "logreg", 0.9, 0.8) for d in "abcdef"]
    rows += [probe(d, "sae", "sae_probe", 0.5, 0.7, k=16) for d in "abcdef"]
    table = compare(Picks(pd.DataFrame(rows)))
    assert "logreg" not in set(table["contender"])
    assert "best baseline (logreg alone)" in answers(Comparisons(table))[0]["what"]


def control_rows() -> list[dict]:
    """Two trained SAEs; the first has an untrained twin, which is the better of the two."""
    rows = []
    for i, dataset in enumerate("abcdefgh"):
        for sae_id, auc in (("layer_2/x", 0.7), ("layer_2/y", 0.9)):
            rows.append(probe(dataset, "sae", "sae_probe", auc, auc + i / 100, k=16, sae_id=sae_id))
        control = {"k": 16, "sae_id": "layer_2/random_x"}
        rows.append(probe(dataset, "control", "random_sae_probe", 0.8, 0.8 + i / 100, **control))
        rows.append(probe(dataset, "control", "raw_dims", 0.8, 0.6, k=16, sae_id="layer_2/raw"))
        rows.append(probe(dataset, "baseline", "logreg", 0.9, 0.8))
        rows.append(probe(dataset, "baseline", "pca", 0.9, 0.8))
    return rows


def test_a_control_is_compared_with_its_twin_and_not_with_the_best_of_many():
    table = against_controls(Picks(pd.DataFrame(control_rows())), "paper").set_index(
        ["SAE", "control"]
    )
    assert set(table.index) == {
        ("layer_2/x", "layer_2/random_x"),
        ("layer_2/x", "layer_2/raw"),
        ("layer_2/y", "layer_2/raw"),
    }
    twin = table.loc[("layer_2/x", "layer_2/random_x")]
    assert twin["mean_difference"] == pytest.approx(-0.1)
    assert (twin["wins"], twin["losses"], twin["n_candidates"]) == (0, 8, 1)
    assert (twin["SAE probe"], twin["control's"]) == (pytest.approx(0.735), pytest.approx(0.835))
    raw = table.loc[("layer_2/y", "layer_2/raw")]
    assert (raw["wins"], raw["n_datasets"]) == (8, 8)
    overall = compare(Picks(pd.DataFrame(control_rows()))).set_index("contender")["mean_test_auc"]
    assert overall["sae_only"] == pytest.approx(0.935)  # the best of two
    assert overall["twin_sae"] == pytest.approx(0.735)
    assert overall["random_sae"] == pytest.approx(0.835)


def test_each_sae_is_picked_by_validation_and_keeps_its_sign():
    rows = control_rows()
    for dataset in "abcdefgh":  # the best on test rows is the worst in validation
        rows.append(probe(dataset, "sae", "sae_probe", 0.1, 1.0, k=1, sae_id="layer_2/x"))
    table = by_sae(Picks(pd.DataFrame(rows))).set_index("SAE or control")
    assert table.loc["layer_2/x", "SAE probe"] == pytest.approx(0.735)
    assert table.loc["layer_2/x", "mean_difference"] == pytest.approx(-0.065)
    assert table.loc["layer_2/y", "mean_difference"] == pytest.approx(0.135)
    assert table.loc["layer_2/x", "n_candidates"] == 2
    assert (table.loc["layer_2/y", "wins"], table.loc["layer_2/y", "losses"]) == (8, 0)
    assert table.loc["layer_2/y", "p_wilcoxon"] == pytest.approx(2 / 2**8)


def test_numbers_over_fewer_datasets_say_so():
    rows = [row for row in control_rows() if row["method"] != "raw_dims" or row["dataset"] == "a"]
    wide = headline(compare(Picks(pd.DataFrame(rows))))
    assert wide.loc["raw dimensions", "normal"] == "0.600 (of 1)"
    assert wide.loc["SAE probe", "normal"] == "0.935"
    assert wide.loc["datasets", "normal"] == "8"


def test_copies_of_a_dataset_in_seeds_are_no_datasets():
    """Two seeds of eight datasets are eight datasets: nothing is surer for it than it was."""
    row = compare(Picks(pd.DataFrame(eight_datasets(seeds=(42, 43))))).set_index("contender")
    row = row.loc["sae_only"]
    assert (row["n_datasets"], row["n_pairs"]) == (8, 16)
    assert row["wins"] + row["ties"] + row["losses"] == 8
    assert row["p_wilcoxon"] >= 2 / 2**8


def test_a_control_without_weights_beats_no_sae():
    rows = []
    for dataset in "abcdefg":
        rows.append(probe(dataset, "sae", "sae_probe", 0.9, 0.45, k=16, sae_id="l/x"))
        control = {"k": 16, "sae_id": "l/random_x", "n_nonzero": 0}
        rows.append(probe(dataset, "control", "random_sae_probe", 0.9, 0.5, **control))
    (row,) = against_controls(Picks(pd.DataFrame(rows)), "paper").to_dict("records")
    assert (row["wins"], row["ties"], row["losses"], row["n_empty"]) == (0, 7, 0, 7)


def words_table() -> pd.DataFrame:
    """Eight datasets; on the first four the words tell as much as any probe."""
    rows = []
    for i, dataset in enumerate("abcdefgh"):
        rows.append(probe(dataset, "baseline", "logreg", 0.9, 0.80 + i / 1000))
        rows.append(probe(dataset, "sae", "sae_probe", 0.9, 0.76 + i / 500, k=16))
        rows.append(probe(dataset, "text", "text_only", 0.9, 0.80 if i < 4 else 0.6))
        twin = {"k": 16, "sae_id": "s+random"}
        rows.append(probe(dataset, "control", "random_sae_probe", 0.9, 0.7 + i / 300, **twin))
    return pd.DataFrame(rows)


def test_words_suffice_where_they_are_within_a_hundredth():
    table = by_dataset(Picked(words_table()), "paper").set_index("dataset")
    assert table["words"].tolist() == ["words suffice"] * 4 + ["model needed"] * 4
    assert table.loc["e", "text_only"] == 0.6
    assert table.loc["e", "random_sae"] == pytest.approx(0.7 + 4 / 300)
    assert set(table["test_rows"]) == {"all"}
    # what a probe of the model tells no better than chance allows, words tell too
    near = words_table().replace({"test_auc": {0.6: 0.795}})
    found = by_dataset(Picked(near), "paper").set_index("dataset")["words"]
    assert found["f"] == "words suffice"  # 0.805 against 0.795
    assert found["h"] == "model needed"  # 0.807


def test_fresh_rows_decide_where_they_are_known():
    table = words_table().assign(n_fresh=50.0, test_auc_fresh=lambda t: t["test_auc"])
    words = table["kind"] == "text"
    table.loc[words & (table["dataset"] == "a"), "test_auc_fresh"] = 0.5
    table.loc[words & (table["dataset"] == "b"), "test_auc_fresh"] = np.nan
    found = by_dataset(Picked(table), "paper").set_index("dataset")
    assert found["words"].tolist()[:3] == ["model needed", "words suffice", "words suffice"]
    assert found["test_rows"].tolist()[:3] == ["fresh", "all", "fresh"]


def test_the_report_says_words_and_twins():
    tables = compare_all(Picked(words_table()), "paper")
    assert tables.needed.set_index("contender").loc["sae_only", "n_datasets"] == 4
    versus = tables.against.set_index("control")
    gap = np.mean([0.76 + i / 500 - (0.7 + i / 300) for i in range(8)])
    assert versus.loc["random_sae", "mean_difference"] == pytest.approx(gap)
    words = np.mean([0.76 + i / 500 - (0.8 if i < 4 else 0.6) for i in range(8)])
    assert versus.loc["text_only", "mean_difference"] == pytest.approx(words)
    (answer,) = answers(tables)
    first, second, third = answer["further"]
    assert f"{abs(words):.3f} AUC above words alone" in first
    assert f"{gap:.3f} AUC above their random twins" in second
    assert "surely ahead" in second
    assert third.startswith("Words suffice on 4 of 8 datasets; on the other 4 SAE probes are")


def test_an_sae_is_compared_with_its_own_controls():
    """Two SAEs, of which the worse one alone has a soft-frozen twin, and no random one."""
    rows = []
    for dataset in "abcdefgh":
        rows.append(probe(dataset, "baseline", "logreg", 0.9, 0.8))
        rows.append(probe(dataset, "sae", "sae_probe", 0.7, 0.7, k=16, sae_id="A"))
        rows.append(probe(dataset, "sae", "sae_probe", 0.9, 0.9, k=16, sae_id="B"))
        twin = {"k": 16, "sae_id": "A+soft_frozen"}
        rows.append(probe(dataset, "control", "soft_frozen_probe", 0.7, 0.65, **twin))
    (row,) = against(Picks(pd.DataFrame(rows))).to_dict("records")
    assert (row["SAE probe"], row["control's"]) == (pytest.approx(0.7), pytest.approx(0.65))


def fresh(row: dict, auc: float) -> dict:
    return {**row, "test_auc_fresh": auc, "n_fresh": 50, "n_test": 99}


def test_a_protocol_without_fresh_baselines_does_not_borrow_those_of_the_other():
    """The baselines of its own are there, and only do not say what they score on fresh rows."""
    rows = []
    for dataset in "abcdefg":
        of_sae = probe(dataset, "sae", "sae_probe", 0.9, 0.8, protocol="nested")
        rows.append(fresh(of_sae, 0.7))
        rows.append(probe(dataset, "baseline", "logreg", 0.9, 0.9, protocol="nested"))
        rows.append(fresh(probe(dataset, "baseline", "logreg", 0.9, 0.9), 0.6))
        of_text = probe(dataset, "text", "text_only", 0.9, 0.9, protocol="nested", sae_id=None)
        rows.append(fresh(of_text, 0.705))
    picked = Picked(pd.DataFrame(rows))
    tables = compare_all(picked, "nested")
    assert not len(tables.fresh)
    row = tables.all_rows.set_index("contender").loc["sae_only"]
    assert np.isclose(row["mean_difference"], -0.1)
    assert not picked.known.is_fresh("normal", "nested")
    assert set(tables.datasets["test_rows"]) == {"all"}
    assert np.isclose(tables.datasets["quiver_baselines"], 0.9).all()


def test_fresh_rows_of_one_protocol_leave_the_other_its_rows():
    """Published tables, which know no fresh rows, beside nested probes and words that do."""
    rows = []
    for dataset in "abcdefg":
        for sae_id, auc in (("l/x", 0.75), ("l/y", 0.65)):
            rows.append(probe(dataset, "sae", "sae_probe", auc, auc, k=16, sae_id=sae_id))
        rows.append(probe(dataset, "control", "raw_dims", 0.9, 0.6, k=16, sae_id="l/raw"))
        rows.append(probe(dataset, "baseline", "logreg", 0.9, 0.7))
        rows.append(fresh(probe(dataset, "text", "text_only", 0.9, 0.7, sae_id=None), 0.6))
        nested = probe(dataset, "sae", "sae_probe", 0.9, 0.8, k=16, protocol="nested", sae_id="l/x")
        rows.append(fresh(nested, 0.7))
        of_base = probe(dataset, "baseline", "logreg", 0.9, 0.9, protocol="nested")
        rows.append(fresh(of_base, 0.8))
    picked = Picked(pd.DataFrame(rows))
    saes, pairs = leaderboard(picked.known, "normal", "paper")
    assert np.allclose(saes["mean_difference"], [0.05, -0.05])
    assert len(pairs) == 1
    assert len(against_controls(picked.known, "paper")) == 2
    tables = compare_all(picked, "paper")
    known = tables.best_known()
    known = known[known["contender"] == "sae_only"].groupby("protocol")["mean_test_auc"].max()
    assert np.allclose([known["paper"], known["nested"]], [0.75, 0.7])
    each = by_sae(picked.known).set_index(["SAE or control", "protocol"])["SAE probe"]
    assert np.isclose(each["l/x", "paper"], 0.75)
    assert np.isclose(each["l/x", "nested"], 0.7)


def test_a_control_without_an_sae_id_is_none():
    rows = [*control_rows(), probe("a", "control", "raw_dims", 0.8, 0.6, k=16, sae_id=None)]
    assert len(against_controls(Picks(pd.DataFrame(rows)), "paper")) == 3
