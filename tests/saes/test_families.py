"""A made-up SAE of each loader family of SAELens's registry: fetched by the command that we print,
read as SAELens's own loader reads it, on the hook that SAELens names.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MODEL
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors import safe_open
from safetensors.torch import save_file
from test_formats import CPU, D_MODEL, D_SAE, assert_same, random_sae, rows

from utils.names import hook_name
from utils.paths import Paths
from utils.readers.sparse_files import to_csr
from utils.runtime.errors import UserError
from utils.saes.catalog import find_sae, open_sae
from utils.saes.encode import encode_all, read_block
from utils.saes.hooks import layer_read_by

LATENT_FIRST = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
SIZES = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32"}


def weights(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in sae.named_parameters()}


def linear(sae: SAE, encoder: str = "encoder", decoder: str = "decoder") -> dict[str, torch.Tensor]:
    """Weights under the names of two torch Linear layers."""
    w = weights(sae)
    return {
        f"{encoder}.weight": w["W_enc"].T.contiguous(),
        f"{encoder}.bias": w["b_enc"],
        f"{decoder}.weight": w["W_dec"].T.contiguous(),
        f"{decoder}.bias": w["b_dec"],
    }


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".npz":
        assert isinstance(content, dict)
        np.savez(path, **{name: value.numpy() for name, value in content.items()})
    elif path.suffix == ".safetensors":
        assert isinstance(content, dict)
        save_file(content, path)
    else:
        torch.save(content, path)


def sae_lens(repo: Path, path: str) -> None:
    random_sae("standard").save_model(repo / path)
    cfg = json.loads((repo / path / "cfg.json").read_text())
    cfg["metadata"]["hook_name"] = "blocks.3.hook_resid_post"
    put(repo / path / "cfg.json", cfg)


def connor(repo: Path, path: str) -> None:
    put(repo / path, weights(random_sae("standard")))
    cfg = {"act_size": D_MODEL, "dict_size": D_SAE, "act_name": "blocks.0.attn.hook_z"}
    put(repo / path.replace(".pt", "_cfg.json"), cfg)


def gemma_2(repo: Path, path: str) -> None:
    put(repo / path / "params.npz", weights(random_sae("jumprelu")))


def gemma_3(repo: Path, path: str) -> None:
    lower = {name.lower(): value for name, value in weights(random_sae("jumprelu")).items()}
    if "affine" in path:
        lower["affine_skip_connection"] = torch.eye(D_MODEL)
    put(repo / path / "params.safetensors", lower)


def llama(repo: Path, path: str) -> None:
    factor = get_pretrained_saes_directory()["llama_scope_lxm_32x"].norm_scaling_factor["l5m_32x"]
    put(repo / path / "checkpoints" / "final.safetensors", linear(random_sae("standard")))
    put(
        repo / path / "hyperparams.json",
        {
            "d_model": D_MODEL,
            "d_sae": D_SAE,
            "jump_relu_threshold": 0.01,
            "dataset_average_activation_norm": {"in": D_MODEL**0.5 / factor},
            "hook_point_in": "blocks.5.hook_mlp_out",
        },
    )


def llama_r1(repo: Path, path: str) -> None:
    sae = random_sae("jumprelu")
    log = {"log_jumprelu_threshold": sae.threshold.detach().clamp(min=0.1).log()}
    put(repo / path / "sae_weights.safetensors", linear(sae) | log)
    cfg = {"d_model": D_MODEL, "expansion_factor": D_SAE / D_MODEL,
           "hook_point_in": "blocks.9.hook_resid_post"}  # fmt: skip
    put(repo / path / "config.json", cfg)


def dictionary(repo: Path, path: str) -> None:
    sae = random_sae("topk")
    tensors = linear(sae)
    tensors["b_dec"] = tensors.pop("decoder.bias")
    put(repo / path / "ae.pt", tensors | {"k": torch.tensor(7), "threshold": torch.tensor(-1.0)})
    trainer = {"dict_class": "AutoEncoderTopK", "layer": 5, "k": 7, "activation_dim": D_MODEL,
               "dict_size": D_SAE, "lm_name": "google/gemma-2-2b",
               "submodule_name": "resid_post_layer_5"}  # fmt: skip
    put(repo / path / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}})


def mwhanna(repo: Path, path: str) -> None:
    w = weights(random_sae("standard"))
    put(repo / path, w | {"W_enc": w["W_enc"].T.contiguous()})
    put(
        repo / "wandb-config.yaml",
        f"d_model: {{value: {D_MODEL}}}\nd_feature: {{value: {D_SAE}}}\nbatch_size: {{value: 8}}\n",
    )
    put(repo / "config.yaml", "model_name: Qwen/Qwen3-4B\n")


def mntss(repo: Path, path: str) -> None:
    w = weights(random_sae("standard"))
    encoder = {f"W_enc_{path}": w["W_enc"].T.contiguous(), f"b_enc_{path}": w["b_enc"],
               f"b_dec_{path}": w["b_dec"]}  # fmt: skip
    put(repo / f"W_enc_{path}.safetensors", encoder)
    put(repo / f"W_dec_{path}.safetensors", {f"W_dec_{path}": w["W_dec"][:, None].contiguous()})
    put(
        repo / "config.yaml",
        "model_name: google/gemma-2-2b\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\n",
    )


def goodfire(repo: Path, path: str) -> None:
    put(repo / path, linear(random_sae("standard"), "encoder_linear", "decoder_linear"))


def qwen(repo: Path, path: str) -> None:
    w = weights(random_sae("standard"))
    turned = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()}
    put(repo / path, w | turned)


@dataclass(frozen=True)
class Family:
    release: str
    sae_id: str
    write: Callable[[Path, str], None]
    overrides: dict[str, Any] | None = None


FAMILIES = {
    "sae_lens": Family("pythia-70m-deduped-res-sm", "blocks.3.hook_resid_post", sae_lens),
    "connor_rob_hook_z": Family("gpt2-small-hook-z-kk", "blocks.0.hook_z", connor),
    "gemma_2": Family("gemma-scope-2b-pt-att", "layer_0/width_16k/average_l0_104", gemma_2, SIZES),
    "gemma_2, embedding": Family(
        "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", gemma_2, SIZES
    ),
    "gemma_2, MLP": Family(
        "gemma-scope-2b-pt-mlp-canonical", "layer_0/width_16k/canonical", gemma_2, SIZES
    ),
    "gemma_3": Family("gemma-scope-2-4b-pt-res-all", "layer_9_width_262k_l0_small", gemma_3),
    "gemma_3, transcoder": Family(
        "gemma-scope-2-4b-pt-transcoders", "transcoder/layer_9_width_65k_l0_small_affine", gemma_3
    ),
    "llama_scope": Family("llama_scope_lxm_32x", "l5m_32x", llama, {"dtype": "float32"}),
    "llama_scope_r1_distill": Family("llama_scope_r1_distill", "l9r_800m_openr1_math", llama_r1),
    "dictionary_learning_1": Family(
        "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109",
        "blocks.5.hook_resid_post__trainer_5_step_9765",
        dictionary,
    ),
    "gemma_2_transcoder": Family(
        "gemma-scope-2b-pt-transcoders",
        "layer_25/width_16k/average_l0_41",
        gemma_2,
        SIZES | {"d_out": D_MODEL},
    ),
    "mwhanna_transcoder": Family("mwhanna-qwen3-4b-transcoders", "layer_35", mwhanna),
    "mntss_clt_layer_transcoder": Family(
        "mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_25", mntss
    ),
    "goodfire": Family("goodfire-llama-3.1-8b-instruct", "layer_19", goodfire, SIZES),
    "deepseek_r1": Family(
        "deepseek-r1-distill-llama-8b-qresearch",
        "blocks.19.hook_resid_post",
        lambda repo, path: put(repo / path, linear(random_sae("standard"))),
        SIZES,
    ),
    "qwen_scope": Family("qwen-scope-3-1.7b-base-w32k-l50", "layer27", qwen, SIZES),
}


def test_every_family_of_the_registry_is_here():
    used = {str(e.conversion_func) for e in get_pretrained_saes_directory().values()}
    here = {name.split(",")[0] for name in FAMILIES} - {"sae_lens"}
    assert used - {"None", "temporal"} == here


def by_sae_lens(repo: Path, family: Family, monkeypatch) -> tuple[SAE, dict]:
    """SAELens's own object and config, by its loader, from made-up files in place of the hub's."""

    def download(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        path = repo / subfolder / filename
        if not path.is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(repo / filename, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    entry = get_pretrained_saes_directory()[family.release]
    load = loaders.NAMED_PRETRAINED_SAE_LOADERS[entry.conversion_func or "sae_lens"]
    cfg, state, _ = load(
        entry.repo_id, entry.saes_map[family.sae_id], "cpu", False, family.overrides
    )
    said = dict(cfg)
    cfg = loaders.handle_config_defaulting(cfg)
    cfg["d_sae"] = int(cfg["d_sae"])
    of = SAE.get_sae_config_class_for_architecture(cfg["architecture"])
    sae = SAE.get_sae_class_for_architecture(cfg["architecture"])(of.from_dict(cfg))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    factor = entry.norm_scaling_factor.get(family.sae_id)
    if cfg.get("normalize_activations") == "expected_average_only_in" and factor:
        sae.fold_activation_norm_scaling_factor(factor)
        sae.cfg.normalize_activations = "none"
    return sae, said | cfg.get("metadata", {})


def fetched_as_printed(repo: Path, message: str, sae_dir: Path) -> list[str]:
    """Do what the printed `hf download` does; the flags that are printed beside it."""
    command, flags = re.findall(r"`([^`]+)`", message)[-2:]
    words = shlex.split(command)
    assert words[:2] == ["hf", "download"]
    patterns = words[words.index("--include") + 1 : words.index("--local-dir")]
    assert Path(words[words.index("--local-dir") + 1]) == sae_dir
    for path in repo.rglob("*"):
        name = path.relative_to(repo).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            (sae_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, sae_dir / name)
    return shlex.split(flags)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_fetched_as_printed_and_encodes_as_sae_lens(
    name, tmp_path, paths: Paths, monkeypatch
):
    family, repo = FAMILIES[name], tmp_path / "repo"
    entry = get_pretrained_saes_directory()[family.release]
    family.write(repo, entry.saes_map[family.sae_id])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sae_dir = paths.saes(MODEL)
    with pytest.raises(UserError, match="hf download") as caught:
        open_sae(paths, MODEL, family.sae_id, family.release)
    flags = fetched_as_printed(repo, str(caught.value), sae_dir)
    release, sae_id = (flags[flags.index(f) + 1] for f in ("--sae_release", "--target_sae_id"))
    assert release == family.release
    encoder = open_sae(paths, MODEL, sae_id, release)

    theirs, said = by_sae_lens(repo, family, monkeypatch)
    x = rows(20)
    given = torch.from_numpy(x)
    if said["hook_name"].endswith("hook_z"):  # which SAELens takes head by head
        given = given.reshape(20, 4, D_MODEL // 4)
    with torch.no_grad():
        expected = theirs.encode(given).numpy()
    assert expected.any()
    block = read_block(encoder, 0, D_SAE, CPU)
    assert_same(to_csr(encode_all(encoder, [block], x, CPU), D_SAE).toarray(), expected)

    hook = hook_name(layer_read_by(sae_id, find_sae(sae_dir, sae_id), release))
    # the module that SAELens names beside it is the MLP's input, after the norm
    assert hook == said["hook_name"].replace("hook_mlp_in", "mlp.hook_in")


def test_torch_load_and_pickle_see_no_foreign_byte(tmp_path, paths, monkeypatch):
    """Reading any family neither calls torch.load nor looks up a name for Python's unpickler."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    seen: list[str] = []
    watching = [True]

    def audit(event: str, arguments: tuple) -> None:
        if watching and event == "pickle.find_class":
            seen.append(f"{arguments}")

    sys.addaudithook(audit)
    for family in FAMILIES.values():
        entry = get_pretrained_saes_directory()[family.release]
        family.write(paths.saes(MODEL), entry.saes_map[family.sae_id])
    for path in paths.saes(MODEL).rglob("*.pt"):
        if find_sae(path.parent, path.name) and path.name != "ae.pt":
            encoder = open_sae(paths, MODEL, path.relative_to(paths.saes(MODEL)).as_posix(),
                               "qwen-scope-3-1.7b-base-w32k-l50")  # fmt: skip
            read_block(encoder, 0, D_SAE, CPU)
    watching.clear()
    assert not seen
