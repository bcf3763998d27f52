"""The grammar of hooks, layers and SAE ids: what a name says, and how one is written.

A layer is a block's number (its ``hook_resid_post``), "embed" (``hook_embed``), or another hook's
whole name.
"""

from __future__ import annotations

import re

from utils.runtime.units import short_number

Layer = int | str
POWERS = tuple(1 << exponent for exponent in range(10, 31))  # widths of SAEs
USUAL_SEED = 42  # of an SAE's training: its id names another one
# of a block, in the order in which they are passed
HOOK_POINTS = (
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "hook_mlp_out",
    "hook_resid_post",
)


RANDOM, SOFT_FROZEN = TWINS = ("random", "soft_frozen")  # controls of an SAE's own shape
OF_LATENTS = ("shuffled", "reconstruction", "error")  # controls made from an SAE's latents


def hook_name(layer: Layer) -> str:
    """TransformerLens's name of a layer.

    >>> hook_name(20), hook_name("embed"), hook_name("blocks.20.hook_mlp_out")
    ('blocks.20.hook_resid_post', 'hook_embed', 'blocks.20.hook_mlp_out')
    """
    if not isinstance(layer, str):  # numpy's integers from result tables too
        return f"blocks.{layer}.hook_resid_post"
    return "hook_embed" if layer == "embed" else layer


def parse_layer(text: str) -> Layer:
    """The layer of a number, "embed" or a hook's name; what ``hook_name`` gives is read back.

    >>> parse_layer("20"), parse_layer("blocks.20.hook_resid_post"), parse_layer("hook_embed")
    (20, 20, 'embed')
    >>> parse_layer("blocks.20.hook_mlp_out")
    'blocks.20.hook_mlp_out'

    Raises ValueError for anything else.
    """
    if text in ("embed", "hook_embed"):
        return "embed"
    match = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", text)
    if match is None:
        return int(text)
    if match.group(2) not in HOOK_POINTS:
        points = ", ".join(HOOK_POINTS)
        raise ValueError(f"{text!r} is no hook: use blocks.N. and one of {points}")
    return int(match.group(1)) if match.group(2) == "hook_resid_post" else text


def hook_place(name: str) -> tuple[int, int]:
    """(block, place in it) of a hook, in the order of a forward pass; hook_embed is (-1, 0).

    >>> hook_place("hook_embed"), hook_place("blocks.20.hook_mlp_out")
    ((-1, 0), (20, 7))
    """
    if name == "hook_embed":
        return -1, 0
    _, block, point = name.split(".", 2)
    return int(block), HOOK_POINTS.index(point)


def layer_order(layer: Layer) -> tuple[int, int]:
    """A key that sorts layers as a forward pass meets them."""
    return hook_place(hook_name(layer))


def layer_folder(layer: Layer) -> str:
    """How a layer stands in an SAE's id.

    >>> layer_folder(20), layer_folder("blocks.20.hook_mlp_out")
    ('layer_20', 'blocks.20.hook_mlp_out')
    """
    return layer if isinstance(layer, str) else f"layer_{layer}"


def make_sae_id(layer: Layer, width: int, k_active: int, seed: int) -> str:
    """The id of a TopK SAE that we train, as Gemma Scope names its own: layer, width, sparsity; and
    the seed of its training, where that is not the usual one.

    >>> make_sae_id(2, 4096, 32, seed=42), make_sae_id("blocks.3.hook_mlp_out", 1000, 8, seed=1)
    ('layer_2/width_4k/topk_32', 'blocks.3.hook_mlp_out/width_1000/topk_8_seed_1')
    """
    named = short_number(width).lower()
    if named_width(f"width_{named}") != width:
        named = str(width)
    of_seed = "" if seed == USUAL_SEED else f"_seed_{seed}"
    return f"{layer_folder(layer)}/width_{named}/topk_{k_active}{of_seed}"


def without_seed(sae_id: str) -> str:
    """An id without the seed of its training: equal for SAEs that differ in nothing else.

    >>> without_seed("layer_2/width_4k/topk_32_seed_7"), without_seed("layer_2/width_4k/topk_32")
    ('layer_2/width_4k/topk_32', 'layer_2/width_4k/topk_32')
    """
    return re.sub(r"_seed_\d+(?=$|\+)", "", sae_id)


def sae_stem(sae_id: str) -> str:
    """How an SAE's id stands in a file name.

    >>> sae_stem("layer_20/width_16k/average_l0_408"), sae_stem("l16r_32x")
    ('20_width_16k_average_l0_408', 'l16r_32x')
    """
    return sae_id.removeprefix("layer_").replace("/", "_")


def set_stem(dataset: str, sae_id: str, suffix: str = "") -> str:
    """What the files of a dataset's SAE activations begin with.

    ``suffix`` tells the original scripts' files of one condition apart: "_20" for 20 training rows,
    "_frac0.05" for that share of positives.
    """
    return f"{dataset}_{sae_stem(sae_id)}{suffix}"


def sae_layer(sae_id: str) -> Layer | None:
    """The layer an SAE reads, from its id; None where the id does not say.

    >>> sae_layer("layer_20/width_16k/average_l0_408"), sae_layer("l16r_32x"), sae_layer("layer14")
    (20, 16, 14)
    >>> sae_layer("blocks.8.hook_resid_pre"), sae_layer("blocks.3.hook_resid_post")
    ('blocks.8.hook_resid_pre', 3)
    >>> sae_layer("layers.10"), sae_layer("my_sae"), sae_layer("embedding/width_4k/average_l0_6")
    (10, None, 'embed')
    >>> sae_layer("l5m_32x"), sae_layer("l5a_8x")
    ('blocks.5.hook_mlp_out', 'blocks.5.hook_attn_out')
    >>> sae_layer("blocks.3.attn.hook_z/mine"), sae_layer("blocks.3.hook_z")
    ('blocks.3.attn.hook_z', 'blocks.3.attn.hook_z')
    >>> sae_layer("l0_50_layer_12")
    12
    """
    if re.match(r"(?:hook_)?embed(?:ding)?(?=[/_.]|$)", sae_id):
        return "embed"
    match = re.match(r"l(\d+)([ma])_", sae_id)  # Llama Scope: residual, MLP, attention
    if match:
        return f"blocks.{match.group(1)}.hook_{ {'m': 'mlp', 'a': 'attn'}[match.group(2)] }_out"
    match = re.match(rf"(blocks\.\d+)\.({'|'.join((*HOOK_POINTS, 'hook_z'))})(?=[/_.]|$)", sae_id)
    if match:
        block, point = match.groups()
        return parse_layer(f"{block}.{'attn.hook_z' if point == 'hook_z' else point}")
    # "l0_50" is a mean number of active latents
    match = re.match(r"(?!l0[_-]\d)(?:l|blocks\.)(\d+)(?=[/_r.]|$)", sae_id)
    match = match or re.search(r"layers?[._]?(\d+)(?=[/_.]|$)", sae_id)
    return int(match.group(1)) if match else None


def named_width(sae_id: str) -> int | None:
    """The number of latents an id names; None if it names none.

    >>> named_width("layer_20/width_16k/average_l0_408"), named_width("20_width_1m_average_l0_193")
    (16384, 1048576)
    >>> named_width("width_2pow12"), named_width("layer_20/width_131k"), named_width("my_sae")
    (4096, 131072, None)
    """
    match = re.search(r"width[_-](\d+)(k|m|pow\d+)?", sae_id)
    if not match:
        return None
    number, unit = int(match.group(1)), match.group(2) or ""
    if unit.startswith("pow"):
        return int(number ** int(unit.removeprefix("pow")))
    if unit == "k":  # releases write 131k, 262k and 65k for powers of two, in thousands
        return next((p for p in POWERS if p // 1000 == number), number << 10)
    return number << 20 if unit == "m" else number


def named_l0(sae_id: str) -> int | None:
    """The mean number of active latents an id names; None if it names none.

    >>> named_l0("layer_20/width_16k/average_l0_408"), named_l0("layer_2/width_4k/topk_32")
    (408, 32)
    >>> named_l0("l16r_32x") is None
    True
    """
    match = re.search(r"(?:l0|topk)_(\d+)", sae_id)
    return int(match.group(1)) if match else None


def twin_of(sae_id: str, kind: str) -> str:
    """The id of an SAE's twin, or of another control made from its latents.

    >>> twin_of("layer_2/width_4k/topk_32", RANDOM)
    'layer_2/width_4k/topk_32+random'
    """
    return f"{sae_id}+{kind}"


def split_twin(sae_id: str) -> tuple[str, str | None]:
    """(the SAE's id, the kind of its control); None for an SAE itself.

    >>> split_twin("layer_2/width_4k/topk_32+random"), split_twin("layer_2/a+b")
    (('layer_2/width_4k/topk_32', 'random'), ('layer_2/a+b', None))
    """
    base, plus, kind = sae_id.rpartition("+")
    return (base, kind) if plus and kind in (*TWINS, *OF_LATENTS) else (sae_id, None)


def trained_id(control_id: str) -> str:
    """The id of the trained SAE that a control belongs to.

    >>> trained_id("layer_2/width_4k/topk_32+random"), trained_id("layer_2/width_4k/random_topk_32")
    ('layer_2/width_4k/topk_32', 'layer_2/width_4k/topk_32')
    """
    base, kind = split_twin(control_id)
    return base if kind else control_id.replace("random_", "", 1)


def sae_family(sae_id: str) -> str:
    """An id without its sizes and seed: equal for SAEs that differ in nothing else.

    >>> sae_family("layer_20/width_16k/average_l0_408"), sae_family("layer_2/width_1k/topk_32")
    ('layer_20//average', 'layer_2//')
    """
    return re.sub(r"[_-]?(width|l0|topk)[_-](\d+[km]?(pow\d+)?)", "", without_seed(sae_id))
