"""Probes on words alone, and the two cheap baselines, against scikit-learn's own procedure."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, folder_flags, write_texts
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

import train_baselines
from checks import words
from utils.activations import rows_with_activations
from utils.datasets import load_dataset, load_ood
from utils.models import get_model
from utils.probes.baselines import METHODS, discriminant, mean_direction
from utils.probes.controls import K_SHUFFLED, N_SHUFFLES, fit_on_shuffled_labels
from utils.probes.k_sparse import Cs, ProbeOptions
from utils.probes.scores import validation_folds
from utils.probes.words import CHARACTERS, WORDS, text_only, text_rows
from utils.results.tidy import load_results
from utils.settings import Condition, TrainTest, split

NAME = "1_first"


@pytest.fixture
def texts(paths):
    """Texts whose words tell their class in three of four rows; OOD ones have other words."""
    write_texts(paths, [NAME], n_rows=400, ood=(NAME,))
    table = pd.read_csv(paths.texts(NAME))
    hidden = np.random.default_rng(0).random(len(table)) < 0.4
    table.loc[hidden, "prompt"] = table.loc[hidden, "prompt"].str.replace(
        "signal|plain", "", regex=True
    )
    table.to_csv(paths.texts(NAME), index=False)
    return paths


def plain_auc(kind: dict, train: list[str], y: np.ndarray, test: list[str], y_test: np.ndarray):
    """(validation AUC, test AUC) of scikit-learn's own pipeline; document frequencies are of all
    training rows, as the paper's protocol has it for latents.
    """
    vectors = TfidfVectorizer(sublinear_tf=True, **kind).fit(train)
    X, X_test = vectors.transform(train), vectors.transform(test)
    best = (-1.0, 0.0)
    for C in Cs:
        aucs = []
        for fit, val in validation_folds(y):
            model = LogisticRegression(C=C, max_iter=1000).fit(X[fit], y[fit])
            aucs.append(roc_auc_score(y[val], model.decision_function(X[val])))
        if np.mean(aucs) > best[0]:
            best = (float(np.mean(aucs)), C)
    model = make_pipeline(LogisticRegression(C=best[1], max_iter=5000)).fit(X, y)
    return best[0], roc_auc_score(y_test, model.decision_function(X_test))


@pytest.mark.parametrize("condition", [Condition("normal"), Condition("scarcity", 38)])
def test_text_only_equals_the_plain_procedure(texts, condition):
    dataset = load_dataset(texts, NAME)
    drawn = split(condition, dataset.labels)
    train, test = ([dataset.texts[i] for i in part] for part in (drawn.train, drawn.test))
    expected = plain_auc(WORDS, train, drawn.y_train, test, drawn.y_test)
    found = text_only(text_rows(texts, NAME, 400, ood=False).condition(condition))
    assert 0.6 < found["test_auc"] < 0.95
    assert (found["val_auc"], found["test_auc"]) == pytest.approx(expected, abs=2e-3)


def test_out_of_distribution_the_better_of_words_and_characters_is_taken(texts):
    dataset, shifted = load_dataset(texts, NAME), load_ood(texts, NAME)
    drawn = split(Condition("OOD"), dataset.labels, ood_labels=shifted.labels)
    train = [dataset.texts[i] for i in drawn.train]
    both = [plain_auc(kind, train, drawn.y_train, shifted.texts, drawn.y_test)
            for kind in (WORDS, CHARACTERS)]  # fmt: skip
    found = text_only(text_rows(texts, NAME, 400, ood=True).condition(Condition("OOD")))
    assert (found["val_auc"], found["test_auc"]) == pytest.approx(max(both), abs=3e-3)


def problem(n: int, d: int, seed: int = 0) -> TrainTest:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(2 * n, d)).astype(np.float32) * rng.uniform(0.5, 2, d).astype(np.float32)
    y = (X[:, :3].sum(axis=1) + 2 * rng.normal(size=2 * n) > 0).astype(np.int64)
    y[:2] = y[n : n + 2] = 0, 1
    return TrainTest(X[:n], y[:n], X[n:], y[n:])


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 200)])
@pytest.mark.parametrize("shrinkage", [0.1, 0.7])
def test_lda_equals_scikit_learns(n, d, shrinkage):
    """In the span of the rows where these are fewer than the columns."""
    rows = problem(n, d)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    # scikit-learn shrinks each class's covariance of rows with every column's deviation taken out
    X = rows.X_train.astype(float)
    for label in (0, 1):
        X[rows.y_train == label] -= X[rows.y_train == label].mean(axis=0)
    same = rows.X_train / X.std(axis=0), rows.X_test / X.std(axis=0)
    expected = model.fit(same[0], rows.y_train).decision_function(same[1])
    found = discriminant(same[0], rows.y_train, shrinkage).scores(same[1])
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    aucs = [roc_auc_score(rows.y_test, scores) for scores in (found, expected)]
    assert aucs[0] == pytest.approx(aucs[1], abs=0.02)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 200)])
def test_ldas_direction_solves_its_equations(n, d):
    rows, shrinkage = problem(n, d), 0.3
    X, y = rows.X_train.astype(float), rows.y_train
    within = X.copy()
    for label in (0, 1):
        within[y == label] -= X[y == label].mean(axis=0)
    covariance = within.T @ within / n
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)
    expected = np.linalg.solve(shrunk, X[y == 1].mean(axis=0) - X[y == 0].mean(axis=0))
    assert np.allclose(discriminant(X, y, shrinkage).coef, expected, rtol=1e-6, atol=1e-9)


def test_difference_of_means_by_hand():
    X = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 2.0], [6.0, 2.0]])
    fit = mean_direction(X, np.array([0, 0, 1, 1]))
    assert fit.coef.tolist() == [4.0, 2.0]
    assert fit.scores(np.array([[3.0, 1.0]])).tolist() == [0.0]  # half way


@pytest.mark.parametrize("method", ["diff_of_means", "lda"])
def test_their_validation_auc_is_of_the_papers_folds(method):
    rows = problem(100, 12)
    aucs = []
    for train, val in validation_folds(rows.y_train):
        part = TrainTest(
            rows.X_train[train], rows.y_train[train], rows.X_train[val], rows.y_train[val]
        )
        aucs.append(METHODS[method](part)["test_auc"])
    assert METHODS[method](rows)["val_auc"] == pytest.approx(np.mean(aucs), abs=0.01)


def test_shuffled_labels_tell_nothing_and_say_their_spread():
    from scipy.sparse import csr_array

    rows = problem(200, 30)
    sparse = TrainTest(csr_array(rows.X_train), rows.y_train, csr_array(rows.X_test), rows.y_test)
    (row,) = fit_on_shuffled_labels(sparse, [K_SHUFFLED], ProbeOptions())
    assert row["test_auc"] == pytest.approx(
        0.5, abs=3 * row["test_auc_sd"] / N_SHUFFLES**0.5 + 0.02
    )
    assert 0.005 < row["test_auc_sd"] < 0.15
    (again,) = fit_on_shuffled_labels(sparse, [K_SHUFFLED], ProbeOptions())
    assert again["test_auc"] == row["test_auc"]


def test_the_sentence_is_counted_from_the_tables(texts, tmp_path):
    """One dataset, its words better than a model's probe that knows nothing."""
    flags = ["--model_name", MODEL, *folder_flags(texts), "--n_jobs", "1"]
    assert train_baselines.main([*flags, "--method", "text_only"]) == 0
    tidy = load_results(texts, MODEL, ("normal",)).tidy
    alone = words.measure(tidy, get_model(MODEL))
    (expected,) = tidy["test_auc"]
    assert (alone["n_datasets"], alone["mean"]) == (1, pytest.approx(expected, abs=6e-4))
    assert "n_compared" not in alone
    row = {"setting": "normal", "condition": "all", "dataset": NAME, "layer": 2, "seed": 42,
           "kind": "baseline", "method": "logreg", "protocol": "paper", "val_auc": 0.9}  # fmt: skip
    for auc, n_suffice in ((expected - 0.2, 1), (expected + 0.005, 1), (expected + 0.02, 0)):
        model = pd.DataFrame([{**row, "test_auc": auc}])
        both = pd.concat([tidy.assign(layer=2), model], ignore_index=True)
        found = words.measure(both, get_model(MODEL))
        assert (found["n_compared"], found["n_suffice"]) == (1, n_suffice)


def test_texts_without_words_tell_nothing(paths):
    write_texts(paths, [NAME], n_rows=300)
    table = pd.read_csv(paths.texts(NAME))
    table["prompt"] = ["!" * (i + 1) for i in range(len(table))]
    table.to_csv(paths.texts(NAME), index=False)
    for condition in (Condition("normal"), Condition("scarcity", 2)):
        found = text_only(text_rows(paths, NAME, 300, ood=False).condition(condition))
        assert found["test_auc"] == 0.5


def test_rows_of_a_dataset_are_not_those_of_another_whose_name_begins_alike(paths):
    folder = paths.model_activations_folder(MODEL)
    folder.mkdir(parents=True)
    for name, n_rows in (("mine", 5), ("mine_2", 40)):
        path = folder / f"{name}_blocks.2.hook_resid_post.pt"
        path.write_bytes(b"")
        path.with_suffix(".json").write_text(json.dumps({"n_rows": n_rows}))
    assert rows_with_activations(paths, MODEL, "mine_2") == 40
    assert rows_with_activations(paths, MODEL, "mine") == 5
    assert rows_with_activations(paths, MODEL, "absent") is None
