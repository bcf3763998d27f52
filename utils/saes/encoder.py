"""What an SAE's encoder is, and where its weights stand in files; nothing here reads a matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.names import named_l0
from utils.readers.weight_files import WeightArray
from utils.runtime.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("standard", "jumprelu", "topk", "gated")  # read block by block
SAE_LENS = "sae_lens"  # all others: SAELens loads them whole and encodes
NORMALIZATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


@dataclass(frozen=True)
class Decoder:
    """Where an SAE's decoder stands: ``W_dec`` [d_sae, d_model], or [d_model, d_sae] where not
    ``latents_first``, and ``b_dec`` [d_model], which is added. ``rescaled``: latents were
    multiplied by the lengths of these directions.
    """

    W_dec: WeightArray
    b_dec: np.ndarray | None = None
    latents_first: bool = True
    rescaled: bool = False


@dataclass(frozen=True)
class Encoder:
    """What an SAE's encoder is, and where its weights stand; no weights are in memory.

    ``W_enc`` is [d_model, d_sae], or [d_sae, d_model] where ``latents_first``. ``vectors`` are
    small arrays [d_sae] (b_enc, threshold, b_gate, b_mag, r_mag; decoder_norms, which multiply
    pre-activations). The input is centred and normalised, then ``b_dec`` [d_model] is taken off it.
    """

    sae_id: str
    architecture: str
    d_model: int
    d_sae: int
    W_enc: WeightArray | None  # None: encoded by SAELens's own object, which ``load`` makes
    latents_first: bool = False
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    b_dec: np.ndarray | None = None
    centred: bool = False  # each row less its mean comes first
    normalize_activations: str = "none"
    input_scale: float = 1.0  # multiplies W_enc
    k_active: int = 0  # latents a TopK SAE keeps of a row
    W_dec: WeightArray | None = None  # only where pre-activations are scaled by the decoder's norms
    load: Callable[[torch.device], Any] | None = None
    decoder: Decoder | None = None  # None: not known, or not of the activations that were read
    matches_l0: bool = False  # a twin, whose ``cut`` is set on each dataset
    cut: float = 0.0  # what is not above it does not fire
    only_release_says: str = ""  # what neither the files say nor, so far, a release has said

    @property
    def n_bytes(self) -> int:
        """Memory of the whole encoder in float32 (of SAELens's object: of its decoder too)."""
        return self.block_bytes(self.d_sae) * (1 if self.W_enc else 2)

    @property
    def n_file_bytes(self) -> int:
        """Bytes to read it once."""
        return self.W_enc.n_bytes if self.W_enc else self.n_bytes

    def block_bytes(self, n_latents: int) -> int:
        return 4 * n_latents * (self.d_model + 4)

    @property
    def named_l0(self) -> int | None:
        """The mean number of active latents that the id names, or a TopK SAE's own k."""
        return named_l0(self.sae_id) or self.k_active or None

    def described(self) -> dict:
        """Its shape, threshold and named L0, for the file of checks beside the results."""
        threshold = self.vectors.get("threshold", np.empty(0))
        threshold = threshold[np.isfinite(threshold)]
        return {
            "architecture": self.architecture,
            "d_model": self.d_model,
            "d_sae": self.d_sae,
            "named_l0": self.named_l0,
            "threshold": (
                [float(threshold.min()), float(threshold.max())] if len(threshold) else None
            ),
        }


def require_width(encoder: Encoder, width: int | None, model_name: str) -> None:
    """Raise UserError unless an SAE reads activations of this width (None: not known yet)."""
    if width is not None and encoder.d_model != width:
        raise UserError(
            f"{encoder.sae_id} reads activations of width {encoder.d_model}; those of {model_name}"
            f" have {width}"
        )


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): fetch the SAE again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: fetch the SAE again")
    return content


def need(arrays: Mapping[str, WeightArray], names: tuple[str, ...], folder: Path) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(
            f"the SAE at {folder} lacks {', '.join(missing)}; it has"
            f" {', '.join(sorted(arrays)) or 'nothing'}"
        )
    if len(arrays[names[0]].shape) != 2:
        raise UserError(
            f"the SAE at {folder}: {names[0]} has shape {arrays[names[0]].shape}, not two"
            " dimensions"
        )


def checked(encoder: Encoder, folder: Path) -> Encoder:
    """The encoder, if all its arrays fit together and are finite."""
    if encoder.normalize_activations not in NORMALIZATIONS:
        raise UserError(
            f"the SAE at {folder}: normalize_activations {encoder.normalize_activations!r} is not"
            " known"
        )
    for name, array in encoder.vectors.items():
        if array.shape != (encoder.d_sae,):
            raise UserError(
                f"the SAE at {folder}: {name} has shape {array.shape}, not ({encoder.d_sae},)"
            )
    if encoder.b_dec is not None and encoder.b_dec.shape != (encoder.d_model,):
        raise UserError(
            f"the SAE at {folder}: b_dec has shape {encoder.b_dec.shape}, not ({encoder.d_model},)"
        )
    arrays = (
        encoder.vectors if encoder.b_dec is None else encoder.vectors | {"b_dec": encoder.b_dec}
    )
    for name, array in arrays.items():
        # a latent with an infinite threshold is pruned: it never fires
        known = np.isfinite(array) | (array == np.inf if name == "threshold" else False)
        if not known.all():
            raise UserError(f"the SAE at {folder}: {name} has NaN or infinite values")
    if (
        encoder.architecture == "topk"
        and not encoder.only_release_says
        and not 0 < encoder.k_active <= encoder.d_sae
    ):
        raise UserError(
            f"the SAE at {folder}: k {encoder.k_active} is not between 1 and {encoder.d_sae}"
        )
    return encoder
