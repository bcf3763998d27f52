"""Rows of activations to sparse latents, equal to SAELens's own ``encode``, block by block of the
encoder.

Rows stay sparse from the moment they leave the device; no [n_rows, d_sae] array is ever made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from utils.readers.sparse_files import SparseRows, to_csr
from utils.runtime.errors import UserError
from utils.saes.encoder import SAE_LENS, Encoder

if TYPE_CHECKING:
    import torch

GATE_TOLERANCE = 1e-3  # relative; a device further than this from the CPU is not trusted
GATE_ROWS = 64
# latents in a product; larger ones have been wrong on MPS
MAX_BLOCK = {"cpu": 16_384, "mps": 65_536}
# batches in a CPU product: MKL packs the weights anew for each product, which few rows do not repay
CPU_BATCHES = 8
MERGE_EVERY = 8  # blocks of a TopK SAE between settlements

Nonzeros = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]  # row, column, value


def rows_per_product(device: torch.device, batch_size: int) -> int:
    """Rows multiplied at a time."""
    return batch_size * CPU_BATCHES if device.type == "cpu" else batch_size


@dataclass(frozen=True)
class EncoderBlock:
    """Latents start … start + n - 1 of an encoder on a device; ``weights`` [d_model, n]."""

    start: int
    weights: torch.Tensor
    vectors: dict[str, torch.Tensor]
    sae: Any = None  # SAELens's own object, where that encodes

    def __len__(self) -> int:
        return self.weights.shape[1]


def read_block(encoder: Encoder, start: int, stop: int, device: torch.device) -> EncoderBlock:
    """Read latents start … stop - 1 from the file."""
    import torch

    if encoder.W_enc is None:
        assert encoder.load is not None
        assert (start, stop) == (0, encoder.d_sae)
        return EncoderBlock(0, torch.empty(0, encoder.d_sae), {}, encoder.load(device))
    if encoder.latents_first:
        weights = encoder.W_enc.rows(start, stop).T
    else:
        weights = encoder.W_enc.columns(start, stop)
    if encoder.input_scale != 1.0:
        weights = weights * np.float32(encoder.input_scale)
    if not np.isfinite(weights.sum(dtype=np.float64)):
        raise UserError(
            f"{encoder.W_enc.path} has NaN or infinite weights in latents {start} to {stop - 1}:"
            " fetch it again"
        )
    vectors = {name: array[start:stop] for name, array in encoder.vectors.items()}
    if encoder.W_dec:
        vectors["decoder_norms"] = np.linalg.norm(encoder.W_dec.rows(start, stop), axis=1)
    return EncoderBlock(
        start,
        torch.from_numpy(weights).to(device),
        {name: torch.from_numpy(array).to(device) for name, array in vectors.items()},
    )


def process_input(encoder: Encoder, activations: torch.Tensor) -> torch.Tensor:
    """Activations [n_rows, d_model] as SAELens's process_sae_in hands them to the encoder."""
    import torch

    x = activations
    if encoder.centred:
        x = x - x.mean(dim=-1, keepdim=True)
    if encoder.normalize_activations == "constant_norm_rescale":
        x = x * (encoder.d_model**0.5 / x.norm(dim=-1, keepdim=True))
    elif encoder.normalize_activations == "layer_norm":
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.std(dim=-1, keepdim=True) + 1e-5)
    return x if encoder.b_dec is None else x - torch.from_numpy(encoder.b_dec).to(x.device)


def block_size(encoder: Encoder, device: torch.device, budget: int) -> int:
    """Latents in a block: as many as the device multiplies well, and no more than an eighth of the
    memory budget holds.
    """
    if encoder.architecture == SAE_LENS:
        return encoder.d_sae
    largest = MAX_BLOCK.get(device.type, encoder.d_sae)
    return max(64, min(largest, encoder.d_sae, budget // 8 // (4 * encoder.d_model)))


def block_starts(encoder: Encoder, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, encoder.d_sae)) for start in range(0, encoder.d_sae, size)]


def encode_block(encoder: Encoder, block: EncoderBlock, x: torch.Tensor) -> Nonzeros:
    """Nonzero latents of a block for prepared rows x [n_rows, d_model], row by row, on the CPU.

    TopK SAEs: the block's own k strongest of each row, negative ones included; ``PartialRows``
    settles it over all blocks.
    """
    import torch

    if encoder.architecture == SAE_LENS:
        latents = block.sae.encode(x)
        return _nonzero(latents != 0, latents, block.start)
    if encoder.architecture == "gated":
        shared = x @ block.weights
        magnitude = shared * block.vectors["r_mag"].exp() + block.vectors["b_mag"]
        return _nonzero(
            (shared + block.vectors["b_gate"] > 0) & (magnitude > 0), magnitude, block.start
        )
    pre = torch.addmm(block.vectors["b_enc"], x, block.weights)
    if "decoder_norms" in block.vectors:
        pre *= block.vectors["decoder_norms"]
    if encoder.architecture == "topk":
        values, columns = torch.topk(
            pre.cpu() if pre.device.type == "mps" else pre, min(encoder.k_active, len(block)), dim=1
        )
        rows = torch.arange(len(x)).unsqueeze(1).expand_as(columns)
        return rows.reshape(-1), columns.reshape(-1).cpu() + block.start, values.reshape(-1).cpu()
    threshold = block.vectors.get("threshold")
    # JumpReLU applies ReLU too: a negative threshold lets nothing negative through
    floor = encoder.cut if threshold is None else threshold.clamp(min=encoder.cut)
    return _nonzero(pre > floor, pre, block.start)


def _nonzero(keep: torch.Tensor, values: torch.Tensor, start: int) -> Nonzeros:
    import torch

    if keep.device.type == "cuda":
        rows, columns = torch.nonzero(keep).cpu().unbind(dim=1)
        return rows, columns + start, torch.masked_select(values, keep).cpu()
    # MPS has no dependable sparse kernels, and on the CPU numpy finds the few nonzeros 4 times
    # faster than torch
    dense = values.cpu().numpy()
    flat = np.flatnonzero(keep.cpu().numpy())
    row, column = np.divmod(flat, dense.shape[1])
    return (
        torch.from_numpy(row),
        torch.from_numpy(column) + start,
        torch.from_numpy(dense.reshape(-1)[flat]),
    )


def keep_top_k(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of candidates in any order, each row's k largest values."""
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    keep = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left") < k
    return rows[keep], columns[keep], values[keep]


@dataclass
class PartialRows:
    """Nonzeros of some rows as blocks are added, in any order; TopK rows keep a running top k."""

    encoder: Encoder
    n_rows: int
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, nonzeros: Nonzeros) -> None:
        rows, columns, values = (part.numpy() for part in nonzeros)
        self.parts.append(
            (rows.astype(np.int32), columns.astype(np.int32), values.astype(np.float32, copy=False))
        )
        if self.encoder.architecture == "topk" and len(self.parts) >= MERGE_EVERY:
            self.parts = [keep_top_k(*self.joined(), self.encoder.k_active)]

    def finish(self) -> SparseRows:
        """CSR with columns ascending within a row."""
        rows, columns, values = self.joined()
        if self.encoder.architecture == "topk":
            rows, columns, values = keep_top_k(rows, columns, values, self.encoder.k_active)
            rows, columns, values = rows[values > 0], columns[values > 0], values[values > 0]
        if len(self.parts) > 1 or self.encoder.architecture == "topk":
            order = np.lexsort((columns, rows))
            rows, columns, values = rows[order], columns[order], values[order]
        indptr = np.zeros(self.n_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=self.n_rows), out=indptr[1:])
        return SparseRows(indptr, columns, values)

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, columns, values) of all parts."""
        rows, columns, values = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        return rows, columns, values


def concatenate(parts: list[SparseRows]) -> SparseRows:
    """Rows of several pieces, one after the other."""
    counts = np.concatenate([np.diff(part.indptr) for part in parts])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return SparseRows(
        indptr,
        np.concatenate([p.columns for p in parts]),
        np.concatenate([p.values for p in parts]),
    )


def add_block(
    encoder: Encoder,
    block: EncoderBlock,
    activations: np.ndarray,
    partials: list[PartialRows],
    device: torch.device,
    n_product: int,
) -> None:
    """Encode all rows with one block; ``partials`` holds one entry for each ``n_product`` rows of
    activations [n, d_model].
    """
    import torch

    with torch.inference_mode():
        for i, partial in enumerate(partials):
            x = prepared(
                encoder,
                activations[i * n_product : i * n_product + partial.n_rows],
                device,
                n_product,
            )
            rows, columns, values = encode_block(encoder, block, x)
            if len(x) > partial.n_rows:  # padding
                real = rows < partial.n_rows
                rows, columns, values = rows[real], columns[real], values[real]
            partial.add((rows, columns, values))


def prepared(
    encoder: Encoder, activations: np.ndarray, device: torch.device, n_product: int
) -> torch.Tensor:
    """Rows on the device as the encoder takes them; on MPS filled up with zeros to a fixed shape
    (its memory grows with every new one).
    """
    import torch

    batch = torch.from_numpy(np.ascontiguousarray(activations)).to(device)
    x = process_input(encoder, batch)
    if device.type == "mps" and len(x) < n_product:
        x = torch.cat([x, x.new_zeros(n_product - len(x), x.shape[1])])
    return x.contiguous()


def new_partials(encoder: Encoder, n_rows: int, n_product: int) -> list[PartialRows]:
    return [
        PartialRows(encoder, min(n_product, n_rows - start))
        for start in range(0, n_rows, n_product)
    ]


def encode(
    encoder: Encoder,
    blocks: Iterable[EncoderBlock],
    activations: np.ndarray,
    device: torch.device,
    batch_size: int = 128,
) -> Iterator[SparseRows]:
    """Sparse latents of activations [n_rows, d_model] float32, some rows at a time, with all blocks
    in memory.
    """
    n_product = rows_per_product(device, batch_size)
    blocks = list(blocks)
    for start in range(0, len(activations), n_product):
        rows = activations[start : start + n_product]
        partial = new_partials(encoder, len(rows), n_product)
        for block in blocks:
            add_block(encoder, block, rows, partial, device, n_product)
        yield partial[0].finish()


def encode_all(
    encoder: Encoder,
    blocks: Iterable[EncoderBlock],
    activations: np.ndarray,
    device: torch.device,
    batch_size: int = 128,
) -> SparseRows:
    """Sparse latents of activations [n_rows, d_model], with all blocks in memory."""
    return concatenate(list(encode(encoder, blocks, activations, device, batch_size)))


def latents_of(encoder: Encoder, activations: np.ndarray, budget: int = 1 << 30) -> csr_array:
    """[n_rows, d_sae] latents of activations [n_rows, d_model], on the CPU; blocks of the encoder
    are read one after the other, in at most ``budget`` bytes whatever the SAE's size.
    """
    import torch

    cpu = torch.device("cpu")
    n_product = rows_per_product(cpu, batch_size=128)
    partials = new_partials(encoder, len(activations), n_product)
    for start, stop in block_starts(encoder, block_size(encoder, cpu, budget)):
        block = read_block(encoder, start, stop, cpu)
        add_block(encoder, block, activations, partials, cpu, n_product)
    return to_csr(concatenate([partial.finish() for partial in partials]), encoder.d_sae)


def check_device(
    encoder: Encoder, block: EncoderBlock, activations: np.ndarray, device: torch.device
) -> None:
    """Compare a block's latents of the first rows with the CPU's.

    Raises UserError when the nonzeros differ (but for values within the tolerance of the threshold)
    or the values do.
    """
    import torch

    if device.type == "cpu":
        return
    cpu = torch.device("cpu")
    reference_block = read_block(encoder, block.start, block.start + len(block), cpu)
    rows = activations[:GATE_ROWS]
    on_device, reference = (
        _dense(encoder, b, rows, d) for b, d in ((block, device), (reference_block, cpu))
    )
    scale = max(float(np.abs(reference).max(initial=0.0)), 1e-12)
    only_one = (on_device != 0) != (reference != 0)
    agreeing = (on_device != 0) & (reference != 0)
    error = np.abs(on_device - reference)[agreeing] / np.maximum(
        np.abs(reference[agreeing]), 1e-3 * scale
    )
    # a latent at its threshold may fall on either side; more than one in a thousand is no rounding
    if (
        only_one.sum() > 1e-3 * max(agreeing.sum(), 1) + 1
        or error.max(initial=0.0) > GATE_TOLERANCE
    ):
        raise UserError(
            f"{encoder.sae_id}: {device.type} gives other latents than the CPU"
            f" ({int(only_one.sum())} of {int(agreeing.sum())} differ, relative error"
            f" {error.max(initial=0.0):.1e}): run again with --device cpu"
        )


def _dense(
    encoder: Encoder, block: EncoderBlock, rows: np.ndarray, device: torch.device
) -> np.ndarray:
    sparse = encode_all(encoder, [block], rows, device)
    dense = np.zeros((len(rows), len(block)), dtype=np.float32)
    dense[np.repeat(np.arange(len(rows)), np.diff(sparse.indptr)), sparse.columns - block.start] = (
        sparse.values
    )
    return dense


def product_rate(d_model: int, device: torch.device, seconds: float = 0.4) -> float:
    """Floating-point operations a second of a large float32 product on the device, the best of a
    short measurement.
    """
    import torch

    n_rows, n_columns = 1024, MAX_BLOCK["cpu"] // 2
    x, weights = (
        torch.randn(n_rows, d_model, device=device),
        torch.randn(d_model, n_columns, device=device),
    )
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        started = time.perf_counter()
        result = x @ weights
        float(result[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * n_rows * d_model * n_columns / best
