"""What is added by one function and one row appears everywhere: in tables, figures, status, audit
and errors.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from conftest import MODEL, folder_flags, write_texts

import generate_sae_activations_optimized
import train_baselines
import train_sae_probes
import visualize
from checks import status
from utils.activations import write_activations
from utils.datasets import load_dataset
from utils.figures.study import best_method_by_layer, method_by_layer
from utils.probes.baselines import METHODS, Baseline
from utils.probes.scores import roc_auc, score_test_rows
from utils.readers.weight_files import stored_arrays
from utils.results.audit import audit
from utils.results.comparison import contenders
from utils.results.findings import Kind
from utils.results.tidy import load_results
from utils.saes.encoder import Encoder
from utils.saes.formats import FORMATS, Format
from utils.settings import TrainTest

NAMES = ["1_first", "2_second"]


def write_rows(paths) -> dict[tuple[str, int], np.ndarray]:
    """Texts of two datasets with random activations at two layers."""
    write_texts(paths, NAMES)
    rng = np.random.default_rng(0)
    written: dict[tuple[str, int], np.ndarray] = {}
    for name in NAMES:
        dataset = load_dataset(paths, name)
        for layer in (2, 5):
            X = rng.normal(size=(len(dataset), 384)).astype(np.float32)
            X[:, 0] += dataset.labels
            path = paths.model_activations(MODEL, name, f"blocks.{layer}.hook_resid_post")
            write_activations(path, torch.from_numpy(X), dataset.texts, {})
            written[name, layer] = X
    return written


def first_dimension(rows: TrainTest, seed: int) -> dict:
    scores = rows.X_test[:, 0]
    found = score_test_rows(rows.y_test, (scores > 0.5).astype(np.int64), scores)
    return {**found, "val_auc": roc_auc(rows.y_train, rows.X_train[:, 0])}


def test_a_new_baseline_is_trained_counted_compared_and_drawn(paths, monkeypatch):
    write_rows(paths)
    monkeypatch.setitem(METHODS, "toy", Baseline("toy", first_dimension))
    flags = ["--model_name", MODEL, *folder_flags(paths)]
    assert train_baselines.main([*flags, "--method", "logreg,toy", "--n_jobs", "1"]) == 0
    table = pd.read_csv(paths.baseline_table(MODEL, "normal", 2))
    assert sorted(table["method"].unique()) == ["logreg", "toy"]
    tidy = load_results(paths, MODEL, ("normal",)).tidy
    picked = contenders(tidy)["quiver_baselines"]
    both = tidy.groupby(["dataset", "layer"])["val_auc"].max().to_numpy()
    assert np.allclose(np.sort(picked["val_auc"]), np.sort(both))
    for figure in (method_by_layer(tidy), best_method_by_layer(tidy)):
        assert "toy" in figure.axes[0].get_legend_handles_labels()[1]
    # two datasets, two layers, the paper's five and the new one
    assert f"{2 * 2 * 2} of {2 * 2 * 6}" in status.describe(
        paths, status.get_model(MODEL, paths), ("normal",)
    )
    findings = audit(paths, load_results(paths, MODEL))
    absent = [finding.what for finding in findings if finding.kind is Kind.ABSENT]
    assert absent
    assert not any("toy" in what for what in absent)


def open_toy(folder, sae_id: str) -> Encoder:
    W_enc = stored_arrays(folder / "toy.safetensors")["W"]
    vectors = {"b_enc": np.zeros(W_enc.shape[1], dtype=np.float32)}
    d_model, d_sae = W_enc.shape
    return Encoder(sae_id, "standard", d_model, d_sae, W_enc, vectors=vectors)


def test_a_new_format_of_saes_is_found_encoded_probed_and_counted(paths):
    from safetensors.numpy import save_file

    X = write_rows(paths)
    FORMATS.append(Format("toy.json", "toy.json + toy.safetensors (toy)", open_toy))
    try:
        folder = paths.saes(MODEL) / "layer_2" / "toy"
        folder.mkdir(parents=True)
        (folder / "toy.json").write_text(json.dumps({}))
        W = np.random.default_rng(1).normal(size=(384, 48)).astype(np.float32)
        save_file({"W": W}, folder / "toy.safetensors")
        flags = ["--model_name", MODEL, *folder_flags(paths)]
        assert generate_sae_activations_optimized.main([*flags, "--setting", "normal"]) == 0
        assert train_sae_probes.main([*flags, "--ks", "1", "16", "--n_jobs", "1"]) == 0
        assert (
            train_baselines.main([*flags, "--method", "logreg", "--layers", "2", "--n_jobs", "1"])
            == 0
        )
        table = pd.read_csv(paths.sae_probe_table(MODEL, "normal"))
        own = {f"layer_2/toy+{name}" for name in ("random", "soft_frozen", "shuffled")}
        of_layer = {"layer_2/raw_dims", "layer_2/pca_dims"}
        assert set(table["sae_id"]) == {"layer_2/toy", *own, *of_layer}
        stored = torch.load(
            paths.sae_activations_folder(MODEL, "normal") / "1_first_2_toy_X_train_sae.pt",
            weights_only=True,
        )
        expected = np.maximum(X["1_first", 2] @ W, 0)
        found = stored.to_dense().numpy()
        assert all(np.abs(expected - row).max(axis=1).min() < 1e-4 for row in found[:10])
        assert "toy" in status.describe(paths, status.get_model(MODEL, paths), ("normal",))
        assert visualize.main(flags) == 0
        assert "layer_2/toy" in (paths.figures(MODEL) / "report.html").read_text()
    finally:
        FORMATS.pop()
