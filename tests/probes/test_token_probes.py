"""Multi-token probes against dense loops and scikit-learn's PCA, and the script end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MODEL, folder_flags, write_texts, write_tiny_model
from scipy.sparse import csr_array
from sklearn.decomposition import PCA

import train_multi_token_probes
from train_multi_token_probes import read_tokens
from utils.probes import token_probes
from utils.probes.token_probes import (
    Tokens,
    attention_probe,
    components_probe,
    concatenated_components,
    last_token,
    mean_token,
    pool_latents,
)
from utils.readers.sparse_files import SparseRows
from utils.results.multi_token import load_multi_token

D_MODEL, D_SAE = 12, 40


def random_tokens(n_texts: int, longest: int = 9, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n_texts)
    values = rng.normal(size=(lengths.sum(), D_MODEL)).astype(np.float16)
    return Tokens(values, np.concatenate([[0], np.cumsum(lengths)]))


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_pooling_equals_dense_pooling_of_each_text(monkeypatch, chunk):
    monkeypatch.setattr(token_probes, "CHUNK_TOKENS", chunk)
    tokens = random_tokens(23)
    W = np.random.default_rng(1).normal(size=(D_MODEL, D_SAE)).astype(np.float32)

    def dense(x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ W - 1, 0)

    def encode(x: np.ndarray) -> SparseRows:
        rows = csr_array(dense(x))
        return SparseRows(rows.indptr, rows.indices, rows.data)

    maxima, means = pool_latents(tokens, encode, D_SAE)
    for i in range(len(tokens)):
        latents = dense(tokens.values[tokens.starts[i] : tokens.starts[i + 1]].astype(np.float32))
        assert np.allclose(maxima.toarray()[i], latents.max(axis=0), atol=1e-5)
        assert np.allclose(means.toarray()[i], latents.mean(axis=0), atol=1e-5)


def test_components_are_those_of_the_training_texts_tokens_aligned_at_the_end():
    tokens = random_tokens(30)
    train = np.arange(0, 30, 2)
    rows = np.concatenate(
        [tokens.values[tokens.starts[i] : tokens.starts[i + 1]] for i in train]
    ).astype(np.float64)
    model = PCA(n_components=12).fit(rows)
    found = concatenated_components(tokens, train).reshape(30, -1, 12)
    assert found.shape[1] == np.diff(tokens.starts).max()
    for i in range(30):
        expected = model.transform(
            tokens.values[tokens.starts[i] : tokens.starts[i + 1]].astype(np.float64)
        )
        assert np.allclose(np.abs(found[i, -len(expected) :]), np.abs(expected), atol=1e-3)
        assert not found[i, : found.shape[1] - len(expected)].any()


def test_the_attention_probe_finds_the_one_token_that_tells():
    """A mark in one random token says the class; the mean over many tokens hardly shows it."""
    rng = np.random.default_rng(0)
    n = 600
    lengths = rng.integers(20, 40, n)
    values = rng.normal(size=(lengths.sum(), D_MODEL))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    y = rng.integers(0, 2, n)
    for i in range(n):
        at = starts[i] + rng.integers(lengths[i])
        values[at, 0], values[at, 1] = 8, 3 if y[i] else -3
    tokens = Tokens(values.astype(np.float16), starts)
    train, test = np.arange(450), np.arange(450, n)
    found = attention_probe(tokens, y, train, test, seed=42)
    assert found["test_auc"] > 0.95
    assert found == attention_probe(tokens, y, train, test, seed=42)
    assert components_probe(tokens, y, train, test, seed=42)["test_auc"] < found["test_auc"]


def test_the_script_makes_every_method_once_and_the_figure_reads_them(paths, tmp_path, monkeypatch):
    from sae_lens import TopKSAE, TopKSAEConfig

    write_texts(paths, ["1_first"], n_rows=260)
    write_tiny_model(paths)
    sae = TopKSAE(TopKSAEConfig(d_in=384, d_sae=64, k=4, rescale_acts_by_decoder_norm=False))
    sae.save_model(paths.saes(MODEL) / "layer_2" / "mine")
    flags = ["--model_name", MODEL, *folder_flags(paths), "--device", "cpu"]
    assert train_multi_token_probes.main(flags) == 0
    path = paths.multi_token_results(MODEL)
    table = pd.read_csv(path)
    assert len(table) == 8
    assert table[["test_ap", "n_fresh"]].notna().all().all()
    assert table["test_auc"].between(0, 1).all()
    before = path.read_bytes()
    assert train_multi_token_probes.main(flags) == 0
    assert path.read_bytes() == before
    found, findings = load_multi_token(paths, MODEL)
    assert (len(found), findings) == (8, [])
    # a signal word is in the text: the strongest over tokens must show it
    assert table.set_index("method").loc["attention probe", "test_auc"] > 0.9


@pytest.mark.parametrize("probe_with", [attention_probe, components_probe])
def test_nothing_is_chosen_by_the_test_rows(probe_with):
    """With the test labels turned round the same probe is made, and its AUC turns round."""
    tokens, rng = random_tokens(220, seed=3), np.random.default_rng(3)
    y = rng.integers(0, 2, 220)
    train, test = np.arange(160), np.arange(160, 220)
    found = probe_with(tokens, y, train, test, seed=1)
    turned = probe_with(tokens, np.where(np.arange(220) < 160, y, 1 - y), train, test, seed=1)
    assert turned["val_auc"] == found["val_auc"]
    assert turned["test_auc"] == pytest.approx(1 - found["test_auc"])


def test_the_attention_probes_validation_is_of_rows_set_aside():
    """On labels that mean nothing it is near 0.5, not near 1 as on the rows it was made from."""
    aucs = []
    for seed in range(12):
        tokens, y = random_tokens(160, seed=seed), np.random.default_rng(seed).integers(0, 2, 160)
        rows = np.arange(160)
        aucs.append(attention_probe(tokens, y, rows, rows, seed)["val_auc"])
    assert np.mean(aucs) < 0.75


class FakeModel:
    """Token i of a text has the value i in every dimension."""

    def width(self, hook):
        return 4

    def tokenize(self, texts):
        return [[7] * len(text.split()) for text in texts]

    def run(self, token_ids, desc):
        longest = max(map(len, token_ids))
        states = torch.arange(longest, dtype=torch.float32)[None, :, None].expand(
            len(token_ids), -1, 4
        )
        kept = torch.tensor([[i < len(ids) for i in range(longest)] for ids in token_ids])
        yield np.arange(len(token_ids)), {"hook": states}, kept


def test_the_first_token_is_left_out_and_the_last_is_there():
    model: Any = FakeModel()
    tokens = read_tokens(model, "hook", ["a b c d", "a", "a b"], "reading")
    texts = [tokens.values[tokens.starts[i] : tokens.starts[i + 1], 0].tolist() for i in range(3)]
    assert texts == [[1, 2, 3], [0], [1]]  # a text of one token keeps it


def test_last_and_mean_token_by_hand():
    tokens = random_tokens(40, seed=5)
    for i in range(40):
        own = tokens.values[tokens.starts[i] : tokens.starts[i + 1]].astype(np.float32)
        assert np.allclose(last_token(tokens)[i], own[-1])
        assert np.allclose(mean_token(tokens)[i], own.mean(axis=0), atol=1e-5)
