"""SAEs that are one file, and folders of rare forms, each by its library's formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from safetensors.torch import load_file, save_file
from test_formats import (
    D_MODEL,
    D_SAE,
    assert_same,
    normals,
    ours,
    random_sae,
    rows,
    write_dictionary,
)

from utils.models import get_model
from utils.runtime.errors import Failures, UserError
from utils.saes.catalog import (
    SaeChoice,
    choose_saes,
    find_sae,
    list_sae_ids,
    open_sae,
    sae_fingerprint,
)
from utils.saes.hooks import layer_read_by


def top_k(pre: torch.Tensor, k: int) -> np.ndarray:
    values, at = torch.relu(pre).topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, at, values).numpy()


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openais_autoencoder(paths, activation):
    W, b, pre_bias = normals((D_SAE, D_MODEL), (D_SAE,), (D_MODEL,))
    sae_id = "resid_post_mlp_v5_32k/autoencoders/8.pt"
    path = paths.saes(MODEL) / sae_id
    path.parent.mkdir(parents=True)
    state = {
        "pre_bias": pre_bias,
        "latent_bias": b,
        "encoder.weight": W,
        "decoder.weight": W.T.contiguous(),
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
        "activation": activation,
    }
    if activation == "TopK":
        state["activation_state_dict"] = {"k": 7, "postact_fn": "ReLU"}
    torch.save(state, path)
    x = torch.from_numpy(rows(20))
    scaled = x
    if activation == "TopK":
        scaled = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    pre = (scaled - pre_bias) @ W.T + b
    expected = top_k(pre, 7) if activation == "TopK" else torch.relu(pre).numpy()
    assert list_sae_ids(paths.saes(MODEL)) == [sae_id]
    assert_same(ours(paths, sae_id, x.numpy(), 13), expected)
    assert layer_read_by(sae_id, path, None) == 8
    torch.save(state | {"activation": "Sigmoid"}, path)
    with pytest.raises(UserError, match="activation 'Sigmoid' is not known"):
        open_sae(paths, MODEL, sae_id)


@pytest.mark.parametrize(
    ("folder", "hook"),
    [
        ("resid_delta_mlp_v5_128k", "blocks.3.hook_mlp_out"),
        ("resid_delta_attn_v5_32k", "blocks.3.hook_attn_out"),
        ("resid_post_attn_v5_32k", "blocks.3.hook_resid_mid"),
    ],
)
def test_openais_places_have_our_names(tmp_path, folder, hook):
    path = tmp_path / folder / "autoencoders" / "3.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert layer_read_by(f"{folder}/autoencoders/3.pt", path, None) == hook


def test_a_file_that_says_no_place_is_not_taken_for_the_residual_stream(paths):
    """Block 5 of a transcoder's file is no word on what it reads."""
    w = {name: value.detach() for name, value in random_sae("standard").named_parameters()}
    path = paths.saes(MODEL) / "layer_5.safetensors"
    path.parent.mkdir(parents=True)
    save_file({n: v.contiguous() for n, v in w.items()}, path)
    with pytest.raises(UserError, match="name them with --hook_name"):
        layer_read_by("layer_5.safetensors", path, None)
    hook = "blocks.5.mlp.hook_in"
    assert layer_read_by("layer_5.safetensors", path, None, hook) == hook
    release = "mwhanna-qwen3-4b-transcoders"
    assert layer_read_by("layer_5.safetensors", path, release) == hook
    with pytest.raises(UserError, match="one of them is wrong"):
        layer_read_by("layer_5.safetensors", path, release, "blocks.5.hook_mlp_out")


def test_what_only_the_release_says_is_asked_for(paths):
    w = {name: value.detach() for name, value in random_sae("standard").named_parameters()}
    path = paths.saes(MODEL) / "layer14.sae.pt"
    path.parent.mkdir(parents=True)
    torch.save(w | {"W_enc": w["W_enc"].T.contiguous()}, path)
    with pytest.raises(UserError, match="how many latents it keeps: name that with --sae_release"):
        open_sae(paths, MODEL, "layer14.sae.pt")
    encoder = open_sae(paths, MODEL, "layer14.sae.pt", "qwen-scope-3-1.7b-base-w32k-l100")
    assert encoder.k_active == 100
    assert layer_read_by("layer14.sae.pt", path, None) == 14


def test_other_pt_files_are_no_saes(paths):
    folder = paths.saes(MODEL)
    folder.mkdir(parents=True)
    torch.save({"optimizer": torch.ones(3), "step": 4}, folder / "optimizer.pt")
    torch.save(torch.ones(3), folder / "tensor.pt")
    (folder / "noise.pt").write_bytes(b"noise")
    torch.save({"W_enc": torch.ones(4, 4), "b_enc": torch.ones(4)}, folder / "square.pt")
    assert list_sae_ids(folder) == ["square.pt"]
    with pytest.raises(UserError, match="whether b_dec comes off its input"):
        open_sae(paths, MODEL, "square.pt")
    (folder / "square_cfg.json").write_text('{"act_name": "blocks.2.hook_resid_post"}')
    with pytest.raises(UserError, match="which side the latents are"):
        open_sae(paths, MODEL, "square.pt")
    with pytest.raises(UserError, match="holds no encoder by a name that is known here"):
        open_sae(paths, MODEL, "optimizer.pt")


@pytest.mark.parametrize("extra", ["threshold", "log_threshold", "k", "b_gate", "scaling_factor"])
@pytest.mark.parametrize("encoder", ["W_enc", "encoder.weight"])
def test_a_tensor_that_changes_what_an_encoder_does_is_not_passed_over(paths, extra, encoder):
    W, b = normals((D_SAE, D_MODEL), (D_SAE,))
    path = paths.saes(MODEL) / "layer_5_sae.pt"
    path.parent.mkdir(parents=True)
    bias = "b_enc" if encoder == "W_enc" else "encoder.bias"
    torch.save({encoder: W, bias: b, extra: torch.ones(D_SAE)}, path)
    with pytest.raises(UserError, match=f"has {extra} beside its encoder"):
        open_sae(paths, MODEL, "layer_5_sae.pt")


def test_links_are_followed_and_hidden_files_are_not(paths, tmp_path):
    folder, elsewhere = paths.saes(MODEL), tmp_path / "big_disk"
    random_sae("standard").save_model(elsewhere / "layer_2" / "mine")
    folder.mkdir(parents=True)
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "again").symlink_to(elsewhere, target_is_directory=True)  # no end
    (folder / "._layer14.sae.pt").write_bytes(b"left by a Mac")
    random_sae("standard").save_model(folder / ".trash" / "layer_2")
    assert list_sae_ids(folder) == ["linked/layer_2/mine"]
    assert open_sae(paths, MODEL, "linked/layer_2/mine").d_sae == D_SAE


def test_two_saes_with_one_file_name_never_share_files(paths):
    folder = paths.saes(MODEL)
    for sae_id in ("layer_2/a_b", "layer_2/a/b", "layer_2/c"):
        random_sae("standard").save_model(folder / sae_id)
        cfg = json.loads((folder / sae_id / "cfg.json").read_text())
        cfg["metadata"]["hook_name"] = "blocks.2.hook_resid_post"
        (folder / sae_id / "cfg.json").write_text(json.dumps(cfg))
    failures = Failures()
    info = get_model(MODEL, paths)
    assert set(choose_saes(paths, info, SaeChoice(), failures)) == {"layer_2/a/b", "layer_2/c"}
    assert "would have the same files, named 2_a_b" in failures.lines[0]
    asked = SaeChoice(["layer_2/a_b", "layer_2/a/b"])
    assert set(choose_saes(paths, info, asked, Failures())) == {"layer_2/a_b"}


def test_a_checkpoint_of_a_dictionary_is_read_with_its_runs_settings(paths):
    W, b, b_dec = normals((D_SAE, D_MODEL), (D_SAE,), (D_MODEL,))
    run = paths.saes(MODEL) / "mlp_out_layer_2" / "trainer_0"
    state = {"encoder.weight": W, "encoder.bias": b, "decoder.weight": W.T.contiguous(),
             "b_dec": b_dec, "k": torch.tensor(7), "threshold": torch.tensor(1.5)}  # fmt: skip
    write_dictionary(run, "BatchTopKSAE", state, layer=2, submodule_name="mlp_out_layer_2")
    (run / "checkpoints").mkdir()
    torch.save(state | {"encoder.bias": b + 1}, run / "checkpoints" / "ae_1000.pt")
    sae_id = "mlp_out_layer_2/trainer_0/checkpoints/ae_1000.pt"
    x = torch.from_numpy(rows(20))
    pre = torch.relu((x - b_dec) @ W.T + b + 1)
    assert_same(ours(paths, sae_id, x.numpy(), 13), (pre * (pre > 1.5)).numpy())
    path = find_sae(paths.saes(MODEL), sae_id)
    assert path is not None
    assert layer_read_by(sae_id, path, None) == "blocks.2.hook_mlp_out"
    assert list_sae_ids(paths.saes(MODEL)) == ["mlp_out_layer_2/trainer_0"]
    before = sae_fingerprint(path)
    config = json.loads((run / "config.json").read_text())
    config["trainer"]["layer"] = 3
    (run / "config.json").write_text(json.dumps(config))
    assert sae_fingerprint(path) != before
    (run / "config.json").unlink()
    for name in (sae_id, "mlp_out_layer_2/trainer_0"):
        with pytest.raises(UserError, match=r"put its config\.json at"):
            open_sae(paths, MODEL, name)


@pytest.mark.parametrize("transcode", [False, True])
def test_a_transcoder_of_sparsify_reads_what_enters_its_module(paths, transcode):
    W, b, b_dec = normals((D_SAE, D_MODEL), (D_SAE,), (D_MODEL,))
    folder = paths.saes(MODEL) / "layers.2.mlp"
    folder.mkdir(parents=True)
    state = {"encoder.weight": W, "encoder.bias": b, "W_dec": W.clone(), "b_dec": b_dec}
    save_file(state, folder / "sae.safetensors")
    cfg = {"activation": "topk", "k": 7, "d_in": D_MODEL, "transcode": transcode}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    x = torch.from_numpy(rows(20))
    pre = (x if transcode else x - b_dec) @ W.T + b
    assert_same(ours(paths, "layers.2.mlp", x.numpy(), 13), top_k(pre, 7))
    hook = "blocks.2.mlp.hook_in" if transcode else "blocks.2.hook_mlp_out"
    assert layer_read_by("layers.2.mlp", folder, None) == hook


@pytest.mark.parametrize(("model", "n_read"), [("gemma-2-2b", 0), ("pythia-70m-deduped", 1)])
def test_a_modules_own_output_is_not_taken_for_what_a_norm_makes_of_it(paths, model, n_read):
    """sparsify's layers.2.mlp in Gemma 2, where hook_mlp_out lies behind another norm."""
    W, b, b_dec = normals((D_SAE, D_MODEL), (D_SAE,), (D_MODEL,))
    for name in ("layers.2.mlp", "layers.2"):
        folder = paths.saes(model) / name
        folder.mkdir(parents=True)
        state = {"encoder.weight": W, "encoder.bias": b, "W_dec": W.clone(), "b_dec": b_dec}
        save_file(state, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 7}))
    failures = Failures()
    found = choose_saes(paths, get_model(model), SaeChoice(), failures)
    assert found == {"layers.2": 2} | ({"layers.2.mlp": "blocks.2.hook_mlp_out"} if n_read else {})
    assert len(failures.lines) == 1 - n_read


SIZES = {"d_in": D_MODEL, "d_sae": D_SAE}
TO = {**SIZES, "d_out": 30, "apply_b_dec_to_input": False}
TRANSCODERS = {
    "transcoder": lambda: Transcoder(TranscoderConfig(**TO)),
    "skip_transcoder": lambda: SkipTranscoder(SkipTranscoderConfig(**TO)),
    "jumprelu_transcoder": lambda: JumpReLUTranscoder(JumpReLUTranscoderConfig(**TO)),
}


def randomised(sae: SAE, folder: Path) -> SAE:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if name.startswith("b_") else 1))
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize("kind", TRANSCODERS)
def test_transcoders_of_sae_lens_encode_as_it_does_in_blocks(paths, kind):
    folder = paths.saes(MODEL) / "layer_2" / kind
    sae = randomised(TRANSCODERS[kind](), folder)
    x = rows(20)
    with torch.no_grad():
        expected = sae.encode(torch.from_numpy(x)).numpy()
    encoder = open_sae(paths, MODEL, f"layer_2/{kind}")
    assert encoder.W_enc is not None  # in blocks, not whole
    assert_same(ours(paths, f"layer_2/{kind}", x, 13), expected)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_training_checkpoint_of_batchtopk_is_the_jumprelu_that_it_ends_as(
    paths, tmp_path, rescale
):
    cfg = BatchTopKTrainingSAEConfig(**SIZES, k=7, rescale_acts_by_decoder_norm=rescale)
    sae = BatchTopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.topk_threshold.fill_(1.25)
    folder = paths.saes(MODEL) / "layer_2" / "mine"
    randomised(sae, folder)
    sae.save_inference_model(tmp_path / "inference")
    x = rows(20)
    with torch.no_grad():
        expected = SAE.load_from_disk(tmp_path / "inference").encode(torch.from_numpy(x)).numpy()
    if rescale:  # what is saved for use has the decoder's norms in its encoder
        norms = sae.W_dec.norm(dim=-1).detach().numpy()
        saved = load_file(tmp_path / "inference" / "sae_weights.safetensors")
        assert np.allclose(saved["W_enc"].norm(dim=0), sae.W_enc.norm(dim=0).detach() * norms)
    assert_same(ours(paths, "layer_2/mine", x, 13), expected)
    with torch.no_grad():
        sae.topk_threshold.fill_(0)
    sae.save_model(folder)
    with pytest.raises(UserError, match="not yet learned"):
        open_sae(paths, MODEL, "layer_2/mine")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_weights_of_few_bits_are_the_numbers_they_stand_for(paths, dtype):
    sae = random_sae("standard")
    folder = paths.saes(MODEL) / "layer_2" / "mine"
    sae.save_model(folder)
    weights = load_file(folder / "sae_weights.safetensors")
    small = {name: value.to(dtype) for name, value in weights.items()}
    save_file(small, folder / "sae_weights.safetensors")
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(small[name].float())
        expected = sae.encode(torch.from_numpy(rows(9))).numpy()
    assert_same(ours(paths, "layer_2/mine", rows(9), 13), expected)
