"""The paths of a GPU without one: fake tensors know their device, and refuse to meet those of
another.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MODEL, write_texts, write_tiny_model
from sae_lens import SAE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from train_multi_token_probes import read_tokens
from utils.language_models import TOKENS_PER_BATCH, HookedModel
from utils.models import get_model
from utils.probes.token_probes import Tokens, attention_probe
from utils.saes.catalog import open_sae
from utils.saes.encode import encode_block, prepared, read_block

D_MODEL, D_SAE = 12, 40
CUDA = torch.device("cuda:0")
ARCHITECTURES = {"standard": {}, "gated": {}, "jumprelu": {}, "topk": {"k": 4}}


def as_on_cuda() -> FakeTensorMode:
    """Tensors made or moved in this mode have shapes and devices, and no values."""
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def test_the_mode_catches_a_tensor_left_on_the_cpu():
    with as_on_cuda(), pytest.raises(RuntimeError, match="device"):
        _ = torch.ones(2, device=CUDA) + torch.ones(2)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encoding_keeps_to_its_device_and_gives_nonzeros_on_the_cpu(
    paths, architecture, normalize, monkeypatch
):
    # how many there are only values tell
    def found(keep):
        return torch.empty((7, 2), dtype=torch.int64, device=keep.device)

    def selected(values, keep):
        assert values.device == keep.device
        return torch.empty(7, device=keep.device)

    monkeypatch.setattr(torch, "nonzero", found)
    monkeypatch.setattr(torch, "masked_select", selected)
    folder = paths.saes("mine") / "layer_1" / architecture
    config = {
        "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": normalize,
        "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    }  # fmt: skip
    sae: SAE = SAE.from_dict(
        {**config, "architecture": architecture, **ARCHITECTURES[architecture]}
    )
    sae.save_model(folder)
    encoder = open_sae(paths, "mine", f"layer_1/{architecture}")
    rows = np.zeros((6, D_MODEL), np.float32)
    with as_on_cuda():
        block = read_block(encoder, 0, D_SAE, CUDA)
        x = prepared(encoder, rows, CUDA, 128)
        assert (x.device.type, block.weights.device.type) == ("cuda", "cuda")
        for part in encode_block(encoder, block, x):
            assert part.device.type == "cpu"


def test_the_attention_probe_is_trained_on_its_device(monkeypatch):
    """On torch's device without values, gradients and Adam's state too."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: torch.zeros(t.shape, dtype=t.dtype))
    values = np.random.default_rng(0).normal(size=(200, D_MODEL)).astype(np.float16)
    tokens, y = Tokens(values, np.arange(0, 201, 5)), np.arange(40) % 2
    found = attention_probe(tokens, y, np.arange(30), np.arange(30, 40), 42, device="meta")
    assert found["test_auc"] == found["val_auc"] == 0.5  # of the zeros in place of scores


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_language_model_is_read_on_its_device(paths, monkeypatch, pooling):
    """On torch's device without values: transformers does what fake tensors of a GPU cannot."""
    write_texts(paths, ["a"], 12)
    write_tiny_model(paths)
    info = replace(get_model(MODEL), pooling=pooling)
    hooks = ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_post"]
    model = HookedModel(info, hooks, paths, "cpu")
    # it looks at the mask's values
    name = "transformers.masking_utils._ignore_bidirectional_mask_sdpa"
    monkeypatch.setattr(name, lambda *_, **__: False)
    model.model.to("meta")
    model.device = torch.device("meta")
    monkeypatch.setitem(TOKENS_PER_BATCH, "meta", TOKENS_PER_BATCH["cuda"])
    seen: list[str] = []

    def check(_, captured, kept):  # in place of a look at values
        seen.extend(value.device.type for value in (*captured.values(), kept))

    monkeypatch.setattr(HookedModel, "_check", check)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: torch.zeros(t.shape, dtype=t.dtype))
    pooled = model.pooled(["the cat", "a blue house runs"], "texts")
    assert set(seen) == {"meta"}
    # a text has at least one token
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: torch.ones(t.shape, dtype=t.dtype))
    tokens = read_tokens(model, hooks[1], ["the cat", "a blue house runs"], "texts")
    assert tokens.values.shape == (tokens.starts[-1], 384)
    for states in pooled.values():
        assert states.shape == (2, 384)
        assert states.device.type == "cpu"
