"""SAEs as other training libraries save them: dictionary_learning (ae.pt, config.json) and sparsify (sae.safetensors, cfg.json).

Encoders equal those libraries' own ``encode`` (dictionary.py and trainers/ of saprmarks/dictionary_learning; sparse_coder.py of
EleutherAI/sparsify). Their files are read, not run: tensors only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError, unknown_name
from utils.saes import Encoder, checked, need, read_json
from utils.tensors import load_plain
from utils.weight_files import stored_arrays


@dataclass(frozen=True)
class MappedArray:
    """A tensor of a .pt file, mapped and not loaded; with the reading methods of ``weight_files.StoredArray``."""

    path: Path
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def n_bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def read(self) -> np.ndarray:
        return self.tensor.float().numpy()

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.tensor[start:stop].float().contiguous().numpy()

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.tensor[:, start:stop].float().contiguous().numpy()


# dict_class of config.json: how it encodes, and its names of W_enc, b_enc and b_dec
LINEAR = ("encoder.weight", "encoder.bias")
DICTIONARIES = {
    "AutoEncoder": ("standard", *LINEAR, "bias"),
    "AutoEncoderNew": ("standard", *LINEAR, None),
    "GatedAutoEncoder": ("gated", "encoder.weight", None, "decoder_bias"),
    "AutoEncoderTopK": ("topk", *LINEAR, "b_dec"),
    "BatchTopKSAE": ("jumprelu", *LINEAR, "b_dec"),
    "JumpReluAutoEncoder": ("jumprelu", "W_enc", "b_enc", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("jumprelu", "W_enc", "b_enc", "b_dec"),
}
GATED = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}


def open_dictionary(folder: Path, sae_id: str) -> Encoder:
    """An SAE of dictionary_learning.

    Raises UserError when its class is not known or its tensors do not fit.
    """
    trainer = read_json(folder / "config.json").get("trainer")
    kind = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or kind not in DICTIONARIES:
        raise unknown_name(f"dict_class in {folder / 'config.json'}:", str(kind), DICTIONARIES)
    architecture, weight_name, bias_name, input_bias_name = DICTIONARIES[kind]
    arrays = _mapped(folder / "ae.pt")
    gated = GATED if architecture == "gated" else {}
    need(arrays, (weight_name, *(name for name in (bias_name, input_bias_name, *gated.values()) if name)), folder)
    W_enc = arrays[weight_name]
    latents_first = weight_name == "encoder.weight"
    d_sae, d_model = W_enc.shape if latents_first else W_enc.shape[::-1]
    vectors = {ours: arrays[theirs].read() for ours, theirs in gated.items()}
    if bias_name:
        vectors["b_enc"] = arrays[bias_name].read()
    if architecture == "jumprelu":
        need(arrays, (weight_name, "threshold"), folder)
        vectors["threshold"] = np.broadcast_to(arrays["threshold"].read(), (d_sae,)).copy()
        if (vectors["threshold"] < 0).any() and kind != "JumpReluAutoEncoder":
            raise UserError(f"{folder / 'ae.pt'}: the threshold of a {kind} was not yet learned: train it further")
    subtract = kind != "JumpReluAutoEncoder" or bool(arrays.get("apply_b_dec_to_input", False))
    k_active = 0
    if architecture == "topk":
        k = arrays["k"].read() if "k" in arrays else trainer.get("k")
        k_active = int(np.asarray(k)) if k is not None else 0
    return checked(
        Encoder(
            sae_id,
            architecture,
            d_model,
            d_sae,
            W_enc,
            latents_first=latents_first,
            vectors=vectors,
            b_dec=arrays[input_bias_name].read() if input_bias_name and subtract else None,
            k_active=k_active,
        ),
        folder,
    )


def open_sparsify(folder: Path, sae_id: str) -> Encoder:
    """An SAE of sparsify: TopK on inputs less b_dec.

    Raises UserError for a transcoder, another activation, or tensors that do not fit.
    """
    cfg = read_json(folder / "cfg.json")
    if cfg.get("transcode"):
        raise UserError(f"{folder} is a transcoder, not an SAE: it reads another place than it writes")
    if cfg.get("activation", "topk") != "topk":
        raise UserError(f"{folder / 'cfg.json'}: activation {cfg['activation']!r} is not known; topk is")
    arrays = stored_arrays(folder / "sae.safetensors")
    need(arrays, ("encoder.weight", "encoder.bias", "b_dec"), folder)
    W_enc = arrays["encoder.weight"]
    d_sae, d_model = W_enc.shape
    return checked(
        Encoder(
            sae_id,
            "topk",
            d_model,
            d_sae,
            W_enc,
            latents_first=True,
            vectors={"b_enc": arrays["encoder.bias"].read()},
            b_dec=arrays["b_dec"].read(),
            k_active=int(cfg.get("k") or 0),
        ),
        folder,
    )


def _mapped(path: Path) -> dict[str, MappedArray]:
    """The tensors of a state dict, not yet read from the disk."""
    state = load_plain(path, "fetch the SAE again", mmap=True)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds other things than named tensors: it is no SAE of dictionary_learning")
    return {name: MappedArray(path, tensor) for name, tensor in state.items()}
