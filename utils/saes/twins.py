"""Twins: controls of an SAE's own shape whose directions were never trained.

What a probe reads from a twin it does not owe to what the SAE learned. A *random* twin has random
directions of length 1, the SAE's input centring, and its mean L0: a TopK SAE's k, else a cut, set
on each dataset so that its training rows have as many active latents as under the SAE. A
*soft-frozen* twin has random directions of the lengths that training gave, and biases and
thresholds as trained; its L0 is what comes of that.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from utils.names import RANDOM, SOFT_FROZEN, Layer, twin_of
from utils.readers.sparse_files import SparseRows
from utils.readers.weight_files import WeightArray
from utils.runtime.errors import UserError
from utils.saes.encoder import SAE_LENS, Encoder

TWIN_RULES = 1  # raised when the twin of the same SAE comes out otherwise
CHUNK = 256  # directions drawn together: any block of them is the same whatever its bounds


@dataclass(frozen=True)
class RandomDirections:
    """Directions [d_sae, d_model] drawn uniformly, in the place of an SAE's file of weights.

    ``like``: the trained weights whose lengths they take, [d_model, d_sae], or [d_sae, d_model]
    where ``latents_first``; None: length 1.
    """

    shape: tuple[int, int]
    seed: int
    like: WeightArray | None = None
    latents_first: bool = False

    @property
    def path(self) -> Path:
        return self.like.path if self.like else Path("random directions")

    @property
    def n_bytes(self) -> int:
        return self.like.n_bytes if self.like else 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, d_model]."""
        directions = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        for number in range(start // CHUNK, -(-stop // CHUNK)):
            rng, first = np.random.default_rng([self.seed, number]), number * CHUNK
            drawn = rng.standard_normal((CHUNK, self.shape[1]), dtype=np.float32)
            drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
            low, high = max(start, first), min(stop, first + CHUNK)
            directions[low - start : high - start] = drawn[low - first : high - first]
        if self.like is not None:
            trained = self.like.rows if self.latents_first else self.like.columns
            lengths = np.linalg.norm(trained(start, stop), axis=1 if self.latents_first else 0)
            directions *= lengths[:, None]
        return directions

    def read(self) -> np.ndarray:
        return self.rows(0, self.shape[0])

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.read()[:, start:stop]


class NoTwin(UserError):
    """There is no twin of this kind."""


def make_twin(encoder: Encoder, kind: str) -> Encoder:
    """The twin of an SAE's encoder, of ``kind`` RANDOM or SOFT_FROZEN.

    Raises NoTwin where there is none.
    """
    if not has_twin(encoder, kind):
        raise NoTwin(
            f"{encoder.sae_id} has no {kind} twin: SAELens encodes it as a whole, and its biases"
            " are not known here"
        )
    directions = RandomDirections(
        (encoder.d_sae, encoder.d_model), zlib.crc32(f"{encoder.sae_id} {kind}".encode())
    )
    sae_id = twin_of(encoder.sae_id, kind)
    if kind == SOFT_FROZEN:
        assert encoder.W_enc is not None
        as_trained = replace(directions, like=encoder.W_enc, latents_first=encoder.latents_first)
        return replace(encoder, sae_id=sae_id, W_enc=as_trained, latents_first=True, decoder=None)
    topk = encoder.architecture == "topk"
    return replace(
        encoder,
        sae_id=sae_id,
        architecture="topk" if topk else "standard",
        W_enc=directions,
        latents_first=True,
        vectors={"b_enc": np.zeros(encoder.d_sae, dtype=np.float32)},
        input_scale=1.0,
        W_dec=None,
        decoder=None,
        load=None,
        matches_l0=not topk,
    )


def has_twin(encoder: Encoder, kind: str) -> bool:
    """Whether there is a twin of this kind: nothing is known of the biases of an SAE that SAELens
    encodes as a whole.
    """
    return kind == RANDOM or encoder.architecture != SAE_LENS


def with_twins(layers: dict[str, Layer], kinds: list[str]) -> dict[str, Layer]:
    """{sae_id: layer}, each SAE followed by its twins of these kinds."""
    return {
        twin_id: layer
        for sae_id, layer in layers.items()
        for twin_id in (sae_id, *(twin_of(sae_id, kind) for kind in kinds))
    }


def low_cut(x: np.ndarray, d_sae: int, n_wanted: int) -> float:
    """A cut that surely more than ``n_wanted`` values of rows x [n_rows, d_model] on ``d_sae``
    random directions exceed: twice as many a row, and six deviations more.

    A row's values are normal, of deviation |x| / sqrt(d_model): the mean of the rows' tails is what
    the cut sets. Rows that share a large mean share the few directions that see it, so the number
    varies as that of one row does.
    """
    deviations = np.linalg.norm(x, axis=1).astype(np.float64) / np.sqrt(x.shape[1])
    doubled = 2 * n_wanted / len(x)
    share = (doubled + 6 * doubled**0.5 + 6) / d_sae
    if share >= 0.5 or not deviations.any():
        return 0.0
    deviations = np.maximum(deviations, 1e-30)
    low, high = 0.0, 40 * float(deviations.max())
    for _ in range(60):  # the tails fall as the cut rises
        cut = (low + high) / 2
        low, high = (cut, high) if ndtr(-cut / deviations).mean() > share else (low, cut)
    return low


def exact_cut(rows: SparseRows, train: np.ndarray, n_wanted: int) -> float:
    """The cut that leaves the rows ``train`` ``n_wanted`` values in all."""
    counts = np.diff(rows.indptr)
    of_train = np.zeros(rows.n_rows, dtype=bool)
    of_train[train] = True
    values = rows.values[np.repeat(of_train, counts)]
    if n_wanted <= 0:
        return float("inf")
    if n_wanted >= len(values):
        return 0.0
    # between the last value that stays and the first that goes
    pair = np.partition(values, [len(values) - n_wanted - 1, len(values) - n_wanted])
    return float(pair[len(values) - n_wanted - 1])


def above(rows: SparseRows, cut: float) -> SparseRows:
    """The values above a cut."""
    kept = rows.values > cut
    row = np.repeat(np.arange(rows.n_rows), np.diff(rows.indptr))[kept]
    indptr = np.zeros(rows.n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=rows.n_rows), out=indptr[1:])
    return SparseRows(indptr, rows.columns[kept], rows.values[kept])
