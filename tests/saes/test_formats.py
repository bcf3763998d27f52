"""Encoding against SAELens's own ``encode`` on the same weights, for every architecture and awkward
block shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.loading import pretrained_saes_directory as saes_directory
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

from utils.models import get_model
from utils.paths import Paths
from utils.readers.sparse_files import to_csr
from utils.readers.weight_files import stored_arrays
from utils.runtime.errors import Failures, UserError
from utils.saes.catalog import SaeChoice, choose_saes, list_sae_ids, open_sae
from utils.saes.encode import concatenate, encode, read_block
from utils.saes.encoder import Encoder
from utils.saes.releases import as_released

D_MODEL, D_SAE = 24, 101  # a width that no block size divides
CPU = torch.device("cpu")
BUILDERS = {
    "standard": lambda **c: StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=D_SAE, **c)),
    "jumprelu": lambda **c: JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, **c)),
    "topk": lambda **c: TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=7, **c)),
    "topk_rescaled": lambda **c: TopKSAE(
        TopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=7, rescale_acts_by_decoder_norm=True, **c)
    ),
    "gated": lambda **c: GatedSAE(GatedSAEConfig(d_in=D_MODEL, d_sae=D_SAE, **c)),
}


def random_sae(kind: str, seed: int = 0, **cfg) -> SAE:
    sae = BUILDERS[kind](**cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator)
                * (0.3 if name.startswith(("b_", "r_")) else 1.0)
            )
            if name == "threshold":
                # some below zero
                parameter.copy_(torch.randn(parameter.shape, generator=generator) + 1)
    return sae


def rows(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D_MODEL)).astype(np.float32)


def ours(
    paths: Paths, sae_id: str, x: np.ndarray, block_size: int, batch_size: int = 16
) -> np.ndarray:
    encoder = open_sae(paths, "all-MiniLM-L6-v2", sae_id)
    starts = range(0, encoder.d_sae, block_size)
    blocks = [
        read_block(encoder, start, min(start + block_size, encoder.d_sae), CPU) for start in starts
    ]
    return to_csr(
        concatenate(list(encode(encoder, blocks, x, CPU, batch_size))), encoder.d_sae
    ).toarray()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.array_equal(found != 0, expected != 0)
    # values near zero are differences of large ones: their rounding is absolute
    assert np.allclose(found, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("block_size", [D_SAE, 50, 13, 1])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", list(BUILDERS))
def test_encoding_equals_sae_lens(paths, kind, normalize, block_size):
    sae = random_sae(kind, normalize_activations=normalize)
    sae.save_model(paths.saes("all-MiniLM-L6-v2") / "layer_2" / kind)
    x = rows(37)
    with torch.no_grad():
        expected = (
            SAE.load_from_disk(paths.saes("all-MiniLM-L6-v2") / "layer_2" / kind)
            .encode(torch.from_numpy(x))
            .numpy()
        )
    assert_same(ours(paths, f"layer_2/{kind}", x, block_size), expected)


@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 9))
@settings(max_examples=30)
def test_top_k_over_blocks_is_the_top_k(seed, block_size, n_rows):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        paths = Paths(data_dir=Path(folder))
        sae = random_sae("topk", seed)
        sae.save_model(paths.saes("all-MiniLM-L6-v2") / "s")
        x = rows(n_rows, seed)
        with torch.no_grad():
            expected = sae.encode(torch.from_numpy(x)).numpy()
        assert_same(ours(paths, "s", x, block_size, batch_size=4), expected)


def test_gemma_scope_params_are_read_in_place(paths):
    """A params.npz like Gemma Scope's: JumpReLU, checked against the formula and SAELens."""
    sae = random_sae("jumprelu", apply_b_dec_to_input=False)
    folder = paths.saes("gemma-2-9b") / "layer_20" / "width_16k" / "average_l0_408"
    folder.mkdir(parents=True)
    weights = {name: parameter.detach().numpy() for name, parameter in sae.named_parameters()}
    np.savez(folder / "params.npz", **weights)
    encoder = open_sae(paths, "gemma-2-9b", "layer_20/width_16k/average_l0_408")
    x = rows(20)
    found = to_csr(
        concatenate(list(encode(encoder, [read_block(encoder, 0, D_SAE, CPU)], x, CPU))), D_SAE
    ).toarray()
    pre = x @ weights["W_enc"] + weights["b_enc"]
    assert_same(found, np.where((pre > weights["threshold"]) & (pre > 0), pre, 0))
    with torch.no_grad():
        assert_same(found, sae.encode(torch.from_numpy(x)).numpy())


def test_gemma_scope_2_is_read_as_sae_lens_reads_it(paths):
    """params.safetensors with names in lower case, found by the folder that the hub gives it."""
    sae = random_sae("jumprelu", apply_b_dec_to_input=False)
    sae_id = "resid_post/layer_13_width_16k_l0_medium"
    folder = paths.saes("gemma-3-1b") / sae_id
    folder.mkdir(parents=True)
    weights = {n.lower(): p.detach().contiguous() for n, p in sae.named_parameters()}
    save_file(weights, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.13.output"}
    (folder / "config.json").write_text(json.dumps(config))
    x = rows(20)
    with torch.no_grad():
        expected = sae.encode(torch.from_numpy(x)).numpy()
    encoder = open_sae(paths, "gemma-3-1b", sae_id)
    block = read_block(encoder, 0, D_SAE, CPU)
    found = to_csr(concatenate(list(encode(encoder, [block], x, CPU))), D_SAE).toarray()
    assert_same(found, expected)
    info = get_model("gemma-3-1b")
    assert choose_saes(paths, info, SaeChoice(), Failures()) == {sae_id: 13}
    for module, hook in (
        ("model.layers.13.self_attn.o_proj.input", "blocks.13.attn.hook_z"),
        ("model.layers.13.pre_feedforward_layernorm.output", "blocks.13.mlp.hook_in"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "hf_hook_point_in": module}))
        assert choose_saes(paths, info, SaeChoice(), Failures()) == {sae_id: hook}
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "topk"}))
    with pytest.raises(UserError, match="architecture 'topk' is not known"):
        open_sae(paths, "gemma-3-1b", sae_id)
    (folder / "config.json").unlink()  # some folders of the hub have none
    assert choose_saes(paths, info, SaeChoice(), Failures()) == {sae_id: 13}
    open_sae(paths, "gemma-3-1b", sae_id)


def test_llama_scope_checkpoints_fold_their_activation_norm(paths):
    """SAELens's own route: threshold scaled, W_enc folded by sqrt(d_model) / average norm."""
    sae = random_sae("jumprelu", apply_b_dec_to_input=False)
    folder = paths.saes("llama-3.1-8b") / "l16r_32x"
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {
        "encoder.weight": sae.W_enc.detach().T.contiguous(),
        "encoder.bias": sae.b_enc.detach(),
        "decoder.weight": sae.W_dec.detach().T.contiguous(),
        "decoder.bias": sae.b_dec.detach(),
    }
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    norm, threshold = 9.5, 0.7
    cfg = {
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "jump_relu_threshold": threshold,
        "dataset_average_activation_norm": {"in": norm},
    }
    (folder / "hyperparams.json").write_text(json.dumps(cfg))
    scale = D_MODEL**0.5 / norm
    with torch.no_grad():
        sae.threshold.fill_(threshold * scale)
        sae.fold_activation_norm_scaling_factor(scale)
        expected = sae.encode(torch.from_numpy(rows(20))).numpy()
    encoder = open_sae(paths, "llama-3.1-8b", "l16r_32x")
    blocks = [
        read_block(encoder, start, min(start + 40, D_SAE), CPU) for start in range(0, D_SAE, 40)
    ]
    assert_same(
        to_csr(concatenate(list(encode(encoder, blocks, rows(20), CPU))), D_SAE).toarray(), expected
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_are_read_exactly(tmp_path, dtype):
    tensor = torch.randn(7, 11).to(dtype)
    save_file({"W": tensor}, tmp_path / "w.safetensors")
    array = stored_arrays(tmp_path / "w.safetensors")["W"]
    assert np.array_equal(array.read(), tensor.float().numpy())
    assert np.array_equal(array.columns(3, 8), tensor.float().numpy()[:, 3:8])
    assert np.array_equal(array.rows(2, 5), tensor.float().numpy()[2:5])


def _change(folder: Path, change) -> None:
    """Give a saved SAE other tensors and settings: ``change`` gets both dictionaries."""
    weights = load_file(folder / "sae_weights.safetensors")
    cfg = json.loads((folder / "cfg.json").read_text())
    weights = change(weights, cfg) or weights
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))


OLDER_FILES = {  # the same SAE, as other versions and wrappers save it
    "normalize false": ("standard", lambda w, cfg: cfg.update(normalize_activations=False)),
    "normalize null": ("standard", lambda w, cfg: cfg.update(normalize_activations=None)),
    "normalize true": ("standard", lambda w, cfg: cfg.update(normalize_activations=True)),
    "compiled": ("standard", lambda w, cfg: {f"_orig_mod.{k}": v for k, v in w.items()}),
    "wrapped": ("topk", lambda w, cfg: {f"module.{k}": v for k, v in w.items()}),
    "log threshold": (
        "jumprelu",
        lambda w, cfg: {
            "log_threshold" if k == "threshold" else k: v.clamp(min=1e-3).log()
            if k == "threshold"
            else v
            for k, v in w.items()
        },
    ),
}


@pytest.mark.parametrize("form", OLDER_FILES)
def test_older_and_wrapped_files_encode_as_the_plain_ones(paths, form):
    kind, change = OLDER_FILES[form]
    sae = random_sae(kind)
    if kind == "jumprelu":
        with torch.no_grad():
            sae.threshold.clamp_(min=1e-3)
    folder = paths.saes("all-MiniLM-L6-v2") / "layer_2" / "mine"
    sae.save_model(folder)
    with torch.no_grad():
        expected = SAE.load_from_disk(folder).encode(torch.from_numpy(rows(9))).numpy()
    _change(folder, change)
    assert_same(ours(paths, "layer_2/mine", rows(9), 13), expected)


def test_a_pruned_latent_never_fires_and_other_infinities_are_refused(paths):
    sae = random_sae("jumprelu")
    with torch.no_grad():
        sae.threshold[5] = torch.inf
    folder = paths.saes("all-MiniLM-L6-v2") / "layer_2" / "mine"
    sae.save_model(folder)
    with torch.no_grad():
        expected = SAE.load_from_disk(folder).encode(torch.from_numpy(rows(9))).numpy()
    assert not expected[:, 5].any()
    assert_same(ours(paths, "layer_2/mine", rows(9), 13), expected)
    for name, value in (
        ("b_dec", torch.nan),
        ("threshold", -torch.inf),
        ("b_enc", torch.inf),
        ("W_enc", torch.nan),
    ):
        sae = random_sae("jumprelu")
        with torch.no_grad():
            getattr(sae, name).view(-1)[3] = value
        sae.save_model(folder)
        with pytest.raises(UserError, match="NaN or infinite"):
            ours(paths, "layer_2/mine", rows(9), 13)


def test_an_npz_may_hold_whole_numbers_and_name_its_weights_in_lower_case(paths):
    folder = paths.saes("gemma-2-9b") / "layer_20" / "x"
    folder.mkdir(parents=True)
    W = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    vectors = {"b_enc": np.zeros(6, np.float32), "threshold": np.zeros(6, np.float32)}
    np.savez(folder / "params.npz", w_enc=W, step=np.array(7), **vectors)  # type: ignore[arg-type]
    encoder = open_sae(paths, "gemma-2-9b", "layer_20/x")
    assert encoder.W_enc is not None
    assert np.array_equal(encoder.W_enc.read(), W)
    W_dec = np.asfortranarray(W.T)
    np.savez(folder / "params.npz", W_enc=W, W_dec=W_dec, **vectors)  # type: ignore[arg-type]
    open_sae(paths, "gemma-2-9b", "layer_20/x")  # no one needs W_dec
    np.savez(folder / "params.npz", W_enc=np.asfortranarray(W), **vectors)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"W_enc \(column-major: save"):
        open_sae(paths, "gemma-2-9b", "layer_20/x")


def test_truncated_and_compressed_weights_are_named(paths):
    folder = paths.saes("gemma-2-9b") / "layer_20" / "x"
    folder.mkdir(parents=True)
    arrays = {
        "W_enc": np.ones((4, 6), np.float32),
        "b_enc": np.zeros(6, np.float32),
        "threshold": np.zeros(6, np.float32),
    }
    np.savez_compressed(folder / "params.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="compressed"):
        open_sae(paths, "gemma-2-9b", "layer_20/x")
    np.savez(folder / "params.npz", **arrays)  # type: ignore[arg-type]
    content = (folder / "params.npz").read_bytes()
    (folder / "params.npz").write_bytes(content[:-100])
    with pytest.raises(UserError, match="not a readable weight file"):
        open_sae(paths, "gemma-2-9b", "layer_20/x")


def test_pickled_arrays_in_an_npz_are_refused_not_executed(paths):
    folder = paths.saes("gemma-2-9b") / "layer_20" / "x"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="not floats"):
        open_sae(paths, "gemma-2-9b", "layer_20/x")


def test_a_missing_sae_names_the_places_looked_at(paths, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"no SAE 'layer_2/nope' at .*there are no SAEs there"):
        open_sae(paths, "all-MiniLM-L6-v2", "layer_2/nope")


def test_sae_ids_are_found_in_every_format(paths):
    for name in (
        "layer_2/a/cfg.json",
        "layer_2/b/params.npz",
        "l16r_32x/hyperparams.json",
        ".hidden/cfg.json",
    ):
        path = paths.saes("m") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list_sae_ids(paths.saes("m")) == ["l16r_32x", "layer_2/a", "layer_2/b"]


@needs_shared
def test_golden_sae_loads():
    from conftest import SHARED

    encoder = open_sae(Paths(sae_dir=SHARED / "golden"), "all-MiniLM-L6-v2", "sae")
    assert (encoder.architecture, encoder.d_model, encoder.d_sae, encoder.k_active) == (
        "topk",
        384,
        4096,
        32,
    )


def write_dictionary(folder: Path, kind: str, state: dict[str, torch.Tensor], **trainer) -> None:
    """A folder as dictionary_learning leaves it."""
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(
        json.dumps({"trainer": {"dict_class": kind, **trainer}, "buffer": {}})
    )


def normals(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("block_size", [D_SAE, 13])
@pytest.mark.parametrize(
    "kind",
    ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"],
)
def test_dictionaries_of_dictionary_learning_encode_by_its_formulas(paths, kind, block_size):
    W, b, b_dec, gate, r = normals((D_SAE, D_MODEL), (D_SAE,), (D_MODEL,), (D_SAE,), (D_SAE,))
    decoder = {"decoder.weight": W.T.contiguous()}
    x = torch.from_numpy(rows(20))
    linear = {"encoder.weight": W, "encoder.bias": b, **decoder}
    trainer = {}
    if kind == "AutoEncoder":
        # its load_dictionary gives decoder columns the norm 1 and the encoder their norms
        norms = W.norm(dim=1)
        state, expected = {**linear, "bias": b_dec}, torch.relu((x - b_dec) @ W.T + b) * norms
    elif kind == "GatedAutoEncoder":
        state = {
            "encoder.weight": W,
            "decoder_bias": b_dec,
            "gate_bias": gate,
            "mag_bias": b,
            "r_mag": r,
            **decoder,
        }
        shared = (x - b_dec) @ W.T
        expected = torch.relu(shared * r.exp() + b) * (shared + gate > 0)
    elif kind == "AutoEncoderTopK":
        state, trainer = (
            {**linear, "b_dec": b_dec, "k": torch.tensor(7), "threshold": torch.tensor(-1.0)},
            {"k": 7},
        )
        pre = torch.relu((x - b_dec) @ W.T + b)
        values, at = pre.topk(7, dim=1)
        expected = torch.zeros_like(pre).scatter(1, at, values)
    elif kind == "BatchTopKSAE":
        state = {**linear, "b_dec": b_dec, "k": torch.tensor(7), "threshold": torch.tensor(1.5)}
        pre = torch.relu((x - b_dec) @ W.T + b)
        expected = pre * (pre > 1.5)
    else:
        state = {
            "W_enc": W.T.contiguous(),
            "b_enc": b,
            "W_dec": W,
            "b_dec": b_dec,
            "threshold": gate.abs(),
        }
        pre = x @ W.T + b
        expected = torch.relu(pre * (pre > gate.abs()))
    write_dictionary(paths.saes("all-MiniLM-L6-v2") / "layer_2" / "mine", kind, state, **trainer)
    assert list_sae_ids(paths.saes("all-MiniLM-L6-v2")) == ["layer_2/mine"]
    assert_same(ours(paths, "layer_2/mine", x.numpy(), block_size), expected.numpy())


@pytest.mark.parametrize("block_size", [D_SAE, 13])
def test_sparsify_saes_encode_by_their_formula(paths, block_size):
    W, b, b_dec = normals((D_SAE, D_MODEL), (D_SAE,), (D_MODEL,))
    folder = paths.saes("all-MiniLM-L6-v2") / "layers.2"
    folder.mkdir(parents=True)
    save_file(
        {"encoder.weight": W, "encoder.bias": b, "W_dec": W.clone(), "b_dec": b_dec},
        folder / "sae.safetensors",
    )
    (folder / "cfg.json").write_text(
        json.dumps({"activation": "topk", "k": 7, "d_in": D_MODEL, "transcode": False})
    )
    x = torch.from_numpy(rows(20))
    pre = torch.relu((x - b_dec) @ W.T + b)
    values, at = pre.topk(7, dim=1)
    assert_same(
        ours(paths, "layers.2", x.numpy(), block_size),
        torch.zeros_like(pre).scatter(1, at, values).numpy(),
    )


def test_a_dictionary_that_is_none_gets_one_line(paths, tmp_path):
    (W,) = normals((D_SAE, D_MODEL))
    saes = paths.saes("all-MiniLM-L6-v2")
    write_dictionary(saes / "a", "Mystery", {"encoder.weight": W})
    write_dictionary(saes / "b", "AutoEncoder", {"encoder.weight": W})
    write_dictionary(saes / "c", "AutoEncoder", {"encoder.weight": W})
    canary = tmp_path / "canary"
    torch.save({"encoder.weight": Hostile(str(canary))}, saes / "c" / "ae.pt")
    for sae_id, message in (
        ("a", "dict_class"),
        ("b", "lacks encoder.bias, bias"),
        ("c", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            open_sae(paths, "all-MiniLM-L6-v2", sae_id)
    assert not canary.exists()


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


def latents(encoder, x: np.ndarray) -> np.ndarray:
    block = read_block(encoder, 0, encoder.d_sae, CPU)
    return to_csr(concatenate(list(encode(encoder, [block], x, CPU))), encoder.d_sae).toarray()


@pytest.mark.parametrize("input_bias", [True, False])
def test_a_releases_scaling_factor_is_folded_as_sae_lens_folds_it(paths, monkeypatch, input_bias):
    sae = random_sae("standard", apply_b_dec_to_input=input_bias)
    sae.save_model(paths.saes("m") / "s")
    entry = SimpleNamespace(
        config_overrides=None, norm_scaling_factor={"s": 0.214}, conversion_func=None,
        saes_map={"s": "s"},
    )  # fmt: skip
    monkeypatch.setattr(saes_directory, "get_pretrained_saes_directory", lambda: {"r": entry})
    x = rows(20)
    sae.fold_activation_norm_scaling_factor(0.214)
    with torch.no_grad():
        expected = sae.encode(torch.from_numpy(x)).numpy()
    assert_same(latents(open_sae(paths, "m", "s", "r"), x), expected)
    plain = latents(open_sae(paths, "m", "s"), x)
    assert not np.allclose(plain, expected)


def test_centred_writing_weights_are_rows_less_their_mean(paths, monkeypatch):
    """A residual stream whose writers are centred is the same stream less its mean, row by row."""
    sae = random_sae("standard")
    sae.save_model(paths.saes("m") / "s")
    kwargs = {"center_writing_weights": True}
    entry = SimpleNamespace(
        config_overrides={"model_from_pretrained_kwargs": kwargs, "dataset_path": "x"},
        norm_scaling_factor={},
        conversion_func=None,
        saes_map={},
    )
    monkeypatch.setattr(saes_directory, "get_pretrained_saes_directory", lambda: {"r": entry})
    x = rows(20)
    with torch.no_grad():
        centred = torch.from_numpy(x - x.mean(axis=1, keepdims=True))
        expected = sae.encode(centred).numpy()
    assert_same(latents(open_sae(paths, "m", "s", "r"), x), expected)
    # the same, where the SAE's own file says it
    cfg = paths.saes("m") / "s" / "cfg.json"
    content = json.loads(cfg.read_text())
    content["metadata"]["model_from_pretrained_kwargs"] = kwargs
    cfg.write_text(json.dumps(content))
    assert_same(latents(open_sae(paths, "m", "s"), x), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_from_pretrained_kwargs": {"fold_ln": True}}, "loaded with"),
        ({"activation_fn": "tanh"}, "asks for activation_fn"),
        ({"normalize_activations": "l3"}, "normalize_activations"),
    ],
)
def test_an_override_that_is_not_known_is_refused(paths, monkeypatch, overrides, message):
    random_sae("standard").save_model(paths.saes("m") / "s")
    entry = SimpleNamespace(
        config_overrides=overrides, norm_scaling_factor={}, conversion_func=None, saes_map={}
    )
    monkeypatch.setattr(saes_directory, "get_pretrained_saes_directory", lambda: {"r": entry})
    with pytest.raises(UserError, match=message):
        open_sae(paths, "m", "s", "r")


def test_every_override_of_the_registry_is_applied_or_refused():
    """Of the installed version: what is new there must be looked at here."""
    encoder = Encoder("s", "standard", 4, 8, None)
    for release, entry in saes_directory.get_pretrained_saes_directory().items():
        as_released(encoder, release, next(iter(entry.saes_map)))


def test_a_release_or_sae_that_the_registry_does_not_know_is_not_read_unscaled(paths):
    sae = random_sae("standard")
    sae.save_model(paths.saes("m") / "mlp_tm" / "blocks.0.hook_mlp_out")
    sae_id = "mlp_tm/blocks.0.hook_mlp_out"
    with pytest.raises(UserError, match="did you mean gpt2-small-mlp-tm"):
        open_sae(paths, "m", sae_id, "gpt2-small-mlp-tmm")
    with pytest.raises(UserError, match="scales its SAEs and has none named"):
        open_sae(paths, "m", sae_id, "gpt2-small-mlp-tm")


def test_settings_of_another_sae_are_refused(paths):
    folder = paths.saes("m") / "s"
    random_sae("standard").save_model(folder)
    _change(folder, lambda w, cfg: cfg.update(d_in=768))
    with pytest.raises(UserError, match="says d_in 768, the weights have 24"):
        open_sae(paths, "m", "s")
