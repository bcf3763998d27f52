"""Sparse latents back to activations: what an SAE keeps of a row, and what it loses."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from utils.runtime.errors import UserError
from utils.saes.encoder import Encoder

BLOCK_BYTES = 64 << 20  # of decoder directions in memory at a time


SAME = 0.7  # cosine from which two SAEs' latents count as the same, as Paulo and Belrose (2025)


def directions_of(encoder: Encoder, latents: np.ndarray) -> np.ndarray:
    """What latents [k] write into the activations: unit vectors, float32 [k, d_model].

    Raises UserError where the decoder is not at hand.
    """
    decoder = encoder.decoder
    if decoder is None:
        raise UserError(f"the decoder of {encoder.sae_id} is not at hand")
    take = decoder.W_dec.rows if decoder.latents_first else decoder.W_dec.columns
    vectors = np.stack([np.ravel(take(int(i), int(i) + 1)) for i in latents]).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def reconstruct(encoder: Encoder, latents: csr_array, activations: np.ndarray) -> np.ndarray:
    """What an SAE gives for rows whose latents [n_rows, d_sae] it has: float32 [n_rows, d_model].

    ``activations`` [n_rows, d_model]: the rows themselves, whose scale a normalising SAE gives
    back. The decoder is read in blocks. As SAELens's own ``decode``.
    """
    decoder = encoder.decoder
    assert decoder is not None
    made = np.zeros(activations.shape, dtype=np.float32)
    by_latent = latents.tocsc()
    size = max(1, BLOCK_BYTES // (4 * encoder.d_model))
    for start in range(0, encoder.d_sae, size):
        stop = min(start + size, encoder.d_sae)
        of_block = by_latent[:, start:stop]
        if not of_block.nnz:
            continue
        W_dec = decoder.W_dec
        directions = (
            W_dec.rows(start, stop) if decoder.latents_first else W_dec.columns(start, stop).T
        )
        if decoder.rescaled:
            directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        made += of_block @ np.ascontiguousarray(directions)
    if decoder.b_dec is not None:
        made += decoder.b_dec
    made /= np.float32(encoder.input_scale)
    x = centred(encoder, activations)
    if encoder.normalize_activations == "constant_norm_rescale":
        made *= np.linalg.norm(x, axis=1, keepdims=True) / np.float32(encoder.d_model**0.5)
    elif encoder.normalize_activations == "layer_norm":
        mean = x.mean(axis=1, keepdims=True)
        made = made * (x - mean).std(axis=1, ddof=1, keepdims=True) + mean
    return made


def lost(encoder: Encoder, latents: csr_array, activations: np.ndarray) -> np.ndarray:
    """The SAE's error [n_rows, d_model]: the rows as it reads them, less what it gives."""
    return centred(encoder, activations) - reconstruct(encoder, latents, activations)


def centred(encoder: Encoder, activations: np.ndarray) -> np.ndarray:
    """Rows as an SAE reads them that was trained on a stream without its mean."""
    if not encoder.centred:
        return activations
    return activations - activations.mean(axis=1, keepdims=True)
