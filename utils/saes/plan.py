"""In which order SAEs, blocks of their latents, and rows go through the device so that memory holds
and few bytes are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from utils.names import Layer, layer_order, split_twin
from utils.runtime.errors import UserError
from utils.saes.encode import block_size, rows_per_product
from utils.saes.encoder import SAE_LENS, Encoder

if TYPE_CHECKING:
    import torch

NONZEROS_PER_ROW = (
    400  # assumed where an SAE's id does not say; only for estimates of memory and disk
)
BYTES_PER_PART = 12  # of a nonzero while its row is being put together
BYTES_STORED = 8.1  # of a nonzero on disk, with its share of the row pointers


@dataclass
class Job:
    """One dataset at one layer, with the SAEs whose files are missing in the normal and in the OOD
    setting.
    """

    dataset: str
    layer: Layer
    normal: list[str]
    ood: list[str]
    n_dataset_rows: int
    n_ood_rows: int

    @property
    def sae_ids(self) -> list[str]:
        return list(dict.fromkeys(self.normal + self.ood))

    @property
    def n_rows(self) -> int:
        return self.n_dataset_rows + self.n_ood_rows

    def of(self, sae_ids: set[str]) -> Job:
        """The part of the job that some SAEs have in it."""
        return replace(
            self,
            normal=[i for i in self.normal if i in sae_ids],
            ood=[i for i in self.ood if i in sae_ids],
        )


@dataclass
class Work:
    """Jobs of a layer for SAEs that are encoded together.

    order "resident": all their weights stay in memory while each file passes once. "rows": as many
    files as fit stay in memory (``chunks``) while the one SAE's weights stream past. "blocks":
    ``blocks_a_pass`` blocks stay while all files stream past.
    """

    sae_ids: list[str]
    jobs: list[Job]
    order: str
    block: int
    bytes_to_read: float
    bytes_to_write: float
    chunks: list[list[Job]] = field(default_factory=list)
    blocks_a_pass: int = 1

    @property
    def n_rows(self) -> int:
        return sum(job.n_rows for job in self.jobs)


def make_plan(
    jobs: list[Job],
    encoders: dict[str, Encoder],
    device: torch.device,
    budget: int,
    batch_size: int,
) -> list[Work]:
    """The works that do all jobs within ``budget`` bytes.

    Raises UserError when not even one block and one file fit.
    """
    works = []
    for layer in sorted({job.layer for job in jobs}, key=layer_order):
        of_layer = [job for job in jobs if job.layer == layer]
        sae_ids = [
            i for i in dict.fromkeys(i for job in of_layer for i in job.sae_ids) if i in encoders
        ]
        # a twin's cut needs what its SAE has active
        sae_ids.sort(key=lambda sae_id: split_twin(sae_id)[1] is not None)
        limits = _Limits(encoders, device, budget, batch_size)
        for group in _groups(sae_ids, of_layer, limits):
            mine = [job for job in of_layer if set(job.sae_ids) & set(group)]
            works.append(_work(group, mine, limits))
    return works


@dataclass(frozen=True)
class _Limits:
    """What a plan has to work with: ``budget`` bytes of a device, for batches of rows."""

    encoders: dict[str, Encoder]
    device: torch.device
    budget: int
    batch_size: int

    def block_size(self, sae_id: str) -> int:
        """Latents in a block of an SAE's weights."""
        return block_size(self.encoders[sae_id], self.device, self.budget)

    def working(self, sae_id: str, block: int) -> int:
        """Bytes of a product's result, its mask, and its prepared rows."""
        n_product = rows_per_product(self.device, self.batch_size)
        return n_product * (6 * block + 8 * self.encoders[sae_id].d_model)


def _groups(sae_ids: list[str], jobs: list[Job], limits: _Limits) -> Iterator[list[str]]:
    """SAEs that fit the budget together; one that does not fit even alone is a group of its own."""
    group: list[str] = []
    for sae_id in sae_ids:
        together = [*group, sae_id]
        if group and not _fits(together, jobs, limits):
            yield group
            together = [sae_id]
        group = together
    if group:
        yield group


def _fits(group: list[str], jobs: list[Job], limits: _Limits) -> bool:
    encoders = limits.encoders
    working = max(limits.working(sae_id, limits.block_size(sae_id)) for sae_id in group)
    # two files at a time: one is encoded while the next is read
    files = 2 * max(job.n_rows for job in jobs) * 4 * encoders[group[0]].d_model
    return sum(encoders[i].n_bytes for i in group) + working + files <= limits.budget


def _work(group: list[str], jobs: list[Job], limits: _Limits) -> Work:
    encoders, budget = limits.encoders, limits.budget
    encoder = encoders[group[0]]
    block = min(limits.block_size(sae_id) for sae_id in group)
    working = limits.working(group[0], block)
    row_bytes = 4 * encoder.d_model
    activations = float(sum(job.n_rows for job in jobs) * row_bytes)
    weights = float(sum(encoders[i].n_file_bytes for i in group))
    written = BYTES_STORED * sum(
        job.n_rows * (encoders[i].named_l0 or NONZEROS_PER_ROW) for job in jobs for i in group
    )
    if _fits(group, jobs, limits):
        return Work(group, jobs, "resident", block, activations + weights, written)

    # one SAE, larger than the budget
    if encoder.architecture == SAE_LENS:
        raise UserError(
            f"{group[0]} is encoded by SAELens as a whole and needs {encoder.n_bytes / 2**30:.1f}"
            " GiB: raise --max_memory"
        )
    largest = max(job.n_rows for job in jobs) * row_bytes
    streaming = 2 * encoder.block_bytes(block) + working
    nonzeros = (encoder.named_l0 or NONZEROS_PER_ROW) * BYTES_PER_PART
    chunks = _chunks(jobs, (budget - streaming) // (row_bytes + nonzeros))
    by_rows = activations + len(chunks) * weights if chunks else float("inf")
    resident = budget - 2 * largest - working
    blocks_a_pass = resident // encoder.block_bytes(block)
    n_passes = -(-encoder.d_sae // (block * blocks_a_pass)) if blocks_a_pass > 0 else 0
    by_blocks = weights + n_passes * activations if n_passes else float("inf")
    if min(by_rows, by_blocks) == float("inf"):
        need = min(streaming + largest, 2 * largest + working) / 2**20
        raise UserError(
            f"{group[0]} and one file of rows need about {need:.0f} MiB: raise --max_memory or"
            " lower --batch_size"
        )
    if by_rows <= by_blocks:
        return Work(group, jobs, "rows", block, by_rows, written, chunks)
    return Work(group, jobs, "blocks", block, by_blocks, written, blocks_a_pass=blocks_a_pass)


def _chunks(jobs: list[Job], n_rows: int) -> list[list[Job]]:
    """Consecutive jobs of at most ``n_rows`` rows together; [] when one alone has more."""
    chunks: list[list[Job]] = []
    room = 0
    for job in jobs:
        if job.n_rows > n_rows:
            return []
        if job.n_rows > room:
            chunks.append([])
            room = n_rows
        chunks[-1].append(job)
        room -= job.n_rows
    return chunks
