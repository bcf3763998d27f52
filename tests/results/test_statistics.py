"""Intervals, tests and power against simulation, scipy and counting by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from utils.results.statistics import (
    _critical_rank_sum,
    dataset_means,
    delong,
    describe_difference,
    hanley_mcneil,
    holm,
    mean_interval,
    smallest_visible,
    verdict,
    wilcoxon_p,
)


@pytest.mark.parametrize("seed", range(4))
def test_delong_is_the_covariance_of_all_pairs(seed):
    """By its definition, a loop over all pairs of a positive and a negative row, ties halved."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(60) % 3 == 0).astype(int)
    one = np.round(rng.normal(size=60) + y, 1)
    other = np.round(0.7 * one + rng.normal(size=60), 1)
    psi = []
    for scores in (one, other):
        a, b = scores[y == 1][:, None], scores[y == 0][None]
        psi.append((a > b) + 0.5 * (a == b))
    by_positive = np.cov([table.mean(axis=1) for table in psi]) / (y == 1).sum()
    by_negative = np.cov([table.mean(axis=0) for table in psi]) / (y == 0).sum()
    both = by_positive + by_negative
    assert delong(y, one, other) ** 2 == pytest.approx(both[0, 0] + both[1, 1] - 2 * both[0, 1])


def test_delong_is_the_spread_of_redrawn_differences():
    """Two probes whose errors have much in common: Hanley and McNeil's error is far too wide."""
    rng = np.random.default_rng(0)
    n, differences, errors = 300, [], []
    for _ in range(400):
        y = np.arange(n) % 2
        shared = rng.normal(size=n) + 1.2 * y
        one, other = (shared + 0.4 * rng.normal(size=n) for _ in range(2))
        differences.append(roc_auc_score(y, one) - roc_auc_score(y, other))
        errors.append(delong(y, one, other))
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.1)
    assert np.mean(errors) < 0.6 * np.sqrt(2) * hanley_mcneil(roc_auc_score(y, one), 150, 150)


def test_delong_of_a_class_with_one_row_is_not_known():
    assert np.isnan(delong(np.array([1, 0, 0]), np.arange(3.0), np.arange(3.0)))


@pytest.mark.parametrize("n", [3, 8, 48, 113])
def test_the_interval_covers_the_mean_in_95_of_100_studies(n):
    rng = np.random.default_rng(n)
    studies = rng.normal(0.02, 0.05, size=(4000, n))
    intervals = np.array([mean_interval(study) for study in studies])
    covered = ((intervals[:, 0] <= 0.02) & (intervals[:, 1] >= 0.02)).mean()
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize(("n", "least"), [(8, 0.90), (48, 0.93), (113, 0.93)])
def test_the_interval_still_covers_where_differences_are_skewed(n, least):
    """Most datasets differ by nothing, a few by much: as those of the paper's tables do."""
    rng = np.random.default_rng(n)
    studies = rng.gamma(1.5, 0.02, size=(3000, n)) - 0.05
    intervals = np.array([mean_interval(study) for study in studies])
    true = 1.5 * 0.02 - 0.05
    assert ((intervals[:, 0] <= true) & (true <= intervals[:, 1])).mean() >= least


def test_the_interval_is_scipys_and_none_below_three():
    values = np.random.default_rng(0).normal(size=9)
    for n in (3, 8, 9):
        test = stats.ttest_1samp(values[:n], 0).confidence_interval(0.95)
        assert mean_interval(values[:n]) == pytest.approx((test.low, test.high))
    assert np.isnan(mean_interval(values[:2])).all()


def test_holm_is_the_textbook_procedure():
    p = pd.Series([0.01, np.nan, 0.04, 0.03, 0.005], index=list("abcde"))
    # by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04, never falling
    expected = {"e": 0.02, "a": 0.03, "d": 0.06, "c": 0.06}
    corrected = holm(p)
    assert {name: corrected[name] for name in "eadc"} == pytest.approx(expected)
    assert np.isnan(corrected["b"])
    assert holm(pd.Series([0.9, 0.8])).max() == 1.0


def test_conditions_of_a_dataset_count_once():
    """Ten conditions that repeat one value a dataset tell no more than that value alone."""
    values = np.random.default_rng(0).normal(size=12)
    names = np.arange(12).astype(str)
    once = describe_difference(values, names)
    repeated = describe_difference(np.repeat(values, 10), np.repeat(names, 10))
    assert repeated == pytest.approx(once)
    assert once["wins"] + once["losses"] == 12
    assert once["wins"] == (values > 0).sum()
    assert once["p_wilcoxon"] == pytest.approx(stats.wilcoxon(values).pvalue)


def test_datasets_with_many_conditions_have_no_more_votes():
    means = dataset_means(np.array([1.0, 1, 1, 0]), np.array(["a", "a", "a", "b"]))
    assert means.mean() == 0.5


def test_ties_are_no_losses():
    counted = describe_difference(np.array([0.1, 0.0, 1e-15, -0.1, -0.2]), np.arange(5))
    assert (counted["wins"], counted["ties"], counted["losses"]) == (1, 2, 2)
    assert np.isnan(wilcoxon_p(np.zeros(5)))


@pytest.mark.parametrize("n", [6, 7, 8, 11])
def test_the_critical_rank_sum_is_counted_right(n):
    sums = sorted(
        sum(rank for rank, negative in zip(range(1, n + 1), signs) if negative)
        for signs in product((False, True), repeat=n)
    )
    largest = max(s for s in set(sums) if 2 * np.mean(np.array(sums) <= s) < 0.05)
    assert _critical_rank_sum(n) == largest


@pytest.mark.parametrize("n", [6, 8, 20, 48, 113])
def test_the_smallest_visible_difference_is_seen_in_four_of_five_studies(n):
    rng = np.random.default_rng(100 + n)
    deviation = 0.03
    scattered = rng.normal(size=n)
    scattered *= deviation / scattered.std(ddof=1)
    visible = smallest_visible(scattered)
    studies = visible + deviation * rng.normal(size=(3000, n))
    seen = 0
    p = stats.wilcoxon(studies, axis=1).pvalue
    for study, p_of_study in zip(studies, p):
        low, high = mean_interval(study)
        seen += (low > 0 or high < 0) and p_of_study < 0.05
    assert 0.77 <= seen / len(studies) <= 0.83
    assert np.isnan(smallest_visible(scattered[:5]))


@pytest.mark.parametrize(
    ("difference", "p", "p_holm", "n", "expected"),
    [
        (0.02, 0.001, 0.01, 20, "above"),
        (-0.02, 0.001, 0.01, 20, "below"),
        (-0.02, 0.001, 0.2, 20, "perhaps below"),
        (0.02, 0.001, 0.2, 20, "perhaps above"),
        (0.02, 0.2, 0.4, 20, "no difference seen"),
        (0.02, 0.03, 0.03, 5, "too few datasets"),
    ],
)
def test_a_verdict_needs_interval_and_test(difference, p, p_holm, n, expected):
    row = {"mean_difference": difference, "p_wilcoxon": p, "p_holm": p_holm, "n_datasets": n}
    row |= {"ci_low": difference - 0.01, "ci_high": difference + 0.01}
    assert verdict(row) == expected
    # an interval with zero in it is never sure
    row |= {"ci_low": -0.1, "ci_high": 0.1}
    assert verdict(row) in ("no difference seen", "too few datasets")


def test_means_of_datasets_are_pandas_own():
    rng = np.random.default_rng(0)
    values = rng.normal(size=500)
    values[rng.random(500) < 0.3] = np.nan
    datasets = rng.choice([f"d{i}" for i in range(20)], 500)
    values[datasets == "d3"] = np.nan
    expected = pd.Series(values).groupby(datasets).mean().to_numpy()
    for names in (datasets, pd.Series(datasets, dtype="category")):
        assert np.allclose(dataset_means(values, names), expected, rtol=1e-14, equal_nan=True)
    assert np.allclose(dataset_means(values.astype(object), datasets), expected, equal_nan=True)
    of_more = pd.Categorical(["b", "a", "b"], categories=["a", "b", "c"])
    assert dataset_means(np.array([1.0, 2.0, 3.0]), of_more).tolist() == [2.0, 2.0]


def test_differences_that_are_equal_but_for_the_last_bits_share_a_rank():
    exact = np.array([0.2, -0.2, 0.1, 0.3, 0.4, 0.5])
    shaken = exact.copy()
    shaken[0] += 4e-17
    shaken[1] -= 4e-17
    assert shaken[0] + shaken[1] != 0 or (shaken != exact).any()
    assert wilcoxon_p(shaken) == wilcoxon_p(exact)
