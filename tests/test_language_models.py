"""Hooks on small random models of several families, against hooks placed by hand and against
TransformerLens's definitions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, folder_flags, write_texts
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import generate_model_activations
import train_baselines
from utils.language_models import (
    MOST_PADDING,
    HookedModel,
    _blocks,
    longest_text,
    parts_add_up,
    read_config,
    texts_in_batch,
)
from utils.models import LanguageModel, get_model
from utils.names import HOOK_POINTS, hook_name, parse_layer
from utils.paths import Paths
from utils.readers.pt_files import load_tensor
from utils.runtime.errors import Failures, UserError

D_MODEL, N_LAYERS = 32, 3
SMALL: dict = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "vocab_size": 40,
}
CONFIGS = {
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=64
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8
    ),
    "llama": lambda: transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(**SMALL, num_key_value_heads=2, head_dim=8),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, vocab_size=40, n_positions=64
    ),
    "pythia": lambda: transformers.GPTNeoXConfig(**SMALL, max_position_embeddings=64),
}
WORDS = [
    "<pad>",
    "<bos>",
    "<unk>",
    "the",
    "a",
    "cat",
    "dog",
    "runs",
    "sees",
    "over",
    "blue",
    "old",
    "tree",
    "house",
    "signal",
    "plain",
]
HOOKS = [
    "hook_embed",
    *(f"blocks.1.hook_{point}" for point in ("resid_pre", "attn_out", "mlp_out", "resid_post")),
]
TEXTS = [
    "the cat runs",
    "a blue dog sees the old tree over the house",
    "tree",
    "the house runs over a cat a dog",
]


def save_model(folder: Path, family: str) -> Path:
    """A random model and a word tokenizer that puts its own BOS first, as transformers saves it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases of 1 and 0 would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(CONFIGS))
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, save_model(
        tmp_path_factory.mktemp("models") / request.param, request.param
    )


def hooked(folder: Path, hooks: list[str], max_seq_len: int = 64) -> HookedModel:
    info = LanguageModel("mine", str(folder), D_MODEL, (1,), probe_layer=1, max_seq_len=max_seq_len)
    return HookedModel(info, hooks, Paths(data_dir=folder / "nothing"), "cpu")


def by_hand(family: str, folder: Path, text: str) -> dict[str, np.ndarray]:
    """The last token's values, each text alone: states from transformers' own output, parts as
    differences of the stream.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    seen: dict[str, torch.Tensor] = {}
    base = model.base_model
    block = base.h[1] if family == "gpt2" else base.layers[1]
    inner = {
        "gpt2": "ln_2",
        "pythia": None,
        "gemma2": "pre_feedforward_layernorm",
        "gemma3": "pre_feedforward_layernorm",
    }.get(family, "post_attention_layernorm")
    handles = []
    if inner:  # what enters the norm before the MLP is the stream after attention
        handles.append(
            getattr(block, inner).register_forward_pre_hook(
                lambda _m, args: seen.update(mid=args[0])
            )
        )
    else:  # attention and MLP side by side
        handles.append(
            block.attention.register_forward_hook(
                lambda _m, _i, output: seen.update(attention=output[0])
            )
        )
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    embedding = base.get_input_embeddings().weight[ids] * (
        D_MODEL**0.5 if family.startswith("gemma") else 1.0
    )
    before, after = states[1], states[2]
    attention = seen["mid"] - before if inner else seen["attention"]
    values = {
        "hook_embed": embedding,
        "blocks.1.hook_resid_pre": before,
        "blocks.1.hook_attn_out": attention,
        "blocks.1.hook_mlp_out": after - before - attention,
        "blocks.1.hook_resid_post": after,
    }
    return {name: value[0, -1].detach().numpy() for name, value in values.items()}


def test_every_hook_gives_the_stream_as_transformers_has_it(saved):
    family, folder = saved
    found = hooked(folder, HOOKS).pooled(TEXTS, "texts")
    for i, text in enumerate(TEXTS):
        for name, expected in by_hand(family, folder, text).items():
            assert np.allclose(found[name][i].numpy(), expected, atol=1e-4), (name, text)


def test_the_soft_cap_of_gemma_2_is_kept_by_every_version_of_transformers(tmp_path):
    """torch's own attention has none, and older versions use it without a word."""
    model = hooked(save_model(tmp_path, "gemma2"), HOOKS).model
    config: Any = model.config
    assert config.attn_logit_softcapping
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize("n_tokens", [64, 4096, 32_768])
def test_batches_are_padded_by_little_and_as_large_as_they_may_be(n_tokens):
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(3, 60, 3000))[::-1]
    start = padded = 0
    while start < len(lengths):
        size = texts_in_batch(lengths[start:], n_tokens)
        batch = lengths[start : start + size]
        assert size == 1 or len(batch) * batch[0] <= n_tokens
        one_more = lengths[start : start + size + 1]
        assert (
            len(one_more) == len(batch)
            or len(one_more) * one_more[0] > n_tokens
            or len(one_more) * one_more[0] > (1 + MOST_PADDING) * one_more.sum()
        )
        padded += len(batch) * batch[0]
        start += size
    assert padded <= 1.08 * lengths.sum()


def test_texts_tokenized_ahead_are_those_that_come(tmp_path):
    """And where others come, these are read."""
    model = hooked(save_model(tmp_path, "gpt2"), HOOKS)
    expected = model.pooled(TEXTS[::-1], "texts")
    for told in (TEXTS[::-1], TEXTS[:1]):
        model.pooled(TEXTS, "texts", following=partial(list, told))
        found = model.pooled(TEXTS[::-1], "texts")
        assert all(torch.equal(found[hook], expected[hook]) for hook in expected)


def test_a_texts_values_do_not_depend_on_its_batch(saved):
    _, folder = saved
    model = hooked(folder, HOOKS)
    together, alone = model.pooled(TEXTS, "texts"), model.pooled(TEXTS, "texts", batch_size=1)
    for name in HOOKS:
        assert torch.allclose(together[name], alone[name], atol=1e-4)


def test_long_texts_lose_their_beginning_and_keep_bos(saved):
    _, folder = saved
    ids = hooked(folder, ["hook_embed"], max_seq_len=4).tokenize(["the cat sees a dog"])[0]
    assert [WORDS[i] for i in ids] == ["<bos>", "sees", "a", "dog"]


def test_a_bos_token_is_put_first_where_a_tokenizer_does_not(tmp_path):
    """As TransformerLens does for GPT-2 and Pythia; one that is there already stays alone."""
    folder = save_model(tmp_path, "gpt2")
    info = LanguageModel("mine", str(folder), D_MODEL, (1,), 1, max_seq_len=4, prepend_bos=True)
    with_its_own = HookedModel(info, ["hook_embed"], Paths(data_dir=folder), "cpu")
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    model = HookedModel(info, ["hook_embed"], Paths(data_dir=folder), "cpu")
    without = HookedModel(
        replace(info, prepend_bos=False), ["hook_embed"], Paths(data_dir=folder), "cpu"
    )
    for text, expected in (("the cat", "the cat"), ("the cat sees a dog", "sees a dog")):
        (ids,) = model.tokenize([text])
        assert [WORDS[i] for i in ids] == ["<bos>", *expected.split()]
        assert with_its_own.tokenize([text]) == [ids]
        assert 1 not in without.tokenize([text])[0]
    mean = HookedModel(replace(info, pooling="mean"), ["hook_embed"], Paths(data_dir=folder), "cpu")
    assert [WORDS[i] for i in mean.tokenize(["the cat sees a dog"])[0]] == [
        "<bos>",
        *["the", "cat", "sees"],
    ]


def test_blocks_above_the_last_hook_are_not_run(saved):
    _, folder = saved
    model = hooked(folder, ["blocks.0.hook_resid_post", "hook_embed"])
    ran = []
    _blocks(model.model)[1].register_forward_pre_hook(lambda _m, _a: ran.append(1))
    model.pooled(TEXTS, "texts")
    assert not ran


def _rename(folder: Path, names: dict[str, str]) -> None:
    """The checkpoint with the parts of names changed; "" for a name: left out."""
    weights = load_file(folder / "model.safetensors")
    for old, new in names.items():
        weights = {
            name.replace(old, new): value
            for name, value in weights.items()
            if new or old not in name
        }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "names",
    [
        {"model.": "_orig_mod.model."},
        {"model.": "module.model."},
        {"layers.1.": "layers.1.base_layer."},
        {"layers.2.mlp.up_proj.weight": ""},
        {"model.norm.weight": ""},
        {"embed_tokens.weight": ""},
    ],
)
def test_a_checkpoint_whose_names_do_not_fit_is_refused(names, tmp_path):
    folder = save_model(tmp_path, "llama")
    _rename(folder, names)
    with pytest.raises(UserError, match="the weights do not fit the model"):
        hooked(folder, ["blocks.0.hook_resid_post"])


def test_a_checkpoint_with_more_in_a_block_is_refused_and_with_other_heads_is_not(tmp_path):
    folder = save_model(tmp_path, "llama")
    before = hooked(folder, HOOKS).pooled(TEXTS, "texts")
    weights = load_file(folder / "model.safetensors")
    harmless = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "score.weight": torch.ones(2, D_MODEL),
        f"model.layers.{N_LAYERS}.eh_proj.weight": torch.ones(D_MODEL, D_MODEL),
    }
    save_file(weights | harmless, folder / "model.safetensors", metadata={"format": "pt"})
    after = hooked(folder, HOOKS).pooled(TEXTS, "texts")
    assert all(torch.equal(before[name], after[name]) for name in HOOKS)
    adapter = {"model.layers.1.self_attn.q_proj.lora_A.weight": torch.ones(2, D_MODEL)}
    save_file(weights | adapter, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lora_A"):
        hooked(folder, HOOKS)


def test_a_checkpoint_of_other_shapes_is_refused_in_one_line(tmp_path):
    folder = save_model(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit config\.json"):
        hooked(folder, HOOKS)


UNLIKE = {  # what a block's parts give is not what they add to the stream
    "bloom": lambda: transformers.BloomConfig(
        hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=4, vocab_size=40
    ),
    "granite": lambda: transformers.GraniteConfig(
        **SMALL, num_key_value_heads=2, residual_multiplier=0.22
    ),
    "bert": lambda: transformers.BertConfig(**SMALL, max_position_embeddings=64),
}


@pytest.mark.parametrize("family", UNLIKE)
def test_parts_that_are_not_what_is_added_to_the_stream_are_refused(family, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, family, UNLIKE[family])
    folder = save_model(tmp_path, family)
    for hook in ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"):
        with pytest.raises(UserError, match=r"are built otherwise|no such part"):
            hooked(folder, [hook])
    found = hooked(folder, ["blocks.1.hook_resid_post"]).pooled(TEXTS, "texts")
    assert torch.isfinite(found["blocks.1.hook_resid_post"]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_add_up_in_the_precision_of_the_model(dtype):
    before, attention, mlp = (
        torch.randn(3, 1, 50, 64) * torch.tensor([30.0, 3, 3]).view(3, 1, 1, 1)
    ).to(dtype)
    after = (before + attention) + mlp
    assert parts_add_up(before, attention, mlp, after)
    assert not parts_add_up(before, attention, 0.22 * mlp, after)
    assert not parts_add_up(before, attention + before, mlp, after)
    assert not parts_add_up(before, attention, mlp, after * float("nan"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_huge_dimension_hides_no_part_that_is_missing(tmp_path, dtype):
    """Real residual streams have some; attention and MLP stand side by side here."""
    folder = save_model(tmp_path, "pythia")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("embed_in.weight"):
            weights[name][:, 3] += 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    info = LanguageModel("mine", str(folder), D_MODEL, (1,), probe_layer=1, max_seq_len=64)
    for hook in ("blocks.1.hook_attn_out", "blocks.1.attn.hook_z", "blocks.1.ln2.hook_normalized"):
        HookedModel(info, [hook], Paths(data_dir=folder), "cpu", dtype)
    with pytest.raises(UserError, match="built otherwise"):
        HookedModel(info, ["blocks.1.hook_resid_mid"], Paths(data_dir=folder), "cpu", dtype)


def test_a_hook_that_is_not_there_is_named(saved):
    _, folder = saved
    with pytest.raises(UserError, match="has blocks 0 to 2"):
        hooked(folder, ["blocks.3.hook_resid_post"])


def test_a_model_with_the_batch_in_another_place_is_refused(tmp_path, monkeypatch):
    """XLNet's states are [n_tokens, batch, d_model]."""
    monkeypatch.setitem(
        CONFIGS,
        "xlnet",
        lambda: transformers.XLNetConfig(
            vocab_size=40, d_model=D_MODEL, n_layer=N_LAYERS, n_head=4, d_inner=64
        ),
    )
    folder = save_model(tmp_path, "xlnet")
    with pytest.raises(UserError, match=r"a tensor of shape \(8, 1, 32\) there for 8 tokens"):
        hooked(folder, ["blocks.1.hook_resid_post"])


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_a_quantised_checkpoint_that_needs_a_library_gets_one_line(tmp_path, method):
    folder = save_model(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="in bfloat16 or float32") as caught:
        hooked(folder, ["blocks.1.hook_resid_post"])
    assert "\n" not in str(caught.value)


OLMO_2 = {**SMALL, "num_key_value_heads": 2}  # its norms stand behind attention and MLP


def test_hooks_about_the_norm_before_the_mlp_are_refused_where_it_stands_elsewhere(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(CONFIGS, "olmo2", lambda: transformers.Olmo2Config(**OLMO_2))
    folder = save_model(tmp_path, "olmo2")
    for point in ("hook_mlp_in", "ln2.hook_normalized", "hook_resid_mid"):
        with pytest.raises(UserError, match="are built otherwise"):
            hooked(folder, [f"blocks.1.{point}"])
    states = hooked(folder, ["blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"])
    assert torch.isfinite(states.pooled(TEXTS, "texts")["blocks.1.mlp.hook_in"]).all()


@pytest.mark.parametrize("family", ["bloom", "bert", "granite"])
@pytest.mark.parametrize("point", HOOK_POINTS)
def test_other_families_give_finite_values_or_one_line(family, point, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, family, UNLIKE[family])
    folder = save_model(tmp_path, family)
    found = {}
    failures = Failures()
    with failures.caught():
        found = hooked(folder, [f"blocks.1.{point}"]).pooled(TEXTS, "texts")
    assert all(torch.isfinite(states).all() for states in found.values())
    assert len(found) + len(failures.lines) == 1
    assert not any("\n" in line for line in failures.lines)


@pytest.mark.parametrize("layer", [3, "embed", *(f"blocks.3.{p}" for p in HOOK_POINTS[:-1])])
def test_layers_and_hooks_name_each_other(layer):
    assert parse_layer(hook_name(layer)) == layer


def test_a_model_outside_the_table_goes_through_by_its_name(paths, tmp_path):
    """Described by the first stage, known by the later ones; what is done is not done again."""
    folder = save_model(tmp_path / "model", "llama")
    write_texts(paths, ["1_first"], n_rows=250)
    flags = ["--model_name", "mine", *folder_flags(paths)]
    make = [
        *flags,
        "--hf_model",
        str(folder),
        "--hook_names",
        "blocks.1.hook_mlp_out",
        "blocks.2.hook_resid_post",
        "--dtype",
        "float32",
    ]
    assert generate_model_activations.main([*make, "--device", "cpu"]) == 0
    path = paths.model_activations("mine", "1_first", "blocks.1.hook_mlp_out")
    assert load_tensor(path, "").shape == (250, D_MODEL)
    made = path.stat().st_mtime_ns
    assert generate_model_activations.main(make) == 0
    assert path.stat().st_mtime_ns == made
    info = get_model("mine", paths)
    assert (info.d_model, info.layers, info.probe_layer) == (
        D_MODEL,
        ("blocks.1.hook_mlp_out", 2),
        2,
    )
    assert train_baselines.main([*flags, "--method", "logreg", "--n_jobs", "1"]) == 0
    assert paths.baseline_table("mine", "normal", "blocks.1.hook_mlp_out").is_file()


def test_a_hook_that_is_read_later_is_known_to_the_later_stages(paths, tmp_path, capsys):
    folder = save_model(tmp_path / "model", "llama")
    write_texts(paths, ["1_first"], n_rows=250)
    flags = ["--model_name", "mine", *folder_flags(paths)]
    first = [*flags, "--hf_model", str(folder), "--layers", "1", "--max_rows", "120"]
    assert generate_model_activations.main(first) == 0
    assert generate_model_activations.main([*flags, "--hook_names", "blocks.2.mlp.hook_in"]) == 0
    assert get_model("mine", paths).layers == (1, "blocks.2.mlp.hook_in")
    assert get_model("mine", paths).probe_layer == 1
    with pytest.raises(UserError, match="did you mean mine"):
        get_model("min", paths)
    capsys.readouterr()
    assert generate_model_activations.main([*flags, "--layers", "1"]) == 0
    assert "made with 120 rows, is made again with 250" in capsys.readouterr().out


def test_an_unknown_model_without_its_whereabouts_is_named(paths):
    with pytest.raises(UserError, match="--hf_model"):
        generate_model_activations.main(["--model_name", "mine", *folder_flags(paths)])


def test_a_missing_or_gated_model_gets_one_line_at_once(paths):
    write_texts(paths, ["1_first"])
    script = [sys.executable, "generate_model_activations.py", *folder_flags(paths)]
    flags = ["--model_name", "mine", "--hf_model", "nobody/nothing", "--layers", "1"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*script, *flags], cwd=ROOT, env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "hf auth login" in done.stderr
    assert done.stderr.strip().count("\n") == 0


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("decoder") / "pythia", "pythia")


def test_a_wrong_layer_or_path_leaves_nothing_behind(paths, decoder):
    """What failed once must not be what the next command stumbles over."""
    write_texts(paths, ["1_first"], n_rows=20)
    flags = ["--model_name", "mine", *folder_flags(paths), "--device", "cpu", "--setting", "normal"]
    with pytest.raises(UserError, match="has blocks 0 to"):
        generate_model_activations.main([*flags, "--hf_model", str(decoder), "--layers", "20"])
    assert not paths.model_description("mine").exists()
    with pytest.raises(UserError, match="there is no model at /no/such/folder"):
        generate_model_activations.main([*flags, "--hf_model", "/no/such/folder", "--layers", "1"])
    good = [*flags, "--hf_model", str(decoder), "--layers", "1"]
    assert generate_model_activations.main(good) == 0
    assert json.loads(paths.model_description("mine").read_text())["probe_layer"] == 1


def test_texts_longer_than_a_models_positions_are_refused_before_they_are_read(decoder):
    longest = longest_text(read_config(str(decoder), "mine"))
    assert longest == 64
    with pytest.raises(UserError, match=f"positions for {longest} tokens"):
        hooked(decoder, [HOOKS[-1]], longest + 1)


def test_a_tokenizer_without_padding_pads_with_what_is_masked(decoder):
    """The same states whatever the token that stands in padded places."""
    model = hooked(decoder, [HOOKS[-1]])
    states = []
    for pad_id in (0, 3):
        model.pad_id = pad_id
        states.append(model.pooled(["the house", "a cat runs over the old tree"], "reading", 2))
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])


def test_states_that_are_no_numbers_are_refused(decoder):
    model = hooked(decoder, [HOOKS[-1]])
    with torch.no_grad():
        model.model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(UserError, match="gives NaN or infinite values at blocks"):
        model.pooled(["the house"], "reading", 1)
