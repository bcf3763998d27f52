"""SAEs that are one file: Qwen Scope, OpenAI, Goodfire, checkpoints of a training run, and others.

Their tensors are told apart by their names. ``encode`` is that of SAELens's loader for the release
(pretrained_sae_loaders.py), or of the SAE's own library: model.py of openai/sparse_autoencoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from utils.readers.pt_files import state_dict
from utils.readers.weight_files import WeightArray, stored_arrays
from utils.runtime.errors import UserError
from utils.saes.encoder import Encoder, checked, need, read_json

# (matrix, bias, input bias or "") of the encoder, by who names them so; the first that is there
# counts
NAMES = {
    "OpenAI": ("encoder.weight", "latent_bias", "pre_bias"),
    "Goodfire": ("encoder_linear.weight", "encoder_linear.bias", ""),
    "qresearch": ("encoder.weight", "encoder.bias", ""),
    "W_enc": ("W_enc", "b_enc", ""),
}
# tensors beside them that encode nothing
BESIDE = re.compile(
    r"(decoder|decoder_linear)\.(weight|bias)|W_dec|b_dec|W_skip|stats_last_nonzero|latents_\w+"
)
# OpenAI's places in GPT-2 by TransformerLens's names
OPENAI = {
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}


def is_one_file(path: Path) -> bool:
    """Whether a file holds an encoder by names that are known here; it is looked into."""
    try:
        return _names(_tensors(path)[1]) is not None
    except UserError:
        return False


def _tensors(path: Path) -> tuple[dict, Mapping[str, WeightArray]]:
    if path.suffix == ".safetensors":
        arrays = stored_arrays(path)
        number = re.search(r"_(\d+)$", path.stem)  # cross-layer transcoders number their tensors
        end = f"_{number.group(1)}" if number else ""
        plain: dict[str, WeightArray] = {name.removesuffix(end): a for name, a in arrays.items()}
        return {}, plain
    return state_dict(path, "fetch the SAE again")


def _names(arrays: Mapping[str, WeightArray]) -> str | None:
    # with a bias of its own for the input it is a dictionary, whose config says of which class
    if "bias" in arrays or ("encoder.bias" in arrays and "b_dec" in arrays):
        return None
    return next((who for who, names in NAMES.items() if all(n in arrays for n in names if n)), None)


def open_one_file(path: Path, sae_id: str) -> Encoder:
    """An SAE in one ``.pt``, ``.pth`` or ``.safetensors`` file.

    ReLU of (input less input bias) W_enc + b_enc, or its top k; OpenAI's TopK normalises the input
    first. How many latents a Qwen Scope SAE keeps only its release says.

    Raises UserError when its tensors are not known or do not fit.
    """
    found, arrays = _tensors(path)
    who = _names(arrays)
    if who is None:
        raise UserError(
            f"{path} holds no encoder by a name that is known here; it has"
            f" {', '.join(sorted(arrays)[:8]) or 'no tensors'}"
        )
    weight, bias, input_bias = NAMES[who]
    need(arrays, (weight, bias), path)
    qwen, settings_beside = path.name.endswith(".sae.pt"), _settings_beside(path)
    _refuse_others(path, who, {*arrays, *found})
    if who == "W_enc" and path.suffix != ".safetensors" and not qwen and not settings_beside:
        raise UserError(
            f"{path} does not say whether b_dec comes off its input: put its settings beside it, as"
            f" {path.stem}_cfg.json"
        )
    W_enc, b_enc = arrays[weight], arrays[bias].read()
    latents_first = W_enc.shape[0] == len(b_enc)
    if W_enc.shape[0] == W_enc.shape[1]:
        raise UserError(f"{path}: of a square {weight} it is not known which side the latents are")
    d_sae, d_model = W_enc.shape if latents_first else W_enc.shape[::-1]
    b_dec = arrays[input_bias].read() if input_bias else None
    architecture, k, normalize, unsaid = "standard", 0, "none", ""
    if qwen:
        architecture, unsaid = "topk", "how many latents it keeps"
    elif who == "OpenAI" and found.get("activation") == "TopK":
        settings = found.get("activation_state_dict")
        if not isinstance(settings, dict) or settings.get("postact_fn", "ReLU") != "ReLU":
            raise UserError(f"{path}: its activation {settings!r} is not known")
        architecture, k, normalize = "topk", settings.get("k", 0), "layer_norm"
    elif who == "OpenAI" and found.get("activation", "ReLU") != "ReLU":
        raise UserError(f"{path}: its activation {found['activation']!r} is not known")
    elif settings_beside:  # of Connor Kissane and Rob Krzyzanowski: b_dec comes off
        need(arrays, (weight, "b_dec"), path)
        b_dec = arrays["b_dec"].read()
    return checked(
        Encoder(
            sae_id,
            architecture,
            d_model,
            d_sae,
            W_enc,
            latents_first=latents_first,
            vectors={"b_enc": b_enc},
            b_dec=b_dec,
            normalize_activations=normalize,
            k_active=int(k),
            only_release_says=unsaid,
        ),
        path,
    )


def _refuse_others(path: Path, who: str, names: set) -> None:
    """Raise UserError for what stands beside an encoder and may change what it does."""
    others = sorted(n for n in names - {*NAMES[who]} if not BESIDE.fullmatch(str(n)))
    unknown = [n for n in others if who != "OpenAI" or not str(n).startswith("activation")]
    if unknown:
        raise UserError(
            f"{path} has {', '.join(map(str, unknown[:5]))} beside its encoder: what that does is"
            " not known here"
        )


def _settings_beside(path: Path) -> dict:
    beside = path.with_name(f"{path.stem}_cfg.json")
    return read_json(beside) if beside.is_file() else {}


def one_file_hook(path: Path) -> str | None:
    """What a file's name, or the settings beside it, say that it reads."""
    hook = _settings_beside(path).get("act_name")
    if hook:
        return str(hook)
    match = re.search(rf"({'|'.join(OPENAI)})\w*/autoencoders/(\d+)\.pt$", path.as_posix())
    if match:
        return f"blocks.{match.group(2)}.{OPENAI[match.group(1)]}"
    match = re.search(r"^layer(\d+)\.sae\.pt$|-SAE-l(\d+)\.pth?$", path.name)  # residual streams
    if match:
        return f"blocks.{match.group(1) or match.group(2)}.hook_resid_post"
    config, number = path.parent / "config.yaml", re.search(r"^W_enc_(\d+)\.", path.name)
    if number and config.is_file():
        said = re.search(
            r"^feature_input_hook:\s*['\"]?([\w.]+)", config.read_text(encoding="utf-8"), re.M
        )
        return f"blocks.{number.group(1)}.{said.group(1)}" if said else None
    return None


def companions(path: Path) -> list[Path]:
    """The files beside a one-file SAE that say more of it."""
    beside = (path.with_name(f"{path.stem}_cfg.json"), path.parent / "config.yaml",
              path.parent.parent / "config.json")  # fmt: skip
    return [other for other in beside if other.is_file()]
