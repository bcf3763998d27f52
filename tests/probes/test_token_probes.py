"""Multi-token probes against dense loops and scikit-learn's PCA, and the script end to end."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import folder_flags, write_texts
from scipy.sparse import csr_array
from sklearn.decomposition import PCA

import train_multi_token_probes
from utils.probes import token_probes
from utils.probes.token_probes import (
    Tokens,
    attention_probe,
    components_probe,
    concatenated_components,
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
    from test_pipeline import MODEL, write_tiny_model

    write_texts(paths, ["1_first"], n_rows=260)
    write_tiny_model(paths)
    sae = TopKSAE(TopKSAEConfig(d_in=384, d_sae=64, k=4, rescale_acts_by_decoder_norm=False))
    sae.save_model(paths.saes(MODEL) / "layer_2" / "mine")
    flags = ["--model_name", MODEL, *folder_flags(paths), "--device", "cpu"]
    assert train_multi_token_probes.main(flags) == 0
    path = paths.multi_token_results(MODEL)
    table = pd.read_csv(path)
    assert len(table) == 6
    assert table["test_auc"].between(0, 1).all()
    before = path.read_bytes()
    assert train_multi_token_probes.main(flags) == 0
    assert path.read_bytes() == before
    found, findings = load_multi_token(paths, MODEL)
    assert (len(found), findings) == (6, [])
    # a signal word is in the text: the strongest over tokens must show it
    assert table.set_index("method").loc["attention probe", "test_auc"] > 0.9
