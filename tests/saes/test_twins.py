"""Twins and decoders against SAELens's own objects, brute force, and counting."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_lens import SAE
from scipy.sparse import csr_array
from test_formats import BUILDERS, CPU, D_MODEL, D_SAE, assert_same, ours, random_sae, rows

from utils.models import get_model
from utils.names import RANDOM, SOFT_FROZEN, twin_of
from utils.readers.sparse_files import to_csr
from utils.runtime.errors import Failures
from utils.saes.catalog import SaeChoice, choose_saes, open_sae
from utils.saes.decode import lost, reconstruct
from utils.saes.encode import encode_all, read_block
from utils.saes.encoder import SAE_LENS, Encoder
from utils.saes.plan import Job, make_plan
from utils.saes.releases import as_released
from utils.saes.twins import CHUNK, NoTwin, RandomDirections, above, exact_cut, low_cut, make_twin

MODEL = "all-MiniLM-L6-v2"


def saved(paths, kind: str, **cfg) -> SAE:
    sae = random_sae(kind, **cfg)
    sae.save_model(paths.saes(MODEL) / "layer_2" / kind)
    return SAE.load_from_disk(paths.saes(MODEL) / "layer_2" / kind)


def dense(encoder, x: np.ndarray) -> np.ndarray:
    block = read_block(encoder, 0, encoder.d_sae, CPU)
    return to_csr(encode_all(encoder, [block], x, CPU), encoder.d_sae).toarray()


def test_directions_do_not_depend_on_the_block_and_have_length_one():
    directions = RandomDirections((2 * CHUNK + 30, 24), 7)
    whole = directions.read()
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for start, stop in ((0, 5), (CHUNK - 3, CHUNK + 4), (10, 2 * CHUNK + 30)):
        assert np.array_equal(directions.rows(start, stop), whole[start:stop])
    # uniform: means and products of different directions are near zero
    assert np.abs(whole.mean(axis=0)).max() < 0.04
    assert not np.allclose(whole[:50], RandomDirections((50, 24), 8).read())


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_soft_frozen_twin_is_the_sae_with_other_directions(paths, kind):
    sae = saved(paths, kind)
    encoder = open_sae(paths, MODEL, twin_of(f"layer_2/{kind}", SOFT_FROZEN))
    assert encoder.W_enc is not None
    directions = encoder.W_enc.read()
    trained = sae.W_enc.detach().numpy().T
    assert np.allclose(
        np.linalg.norm(directions, axis=1), np.linalg.norm(trained, axis=1), rtol=1e-5
    )
    assert np.abs((directions * trained).sum(axis=1)).mean() < 0.5 * (trained**2).sum(axis=1).mean()
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(directions.T))
        expected = sae.encode(torch.from_numpy(rows(30))).numpy()
    assert_same(dense(encoder, rows(30)), expected)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_random_twin_has_the_saes_mean_l0_on_the_training_rows(paths, kind):
    sae = saved(paths, kind)
    x, train = rows(200), np.arange(150)
    with torch.no_grad():
        n_wanted = int((sae.encode(torch.from_numpy(x))[:150] != 0).sum())
    encoder = open_sae(paths, MODEL, twin_of(f"layer_2/{kind}", RANDOM))
    assert encoder.W_enc is not None
    centred = x - sae.b_dec.detach().numpy()
    plain = np.maximum(centred @ encoder.W_enc.read().T, 0)
    if not encoder.matches_l0:
        found = dense(encoder, x)
        assert (found != 0).sum(axis=1).max() <= 7
        assert np.allclose(np.sort(found)[:, -7:], np.sort(plain)[:, -7:], atol=1e-5)
        return
    low = replace(encoder, cut=low_cut(centred[train], D_SAE, n_wanted))
    block = read_block(low, 0, D_SAE, CPU)
    some = encode_all(low, [block], x, CPU)
    found = to_csr(above(some, exact_cut(some, train, n_wanted)), D_SAE).toarray()
    spare = (dense(low, x)[train] != 0).sum()
    assert (found[train] != 0).sum() == min(n_wanted, spare)
    # the strongest values, those of a plain product
    cut = np.sort(plain[train].ravel())[-n_wanted - 1]
    assert np.allclose(found, np.where(plain > cut, plain, 0), atol=1e-5)


def test_an_sae_that_only_sae_lens_knows_has_a_random_twin_alone(paths):
    saved(paths, "standard")
    encoder = open_sae(paths, MODEL, "layer_2/standard")
    whole = replace(encoder, architecture=SAE_LENS, W_enc=None)
    assert dense(make_twin(whole, RANDOM), rows(5)).shape == (5, D_SAE)
    with pytest.raises(NoTwin, match="no soft_frozen twin"):
        make_twin(whole, SOFT_FROZEN)


@pytest.mark.parametrize("l0", [1, 2, 5, 40])
def test_the_low_cut_leaves_enough_where_all_rows_share_a_mean(l0):
    """Residual streams do; then few directions decide how many values pass."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(60, 128)) + 10 * rng.normal(size=128)
        directions = RandomDirections((1024, 128), seed).read()
        cut = low_cut(x, 1024, 60 * l0)
        assert (x @ directions.T > cut).sum() >= 60 * l0


def test_a_twin_is_no_sae_to_ask_for(paths):
    saved(paths, "standard")
    failures = Failures()
    asked = SaeChoice(["layer_2/standard", "layer_2/standard+random"])
    assert list(choose_saes(paths, get_model(MODEL), asked, failures)) == ["layer_2/standard"]
    assert "is a control of layer_2/standard" in failures.lines[0]


def test_a_twin_comes_behind_its_sae_whatever_the_datasets_lack():
    a, twin = "layer_2/a", "layer_2/a+random"
    encoder = Encoder(a, "standard", 8, 16, RandomDirections((16, 8), 0), latents_first=True)
    jobs = [Job("d1", 2, [twin], [], 10, 0), Job("d2", 2, [a, twin], [], 10, 0)]
    encoders = {a: encoder, twin: replace(encoder, sae_id=twin)}
    for budget in (1 << 30, 40_000):
        works = make_plan(jobs, encoders, CPU, budget, 1)
        assert [i for work in works for i in work.sae_ids] == [a, twin]


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_reconstruction_and_error_equal_sae_lens(paths, kind, normalize, monkeypatch):
    monkeypatch.setattr("utils.saes.decode.BLOCK_BYTES", 4 * D_MODEL * 13)  # several blocks
    sae = saved(paths, kind, normalize_activations=normalize)
    x = rows(40)
    with torch.no_grad():
        expected = sae(torch.from_numpy(x)).numpy()
    encoder = open_sae(paths, MODEL, f"layer_2/{kind}")
    latents = csr_array(ours(paths, f"layer_2/{kind}", x, D_SAE))
    found = reconstruct(encoder, latents, x)
    scale = np.abs(expected).max()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)
    assert np.allclose(lost(encoder, latents, x), x - expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", BUILDERS)
def test_what_a_scaled_release_gives_back_equals_sae_lens(paths, kind, monkeypatch):
    """A release's factor is folded into encoder and decoder, as SAELens folds it."""
    sae = saved(paths, kind, normalize_activations="expected_average_only_in")
    entry = SimpleNamespace(
        config_overrides=None, norm_scaling_factor={"s": 0.214}, conversion_func=None,
        saes_map={"s": "s"}, repo_id="",
    )  # fmt: skip
    directory = "sae_lens.loading.pretrained_saes_directory.get_pretrained_saes_directory"
    monkeypatch.setattr(directory, lambda: {"release": entry})
    encoder = as_released(open_sae(paths, MODEL, f"layer_2/{kind}"), "release", "s")
    sae.fold_activation_norm_scaling_factor(0.214)
    x = rows(40)
    with torch.no_grad():
        expected = sae(torch.from_numpy(x)).numpy()
    latents = csr_array(dense(encoder, x))
    scale = np.abs(expected).max()
    assert np.allclose(reconstruct(encoder, latents, x), expected, rtol=1e-4, atol=1e-5 * scale)
