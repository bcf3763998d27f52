"""Carry out a plan of encoding: read files ahead, pass blocks and rows through the device, write
sets of files whole.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from utils.activations import ModelRows, load_rows
from utils.models import LanguageModel
from utils.names import hook_name, split_twin, trained_id
from utils.paths import Paths
from utils.readers.sparse_files import SparseRows, load_sparse, to_csr
from utils.runtime.errors import UserError
from utils.runtime.files import temporary_name
from utils.saes.catalog import release_used
from utils.saes.encode import (
    EncoderBlock,
    PartialRows,
    add_block,
    block_starts,
    check_device,
    concatenate,
    new_partials,
    process_input,
    read_block,
    rows_per_product,
)
from utils.saes.encoder import Encoder, require_width
from utils.saes.plan import Job, Work
from utils.saes.store import Look, SaeFiles, made_from
from utils.saes.twins import above, exact_cut, low_cut
from utils.settings import NORMAL, SHIFTED, Condition, split

T = TypeVar("T")
S = TypeVar("S")
MOST_WAITING = 2  # sets of files in memory that wait to be written


@dataclass(frozen=True)
class Encoding:
    """How to encode.

    ``device``: "cpu", "mps", "cuda" or "cuda:1"; ``max_memory``: bytes for weights and rows, None
    for a share of what is free.
    """

    device: str
    batch_size: int = 128
    max_memory: int | None = None
    sae_release: str | None = None
    dry_run: bool = False


@dataclass
class Tally:
    """What the closing table shows of an SAE."""

    rows: int = 0
    nonzeros: int = 0
    seconds: float = 0.0
    fired: np.ndarray | None = None


@dataclass
class Loaded:
    """A job with its activations and labels.

    ``wanted``: {a twin's id: active latents that its SAE has on all training rows together};
    ``cut``: {a twin's id: its encoder for this job}.
    """

    job: Job
    rows: ModelRows
    wanted: dict[str, int] = field(default_factory=dict)
    cut: dict[str, Encoder] = field(default_factory=dict)

    def train(self) -> np.ndarray:
        """The training rows of the normal setting."""
        return split(Condition(NORMAL.name), self.rows.y).train

    def pieces(self) -> list[np.ndarray]:
        return [self.rows.X] if self.rows.X_ood is None else [self.rows.X, self.rows.X_ood]


def ahead(read: Callable[[S], T], items: Iterable[S]) -> Iterator[tuple[S, T | UserError]]:
    """(item, read(item)) for each item; the next one is read in a thread while the caller works. A
    UserError is yielded.
    """

    def attempt(item: S) -> T | UserError:
        try:
            return read(item)
        except UserError as error:
            return error

    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for item in items:
            following = (item, reader.submit(attempt, item))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


class EncodingRun:
    """Encodes the works of a plan and tallies what it did."""

    def __init__(
        self, paths: Paths, info: LanguageModel, encoders: dict[str, Encoder], encoding: Encoding
    ) -> None:
        import torch

        self.paths, self.info, self.encoders = paths, info, encoders
        self.device, self.sae_release = torch.device(encoding.device), encoding.sae_release
        self.n_product = rows_per_product(self.device, encoding.batch_size)
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self._trusted: set[str] = set()
        self._n_active: dict[tuple[str, str], int] = {}  # of SAEs that have twins, by dataset
        self._look = Look(paths, info.name)  # what was read, whatever comes to stand there
        self._writer = ThreadPoolExecutor(1)  # writes while the next rows are encoded
        self._written: deque[Future[str | None]] = deque()

    def __enter__(self) -> EncodingRun:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever ended the run, and wherever it was: what is being written is finished first."""
        self._writer.shutdown()

    def run(self, work: Work, bar: Any) -> list[str]:
        """Do one work; a line for each file that failed."""
        import torch

        started = time.monotonic()
        before = {i: self.tallies[i].seconds for i in work.sae_ids}
        order = {"resident": self._resident, "rows": self._rows, "blocks": self._blocks}[work.order]
        try:
            failures = order(work, bar)
        finally:  # a run that is stopped keeps what it has encoded
            try:
                late = self._wait_for_writing(0)
            except KeyboardInterrupt:  # stopped while it waits: what is begun is still finished
                self._writer.shutdown(cancel_futures=True)
                raise
        failures += late
        # reading and loading count: the time that products did not take is shared among the SAEs
        spent = sum(self.tallies[i].seconds - before[i] for i in work.sae_ids)
        for sae_id in work.sae_ids:
            self.tallies[sae_id].seconds += max(time.monotonic() - started - spent, 0.0) / len(
                work.sae_ids
            )
        if self.device.type == "mps":
            torch.mps.empty_cache()
        return failures

    def _read(self, job: Job) -> Loaded:
        rows = load_rows(
            self.paths,
            self.info.name,
            job.dataset,
            hook_name(job.layer),
            bool(job.ood),
            self.info.width_at(job.layer),
        )
        for sae_id in job.sae_ids:
            if sae_id in self.encoders:
                require_width(self.encoders[sae_id], rows.X.shape[1], self.info.name)
        return Loaded(job, rows)

    def _resident(self, work: Work, bar: Any) -> list[str]:
        failures = []
        blocks = {}
        for sae_id in work.sae_ids:
            encoder = self.encoders[sae_id]
            try:
                blocks[sae_id] = [
                    read_block(encoder, *span, self.device)
                    for span in block_starts(encoder, work.block)
                ]
            except UserError as error:  # of the weights: the other SAEs go on
                failures.append(str(error))
        for job, loaded in ahead(self._read, work.jobs):
            if isinstance(loaded, UserError):
                failures.append(str(loaded))
                continue
            for sae_id in (i for i in job.sae_ids if i in blocks):
                started = time.monotonic()
                try:
                    self._cut(sae_id, loaded)
                except UserError as error:
                    failures.append(str(error))
                    continue
                partials = self._new_partials(sae_id, loaded)
                for block in blocks[sae_id]:
                    self._add(sae_id, block, loaded, partials, bar)
                failures += self._finish(sae_id, loaded, partials)
                self.tallies[sae_id].seconds += time.monotonic() - started
        return failures

    def _rows(self, work: Work, bar: Any) -> list[str]:
        """Files in memory, the SAE's weights streamed past them once a chunk of files."""
        (sae_id,) = work.sae_ids
        encoder = self.encoders[sae_id]
        failures = []
        for chunk in work.chunks:
            loaded = []
            for _, found in self._read_and_cut(sae_id, chunk):
                if isinstance(found, UserError):
                    failures.append(str(found))
                else:
                    loaded.append(found)
            partials = [self._new_partials(sae_id, one) for one in loaded]
            for _, block in ahead(
                lambda span: read_block(encoder, *span, self.device),
                block_starts(encoder, work.block),
            ):
                if isinstance(block, UserError):
                    return [*failures, str(block)]
                for one, partial in zip(loaded, partials):
                    self._add(sae_id, block, one, partial, bar)
            while loaded:  # last to first, letting go of each
                failures += self._finish(sae_id, loaded.pop(), partials.pop())
        return failures

    def _blocks(self, work: Work, bar: Any) -> list[str]:
        """Blocks of weights in memory, all files streamed past each; nonzeros wait on disk for the
        last block.
        """
        (sae_id,) = work.sae_ids
        encoder = self.encoders[sae_id]
        waiting = temporary_name(self.paths.sae_activations_root(self.info.name) / "waiting")
        waiting.mkdir(parents=True, exist_ok=True)
        failures: dict[str, str] = {}
        try:
            spans = block_starts(encoder, work.block)
            passes = [
                spans[i : i + work.blocks_a_pass] for i in range(0, len(spans), work.blocks_a_pass)
            ]
            for number, of_pass in enumerate(passes):
                try:
                    blocks = [read_block(encoder, *span, self.device) for span in of_pass]
                except UserError as error:
                    return [*failures.values(), str(error)]
                for job, loaded in self._read_and_cut(
                    sae_id, [job for job in work.jobs if job.dataset not in failures]
                ):
                    if isinstance(loaded, UserError):
                        failures[job.dataset] = str(loaded)
                        continue
                    partials = self._new_partials(sae_id, loaded)
                    for block in blocks:
                        self._add(sae_id, block, loaded, partials, bar)
                    _spill(waiting / f"{job.dataset}.{number}.npz", partials)
                del blocks
            lines = list(failures.values())
            for job, loaded in self._read_and_cut(
                sae_id, [job for job in work.jobs if job.dataset not in failures]
            ):
                if isinstance(loaded, UserError):
                    lines.append(str(loaded))
                    continue
                partials = self._new_partials(sae_id, loaded)
                for number in range(len(passes)):
                    _unspill(waiting / f"{job.dataset}.{number}.npz", partials)
                lines += self._finish(sae_id, loaded, partials)
        finally:
            shutil.rmtree(waiting, ignore_errors=True)
        return lines

    def _read_and_cut(
        self, sae_id: str, jobs: list[Job]
    ) -> Iterator[tuple[Job, Loaded | UserError]]:
        """As ``ahead``, each job ready for one SAE: where that is a twin, with its cut."""
        for job, loaded in ahead(self._read, jobs):
            if isinstance(loaded, UserError):
                yield job, loaded
                continue
            try:
                self._cut(sae_id, loaded)
            except UserError as error:
                yield job, error
            else:
                yield job, loaded

    def _cut(self, sae_id: str, loaded: Loaded) -> None:
        """Set a twin's cut for a job: a low one first, because the exact one shows when all its
        latents are there.

        Raises UserError where nothing says how many latents its SAE has active.
        """
        import torch

        encoder = self.encoders[sae_id]
        if not encoder.matches_l0:
            return
        n_wanted = self._active_under(trained_id(sae_id), loaded)
        x = process_input(encoder, torch.from_numpy(loaded.rows.X[loaded.train()])).numpy()
        loaded.wanted[sae_id] = n_wanted
        loaded.cut[sae_id] = replace(encoder, cut=low_cut(x, encoder.d_sae, n_wanted))

    def _active_under(self, sae_id: str, loaded: Loaded) -> int:
        """Active latents of an SAE on the training rows of a job together."""
        known = self._n_active.get((sae_id, loaded.job.dataset))
        if known is not None:
            return known
        files = SaeFiles(self.paths, self.info.name, NORMAL.name, loaded.job.dataset, sae_id)
        path = files.path("X_train_sae")
        release = release_used(self.paths, self.info, sae_id, self.sae_release)
        now = made_from(files, hook_name(loaded.job.layer), release, self._look)
        if not (files.description() and files.is_done(now)):
            raise UserError(
                f"{loaded.job.dataset}: a twin has as many active latents as its SAE, {sae_id},"
                " which is not encoded in the normal setting as it is now: encode both again"
            )
        return int(load_sparse(path, "make it again").nnz)

    def _encoder(self, sae_id: str, loaded: Loaded) -> Encoder:
        return loaded.cut.get(sae_id, self.encoders[sae_id])

    def _new_partials(self, sae_id: str, loaded: Loaded) -> list[list[PartialRows]]:
        return [
            new_partials(self.encoders[sae_id], len(piece), self.n_product)
            for piece in loaded.pieces()
        ]

    def _add(
        self,
        sae_id: str,
        block: EncoderBlock,
        loaded: Loaded,
        partials: list[list[PartialRows]],
        bar: Any,
    ) -> None:
        encoder = self._encoder(sae_id, loaded)
        if sae_id not in self._trusted:
            check_device(encoder, block, loaded.rows.X, self.device)
            self._trusted.add(sae_id)
        for piece, of_piece in zip(loaded.pieces(), partials):
            add_block(encoder, block, piece, of_piece, self.device, self.n_product)
            bar.update(len(piece) * len(block) / encoder.d_sae)

    def _finish(self, sae_id: str, loaded: Loaded, partials: list[list[PartialRows]]) -> list[str]:
        """Join the blocks' nonzeros and have the job's files written; a line for each earlier one
        whose writing failed.
        """
        encoded: list[SparseRows] = [
            concatenate([partial.finish() for partial in of_piece]) for of_piece in partials
        ]
        train = loaded.train()
        if sae_id in loaded.wanted:
            cut = exact_cut(encoded[0], train, loaded.wanted[sae_id])
            encoded = [above(rows, cut) for rows in encoded]
        elif split_twin(sae_id)[1] is None:
            active = int(np.diff(encoded[0].indptr)[train].sum())
            self._n_active[sae_id, loaded.job.dataset] = active
        self._count(sae_id, encoded)
        lines = self._wait_for_writing(MOST_WAITING - 1)
        self._written.append(self._writer.submit(self._write, sae_id, loaded, encoded))
        return lines

    def _wait_for_writing(self, n_left: int) -> list[str]:
        """Until so few sets of files wait to be written; a line for each that failed.

        Raises OSError when there is no room to write.
        """
        lines = []
        while len(self._written) > n_left:
            wait([self._written[0]])  # still there for the next wait where a signal ends this one
            line = self._written.popleft().result()
            if line is not None:
                lines.append(line)
        return lines

    def _write(self, sae_id: str, loaded: Loaded, encoded: list[SparseRows]) -> str | None:
        """Write a job's files; a line if that failed."""
        try:
            self._write_sets(sae_id, loaded, encoded)
        except UserError as error:
            return f"{loaded.job.dataset}: {error}"
        return None

    def _write_sets(self, sae_id: str, loaded: Loaded, encoded: list[SparseRows]) -> None:
        job, encoder = loaded.job, self.encoders[sae_id]
        d_sae = encoder.d_sae
        sae = encoder.described()
        rows = to_csr(encoded[0], d_sae)
        labels = loaded.rows.y
        release = release_used(self.paths, self.info, sae_id, self.sae_release)
        if sae_id in job.normal:
            files = SaeFiles(self.paths, self.info.name, NORMAL.name, job.dataset, sae_id)
            made = made_from(files, hook_name(job.layer), release, self._look)
            files.write(rows, split(Condition(NORMAL.name), labels), None, made, sae)
        if sae_id in job.ood and loaded.rows.y_ood is not None:
            drawn = split(Condition(SHIFTED.name), labels, ood_labels=loaded.rows.y_ood)
            files = SaeFiles(self.paths, self.info.name, SHIFTED.name, job.dataset, sae_id)
            made = made_from(files, hook_name(job.layer), release, self._look)
            files.write(rows, drawn, to_csr(encoded[1], d_sae), made, sae)

    def _count(self, sae_id: str, encoded: list[SparseRows]) -> None:
        tally = self.tallies[sae_id]
        if tally.fired is None:
            tally.fired = np.zeros(self.encoders[sae_id].d_sae, dtype=bool)
        for rows in encoded:
            tally.rows += rows.n_rows
            tally.nonzeros += len(rows.values)
            tally.fired[rows.columns] = True


def _spill(path: Path, partials: list[list[PartialRows]]) -> None:
    """Put the nonzeros of a job's pieces away; ``_unspill`` takes them up again."""
    arrays: dict[str, Any] = {}
    for i, of_piece in enumerate(partials):
        for j, partial in enumerate(of_piece):
            arrays |= dict(
                zip((f"rows{i}_{j}", f"columns{i}_{j}", f"values{i}_{j}"), partial.joined())
            )
    np.savez(path, **arrays)


def _unspill(path: Path, partials: list[list[PartialRows]]) -> None:
    import torch

    with np.load(path, allow_pickle=False) as arrays:
        for i, of_piece in enumerate(partials):
            for j, partial in enumerate(of_piece):
                rows, columns, values = (
                    arrays[f"{name}{i}_{j}"] for name in ("rows", "columns", "values")
                )
                partial.add(
                    (torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(values))
                )
