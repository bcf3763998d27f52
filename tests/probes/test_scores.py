"""Scores against scikit-learn, folds against their rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    roc_auc_score,
    roc_curve,
)

from utils.probes.scores import roc_auc, score_test_rows, validation_folds


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=60))
def test_auc_equals_scikit_learns_with_ties(pairs):
    y, scores = (np.array(column) for column in zip(*pairs))
    if 0 < y.sum() < len(y):
        assert roc_auc(y, scores) == roc_auc_score(y, scores)


@pytest.mark.parametrize("n", [9, 100, 500, 3000])
@pytest.mark.parametrize("digits", [1, 17])
def test_auc_of_many_rows_equals_scikit_learns_to_the_last_bit(n, digits):
    rng = np.random.default_rng(n)
    for _ in range(20):
        y, scores = rng.integers(0, 2, n), rng.normal(size=n).round(digits)
        assert roc_auc(y, scores) == roc_auc_score(y, scores)


def test_auc_of_one_class_is_nan_with_a_warning():
    with pytest.warns(RuntimeWarning, match="only one class"):
        assert np.isnan(roc_auc(np.ones(3, dtype=int), np.arange(3)))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_f1_and_accuracy_equal_scikit_learns(pairs):
    y, predicted = (np.array(column) for column in zip(*pairs))
    if 0 < y.sum() < len(y):
        scores = score_test_rows(y, predicted, predicted)
        assert scores["test_f1"] == pytest.approx(
            f1_score(y, predicted, average="weighted", zero_division=0)
        )
        assert scores["test_acc"] == pytest.approx(accuracy_score(y, predicted))


@pytest.mark.parametrize(
    ("n", "n_folds"), [(2, 0), (3, 0), (4, 4), (12, 36), (13, 6), (127, 6), (128, 1), (1024, 1)]
)
def test_folds_by_number_of_rows(n, n_folds):
    y = np.arange(n) % 2
    folds = validation_folds(y)
    assert len(folds) == n_folds
    for train, val in folds:
        assert len(np.intersect1d(train, val)) == 0
        assert 0 < y[val].sum() < len(val)


def test_large_sets_validate_on_their_last_rows():
    assert validation_folds(np.arange(300) % 2)[0][1].tolist() == list(range(240, 300))
    assert len(validation_folds(np.arange(1024) % 2)[0][1]) == 100
    validation_folds(np.arange(300) % 2)[0][1][:] = 0  # whoever asks may change them
    assert validation_folds(np.arange(300) % 2)[0][1].tolist() == list(range(240, 300))


@pytest.mark.parametrize("digits", [0, 1, 17])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_precision_and_recall_equal_scikit_learns(digits, share):
    rng = np.random.default_rng(digits)
    for n in (20, 300, 2000):
        y = (rng.random(n) < share).astype(int)
        y[:2] = 0, 1
        scores = (rng.normal(size=n) + y).round(digits)
        found = score_test_rows(y, y, scores)
        assert found["test_ap"] == pytest.approx(average_precision_score(y, scores))
        false, true, _ = roc_curve(y, scores, drop_intermediate=False)
        assert found["test_recall_1fpr"] == pytest.approx(true[false <= 0.01].max())


def test_fresh_rows_are_scored_by_themselves_where_they_suffice():
    rng = np.random.default_rng(0)
    y = np.arange(100) % 2
    scores = rng.normal(size=100) + y
    fresh = np.arange(100) >= 60
    found = score_test_rows(y, y, scores, fresh)
    assert (found["n_fresh"], found["test_auc_fresh"]) == (40, roc_auc_score(y[60:], scores[60:]))
    few = score_test_rows(y, y, scores, np.arange(100) >= 71)
    assert few["n_fresh"] == 29
    assert np.isnan(few["test_auc_fresh"])
    one_class = score_test_rows(y, y, scores, y == 1)
    assert np.isnan(one_class["test_auc_fresh"])
    assert "n_fresh" not in score_test_rows(y, y, scores)
