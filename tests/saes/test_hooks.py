"""Which activations an SAE reads: each format's own word, and no guess where nothing says it."""

from __future__ import annotations

import json
import re

import pytest
from conftest import MODEL
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from utils.models import get_model
from utils.names import hook_name
from utils.runtime.errors import Failures, UserError
from utils.saes.catalog import SaeChoice, choose_saes
from utils.saes.hooks import layer_read_by

SAE_LENS, OLD = {"metadata": {"hook_name": "blocks.5.hook_mlp_out"}}, "blocks.5.hook_mlp_out"


def write(folder, files: dict[str, object]):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def dictionary(layer: int, name: str) -> dict:
    return {"config.json": {"trainer": {"layer": layer, "submodule_name": name}}, "ae.pt": ""}


SAID: dict[str, tuple[str, dict, object]] = {
    "SAELens": ("mine", {"cfg.json": SAE_LENS}, "blocks.5.hook_mlp_out"),
    "SAELens before 6": ("mine", {"cfg.json": {"hook_name": OLD}}, "blocks.5.hook_mlp_out"),
    "SAELens of old": ("mine", {"cfg.json": {"hook_point": "hook_embed"}}, "embed"),
    "Llama Scope": ("m", {"hyperparams.json": {"hook_point_in": "blocks.7.hook_resid_post"}}, 7),
    "dictionary_learning": ("mlp_out_layer_3/trainer_0", dictionary(3, "mlp_out_layer_3"),
                            "blocks.3.hook_mlp_out"),
    "dictionary_learning, residual": ("r/trainer_0", dictionary(8, "resid_post_layer_8"), 8),
    "sparsify": ("layers.10", {"cfg.json": {}, "sae.safetensors": ""}, 10),
    "sparsify, MLP": ("layers.10.mlp", {"cfg.json": {}, "sae.safetensors": ""},
                      "blocks.10.hook_mlp_out"),
    "attention heads": ("m", {"cfg.json": {"hook_point": "blocks.5.attn.hook_z"}},
                        "blocks.5.attn.hook_z"),
    "attention heads, by the id": ("blocks.5.hook_z", {"cfg.json": {}}, "blocks.5.attn.hook_z"),
    "a transcoder": ("m", {"cfg.json": {"metadata": {"hook_name": "blocks.5.ln2.hook_normalized"}}},
                     "blocks.5.ln2.hook_normalized"),
    "the middle of a block": ("blocks.0.hook_resid_mid", {"cfg.json": {}},
                              "blocks.0.hook_resid_mid"),
    "Gemma Scope, by its id": ("layer_20/width_16k/average_l0_408", {"params.npz": ""}, 20),
    "Gemma Scope, in its release's folder": (
        "gemma-scope-2b-pt-mlp/layer_5/width_16k/average_l0_20", {"params.npz": ""},
        "blocks.5.hook_mlp_out"),
    "Gemma Scope, embedding": ("embedding/width_4k/average_l0_6", {"params.npz": ""}, "embed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID)
def test_files_and_ids_say_what_is_read(tmp_path, kind):
    sae_id, files, expected = SAID[kind]
    assert layer_read_by(sae_id, write(tmp_path / sae_id, files), None) == expected


def cfg(hook: object, **more) -> dict:
    return {"cfg.json": {"metadata": {"hook_name": hook, **more}}}


REFUSED: dict[str, tuple[str, dict, str]] = {
    "nothing says it": ("mine", {"params.npz": ""}, "does not say which activations it reads"),
    "an empty config": ("mine", cfg(None), "does not say which activations it reads"),
    "id and file disagree": ("layer_8/x", cfg("blocks.5.hook_resid_post"), "one of them is wrong"),
    "hooks disagree": ("blocks.8.hook_resid_pre", cfg("blocks.8.hook_resid_post"), "wrong"),
    "queries": ("mine", cfg("blocks.5.attn.hook_q"), "not made here"),
    "one head": ("mine", cfg("blocks.5.hook_attn_out", hook_head_index=3), "head"),
    "the norm before attention": ("mine", cfg("blocks.5.ln1.hook_normalized"), "not made here"),
    "a module of another library": ("mine", cfg("model.layers.5"), "not made here"),
    "inside an MLP": ("mine", cfg("blocks.5.mlp.hook_post"), "not made here"),
    "an id of an MLP without its hook": ("mlp_out_layer3/10_32768", {"ae.pt": ""}, "--hook_name"),
    "an attention SAE by its folder": ("gpt2-att-kk/layer_5", {"params.npz": ""}, "--hook_name"),
    "another module": ("mine", dictionary(3, "query_layer_3"), "not made here"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_known_or_not_made_is_refused_in_one_line(tmp_path, kind):
    sae_id, files, message = REFUSED[kind]
    folder = write(tmp_path / sae_id, files)
    with pytest.raises(UserError, match=message) as caught:
        layer_read_by(sae_id, folder, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sae_id",
    [
        "blocks.0.hook_attn_in",
        "blocks.8.attn.hook_v",
        "blocks.3.mlp.hook_pre/mine",
        "blocks.3.ln1.hook_normalized",
        "blocks.3.attn.hook_q/width_1k",
    ],
)
@pytest.mark.parametrize("release", [None, "gpt2-small-hook-z-kk"])
def test_an_id_that_names_a_hook_not_made_here_is_no_blocks_number(sae_id, release):
    with pytest.raises(UserError, match=r"reads blocks\.\d\."):
        layer_read_by(sae_id, None, release)


def test_what_a_hook_is_followed_by_is_no_part_of_it():
    assert layer_read_by("blocks.8.hook_resid_pre_24576", None, None) == "blocks.8.hook_resid_pre"
    assert layer_read_by("blocks.8.hook_resid_post/mine", None, None) == 8


def test_a_user_can_say_it_where_nothing_else_does(tmp_path):
    silent, telling = write(tmp_path / "mine", {"params.npz": ""}), write(tmp_path / "b", cfg(OLD))
    assert layer_read_by("mine", silent, None, "blocks.3.hook_attn_out") == "blocks.3.hook_attn_out"
    assert layer_read_by("b", telling, None, OLD) == OLD
    with pytest.raises(UserError, match=r"--hook_name says blocks\.3"):
        layer_read_by("b", telling, None, "blocks.3.hook_attn_out")


def test_one_sae_that_says_nothing_does_not_end_the_others(paths):
    folder = paths.saes(MODEL)
    write(folder / "mine", {"params.npz": ""})
    write(folder / "layer_2" / "s", {"params.npz": ""})
    failures = Failures()
    info = get_model(MODEL, paths)
    assert choose_saes(paths, info, SaeChoice(), failures) == {"layer_2/s": 2}
    assert len(failures.lines) == 1
    assert failures.lines[0].startswith("mine does not say")
    asked = SaeChoice(["mine"], hook_name="blocks.4.hook_resid_pre")
    assert choose_saes(paths, info, asked, Failures()) == {"mine": "blocks.4.hook_resid_pre"}
    with pytest.raises(UserError, match="mine does not say"):
        choose_saes(paths, info, SaeChoice(["mine"]), Failures())


# by conversion_func of the registry: what SAELens's own loader says of an entry, where that needs
# no file of the hub
SAID_OFFLINE = {
    "gemma_2": lambda repo, path: loaders.get_gemma_2_config_from_hf(repo, path, "cpu"),
    "gemma_2_transcoder": lambda repo, path: loaders.get_gemma_2_transcoder_config_from_hf(
        repo, path
    ),
    "qwen_scope": lambda repo, path: loaders.get_qwen_scope_config_from_hf(repo, path, "cpu"),
    "deepseek_r1": lambda repo, path: loaders.get_deepseek_r1_config_from_hf(repo, path, "cpu"),
    "goodfire": lambda repo, path: loaders.get_goodfire_config_from_hf(repo, path, "cpu"),
}
# modules of transformers, which SAELens's loader names for Gemma Scope 2, by our hooks
MODULES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
}


def sae_lens_says(conversion: str, repo: str, path: str) -> str | None:
    if conversion == "gemma_3":
        module = loaders._infer_gemma_3_raw_cfg_dict(repo, path)["hf_hook_point_in"]
        _, _, block, point = module.split(".", 3)
        return f"blocks.{block}.{MODULES[point]}"
    if conversion in SAID_OFFLINE:
        return SAID_OFFLINE[conversion](repo, path)["hook_name"]
    return None


def test_the_whole_registry_reads_what_sae_lens_says_or_is_refused():
    n_read = n_refused = n_compared = 0
    for release, entry in get_pretrained_saes_directory().items():
        for sae_id, path in entry.saes_map.items():
            try:
                hook = hook_name(layer_read_by(sae_id, None, release))
            except UserError:
                n_refused += 1
                continue
            n_read += 1
            theirs = sae_lens_says(str(entry.conversion_func), entry.repo_id, path)
            n_compared += theirs is not None
            assert theirs in (None, hook), (release, sae_id)
            named = re.match(r"blocks\.\d+\.\S*hook_[a-z]+(_[a-z]+)?", sae_id)
            same = hook.replace("attn.hook_z", "hook_z")
            assert named is None or named.group(0) == same, (release, sae_id, hook)
            if any(part in release for part in ("-mlp", "-att", "transcoder", "clt")):
                assert "resid" not in hook, (release, sae_id, hook)
    assert n_read > 0.95 * (n_read + n_refused)
    assert n_compared > 12_000
