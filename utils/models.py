"""One table of the language models whose activations and SAEs are known here by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.errors import unknown_name

DEFAULT_MODEL = "gemma-2-9b"
Layer = int | str  # a block's number, or "embed"


@dataclass(frozen=True)
class LanguageModel:
    """A language model, the layers its activations are taken at, and the release its SAEs come from.

    ``hub_id``: where transformers loads it from when ``data/models/{name}`` is not there; None: only from there.
    ``pooling``: "last" token of a text (decoders, the paper's choice) or "mean" over its tokens (encoders).
    ``max_seq_len``: longer texts lose tokens, a decoder's at the beginning, an encoder's at the end.
    ``probe_layer``: the layer of the settings other than normal. ``sae_ids``: the SAEs of those settings.
    """

    name: str
    hub_id: str | None
    d_model: int
    layers: tuple[Layer, ...]
    probe_layer: int
    pooling: str = "last"
    max_seq_len: int = 1024
    sae_release: str | None = None
    sae_ids: tuple[str, ...] = ()


MODELS = {
    model.name: model
    for model in (
        LanguageModel(
            "gemma-2-9b",
            "google/gemma-2-9b",
            3584,
            ("embed", 9, 20, 31, 41),
            probe_layer=20,
            sae_release="gemma-scope-9b-pt-res",
            sae_ids=(
                "layer_20/width_16k/average_l0_408",
                "layer_20/width_131k/average_l0_276",
                "layer_20/width_1m/average_l0_193",
            ),
        ),
        LanguageModel(
            "llama-3.1-8b",
            "meta-llama/Llama-3.1-8B",
            4096,
            ("embed", 8, 16, 24, 31),
            probe_layer=16,
            sae_release="llama_scope_lxr_32x",
            sae_ids=("l16r_32x",),
        ),
        LanguageModel("gemma-2-2b", "google/gemma-2-2b", 2304, (12,), probe_layer=12),
        LanguageModel("all-MiniLM-L6-v2", None, 384, (2, 5), probe_layer=2, pooling="mean", max_seq_len=128),
    )
}


def get_model(name: str) -> LanguageModel:
    """The table's entry. Raises UserError for a name it does not have."""
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def hook_name(layer: Layer) -> str:
    """TransformerLens's name of the residual stream after a block: 20 -> "blocks.20.hook_resid_post"."""
    return "hook_embed" if layer == "embed" else f"blocks.{layer}.hook_resid_post"


def parse_layer(text: str) -> Layer:
    """ "20" -> 20, "embed" -> "embed". Raises ValueError for anything else."""
    return "embed" if text == "embed" else int(text)


def sae_layer(sae_id: str) -> int | None:
    """The block an SAE reads, from its id; None where the id does not say.

    >>> sae_layer("layer_20/width_16k/average_l0_408"), sae_layer("l16r_32x"), sae_layer("my_sae")
    (20, 16, None)
    """
    match = re.match(r"(?:layer_|l|blocks\.)(\d+)(?=[/_r.]|$)", sae_id)
    return int(match.group(1)) if match else None


def named_width(sae_id: str) -> int | None:
    """The number of latents an id names; None if it names none.

    >>> named_width("layer_20/width_16k/average_l0_408"), named_width("layer_20/width_1m/average_l0_193"), named_width("my_sae")
    (16384, 1048576, None)
    """
    match = re.search(r"width[_-](\d+)(k|m|pow\d+)?", sae_id)
    if not match:
        return None
    number, unit = int(match.group(1)), match.group(2) or ""
    return number ** int(unit.removeprefix("pow")) if unit.startswith("pow") else number * {"": 1, "k": 1024, "m": 1024**2}[unit]


def named_l0(sae_id: str) -> int | None:
    """The mean number of active latents an id names; None if it names none.

    >>> named_l0("layer_20/width_16k/average_l0_408"), named_l0("layer_2/width_4k/topk_32"), named_l0("l16r_32x")
    (408, 32, None)
    """
    match = re.search(r"(?:l0|topk)_(\d+)", sae_id)
    return int(match.group(1)) if match else None
