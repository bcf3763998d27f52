"""The formats in which SAEs are saved: a function for each, and their table.

Encoders equal the libraries' own ``encode`` (SAELens; dictionary.py and trainers/ of
saprmarks/dictionary_learning; sparse_coder.py of EleutherAI/sparsify). Files are read, not run:
tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.readers.pt_files import load_plain
from utils.readers.weight_files import stored_arrays, unwrapped
from utils.runtime.errors import UserError, first_line, unknown_name
from utils.saes.encoder import ARCHITECTURES, SAE_LENS, Encoder, checked, need, read_json
from utils.saes.releases import with_model_kwargs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MappedArray:
    """A tensor of a .pt file, mapped and not loaded; with the reading methods of
    ``weight_files.StoredArray``.
    """

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


def through_sae_lens(
    sae_id: str, release: str | None = None, folder: Path | None = None
) -> Encoder:
    """An SAE of a kind that the block reader does not know: SAELens loads it whole and encodes."""
    import torch
    from sae_lens import SAE

    def load(device: torch.device) -> Any:
        if folder is not None:
            return SAE.load_from_disk(folder, device=str(device), dtype="float32").eval()
        return SAE.from_pretrained(release, sae_id, device=str(device)).to(torch.float32).eval()

    try:
        if folder is not None:
            cfg = read_json(folder / "cfg.json")
            d_in, d_sae = int(cfg["d_in"]), int(cfg["d_sae"])
        else:
            loaded = load(torch.device("cpu"))
            d_in, d_sae = loaded.cfg.d_in, loaded.cfg.d_sae
    except UserError:
        raise
    except Exception as error:  # SAELens has no error type of its own
        raise UserError(
            f"SAELens cannot load {sae_id} ({type(error).__name__}: {first_line(error)[:120]})"
        ) from error
    return Encoder(sae_id, SAE_LENS, d_in, d_sae, None, load=load)


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
        ),
        folder,
    )


def open_gemma_scope_2(folder: Path, sae_id: str) -> Encoder:
    """Gemma Scope 2: JumpReLU in params.safetensors, names in lower case, no input bias.

    Raises UserError for a transcoder.
    """
    cfg = read_json(folder / "config.json")
    if cfg.get("architecture", "jump_relu") != "jump_relu" or "affine_connection" in cfg:
        raise UserError(f"{folder} is a transcoder or of an unknown kind: JumpReLU SAEs are read")
    arrays = stored_arrays(folder / "params.safetensors")
    need(arrays, ("w_enc", "b_enc", "threshold"), folder)
    W_enc = arrays["w_enc"]
    d_model, d_sae = W_enc.shape
    vectors = {name: arrays[name].read() for name in ("b_enc", "threshold")}
    return checked(Encoder(sae_id, "jumprelu", d_model, d_sae, W_enc, vectors=vectors), folder)


def gemma_scope_2_hook(folder: Path) -> str | None:
    """config.json's hf_hook_point_in: the module of transformers whose output or input is read."""
    module = str(read_json(folder / "config.json").get("hf_hook_point_in") or "")
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
    architecture = cfg.get("architecture", "standard")
    if cfg.get("activation_fn_str", cfg.get("activation_fn")) == "topk":  # SAELens before 6.0
        architecture, cfg["k"] = "topk", (cfg.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in ARCHITECTURES:
        from sae_lens.registry import SAE_CLASS_REGISTRY

        if architecture not in SAE_CLASS_REGISTRY:
            raise unknown_name(
                f"architecture in {folder / 'cfg.json'}:", architecture, SAE_CLASS_REGISTRY
            )
        return through_sae_lens(sae_id, folder=folder)
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(
            f"{folder / 'cfg.json'}: reshape_activations {cfg['reshape_activations']!r} is for"
            " attention heads"
        )
    of_architecture = {
        "gated": ("b_gate", "b_mag", "r_mag"),
        # SAELens before 6.0 stored a training checkpoint's logarithm
        "jumprelu": ("b_enc", "log_threshold" if "log_threshold" in arrays else "threshold"),
    }
    needed = of_architecture.get(architecture, ("b_enc",))
    rescaled = architecture == "topk" and cfg.get("rescale_acts_by_decoder_norm", False)
    input_bias = cfg.get("apply_b_dec_to_input", True)
    need(
        arrays,
        ("W_enc", *needed, *(("W_dec",) if rescaled else ()), *(("b_dec",) if input_bias else ())),
        folder,
    )
    W_enc = arrays["W_enc"]
    metadata = cfg.get("metadata")
    trained_on = (metadata if isinstance(metadata, dict) else cfg).get(
        "model_from_pretrained_kwargs"
    )
    if architecture == "topk" and not isinstance(cfg.get("k"), int):
        raise UserError(
            f"{folder / 'cfg.json'}: a topk SAE needs an integer k, not {cfg.get('k')!r}"
        )
    vectors = {name: arrays[name].read() for name in needed}
    if "log_threshold" in vectors:
        vectors["threshold"] = np.exp(vectors.pop("log_threshold"))
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
        ),
        folder,
    )
    return with_model_kwargs(encoder, trained_on)


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
    if kind == "AutoEncoder":
        need(arrays, (weight_name, "decoder.weight"), folder)
        norms = np.linalg.norm(arrays["decoder.weight"].read(), axis=0)
        if not np.allclose(norms, 1):  # folded into the encoder, as its load_dictionary does
            vectors["decoder_norms"] = norms
    if architecture == "jumprelu":
        need(arrays, (weight_name, "threshold"), folder)
        vectors["threshold"] = np.broadcast_to(arrays["threshold"].read(), (d_sae,)).copy()
        if (vectors["threshold"] < 0).any() and kind != "JumpReluAutoEncoder":
            raise UserError(
                f"{folder / 'ae.pt'}: the threshold of a {kind} was not yet learned: train it"
                " further"
            )
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
        raise UserError(
            f"{folder} is a transcoder, not an SAE: it reads another place than it writes"
        )
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
            b_dec=arrays["b_dec"].read(),
            k_active=int(cfg.get("k") or 0),
        ),
        folder,
    )


def _mapped(path: Path) -> dict[str, MappedArray]:
    """The tensors of a state dict, not yet read from the disk."""
    import torch

    state = load_plain(path, "fetch the SAE again", mmap=True)
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise UserError(
            f"{path} holds other things than named tensors: it is no SAE of dictionary_learning"
        )
    return unwrapped({name: MappedArray(path, tensor) for name, tensor in state.items()})


@dataclass(frozen=True)
class Format:
    """A way to save an SAE: the file that tells it, whose it is, what opens a folder of it, and
    what says which hook it reads (None where its files do not).
    """

    marker: str
    needs: str
    open: Callable[[Path, str], Encoder]
    hook: Callable[[Path], str | None] = lambda folder: None


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
    hook = read_json(folder / "hyperparams.json").get("hook_point_in")
    return str(hook) if hook else None


def dictionary_hook(folder: Path) -> str | None:
    """config.json of dictionary_learning: trainer.layer with trainer.submodule_name."""
    trainer = read_json(folder / "config.json").get("trainer")
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
    """sparsify names a folder by the module whose output an SAE reads: layers.10, layers.10.mlp."""
    match = re.search(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)(?:\.(\w+))?$", folder.name)
    if match is None:
        return None
    block, module = match.groups()
    points = {None: "hook_resid_post", "mlp": "hook_mlp_out", "feed_forward": "hook_mlp_out"}
    points |= dict.fromkeys(("attn", "attention", "self_attn"), "hook_attn_out")
    return f"blocks.{block}.{points.get(module, module)}"


# the first whose marker is there counts: sparsify and SAELens both have a cfg.json
FORMATS = [
    Format("params.npz", "params.npz (Gemma Scope)", open_gemma_scope),
    Format(
        "params.safetensors",
        "config.json + params.safetensors (Gemma Scope 2)",
        open_gemma_scope_2,
        gemma_scope_2_hook,
    ),
    Format("ae.pt", "config.json + ae.pt (dictionary_learning)", open_dictionary, dictionary_hook),
    Format(
        "sae.safetensors", "cfg.json + sae.safetensors (sparsify)", open_sparsify, sparsify_hook
    ),
    Format(
        "cfg.json", "cfg.json + sae_weights.safetensors (SAELens)", open_sae_lens, sae_lens_hook
    ),
    Format(
        "hyperparams.json",
        "hyperparams.json + checkpoints/ (Llama Scope)",
        open_llama_scope,
        llama_scope_hook,
    ),
]


def format_of(folder: Path) -> Format | None:
    """The format of the SAE in a folder; None where there is none."""
    return next((known for known in FORMATS if (folder / known.marker).is_file()), None)
