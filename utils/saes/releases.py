"""What SAELens's registry says of a release beside its files: applied, or the SAE is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from utils.runtime.errors import UserError, unknown_name
from utils.saes.encoder import NORMALIZATIONS, SAE_LENS, Encoder

# of the training run, the model or the hook, which other rooms look at: no part of encoding
NOT_OF_ENCODING = {"dataset_path", "model_name", "hook_name", "context_size", "dtype", "device"}
# how the model was loaded in training that leaves the activations as they are
NEUTRAL_KWARGS: dict[str, Any] = {"center_writing_weights": False, "fold_ln": False}


def neuronpedia_address(release: str, sae_id: str) -> str:
    """Where Neuronpedia shows an SAE's latents, as SAELens's registry says; "" where it says
    nothing.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    entry = get_pretrained_saes_directory().get(release)
    if entry is None:
        return ""
    ids = {path: name for name, path in entry.saes_map.items()}
    known = entry.neuronpedia_id.get(ids.get(sae_id, sae_id)) or entry.neuronpedia_id.get(sae_id)
    return f"https://www.neuronpedia.org/{known}" if known else ""


def as_released(encoder: Encoder, release: str, sae_id: str) -> Encoder:
    """An encoder with the registry's scaling and overrides of its release.

    ``norm_scaling_factor`` is folded into the weights as SAELens's
    ``fold_activation_norm_scaling_factor`` does; centred writing weights are rows less their mean,
    which is what such a model's residual stream is.

    Raises UserError for a release that is not in the registry, an SAE that a release with scaling
    factors does not name, or an override that is not known here.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise unknown_name("SAE release", release, directory)
    entry = directory[release]
    overrides = dict(entry.config_overrides or {})
    normalization = overrides.pop("normalize_activations", encoder.normalize_activations)
    if normalization not in NORMALIZATIONS:
        raise UserError(f"{release}: normalize_activations {normalization!r} is not known")
    encoder = replace(encoder, normalize_activations=normalization)
    encoder = with_model_kwargs(encoder, overrides.pop("model_from_pretrained_kwargs", None))
    unknown = sorted(set(overrides) - NOT_OF_ENCODING)
    if unknown:
        raise UserError(f"{release} asks for {', '.join(unknown)}, which is not known here")
    ids = {path: name for name, path in entry.saes_map.items()}  # on disk it has its path's name
    factor = entry.norm_scaling_factor.get(ids.get(sae_id, sae_id))
    if entry.norm_scaling_factor and sae_id not in ids and sae_id not in entry.saes_map:
        raise UserError(
            f"{release} scales its SAEs and has none named {sae_id}: give it the name that it has"
            f" there (make saes RELEASE={release})"
        )
    if entry.conversion_func == "qwen_scope":
        return replace(encoder, k_active=_kept(entry.repo_id), only_release_says="")
    # Llama Scope's is in its own files, and folded when they are read
    if factor is None or entry.conversion_func == "llama_scope":
        return encoder
    if encoder.architecture == SAE_LENS:
        raise UserError(f"{sae_id} of {release} is scaled by {factor}, which is not applied here")
    return replace(
        encoder,
        input_scale=encoder.input_scale * factor,
        b_dec=None if encoder.b_dec is None else encoder.b_dec / factor,
        normalize_activations="none",
        only_release_says="",
    )


def _kept(repo_id: str) -> int:
    """The latents that a Qwen Scope SAE keeps of a row, from its repository's name.

    >>> _kept("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50")
    50
    """
    match = re.search(r"-L0_(\d+)$", repo_id)
    if match is None:
        raise UserError(f"{repo_id} does not say how many latents its SAEs keep")
    return int(match.group(1))


def with_model_kwargs(encoder: Encoder, kwargs: object) -> Encoder:
    """An encoder for a model that was loaded with these arguments when the SAE was trained.

    Raises UserError for arguments that change activations in a way that is not known here.
    """
    if not kwargs:
        return encoder
    if not isinstance(kwargs, dict):
        raise UserError(
            f"{encoder.sae_id}: model_from_pretrained_kwargs {kwargs!r} are no settings"
        )
    rest = {k: v for k, v in kwargs.items() if NEUTRAL_KWARGS.get(k, not v) != v}
    if rest == {"center_writing_weights": True}:
        return replace(encoder, centred=True)
    if rest:
        raise UserError(
            f"{encoder.sae_id} was trained on a model loaded with {rest}, which is not known here"
        )
    return encoder
