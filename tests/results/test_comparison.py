"""The comparison against a second route in plain Python, and its rules on small tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from utils.results.comparison import bootstrap_interval, compare, headline, pick, val_test_gap


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
):
    return {
        "setting": setting, "condition": condition, "dataset": dataset, "layer": layer,
        "kind": kind, "method": method, "k": k, "val_auc": val_auc, "test_auc": test_auc,
        "seed": seed, "protocol": None if kind == "baseline" else protocol,
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
    found = compare(table).set_index(["condition", "contender"])["mean_test_auc"]
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
    table = compare(pd.DataFrame(rows))
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
    wide = headline(compare(pd.DataFrame(rows)))
    assert wide.loc["normal", "baselines + SAE"] == 0.6
    assert wide.loc["normal", "random-SAE control"] == 0.99


def test_bootstrap_resamples_datasets_not_rows():
    """Ten conditions that repeat one value a dataset tell no more than that value alone."""
    values = np.random.default_rng(0).normal(size=12)
    datasets = np.arange(12).astype(str)
    once = bootstrap_interval(values, datasets)
    repeated = bootstrap_interval(np.repeat(values, 10), np.repeat(datasets, 10))
    assert repeated == pytest.approx(once)
    assert once[0] < values.mean() < once[1]


def test_a_control_that_lacks_decisions_takes_none_from_the_others():
    rows = [
        probe(d, kind, method, 0.5, auc)
        for d in "ab"
        for kind, method, auc in (("baseline", "logreg", 0.5), ("sae", "sae_probe", 0.6))
    ]
    rows += [probe("a", "control", "raw_dims", 0.9, 0.9)]
    overall = compare(pd.DataFrame(rows)).set_index("contender")
    assert overall.loc["sae_only", "n_pairs"] == 2
    assert overall.loc["raw_dims", "n_pairs"] == 1
    assert overall.loc["raw_dims", "mean_difference"] == pytest.approx(0.4)


def test_protocols_are_compared_apart():
    rows = [probe("a", "baseline", "logreg", 0.5, 0.5), probe("a", "sae", "sae_probe", 0.9, 0.6)]
    rows += [probe("a", "sae", "sae_probe", 0.45, 0.7, protocol="nested")]
    table = compare(pd.DataFrame(rows)).set_index(["protocol", "contender"])["mean_test_auc"]
    assert (table["paper", "quiver_with_sae"], table["nested", "quiver_with_sae"]) == (0.6, 0.5)
    gap = val_test_gap(pd.DataFrame(rows)).iloc[0]
    assert (gap["SAE probes, paper"], gap["SAE probes, nested"]) == (
        pytest.approx(0.3),
        pytest.approx(-0.25),
    )


def test_seeds_are_decisions_of_their_own():
    rows = [probe("a", "baseline", "logreg", 0.5, 0.5), probe("a", "sae", "sae_probe", 0.9, 0.6)]
    rows += [probe("a", "sae", "sae_probe", 0.9, 0.9, seed=43)]
    overall = compare(pd.DataFrame(rows)).set_index("contender")
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
    table = compare(pd.DataFrame(rows))
    assert not len(table)
    assert {"setting", "contender", "mean_test_auc"} <= set(table.columns)


def test_what_has_no_val_auc_is_not_ranked_against_what_has():
    """The published OOD baselines have none: baselines and SAEs together are then no contender,
    each alone is.
    """
    rows = [probe("a", "baseline", "logreg", np.nan, 0.8), probe("a", "sae", "sae_probe", 0.9, 0.6)]
    overall = compare(pd.DataFrame(rows)).set_index("contender")
    assert overall.loc["quiver_baselines", "mean_test_auc"] == 0.8
    assert overall.loc["sae_only", "mean_test_auc"] == 0.6
    assert "quiver_with_sae" not in overall.index
