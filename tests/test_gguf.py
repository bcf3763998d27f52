"""Models in one GGUF file: what is dequantised equals the model that was written into it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from utils.gguf_models import MADE_FROM, dequantise, gguf_file
from utils.language_models import HookedModel, read_config
from utils.models import LanguageModel
from utils.runtime.errors import UserError

D_MODEL, N_HEADS, N_LAYERS, D_MLP = 64, 4, 2, 96
TOKENS = ["<s>", "</s>", *(chr(code) for code in range(33, 127)), "Ġ", "Ċ", "th", "the"]


def small_llama() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D_MODEL, num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS,
        num_hidden_layers=N_LAYERS, intermediate_size=D_MLP, vocab_size=len(TOKENS),
        max_position_embeddings=64, rms_norm_eps=1e-5,
    )  # fmt: skip
    return LlamaModel(config).eval()


def rotated(weight: np.ndarray) -> np.ndarray:
    """Queries and keys as llama.cpp stores them: the two halves of a head interleaved."""
    halves = weight.reshape(N_HEADS, 2, D_MODEL // N_HEADS // 2, D_MODEL)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(D_MODEL, D_MODEL))


def write_gguf(path: Path, model: LlamaModel) -> None:
    """The model as llama.cpp's converter writes a Llama, in float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    w = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", w["embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", w["norm.weight"])
    writer.add_tensor("output.weight", w["embed_tokens.weight"])
    for i in range(N_LAYERS):
        part = f"layers.{i}"
        for theirs, ours in {
            "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        }.items():  # fmt: skip
            writer.add_tensor(f"blk.{i}.{theirs}.weight", w[f"{part}.{ours}.weight"])
        for theirs, ours in {"attn_q": "q_proj", "attn_k": "k_proj"}.items():
            weight = rotated(w[f"{part}.self_attn.{ours}.weight"])
            writer.add_tensor(f"blk.{i}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, LlamaModel]:
    folder, model = tmp_path_factory.mktemp("packed"), small_llama()
    write_gguf(folder / "tiny.gguf", model)
    return folder, model


def test_a_folder_with_one_gguf_file_is_a_model(packed, paths):
    folder, model = packed
    assert read_config(str(folder), "tiny").hidden_size == D_MODEL
    info = LanguageModel("tiny", str(folder), D_MODEL, (0,), 0, max_seq_len=64)
    hooked = HookedModel(info, ["blocks.0.hook_resid_post"], paths, "cpu", "float32")
    texts = ["the cat", "a house on a hill", "x"]
    found = hooked.pooled(texts, "texts")["blocks.0.hook_resid_post"]
    for text, row in zip(texts, found):
        ids = torch.tensor([hooked.tokenize([text])[0]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[1]
        assert torch.allclose(row, states[0, -1], atol=1e-4)
    made = json.loads((paths.language_model("tiny") / MADE_FROM).read_text())
    assert made["file"] == "tiny.gguf"
    # once; and again where the file is another
    assert not dequantise(folder / "tiny.gguf", paths.language_model("tiny"))


def test_another_file_is_dequantised_anew(packed, paths, tmp_path):
    target = paths.language_model("tiny")
    assert dequantise(packed[0] / "tiny.gguf", target)
    other = small_llama()
    with torch.no_grad():
        other.embed_tokens.weight += 1
    write_gguf(tmp_path / "tiny.gguf", other)
    assert dequantise(tmp_path / "tiny.gguf", target)
    assert not dequantise(tmp_path / "tiny.gguf", target)


def test_broken_and_doubtful_files_get_one_line(packed, paths, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((packed[0] / "tiny.gguf").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"broken\.gguf cannot be read .*: fetch it again"):
        dequantise(broken, paths.language_model("tiny"))
    assert not paths.language_model("tiny").exists()
    with pytest.raises(UserError, match="cannot be read"):
        read_config(str(tmp_path), "tiny")
    (tmp_path / "second.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="leave one in it"):
        gguf_file(tmp_path)


def test_nothing_of_a_users_folder_is_replaced(packed, paths):
    """The file may lie where the model would stand, or another model may."""
    there = paths.language_model("tiny")
    there.mkdir(parents=True)
    (there / "tiny.gguf").write_bytes((packed[0] / "tiny.gguf").read_bytes())
    for source in (there / "tiny.gguf", packed[0] / "tiny.gguf"):
        with pytest.raises(UserError, match="give the model another name"):
            dequantise(source, there)
    assert (there / "tiny.gguf").is_file()
