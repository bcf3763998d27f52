"""One table of the language models whose activations and SAEs are known here by name; others are described on disk."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields

from utils.errors import UserError, unknown_name
from utils.files import write_json
from utils.paths import Paths

DEFAULT_MODEL = "gemma-2-9b"
Layer = int | str  # a block's number (its hook_resid_post), "embed" (hook_embed), or another hook's whole name
HOOK_POINTS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")  # of a block, in the order they are passed


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
    probe_layer: Layer
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
        LanguageModel("gemma-2-2b", "google/gemma-2-2b", 2304, (12,), probe_layer=12, sae_release="gemma-scope-2b-pt-res"),
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
        ),
        LanguageModel(
            "pythia-70m-deduped",
            "EleutherAI/pythia-70m-deduped",
            512,
            (2, 3, 4),
            probe_layer=3,
            sae_release="pythia-70m-deduped-res-sm",
            sae_ids=("blocks.3.hook_resid_post",),
        ),
        LanguageModel("all-MiniLM-L6-v2", None, 384, (2, 5), probe_layer=2, pooling="mean", max_seq_len=128),
    )
}


def get_model(name: str, paths: Paths | None = None) -> LanguageModel:
    """The table's entry, or what ``describe_model`` wrote below ``paths``. Raises UserError for a name that neither has."""
    if name in MODELS:
        return MODELS[name]
    path = paths.model_description(name) if paths else None
    if path is None or not path.is_file():
        hint = "(another: generate_model_activations.py --hf_model ID_OR_PATH --layers N describes it)"
        raise unknown_name("model", name, MODELS, hint)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: described[field.name] for field in fields(LanguageModel)}
        lists = {key: tuple(known[key]) for key in ("layers", "sae_ids")}
        return LanguageModel(**{**known, **lists})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no description of a model ({error}): delete it, and make the activations anew") from error


def describe_model(info: LanguageModel, paths: Paths) -> None:
    """Write what the later stages need to know of a model outside the table beside its activations."""
    write_json(paths.model_description(info.name), asdict(info))


def hook_name(layer: Layer) -> str:
    """TransformerLens's name of a layer: 20 -> "blocks.20.hook_resid_post", "embed" -> "hook_embed", others as they are."""
    if not isinstance(layer, str):  # numpy's integers from result tables too
        return f"blocks.{layer}.hook_resid_post"
    return "hook_embed" if layer == "embed" else layer


def parse_layer(text: str) -> Layer:
    """The layer of a number, "embed" or a hook's name; the hooks of ``hook_name`` become its layers again.

    >>> parse_layer("20"), parse_layer("blocks.20.hook_resid_post"), parse_layer("blocks.20.hook_mlp_out"), parse_layer("embed")
    (20, 20, 'blocks.20.hook_mlp_out', 'embed')

    Raises ValueError for anything else.
    """
    if text in ("embed", "hook_embed"):
        return "embed"
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)", text)
    if match is None:
        return int(text)
    if match.group(2) not in HOOK_POINTS:
        raise ValueError(f"{text!r} is no hook: use blocks.N. and one of {', '.join(HOOK_POINTS)}")
    return int(match.group(1)) if match.group(2) == "hook_resid_post" else text


def hook_place(name: str) -> tuple[int, int]:
    """(block, place in it) of a hook, in the order a forward pass meets them; hook_embed is (-1, 0).

    >>> hook_place("hook_embed"), hook_place("blocks.20.hook_mlp_out")
    ((-1, 0), (20, 2))
    """
    if name == "hook_embed":
        return -1, 0
    _, block, point = name.split(".")
    return int(block), HOOK_POINTS.index(point)


def layer_order(layer: Layer) -> tuple[int, int]:
    """A key that sorts layers as a forward pass meets them."""
    return hook_place(hook_name(layer))


def layer_folder(layer: Layer) -> str:
    """How a layer stands in an SAE's id: 20 -> "layer_20"; another hook as it is."""
    return layer if isinstance(layer, str) else f"layer_{layer}"


def sae_layer(sae_id: str) -> Layer | None:
    """The layer an SAE reads, from its id; None where the id does not say.

    >>> sae_layer("layer_20/width_16k/average_l0_408"), sae_layer("l16r_32x"), sae_layer("layer14"), sae_layer("my_sae")
    (20, 16, 14, None)
    >>> sae_layer("blocks.8.hook_resid_pre"), sae_layer("blocks.3.hook_resid_post"), sae_layer("layers.10")
    ('blocks.8.hook_resid_pre', 3, 10)
    """
    match = re.match(r"(blocks\.\d+\.hook_[a-z]+_[a-z]+)(?=[/_.]|$)", sae_id)
    if match and match.group(1).split(".")[2] in HOOK_POINTS:
        return parse_layer(match.group(1))
    match = re.match(r"(?:l|blocks\.)(\d+)(?=[/_r.]|$)", sae_id) or re.search(r"layers?[._]?(\d+)(?=[/_.]|$)", sae_id)
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
