"""The L1 solver against its optimality conditions, scikit-learn and coordinate descent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from utils.probes import compiled
from utils.probes.k_sparse import Cs, _penalty, fit_logistic
from utils.probes.l1_path import (
    KKT_ACCEPTED,
    kkt_violation,
    l1_logistic_path,
    objective,
    validation_aucs,
)
from utils.probes.scores import roc_auc


def sparse_problem(
    seed: int, n: int, d: int, informative: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Rows like latent activations: non-negative, mostly zero, on different scales, some columns
    never active.
    """
    rng = np.random.default_rng(seed)
    X = rng.exponential(rng.uniform(0.1, 20, d), (n, d)) * (
        rng.random((n, d)) < rng.uniform(0, 0.4, d)
    )
    logits = X[:, :informative] @ rng.normal(size=min(informative, d)) / 5 + rng.normal(size=n)
    y = (logits > np.median(logits)).astype(np.int64)
    y[:2] = 0, 1
    return X, y


@given(st.integers(0, 10**6), st.integers(4, 120), st.integers(1, 60))
@settings(max_examples=40)
def test_every_fit_on_the_ladder_meets_the_optimality_conditions(seed, n, d):
    X, y = sparse_problem(seed, n, d)
    for fit in l1_logistic_path(X, y, Cs):
        # measured again, not the solver's own word
        assert kkt_violation(X, y, fit.coef, fit.intercept, fit.C) <= KKT_ACCEPTED


@pytest.mark.parametrize("d", [1, 16, 200])
def test_objective_is_no_worse_than_sagas(d):
    X, y = sparse_problem(d, 300, d)
    ours = l1_logistic_path(X, y, Cs)
    for C, fit in list(zip(Cs, ours))[::3]:
        saga = fit_logistic(X, y, C, "l1", seed=1)
        assert fit.objective <= objective(X, y, saga.coef, saga.intercept, C) * (1 + 1e-9)


def test_weights_equal_a_long_saga_run_where_saga_converges():
    X, y = sparse_problem(5, 200, 8)
    X = X / X.std(axis=0).clip(1e-9)
    C = 0.5
    fit = l1_logistic_path(X, y, np.array([C]))[0]
    reference = LogisticRegression(C=C, max_iter=100_000, tol=1e-10, **_penalty("l1")).fit(X, y)
    assert np.allclose(fit.coef, reference.coef_[0], atol=1e-5)
    assert fit.intercept == pytest.approx(reference.intercept_[0], abs=1e-5)


def test_order_of_the_ladder_and_column_order_do_not_matter():
    X, y = sparse_problem(9, 150, 20)
    down, up = l1_logistic_path(X, y, Cs), l1_logistic_path(X, y, Cs[::-1])
    assert all(np.array_equal(a.coef, b.coef) for a, b in zip(down, up[::-1]))
    order = np.random.default_rng(0).permutation(20)
    shuffled = l1_logistic_path(X[:, order], y, Cs)
    for a, b in zip(down, shuffled):
        assert a.objective == pytest.approx(b.objective, rel=1e-7)


def test_the_strongest_penalty_keeps_no_weight_and_the_base_rate():
    X, y = sparse_problem(1, 100, 5)
    fit = l1_logistic_path(X, y, np.array([1e-7]))[0]
    assert not fit.coef.any()
    assert fit.intercept == pytest.approx(np.log(y.mean() / (1 - y.mean())))


def test_duplicated_and_dead_columns_are_harmless():
    X, y = sparse_problem(3, 80, 6)
    X = np.hstack([X, X, np.zeros((80, 3))])
    for fit in l1_logistic_path(X, y, Cs):
        assert fit.converged
        assert not fit.coef[-3:].any()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        l1_logistic_path(np.ones((4, 1)), np.ones(4), Cs)


@pytest.mark.parametrize("shift", [100.0, 1e4])
def test_a_large_mean_of_the_columns_changes_nothing(shift):
    """The intercept is not penalised, so it takes the shift up."""
    X, y = sparse_problem(4, 120, 16)
    for plain, shifted in zip(l1_logistic_path(X, y, Cs), l1_logistic_path(X + shift, y, Cs)):
        assert shifted.converged
        assert shifted.objective == pytest.approx(plain.objective, rel=1e-6)
        assert np.allclose(
            X @ plain.coef + plain.intercept,
            (X + shift) @ shifted.coef + shifted.intercept,
            atol=1e-2,
        )


def test_arrays_of_every_kind_are_solved_by_one_compiled_version():
    X, y = sparse_problem(3, 60, 5)
    expected = l1_logistic_path(X, y, Cs)
    frozen = X.copy()
    frozen.setflags(write=False)
    for other in (np.asfortranarray(X), frozen, X.tolist(), np.repeat(X, 2, axis=1)[:, ::2]):
        for fit, same in zip(expected, l1_logistic_path(other, y.astype(np.int8), Cs)):
            assert np.array_equal(fit.coef, same.coef)
    assert len(compiled.ladder.signatures) == 1


@pytest.mark.parametrize("n", [20, 300])
def test_validation_aucs_are_those_of_the_fits(n):
    X, y = sparse_problem(n, n, 12)
    fold = np.arange(n // 2), np.arange(n // 2, n)
    fits = l1_logistic_path(X[fold[0]], y[fold[0]], Cs, target=KKT_ACCEPTED)
    expected = [roc_auc(y[fold[1]], fit.decision_function(X[fold[1]])) for fit in fits]
    assert np.allclose(validation_aucs(X, y, fold, Cs), expected, atol=1e-12)
