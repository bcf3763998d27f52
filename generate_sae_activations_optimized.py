"""Model activations to SAE activations: each SAE opened once, each activation file read once, each row encoded once.

    python generate_sae_activations_optimized.py --model_name gemma-2-9b --setting all --device auto
    python generate_sae_activations_optimized.py --model_name all-MiniLM-L6-v2 --target_sae_id layer_2/width_1k/topk_32

Writes data/sae_activations_{model}/{setting}_setting/{dataset}_{sae}_X_train_sae.pt and their companions, sparse (see
utils/sae_store.py). Scarcity, class imbalance and label noise draw their rows from the files of the normal setting, so for
them the normal files are made; OOD encodes the out-of-distribution rows. SAEs are looked for in data/saes/{model}/{sae_id},
then on the hub. Finished files stay; an interrupted run continues. Trains no probes: that is train_sae_probes.py.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils import cli
from utils.activations import load_activations, read_description
from utils.datasets import choose_datasets, load_dataset, load_ood, unlabelled_ood_files
from utils.errors import UserError
from utils.models import get_model, hook_name, sae_layer
from utils.paths import Paths
from utils.runtime import available_memory, parse_bytes, peak_memory, pick_device, progress, show_bytes
from utils.settings import Condition, split

GATE_TOLERANCE = 1e-3  # relative; a device further than this from the CPU is not trusted
MAX_BLOCK = 65_536  # latents in one product (larger ones have been wrong on MPS, see shared needs of torch issues)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, extra=("all",), default="all")
    cli.add_datasets(parser)
    parser.add_argument(
        "--target_sae_id", nargs="+", metavar="ID", help="SAEs to use (default: all in --sae_dir, else the paper's)"
    )
    parser.add_argument("--sae_dir", type=Path, help="folder with the SAEs (default: data/saes/{model})")
    parser.add_argument("--layers", nargs="+", type=int, metavar="N", help="only SAEs of these layers")
    parser.add_argument(
        "--batch_mode", action=argparse.BooleanOptionalAction, default=True, help="load each SAE once for all files"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="rows encoded at a time")
    parser.add_argument("--max_memory", type=parse_bytes, help="memory for weights and rows (default: 60 %% of what is free)")
    cli.add_device(parser)
    return parser


@dataclass
class Job:
    """One dataset at one layer, with the SAEs whose files are missing in the normal and in the OOD setting."""

    dataset: str
    layer: int
    normal: list[str] = field(default_factory=list)
    ood: list[str] = field(default_factory=list)

    @property
    def sae_ids(self) -> list[str]:
        return list(dict.fromkeys(self.normal + self.ood))


@dataclass
class Tally:
    """What the closing table shows of an SAE."""

    rows: int = 0
    nonzeros: int = 0
    seconds: float = 0.0
    fired: np.ndarray | None = None


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name)

    from utils.saes import list_sae_ids, open_sae

    sae_dir = args.sae_dir or paths.saes(info.name)
    sae_ids = args.target_sae_id or list_sae_ids(sae_dir) or list(info.sae_ids)
    if not sae_ids:
        raise UserError(f"no SAE in {sae_dir}: train some with train_saes.py, or name one with --target_sae_id")
    layers = {sae_id: _layer_of(sae_id, info.probe_layer) for sae_id in sae_ids}
    sae_ids = [sae_id for sae_id in sae_ids if not args.layers or layers[sae_id] in args.layers]
    datasets = choose_datasets(paths, args.datasets)
    normal = args.setting != "OOD"
    with_ood = set(choose_ood(paths, args.datasets, args.setting))

    failures: list[str] = []
    jobs = []
    for layer in sorted({layers[sae_id] for sae_id in sae_ids}):
        for name in datasets:
            job = Job(name, layer)
            of_layer = [sae_id for sae_id in sae_ids if layers[sae_id] == layer]
            if normal:
                job.normal = [i for i in of_layer if not _is_done(paths, info.name, "normal", name, layer, i)]
            if name in with_ood:
                job.ood = [i for i in of_layer if not _is_done(paths, info.name, "OOD", name, layer, i)]
            if job.sae_ids:
                jobs.append(job)
    n_files = len(sae_ids) * (normal * len(datasets) + len(with_ood))
    n_todo = sum(len(job.normal) + len(job.ood) for job in jobs)
    print(f"{info.name}: {len(sae_ids)} SAEs, {n_files} sets of files; {n_files - n_todo} done, {n_todo} to do")
    if not jobs:
        return 0

    device = pick_device(args.device)
    budget = args.max_memory or int(0.6 * available_memory())
    encoders = {}
    for sae_id in dict.fromkeys(i for job in jobs for i in job.sae_ids):
        try:
            encoders[sae_id] = open_sae(paths, info.name, sae_id, args.sae_dir)
        except UserError as error:
            failures.append(str(error))
    print(f"device {device}, {show_bytes(budget)} for weights and rows")

    tallies: dict[str, Tally] = defaultdict(Tally)
    for group in _groups(jobs, encoders, layers, budget, args.batch_mode):
        run_group(
            paths,
            info.name,
            group,
            [j for j in jobs if set(j.sae_ids) & set(group)],
            encoders,
            device,
            budget,
            args,
            tallies,
            failures,
        )
    print_table(tallies, encoders)
    return cli.report_failures(failures, "things")


def choose_ood(paths: Paths, asked: list[str] | None, setting: str) -> list[str]:
    """Datasets whose OOD rows are wanted; says in one line what in the OOD folder is no dataset."""
    if setting not in ("OOD", "all"):
        return []
    for file in unlabelled_ood_files(paths):
        print(f"skipping {file.name}: it has no labels and is no dataset")
    try:
        return choose_datasets(paths, asked, ood=True)
    except UserError:
        if setting == "OOD":
            raise
        return []


def _layer_of(sae_id: str, default: int) -> int:
    layer = sae_layer(sae_id)
    return default if layer is None else layer


def _is_done(paths: Paths, model_name: str, setting: str, dataset: str, layer: int, sae_id: str) -> bool:
    from utils.sae_store import SaeFiles

    files = SaeFiles(paths, model_name, setting, dataset, sae_id)
    return bool(files.description()) and files.is_done(_made_from(paths, model_name, dataset, layer, sae_id, setting))


def _made_from(paths: Paths, model_name: str, dataset: str, layer: int, sae_id: str, setting: str) -> dict:
    """What SAE activations depend on, as their description records it: when it changes they are made again."""
    made: dict = {"sae_id": sae_id, "model_name": model_name, "hook_name": hook_name(layer), "setting": setting}
    for kind, ood in (("activations", False), ("ood_activations", True)):
        if ood and setting != "OOD":
            continue
        path = paths.model_activations(model_name, dataset, hook_name(layer), ood)
        described = read_description(path)
        if not ood:
            made["n_rows"] = described.get("n_rows")
        made[kind] = described.get("texts_sha256") or (path.stat().st_size if path.is_file() else None)
    return made


def _groups(jobs: list[Job], encoders: dict, layers: dict[str, int], budget: int, batch_mode: bool) -> Iterator[list[str]]:
    """SAEs of a layer that fit the budget together, so that one reading of the activations serves them all."""
    for layer in sorted({job.layer for job in jobs}):
        group: list[str] = []
        for sae_id in (i for i in encoders if layers[i] == layer):
            if group and sum(encoders[i].n_bytes for i in [*group, sae_id]) > budget // 2:
                yield group
                group = []
            group.append(sae_id)
        if group:
            yield group


def run_group(paths, model_name, group, jobs, encoders, device, budget, args, tallies, failures) -> None:
    """Encode the jobs' files with a group of SAEs held in memory, or streamed block by block when they do not fit."""
    import torch

    torch_device = torch.device(device)
    blocks: dict[str, list] = {}
    for sae_id in group:
        encoder = encoders[sae_id]
        block_size = min(MAX_BLOCK, max(256, budget // 4 // (4 * encoder.d_model)))
        blocks[sae_id] = [
            encoder.block(start, min(start + block_size, encoder.d_sae), torch_device)
            for start in range(0, encoder.d_sae, block_size)
        ]
    gated: set[str] = set()
    total = sum(_n_rows(paths, model_name, job) * len(set(job.sae_ids) & set(group)) for job in jobs)
    with (
        ThreadPoolExecutor(1) as reader,
        progress(total=total, desc=f"layer {jobs[0].layer}", unit="row", unit_scale=True) as bar,
    ):
        upcoming = reader.submit(load_job, paths, model_name, jobs[0], encoders[group[0]].d_model)
        for number, job in enumerate(jobs):
            current = upcoming
            if number + 1 < len(jobs):
                upcoming = reader.submit(load_job, paths, model_name, jobs[number + 1], encoders[group[0]].d_model)
            try:
                dataset, activations, ood, ood_activations = current.result()
            except UserError as error:
                failures.append(str(error))
                continue
            for sae_id in (i for i in job.sae_ids if i in group):
                started = time.monotonic()
                if sae_id not in gated:
                    check_device(encoders[sae_id], blocks[sae_id], activations, torch_device)
                    gated.add(sae_id)
                rows = _encode_all(encoders[sae_id], blocks[sae_id], activations, torch_device, args.batch_size, bar)
                ood_rows = None
                if ood_activations is not None and sae_id in job.ood:
                    ood_rows = _encode_all(encoders[sae_id], blocks[sae_id], ood_activations, torch_device, args.batch_size, bar)
                try:
                    write_files(paths, model_name, job, sae_id, dataset, ood, rows, ood_rows)
                except UserError as error:
                    failures.append(f"{dataset.name}: {error}")
                _count(tallies[sae_id], rows, ood_rows, time.monotonic() - started)


def load_job(paths: Paths, model_name: str, job: Job, d_model: int):
    """(dataset, activations, OOD dataset or None, its activations or None), read in a thread while others are encoded."""
    remedy = f"`make generate-model-acts MODEL={model_name}` makes it"
    dataset = load_dataset(paths, job.dataset)
    hook = hook_name(job.layer)
    activations = load_activations(paths.model_activations(model_name, job.dataset, hook), dataset, remedy, d_model)
    if not job.ood:
        return dataset, activations, None, None
    ood = load_ood(paths, job.dataset)
    ood_activations = load_activations(paths.model_activations(model_name, job.dataset, hook, ood=True), ood, remedy, d_model)
    return dataset, activations, ood, ood_activations


def write_files(paths, model_name, job, sae_id, dataset, ood, rows, ood_rows) -> None:
    from utils.sae_store import SaeFiles, rest_rows

    labels = dataset.labels[: rows.shape[0]]
    if sae_id in job.normal:
        normal = split(Condition("normal"), labels)
        made = _made_from(paths, model_name, job.dataset, job.layer, sae_id, "normal")
        files = SaeFiles(paths, model_name, "normal", job.dataset, sae_id)
        files.write(rows, normal, rest_rows(normal, len(labels)), None, made)
    if ood_rows is not None:
        ood_split = split(Condition("OOD"), labels, ood_labels=ood.labels)
        made = _made_from(paths, model_name, job.dataset, job.layer, sae_id, "OOD")
        SaeFiles(paths, model_name, "OOD", job.dataset, sae_id).write(rows, ood_split, None, ood_rows, made)


def _encode_all(encoder, blocks, activations: np.ndarray, device, batch_size: int, bar):
    from utils.sae_store import to_csr
    from utils.saes import concatenate, encode

    parts = []
    for part in encode(encoder, blocks, activations, device, batch_size):
        parts.append(part)
        bar.update(part.n_rows)
    return to_csr(concatenate(parts), encoder.d_sae)


def check_device(encoder, blocks, activations: np.ndarray, device) -> None:
    """Compare the first rows with the CPU's; raises UserError when the device cannot be trusted."""
    import torch

    from utils.saes import EncoderBlock, encode

    if device.type == "cpu":
        return
    cpu = torch.device("cpu")
    on_cpu = [
        EncoderBlock(
            block.start,
            block.weights.cpu(),
            {name: vector.cpu() for name, vector in block.vectors.items()},
            None if block.decoder_norms is None else block.decoder_norms.cpu(),
        )
        for block in blocks
    ]
    rows = activations[:64]
    ours, reference = (next(encode(encoder, b, rows, d, len(rows))) for b, d in ((blocks, device), (on_cpu, cpu)))
    same = np.array_equal(ours.indptr, reference.indptr) and np.array_equal(ours.columns, reference.columns)
    if same:
        error = np.abs(ours.values - reference.values) / np.maximum(np.abs(reference.values), 1e-6)
        same = bool(error.max(initial=0.0) <= GATE_TOLERANCE)
    if not same:
        raise UserError(f"{encoder.sae_id}: {device} gives other latents than the CPU; run with --device cpu")


def _n_rows(paths: Paths, model_name: str, job: Job) -> int:
    n = read_description(paths.model_activations(model_name, job.dataset, hook_name(job.layer))).get("n_rows")
    n = len(load_dataset(paths, job.dataset)) if n is None else n
    return n + (len(load_ood(paths, job.dataset)) if job.ood else 0)


def _count(tally: Tally, rows, ood_rows, seconds: float) -> None:
    tally.seconds += seconds
    for encoded in (rows, ood_rows):
        if encoded is not None:
            tally.rows += encoded.shape[0]
            tally.nonzeros += encoded.nnz
            if tally.fired is None:
                tally.fired = np.zeros(encoded.shape[1], dtype=bool)
            tally.fired[encoded.indices] = True


def print_table(tallies: dict[str, Tally], encoders: dict) -> None:
    if not tallies:
        return
    print(f"\n{'SAE':40} {'rows':>8} {'mean L0':>8} {'never fired':>12} {'seconds':>8}")
    for sae_id, tally in tallies.items():
        dead = encoders[sae_id].d_sae - int(tally.fired.sum()) if tally.fired is not None else 0
        print(f"{sae_id:40} {tally.rows:8d} {tally.nonzeros / max(tally.rows, 1):8.1f} {dead:12d} {tally.seconds:8.1f}")
    print(f"peak memory {show_bytes(peak_memory())}")


if __name__ == "__main__":
    cli.run(main)
