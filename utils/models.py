"""One table of the language models that are known here by name; others are described on disk."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from utils.names import Layer
from utils.paths import Paths
from utils.runtime.errors import UserError, unknown_name
from utils.runtime.files import write_json
from utils.settings import Setting

DEFAULT_MODEL = "gemma-2-9b"


@dataclass(frozen=True)
class LanguageModel:
    """A language model, the layers its activations are taken at, and the release of its SAEs.

    ``hub_id``: where transformers loads it from when ``data/models/{name}`` is not there; None:
    only from there. ``pooling``: "last" token of a text (decoders, the paper's choice) or "mean"
    over its tokens (encoders). ``max_seq_len``: longer texts lose tokens, a decoder's at the
    beginning, an encoder's at the end. ``probe_layer``: the layer of the settings other than
    normal. ``sae_ids``: the SAEs of those settings. ``prepend_bos``: put the tokenizer's BOS token
    before each text, as TransformerLens does, where the tokenizer itself does not. ``fetched_by``:
    the command that brings a model that has no ``hub_id``.
    """

    name: str
    hub_id: str | None
    d_model: int
    layers: tuple[Layer, ...]
    probe_layer: Layer
    pooling: str = "last"
    max_seq_len: int = 1024
    sae_release: str | None = None
    sae_ids: tuple[str, ...] = ()
    prepend_bos: bool = False
    fetched_by: str = "make fetch-data"

    def width_at(self, layer: Layer) -> int | None:
        """The columns of activations at a layer; None for ``attn.hook_z``, where the model's own
        n_heads x d_head decides.
        """
        return None if str(layer).endswith("hook_z") else self.d_model

    def layers_of(self, setting: Setting) -> tuple[Layer, ...]:
        """The layers that are probed in a setting."""
        return self.layers if setting.all_layers else (self.probe_layer,)


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
        LanguageModel(
            "gemma-2-2b",
            "google/gemma-2-2b",
            2304,
            (12,),
            probe_layer=12,
            sae_release="gemma-scope-2b-pt-res",
        ),
        LanguageModel(
            "gemma-3-1b",
            "google/gemma-3-1b-pt",
            1152,
            (7, 13, 17, 22),
            probe_layer=13,
            sae_release="gemma-scope-2-1b-pt-res",
            sae_ids=("layer_13_width_16k_l0_medium", "layer_13_width_65k_l0_medium"),
        ),
        LanguageModel(
            "gemma-3-4b",
            "google/gemma-3-4b-pt",
            2560,
            (9, 17, 22, 29),
            probe_layer=17,
            sae_release="gemma-scope-2-4b-pt-res",
            sae_ids=("layer_17_width_16k_l0_medium", "layer_17_width_65k_l0_medium"),
        ),
        LanguageModel(
            "qwen3-1.7b-base",
            "Qwen/Qwen3-1.7B-Base",
            2048,
            (7, 14, 21),
            probe_layer=14,
            sae_release="qwen-scope-3-1.7b-base-w32k-l50",
            sae_ids=("layer14",),
        ),
        LanguageModel(
            "gpt2-small",
            "openai-community/gpt2",
            768,
            ("blocks.4.hook_resid_pre", "blocks.8.hook_resid_pre"),
            probe_layer="blocks.8.hook_resid_pre",
            sae_release="gpt2-small-res-jb",
            sae_ids=("blocks.8.hook_resid_pre",),
            prepend_bos=True,
        ),
        LanguageModel(
            "pythia-70m-deduped",
            "EleutherAI/pythia-70m-deduped",
            512,
            (2, 3, 4),
            probe_layer=3,
            sae_release="pythia-70m-deduped-res-sm",
            sae_ids=("blocks.3.hook_resid_post",),
            prepend_bos=True,
        ),
        LanguageModel(
            "smollm2-135m", None, 576, (14, 20), probe_layer=14,
            fetched_by='make fetch-data ARGS="--what smollm2"',
        ),
        LanguageModel(
            "all-MiniLM-L6-v2", None, 384, (2, 5), probe_layer=2, pooling="mean", max_seq_len=128
        ),
    )
}  # fmt: skip


def get_model(name: str, paths: Paths | None = None) -> LanguageModel:
    """The table's entry, or what ``describe_model`` wrote below ``paths``.

    Raises UserError for a name that neither has.
    """
    if name in MODELS:
        return MODELS[name]
    path = paths.model_description(name) if paths else None
    if path is None or not path.is_file():
        hint = "(another: generate_model_activations.py --hf_model ID_OR_PATH --layers N)"
        own = paths.described_models() if paths else []
        raise unknown_name("model", name, [*MODELS, *own], hint)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        known: dict[str, Any] = {
            field.name: described[field.name]
            for field in fields(LanguageModel)
            if field.name in described or field.default is MISSING
        }
        for key in ("layers", "sae_ids"):
            known[key] = tuple(known[key])
        return LanguageModel(**known)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no description of a model ({error}): delete it, and make the activations"
            " anew"
        ) from error


def describe_model(info: LanguageModel, paths: Paths) -> None:
    """Write, beside its activations, what later stages need to know of a model."""
    write_json(paths.model_description(info.name), asdict(info))
