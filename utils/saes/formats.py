"""The formats in which SAEs are saved: a function for each, and their table.

Encoders equal the libraries' own ``encode`` (SAELens; dictionary.py and trainers/ of
saprmarks/dictionary_learning; sparse_coder.py of EleutherAI/sparsify). Files are read, not run:
tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.readers.pt_files import state_dict
from utils.readers.weight_files import WeightArray, stored_arrays
from utils.runtime.errors import UserError, first_line, unknown_name
from utils.saes.encoder import ARCHITECTURES, SAE_LENS, Decoder, Encoder, checked, need, read_json
from utils.saes.one_file import one_file_hook, open_one_file
from utils.saes.releases import with_model_kwargs

if TYPE_CHECKING:
    import torch


# what Gemma Scope 2's SAEs read, by what stands in their folder's path
GEMMA_SCOPE_2 = {
    "resid_post": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
    # SAELens calls it hook_mlp_in, and its hf_hook_name the output of the norm before the MLP
    "transcoder": "mlp.hook_in",
    "clt": "mlp.hook_in",
}
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


def through_sae_lens(sae_id: str, folder: Path) -> Encoder:
    """An SAE in SAELens's format of a kind that the block reader does not know: SAELens loads it
    whole and encodes.

    Raises UserError for an architecture that it has not, or that needs more than rows.
    """

    def load(device: torch.device) -> Any:
        from sae_lens import SAE

        try:
            return SAE.load_from_disk(folder, device=str(device), dtype="float32").eval()
        except Exception as error:  # SAELens has no error type of its own
            raise UserError(
                f"SAELens cannot load {folder} ({type(error).__name__}: {first_line(error)[:120]})"
            ) from error

    from sae_lens.registry import SAE_CLASS_REGISTRY

    cfg = read_json(folder / "cfg.json")
    architecture = cfg.get("architecture")
    if architecture == "temporal":
        raise UserError(
            f"{folder} reads whole texts, token after token; rows of activations do not have them"
        )
    if architecture not in SAE_CLASS_REGISTRY:
        raise unknown_name(
            f"architecture in {folder / 'cfg.json'}:", str(architecture), SAE_CLASS_REGISTRY
        )
    try:
        encoder = Encoder(sae_id, SAE_LENS, int(cfg["d_in"]), int(cfg["d_sae"]), None, load=load)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'cfg.json'} lacks a whole number {error}") from error
    encoder = with_model_kwargs(encoder, _trained_on(cfg))
    if encoder.centred:
        raise UserError(f"{folder}: centred writing weights are not applied to SAEs of this kind")
    return encoder


def _trained_on(cfg: dict) -> object:
    """How the model was loaded that an SAE of SAELens was trained on."""
    metadata = cfg.get("metadata")
    return (metadata if isinstance(metadata, dict) else cfg).get("model_from_pretrained_kwargs")


def _decoder(
    arrays: Mapping[str, WeightArray], shape: tuple[int, ...], name: str = "W_dec",
    bias: str = "b_dec", **how: bool
) -> Decoder | None:  # fmt: skip
    """The decoder among an SAE's arrays; None where it is absent or of another shape than
    ``shape``.
    """
    W_dec = arrays.get(name)
    if W_dec is None or W_dec.shape != shape:
        return None
    return Decoder(W_dec, arrays[bias].read() if bias in arrays else None, **how)


def open_gemma_scope(folder: Path, sae_id: str) -> Encoder:
    """Gemma Scope's params.npz: JumpReLU, no input bias (as SAELens's gemma_2 loader reads it)."""
    arrays = stored_arrays(folder / "params.npz")
    if "w_enc" in arrays:
        arrays["W_enc"] = arrays.pop("w_enc")
    need(arrays, ("W_enc", "b_enc", "threshold"), folder)
    W_enc = arrays["W_enc"]
    vectors = {name: arrays[name].read() for name in ("b_enc", "threshold")}
    # these were trained on embeddings divided by sqrt(d_model)
    scale = W_enc.shape[0] ** -0.5 if "embedding" in sae_id else 1.0
    return checked(
        Encoder(
            sae_id,
            "jumprelu",
            W_enc.shape[0],
            W_enc.shape[1],
            W_enc,
            vectors=vectors,
            input_scale=scale,
            decoder=_decoder(arrays, W_enc.shape[::-1]),
        ),
        folder,
    )


def open_gemma_scope_2(folder: Path, sae_id: str) -> Encoder:
    """Gemma Scope 2: JumpReLU in params.safetensors, names in lower case, no input bias;
    transcoders encode alike. Some folders have no config.json.
    """
    cfg = _gemma_scope_2_settings(folder)
    if cfg.get("architecture", "jump_relu") != "jump_relu":
        raise UserError(
            f"{folder}: architecture {cfg['architecture']!r} is not known; jump_relu is"
        )
    arrays = stored_arrays(folder / "params.safetensors")
    need(arrays, ("w_enc", "b_enc", "threshold"), folder)
    W_enc = arrays["w_enc"]
    d_model, d_sae = W_enc.shape
    vectors = {name: arrays[name].read() for name in ("b_enc", "threshold")}
    return checked(Encoder(sae_id, "jumprelu", d_model, d_sae, W_enc, vectors=vectors), folder)


def _gemma_scope_2_settings(folder: Path) -> dict:
    config = folder / "config.json"
    return read_json(config) if config.is_file() else {}


def gemma_scope_2_point(path: str) -> str | None:
    """The hook that the names of Gemma Scope 2's folders say: what is read, and the layer.

    >>> gemma_scope_2_point("resid_post_all/layer_9_width_16k_l0_big")
    'blocks.9.hook_resid_post'
    """
    layer = re.search(r"layer_(\d+)", path)
    point = next((point for part, point in GEMMA_SCOPE_2.items() if part in path), None)
    return f"blocks.{layer.group(1)}.{point}" if layer and point else None


def gemma_scope_2_hook(folder: Path) -> str | None:
    """config.json's hf_hook_point_in: the module of transformers whose output or input is read; or
    the folders' names.
    """
    module = str(_gemma_scope_2_settings(folder).get("hf_hook_point_in") or "")
    if not module:
        return gemma_scope_2_point(f"{folder.parent.name}/{folder.name}")
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if match is None:
        return module or None
    points = {
        "output": "hook_resid_post",
        "post_feedforward_layernorm.output": "hook_mlp_out",
        "self_attn.o_proj.input": "attn.hook_z",
        "pre_feedforward_layernorm.output": "mlp.hook_in",
    }
    return f"blocks.{match.group(1)}.{points.get(match.group(2), match.group(2))}"


def open_sae_lens(folder: Path, sae_id: str) -> Encoder:
    cfg = read_json(folder / "cfg.json")
    arrays = stored_arrays(folder / "sae_weights.safetensors")
    if cfg.get("activation_fn_str", cfg.get("activation_fn")) == "topk":  # SAELens before 6.0
        cfg["architecture"], cfg["k"] = "topk", (cfg.get("activation_fn_kwargs") or {}).get("k")
    stated = str(cfg.get("architecture", "standard"))
    transcoder, batch_top_k = stated.endswith("transcoder"), stated.endswith("batchtopk")
    architecture = _encodes_as(stated)
    if architecture not in ARCHITECTURES:
        return through_sae_lens(sae_id, folder)
    if cfg.get("reshape_activations", "none") not in ("none", "hook_z"):  # heads are side by side
        raise UserError(
            f"{folder / 'cfg.json'}: reshape_activations {cfg['reshape_activations']!r} is not"
            " known"
        )
    of_architecture = {
        "gated": ("b_gate", "b_mag", "r_mag"),
        # SAELens before 6.0 stored a training checkpoint's logarithm
        "jumprelu": ("b_enc", "log_threshold" if "log_threshold" in arrays else "threshold"),
    }
    needed = of_architecture.get(architecture, ("b_enc",))
    if batch_top_k:
        needed = ("b_enc", "topk_threshold")
    rescaled = (architecture == "topk" or batch_top_k) and cfg.get(
        "rescale_acts_by_decoder_norm", False
    )
    input_bias = not transcoder and cfg.get("apply_b_dec_to_input", True)
    need(
        arrays,
        ("W_enc", *needed, *(("W_dec",) if rescaled else ()), *(("b_dec",) if input_bias else ())),
        folder,
    )
    W_enc = arrays["W_enc"]
    _check_settings(folder / "cfg.json", cfg, architecture, W_enc.shape)
    vectors = _with_threshold(
        {name: arrays[name].read() for name in needed}, W_enc.shape[1], folder
    )
    normalization = cfg.get("normalize_activations") or "none"
    if normalization is True:  # as SAELens reads its older files
        normalization = "expected_average_only_in"
    encoder = checked(
        Encoder(
            sae_id,
            architecture,
            W_enc.shape[0],
            W_enc.shape[1],
            W_enc,
            vectors=vectors,
            b_dec=arrays["b_dec"].read() if input_bias else None,
            normalize_activations=normalization,
            k_active=int(cfg.get("k") or 0),
            W_dec=arrays["W_dec"] if rescaled else None,
            decoder=None
            if transcoder
            else _decoder(arrays, W_enc.shape[::-1], rescaled=bool(rescaled)),
        ),
        folder,
    )
    return with_model_kwargs(encoder, _trained_on(cfg))


def _encodes_as(stated: str) -> str:
    """The architecture by whose formula one of SAELens's encodes."""
    if stated.endswith("transcoder"):  # its input stays as it is, what it skips it does not encode
        return "jumprelu" if "jumprelu" in stated else "standard"
    if stated.endswith("batchtopk"):  # a checkpoint that ends as JumpReLU with one threshold
        return "jumprelu"
    return stated


def _check_settings(file: Path, cfg: dict, architecture: str, shape: tuple[int, ...]) -> None:
    """Raise UserError where an SAE's settings are of other weights, or lack what it needs."""
    for name, size in zip(("d_in", "d_sae"), shape):
        if cfg.get(name, size) != size:
            raise UserError(
                f"{file} says {name} {cfg[name]!r}, the weights have {size}: they are of different"
                " SAEs"
            )
    if architecture == "topk" and not isinstance(cfg.get("k"), int):
        raise UserError(f"{file}: a topk SAE needs an integer k, not {cfg.get('k')!r}")


def _with_threshold(vectors: dict[str, np.ndarray], d_sae: int, folder: Path) -> dict:
    """An SAE's small arrays, its thresholds as they are compared: not their logarithm, and where
    there is one for all latents, one for each.
    """
    if "log_threshold" in vectors:
        vectors["threshold"] = np.exp(vectors.pop("log_threshold"))
    if "topk_threshold" in vectors:
        threshold = float(vectors.pop("topk_threshold"))
        if threshold <= 0:
            raise UserError(f"{folder}: its threshold was not yet learned: train it further")
        vectors["threshold"] = np.full(d_sae, threshold, dtype=np.float32)
    return vectors


def open_llama_scope(folder: Path, sae_id: str) -> Encoder:
    """Llama Scope: one threshold for all latents; the activation norm it was trained at is folded
    into the weights.
    """
    cfg = read_json(folder / "hyperparams.json")
    arrays = stored_arrays(folder / "checkpoints" / "final.safetensors")
    need(arrays, ("encoder.weight", "encoder.bias"), folder)
    W_enc = arrays["encoder.weight"]
    try:
        scale = W_enc.shape[1] ** 0.5 / cfg["dataset_average_activation_norm"]["in"]
        threshold = np.full(W_enc.shape[0], cfg["jump_relu_threshold"] * scale, dtype=np.float32)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'hyperparams.json'} lacks {error}: fetch it again") from error
    vectors = {"b_enc": arrays["encoder.bias"].read(), "threshold": threshold}
    d_sae, d_model = W_enc.shape
    encoder = Encoder(
        sae_id,
        "jumprelu",
        d_model,
        d_sae,
        W_enc,
        latents_first=True,
        vectors=vectors,
        input_scale=scale,
    )
    return checked(encoder, folder)


def open_llama_scope_r1(folder: Path, sae_id: str) -> Encoder:
    """Llama Scope R1 Distill: a threshold a latent, as its logarithm. The scale of its inputs only
    its release says.

    Raises UserError for a newer form of its library (W_E, b_E).
    """
    read_json(folder / "config.json")
    arrays = stored_arrays(folder / "sae_weights.safetensors")
    need(arrays, ("encoder.weight", "encoder.bias", "log_jumprelu_threshold"), folder)
    W_enc = arrays["encoder.weight"]
    d_sae, d_model = W_enc.shape
    threshold = np.exp(np.broadcast_to(arrays["log_jumprelu_threshold"].read(), (d_sae,)))
    encoder = Encoder(
        sae_id,
        "jumprelu",
        d_model,
        d_sae,
        W_enc,
        latents_first=True,
        vectors={"b_enc": arrays["encoder.bias"].read(), "threshold": threshold},
        only_release_says="the scale of its inputs",
    )
    return checked(encoder, folder)


def open_dictionary(folder: Path, sae_id: str) -> Encoder:
    """An SAE of dictionary_learning: its folder, or one checkpoint of its training.

    Raises UserError when its class is not known or its tensors do not fit.
    """
    weights, config = _dictionary_files(folder)
    if not config.is_file():
        raise UserError(
            f"{weights} says not of which class it is (TopK and BatchTopK have the same tensors):"
            f" put its config.json at {config}"
        )
    trainer = read_json(config).get("trainer")
    kind = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or kind not in DICTIONARIES:
        raise unknown_name(f"dict_class in {config}:", str(kind), DICTIONARIES)
    architecture, weight_name, bias_name, input_bias_name = DICTIONARIES[kind]
    _, arrays = state_dict(weights, "fetch the SAE again")
    gated = GATED if architecture == "gated" else {}
    need(
        arrays,
        (weight_name, *(name for name in (bias_name, input_bias_name, *gated.values()) if name)),
        folder,
    )
    W_enc = arrays[weight_name]
    latents_first = weight_name == "encoder.weight"
    d_sae, d_model = W_enc.shape if latents_first else W_enc.shape[::-1]
    vectors = {ours: arrays[theirs].read() for ours, theirs in gated.items()}
    if bias_name:
        vectors["b_enc"] = arrays[bias_name].read()
    vectors |= _dictionary_vectors(arrays, kind, d_sae, weights)
    subtract = kind != "JumpReluAutoEncoder" or bool(
        "apply_b_dec_to_input" in arrays and arrays["apply_b_dec_to_input"].read()
    )
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
            decoder=_dictionary_decoder(arrays, kind, (d_sae, d_model), "decoder_norms" in vectors),
        ),
        folder,
    )


def _dictionary_vectors(
    arrays: Mapping[str, WeightArray], kind: str, d_sae: int, weights: Path
) -> dict[str, np.ndarray]:
    """What some classes have beside weights and biases: decoder norms that are not 1, thresholds.

    Raises UserError where a threshold was not yet learned.
    """
    architecture, weight_name, *_ = DICTIONARIES[kind]
    vectors = {}
    if kind == "AutoEncoder":
        need(arrays, (weight_name, "decoder.weight"), weights.parent)
        norms = np.linalg.norm(arrays["decoder.weight"].read(), axis=0)
        if not np.allclose(norms, 1):  # folded into the encoder, as its load_dictionary does
            vectors["decoder_norms"] = norms
    if architecture == "jumprelu":
        need(arrays, (weight_name, "threshold"), weights.parent)
        vectors["threshold"] = np.broadcast_to(arrays["threshold"].read(), (d_sae,)).copy()
        if (vectors["threshold"] < 0).any() and kind != "JumpReluAutoEncoder":
            raise UserError(
                f"{weights}: the threshold of a {kind} was not yet learned: train it further"
            )
    return vectors


def _dictionary_decoder(
    arrays: Mapping[str, WeightArray], kind: str, shape: tuple[int, int], rescaled: bool
) -> Decoder | None:
    """The decoder of an SAE of dictionary_learning, d_sae by d_model or transposed."""
    bias = "decoder.bias" if kind == "AutoEncoderNew" else DICTIONARIES[kind][3] or "b_dec"
    if "W_dec" in arrays:
        return _decoder(arrays, shape, bias=bias)
    return _decoder(
        arrays, shape[::-1], "decoder.weight", bias, latents_first=False, rescaled=rescaled
    )


def _dictionary_files(path: Path) -> tuple[Path, Path]:
    """(weights, settings): trainer_0/ae.pt or trainer_0/checkpoints/ae_1000.pt, and
    trainer_0/config.json.
    """
    if path.is_dir():
        return path / "ae.pt", path / "config.json"
    return path, path.parent.parent / "config.json"


def open_sparsify(folder: Path, sae_id: str) -> Encoder:
    """An SAE of sparsify: TopK on inputs less b_dec; a transcoder's input stays as it is.

    Raises UserError for another activation, or tensors that do not fit.
    """
    cfg = read_json(folder / "cfg.json")
    if cfg.get("activation", "topk") != "topk":
        raise UserError(
            f"{folder / 'cfg.json'}: activation {cfg['activation']!r} is not known; topk is"
        )
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
            b_dec=None if cfg.get("transcode") else arrays["b_dec"].read(),
            k_active=int(cfg.get("k") or 0),
            decoder=None if cfg.get("transcode") else _decoder(arrays, W_enc.shape),
        ),
        folder,
    )


@dataclass(frozen=True)
class Format:
    """A way to save an SAE: the file that tells its folder, or what its one file is called; what
    it is in words; what opens it, and what says which hook it reads (None where it does not).

    ``says_place``: whether a block's number in the id means the block's output, as it does not
    where such files are mostly transcoders. ``of_modules``: whether MLP and attention mean what
    these modules themselves give, before a norm that a model may put behind them.
    """

    marker: str
    needs: str
    open: Callable[[Path, str], Encoder]
    hook: Callable[[Path], str | None] = lambda folder: None
    says_place: bool = True
    of_modules: bool = False


def sae_lens_hook(folder: Path) -> str | None:
    """cfg.json: metadata.hook_name, or in older files hook_name or hook_point."""
    cfg = read_json(folder / "cfg.json")
    metadata = cfg.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    heads = metadata.get("hook_head_index", cfg.get("hook_head_index"))
    if heads is not None:
        raise UserError(
            f"{folder / 'cfg.json'}: hook_head_index {heads}: single heads are not read"
        )
    hook = metadata.get("hook_name") or cfg.get("hook_name") or cfg.get("hook_point")
    return str(hook) if hook else None


def llama_scope_hook(folder: Path) -> str | None:
    """hook_point_in of hyperparams.json, or of the config.json that R1 has in its place."""
    settings = folder / "hyperparams.json"
    if not settings.is_file():
        settings = folder / "config.json"
    hook = read_json(settings).get("hook_point_in")
    return str(hook) if hook else None


def dictionary_hook(folder: Path) -> str | None:
    """config.json of dictionary_learning: trainer.layer with trainer.submodule_name."""
    _, config = _dictionary_files(folder)
    trainer = read_json(config).get("trainer") if config.is_file() else None
    if not isinstance(trainer, dict) or not isinstance(trainer.get("layer"), int):
        return None
    name = str(trainer.get("submodule_name") or "")
    for part, point in (
        ("resid_post", "hook_resid_post"),
        ("resid_pre", "hook_resid_pre"),
        ("mlp_out", "hook_mlp_out"),
        ("attn_out", "hook_attn_out"),
    ):
        if part in name:
            return f"blocks.{trainer['layer']}.{point}"
    return f"blocks.{trainer['layer']}.{name}" if name else None


def sparsify_hook(folder: Path) -> str | None:
    """sparsify names a folder by the module whose output an SAE reads: layers.10, layers.10.mlp;
    a transcoder reads what enters it.
    """
    match = re.search(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)(?:\.(\w+))?$", folder.name)
    if match is None:
        return None
    block, module = match.groups()
    points = {None: "hook_resid_post", "mlp": "hook_mlp_out", "feed_forward": "hook_mlp_out"}
    points |= dict.fromkeys(("attn", "attention", "self_attn"), "hook_attn_out")
    if read_json(folder / "cfg.json").get("transcode"):
        points = {None: "hook_resid_pre", "mlp": "mlp.hook_in", "feed_forward": "mlp.hook_in"}
    return f"blocks.{block}.{points.get(module, module)}"


# the first whose marker is there counts: sparsify and SAELens both have a cfg.json
FORMATS = [
    Format("params.npz", "params.npz (Gemma Scope)", open_gemma_scope),
    Format(
        "params.safetensors",
        "params.safetensors (Gemma Scope 2)",
        open_gemma_scope_2,
        gemma_scope_2_hook,
    ),
    Format("ae.pt", "config.json + ae.pt (dictionary_learning)", open_dictionary, dictionary_hook,
           of_modules=True),
    Format("sae.safetensors", "cfg.json + sae.safetensors (sparsify)", open_sparsify,
           sparsify_hook, of_modules=True),
    Format(
        "cfg.json", "cfg.json + sae_weights.safetensors (SAELens)", open_sae_lens, sae_lens_hook
    ),
    Format(
        "hyperparams.json",
        "hyperparams.json + checkpoints/ (Llama Scope)",
        open_llama_scope,
        llama_scope_hook,
    ),
    Format(
        "sae_weights.safetensors",
        "config.json + sae_weights.safetensors (Llama Scope R1)",
        open_llama_scope_r1,
        llama_scope_hook,
    ),
]  # fmt: skip
# of SAEs that are one file, by its name
FILE_FORMATS = [
    Format("ae_*.pt", "checkpoints/ae_N.pt (dictionary_learning)", open_dictionary,
           dictionary_hook, of_modules=True),
    Format("layer_*.safetensors", "layer_N.safetensors (transcoders)", open_one_file,
           one_file_hook, says_place=False),
    Format("W_enc_*.safetensors", "config.yaml + W_enc_N.safetensors (cross-layer transcoders)",
           open_one_file, one_file_hook, says_place=False),
    Format("*.sae.pt", "layerN.sae.pt (Qwen Scope)", open_one_file, one_file_hook),
    Format("*.pt", "one .pt file (OpenAI, Goodfire)", open_one_file, one_file_hook,
           says_place=False),
    Format("*.pth", "one .pth file (Goodfire)", open_one_file, one_file_hook, says_place=False),
]  # fmt: skip


def format_of(path: Path) -> Format | None:
    """The format of the SAE in a folder, or of one that is a file; None where there is none."""
    if path.is_file():
        return next((known for known in FILE_FORMATS if fnmatch(path.name, known.marker)), None)
    return next((known for known in FORMATS if (path / known.marker).is_file()), None)
