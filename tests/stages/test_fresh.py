"""Test rows whose text is in no training row: found as a count of the texts finds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MODEL, folder_flags, write_texts
from sae_lens import SAE
from sklearn.metrics import roc_auc_score

import explain_probes
import generate_sae_activations_optimized as generator
import train_baselines
import train_sae_probes
import visualize
from utils.activations import load_rows, write_activations
from utils.datasets import load_dataset, load_ood, text_codes
from utils.figures.explorer import dataset_rows, matched_rows
from utils.names import hook_name
from utils.probes.controls import OF_LAYER, ControlActivations
from utils.results.comparison import Picked, by_dataset
from utils.results.paired import PairedErrors
from utils.results.statistics import delong
from utils.results.tidy import load_results
from utils.saes.store import SaeActivations
from utils.settings import Condition, ConditionRows, SplitKind, split

NAME, SAE_ID, LAYER = "1_first", "layer_2/mine", 2
CONDITIONS = [Condition("normal"), Condition("scarcity", 20), Condition("OOD")]


@pytest.fixture
def ready(paths):
    """Two rows of a text, and OOD texts of which half are training texts."""
    write_texts(paths, [NAME], 400, ood=(NAME,))
    table = pd.read_csv(paths.texts(NAME), dtype=str)
    for label, part in table.groupby("target"):
        table.loc[part.index, "prompt"] = [f"text {label} {i // 2}" for i in range(len(part))]
    table.to_csv(paths.texts(NAME), index=False)
    shifted = pd.read_csv(paths.ood_texts(NAME), dtype=str)
    known = [f"text {label} {i}" for i, label in enumerate(shifted["target"])]
    shifted["prompt"] = shifted["prompt"].where(np.arange(len(shifted)) % 2 == 0, known)
    shifted.to_csv(paths.ood_texts(NAME), index=False)
    rng = np.random.default_rng(0)
    for ood in (False, True):
        dataset = load_ood(paths, NAME) if ood else load_dataset(paths, NAME)
        X = rng.normal(size=(len(dataset), 384)) + dataset.labels[:, None]
        path = paths.model_activations(MODEL, NAME, hook_name(LAYER), ood)
        write_activations(path, torch.tensor(X, dtype=torch.float32), dataset.texts, {})
    config = {"architecture": "standard", "d_in": 384, "d_sae": 16, "dtype": "float32",
              "device": "cpu", "metadata": {"hook_name": hook_name(LAYER)}}  # fmt: skip
    sae: SAE = SAE.from_dict(config)
    sae.save_model(paths.saes(MODEL) / SAE_ID)
    assert generator.main(["--model_name", MODEL, *folder_flags(paths), "--setting", "all"]) == 0
    return paths


def counted(paths, condition: Condition) -> list[bool]:
    dataset, shifted = load_dataset(paths, NAME), load_ood(paths, NAME)
    drawn = split(condition, dataset.labels, ood_labels=shifted.labels)
    trained = {dataset.texts[i] for i in drawn.train}
    tested = shifted.texts if condition.setting == "OOD" else dataset.texts
    return [tested[i] not in trained for i in drawn.test]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.setting)
def test_every_side_of_a_comparison_has_the_same_fresh_rows(ready, condition):
    expected = counted(ready, condition)
    assert 0 < sum(expected) < len(expected)
    ood = condition.setting == "OOD"
    rows = load_rows(ready, MODEL, NAME, hook_name(LAYER), ood)
    sides: list[ConditionRows] = [rows, SaeActivations(ready, MODEL, NAME, SAE_ID, ood)]
    sides += [ControlActivations(control, rows) for control in OF_LAYER]
    for side in sides:
        fresh = side.condition(condition).fresh
        assert fresh is not None
        assert fresh.tolist() == expected


def test_every_new_row_says_it(ready):
    flags = ["--model_name", MODEL, *folder_flags(ready), "--n_jobs", "1"]
    assert train_baselines.main([*flags, "--method", "logreg", "--layers", "2"]) == 0
    assert train_sae_probes.main([*flags, "--ks", "1", "16", "--controls", "all"]) == 0
    assert train_baselines.main([*flags, "--method", "text_only"]) == 0
    tidy = load_results(ready, MODEL).tidy
    # SAE, two twins, raw dimensions and components at two k; shuffled, reconstruction, error; words
    assert len(tidy) == 1 + 2 * 5 + 3 + 1
    assert (tidy["n_fresh"] == sum(counted(ready, CONDITIONS[0]))).all()
    assert tidy[["test_ap", "test_recall_1fpr"]].notna().all().all()


def test_a_grouped_split_has_fresh_rows_alone_and_results_of_its_own(ready, capsys):
    """In every setting, on both sides of the comparison; the paper's tables stay as they are."""
    flags = ["--model_name", MODEL, *folder_flags(ready), "--n_jobs", "1"]
    before = {path: path.read_bytes() for path in ready.results_dir.rglob("*.csv")}
    for condition in CONDITIONS:
        more = ["--setting", condition.setting, "--split", "grouped"]
        if condition.value is not None:
            more += ["--conditions", str(condition.value)]
        assert (
            train_baselines.main([*flags, *more, "--method", "logreg,text_only", "--layers", "2"])
            == 0
        )
        assert train_sae_probes.main([*flags, *more, "--ks", "16", "--controls", "none"]) == 0
    kind = SplitKind(grouped=True)
    grouped = replace(ready, results_dir=ready.results_dir / "grouped_split", split=kind)
    tidy = load_results(grouped, MODEL).tidy
    assert set(tidy["setting"]) == {condition.setting for condition in CONDITIONS}
    assert (tidy["n_fresh"] == tidy["n_test"]).all()
    assert tidy.groupby(["setting", "layer"])["n_test"].nunique().max() == 1
    after = {path: path.read_bytes() for path in before}
    assert after == before
    assert visualize.main([*flags[:-2], "--split", "grouped"]) == 0
    assert "the best baseline" in capsys.readouterr().out
    assert (ready.figures_dir / "grouped_split" / MODEL / "report.html").is_file()


def test_a_grouped_split_is_the_papers_draw_from_one_row_a_text(ready):
    dataset = load_dataset(ready, NAME)
    codes = text_codes(ready, NAME, ood=False)
    first = [i for i, text in enumerate(dataset.texts) if text not in dataset.texts[:i]]
    assert len(first) < len(dataset)
    drawn = split(Condition("normal", kind=SplitKind(grouped=True)), dataset.labels, texts=codes)
    plain = split(Condition("normal"), dataset.labels[first])
    assert drawn.train.tolist() == [first[i] for i in plain.train]
    assert drawn.test.tolist() == [first[i] for i in plain.test]
    assert drawn.y_test.tolist() == dataset.labels[drawn.test].tolist()


def test_a_share_for_the_test_is_used_by_every_stage(ready, capsys):
    """Scripts agree on the rows, and no stage takes such probes for those of the paper's split."""
    flags = ["--model_name", MODEL, *folder_flags(ready)]
    more = ["--n_jobs", "1", "--test_frac", "0.5"]
    assert (
        train_baselines.main([*flags, *more, "--method", "logreg,text_only", "--layers", "2"]) == 0
    )
    assert train_sae_probes.main([*flags, *more, "--ks", "16", "--controls", "none"]) == 0
    kind = SplitKind(test_frac=0.5)
    ours = replace(ready, results_dir=ready.results_dir / "test_0.5_split", split=kind)
    tidy = load_results(ours, MODEL).tidy
    assert set(tidy["n_test"]) == {199}
    assert {"logreg", "text_only", "sae_probe"} <= set(tidy["method"])
    assert not list(ready.results_dir.glob("sae_probes_*"))
    assert explain_probes.main([*flags, "--test_frac", "0.5"]) == 0
    capsys.readouterr()
    asked = ["--results_dir", str(ours.results_dir), "--data_dir", str(ready.data_dir)]
    asked += ["--text_dir", str(ready.text_dir), "--overwrite"]
    assert explain_probes.main(["--model_name", MODEL, *asked]) != 0
    assert "made from other inputs" in capsys.readouterr().err
    assert visualize.main([*flags, "--test_frac", "0.5"]) == 0


def test_intervals_are_of_the_scores_that_were_kept(ready):
    """Kept scores give the table's AUCs, of linear probes and of others; the page takes DeLong's
    error from them.
    """
    path = ready.model_activations(MODEL, NAME, hook_name(LAYER))
    labels = load_dataset(ready, NAME).labels
    X = np.random.default_rng(1).normal(size=(400, 384)) + 0.06 * labels[:, None]
    write_activations(
        path, torch.tensor(X, dtype=torch.float32), load_dataset(ready, NAME).texts, {}
    )
    assert generator.main(["--model_name", MODEL, *folder_flags(ready)]) == 0
    flags = ["--model_name", MODEL, *folder_flags(ready), "--n_jobs", "1", "--keep_probes", "all"]
    assert (
        train_baselines.main([*flags, "--method", "logreg,knn,mlp,xgboost", "--layers", "2"]) == 0
    )
    assert train_sae_probes.main([*flags, "--ks", "1", "256", "--controls", "pca_dims"]) == 0
    tidy = load_results(ready, MODEL).tidy
    paired = PairedErrors(ready, MODEL)
    y, fresh = paired.tested(NAME, 42)
    assert fresh is not None
    of_first = paired.scores(tidy.iloc[0].to_dict())
    assert of_first is not None
    rows = tidy.to_dict("records")
    assert len(rows) == 4 + 2 + 2
    for row in rows:
        scores = paired.scores(row)
        assert scores is not None
        assert roc_auc_score(y, scores) == pytest.approx(row["test_auc"], abs=1e-9)
        error = paired.error(rows[0], row, fresh=False)
        assert (error or 0) == delong(y, of_first, scores)
    # scores that are not those of the row: of an earlier fit, or of other rows
    assert paired.error(rows[1], {**rows[0], "test_auc": rows[0]["test_auc"] - 0.01}, False) is None
    datasets = by_dataset(Picked(tidy), "paper")
    shown = dataset_rows(matched_rows(tidy, datasets), datasets, PairedErrors(ready, MODEL))
    assert [row["exact"] for row in shown] == [True]
    picked = max((r for r in rows if r["kind"] == "baseline"), key=lambda r: r["val_auc"])
    probe = max((r for r in rows if r["kind"] == "sae"), key=lambda r: r["val_auc"])
    error = paired.error(probe, picked, fresh=False)  # there are fewer than 30 fresh rows
    assert error is not None
    assert shown[0]["width"] == pytest.approx(1.96 * error, abs=1e-4)


def test_without_kept_scores_an_interval_is_an_upper_bound(ready):
    flags = ["--model_name", MODEL, *folder_flags(ready), "--n_jobs", "1"]
    assert train_baselines.main([*flags, "--method", "knn", "--layers", "2"]) == 0
    assert train_sae_probes.main([*flags, "--ks", "1", "--controls", "none"]) == 0
    tidy = load_results(ready, MODEL).tidy
    datasets = by_dataset(Picked(tidy), "paper")
    shown = dataset_rows(matched_rows(tidy, datasets), datasets, PairedErrors(ready, MODEL))
    assert [row["exact"] for row in shown] == [False]


@pytest.mark.parametrize(
    "steps",
    [
        (("normal", ["--controls", "none"]), ("normal", []), ("OOD", [])),
        (("OOD", ["--controls", "none"]), ("OOD", []), ("normal", [])),
    ],
    ids=["normal_first", "ood_first"],
)
def test_twins_are_the_same_whatever_was_there_before(ready, steps):
    """A random twin's cut is of its SAE's latents on the training rows, which an earlier run may
    have written; OOD files get the same cut.
    """
    root = ready.sae_activations_root(MODEL)
    together = root.with_name("together")
    root.rename(together)
    for setting, more in steps:
        flags = ["--model_name", MODEL, *folder_flags(ready), "--setting", setting, *more]
        assert generator.main(flags) == 0
    files = {path.relative_to(together) for path in together.rglob("*.pt")}
    assert any("+random" in str(path) or "random" in str(path) for path in files)
    assert {path.relative_to(root) for path in root.rglob("*.pt")} == files
    for path in files:
        assert (root / path).read_bytes() == (together / path).read_bytes(), path
