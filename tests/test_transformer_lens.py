"""Every hook against TransformerLens itself, by its own conversion of the same weights."""

from __future__ import annotations

import pytest
import torch
import transformers
from sae_lens import HookedSAETransformer  # has mlp.hook_in beside TransformerLens's hooks
from test_language_models import D_MODEL, N_LAYERS, SMALL, TEXTS, hooked, save_model
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained import weight_conversions

from utils.names import HOOK_POINTS
from utils.runtime.errors import UserError

COMMON = {
    "n_layers": N_LAYERS,
    "d_model": D_MODEL,
    "n_heads": SMALL["num_attention_heads"],
    "d_head": 8,
    "d_mlp": SMALL["intermediate_size"],
    "n_ctx": 64,
    "d_vocab": SMALL["vocab_size"],
    "device": "cpu",
}
ROTARY = {
    **COMMON,
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "rotary_base": 10_000,
    "final_rms": True,
    "gated_mlp": True,
    "n_key_value_heads": 2,
    "eps": 1e-6,
}
GEMMA = {**ROTARY, "use_normalization_before_and_after": True, "attn_scale": 8**0.5,
         "act_fn": "gelu_pytorch_tanh"}  # fmt: skip
# the name of TransformerLens's conversion, and its config
FAMILIES: dict[str, tuple[str, dict]] = {
    "gpt2": (
        "gpt2",
        {**COMMON, "act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-5, "d_mlp": 128},
    ),
    "pythia": (
        "neox",
        {**COMMON, "act_fn": "gelu", "normalization_type": "LN", "eps": 1e-5,
         "positional_embedding_type": "rotary", "rotary_dim": 2, "parallel_attn_mlp": True,
         "rotary_adjacent_pairs": False},
    ),
    "llama": ("llama", {**ROTARY, "act_fn": "silu"}),
    "mistral": ("mistral", {**ROTARY, "act_fn": "silu"}),
    "gemma2": ("gemma", {**GEMMA, "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0}),
    "gemma3": ("gemma", {**GEMMA, "use_qk_norm": True}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FAMILIES))
def both(request, tmp_path_factory):
    """A family, its folder, and what TransformerLens has of each text at the last token."""
    conversion, config = FAMILIES[request.param]
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    lens = HookedSAETransformer(HookedTransformerConfig(**config))
    convert = getattr(weight_conversions, f"convert_{conversion}_weights")
    missing, unexpected = lens.load_state_dict(convert(theirs, lens.cfg), strict=False)
    assert not unexpected
    assert not [name for name in missing if ".W_" in name]
    lens.eval()
    lens.set_use_hook_mlp_in(True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    caches = []
    for text in TEXTS:
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            caches.append(lens.run_with_cache(ids)[1])
    return request.param, folder, caches


@pytest.mark.parametrize("point", HOOK_POINTS)
def test_a_hook_has_transformer_lens_values(both, point):
    family, folder, caches = both
    name = f"blocks.1.{point}"
    if (family, point) == ("pythia", "hook_resid_mid"):  # attention and MLP stand side by side
        assert name not in caches[0]
        with pytest.raises(UserError, match="built otherwise"):
            hooked(folder, [name])
        return
    found = hooked(folder, [name]).pooled(TEXTS, "texts")[name]
    for ours, cache in zip(found, caches):
        assert torch.allclose(ours, cache[name][0, -1].flatten(), atol=2e-5, rtol=1e-4), name
