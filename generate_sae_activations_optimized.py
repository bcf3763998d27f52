"""Model activations to SAE activations: each SAE opened once, each activation file read once, each
row encoded once.

    python generate_sae_activations_optimized.py --model_name gemma-2-9b --setting all \
        --device auto --max_memory 4GiB
    python generate_sae_activations_optimized.py --model_name gemma-2-9b --dry_run
    python generate_sae_activations_optimized.py --model_name all-MiniLM-L6-v2 \
        --target_sae_id layer_2/width_1k/topk_32

Writes data/sae_activations_{model}/{setting}_setting/{dataset}_{sae}_X_train_sae.pt and their
companions, sparse (see utils/saes/store.py). Scarcity, class imbalance and label noise draw their
rows from the files of the normal setting, so for them the normal files are made; OOD encodes the
out-of-distribution rows. SAEs are looked for in data/saes/{model}/{sae_id}, then on the hub.
Finished files stay; an interrupted run continues. Trains no probes: that is train_sae_probes.py.

"Optimized" is over the original order of work, which --no-batch_mode keeps: load the SAE anew for
every dataset and setting and encode the rows of every condition again. `make benchmark-generate`
measures the two side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from utils import cli
from utils.activations import load_rows, read_description
from utils.datasets import (
    choose_datasets,
    dataset_size,
    list_datasets,
    load_ood,
    readable,
    unlabelled_ood_files,
)
from utils.models import LanguageModel, get_model
from utils.names import Layer, hook_name, layer_order, sae_stem
from utils.paths import Paths
from utils.runtime.devices import available_memory, peak_memory, pick_device, return_freed_memory
from utils.runtime.errors import UserError
from utils.runtime.files import locked, require_disk, write_json
from utils.runtime.progress import progress
from utils.runtime.tasks import Tasks
from utils.runtime.units import show_bytes
from utils.runtime.workers import run_tasks
from utils.saes.catalog import choose_saes, open_sae
from utils.saes.encode import product_rate
from utils.saes.original_order import encode_dense, whole_sae, write_original_split
from utils.saes.plan import Job, make_plan
from utils.saes.run import EncodingRun
from utils.saes.store import SaeFiles, made_from, stored_checks
from utils.settings import NORMAL, SETTINGS, SHIFTED, conditions


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default=cli.EVERY)
    cli.add_datasets(parser)
    cli.add_saes(parser)
    parser.add_argument(
        "--sae_release", metavar="NAME", help="release in SAELens's registry (default: the model's)"
    )
    parser.add_argument(
        "--batch_mode",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each SAE once for all files; --no-batch_mode: the original order of work",
    )
    parser.add_argument(
        "--batch_size",
        type=cli.positive,
        default=128,
        metavar="ROWS",
        help="rows in a batch (a CPU product takes 8 batches)",
    )
    parser.add_argument(
        "--max_memory",
        type=cli.memory_size,
        help="memory for weights and rows (default: 60 %% of what is free)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    cli.add_device(parser)
    cli.add_scheduler(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)

    layers = choose_saes(paths, info, args.target_sae_id, args.sae_dir, args.layers)
    datasets = choose_datasets(paths, args.datasets)
    with_ood = choose_ood(paths, args.datasets, args.setting)
    stems = [sae_stem(sae_id) for sae_id in layers]
    with nullcontext() if args.dry_run else locked(paths.sae_activations_root(info.name), *stems):
        if not args.batch_mode:
            return run_original_order(paths, args, info, layers, datasets, with_ood)
        return generate(paths, args, info, layers, datasets, with_ood)


def generate(
    paths: Paths,
    args: argparse.Namespace,
    info: LanguageModel,
    layers: dict[str, Layer],
    datasets: list[str],
    with_ood: list[str],
) -> int:
    """Make the files that are missing; the exit status."""
    failures: list[str] = []
    datasets = readable(paths, datasets, failures)
    with_ood = readable(paths, with_ood, failures, ood=True)
    jobs, n_sets = find_jobs(
        paths,
        info.name,
        layers,
        datasets,
        with_ood,
        args.setting != SHIFTED.name,
        args.sae_dir,
        failures,
    )
    n_todo = sum(len(job.normal) + len(job.ood) for job in jobs)
    print(
        f"{info.name}: {len(layers)} SAEs, {n_sets} sets of files; {n_sets - n_todo} done, {n_todo}"
        " to do"
    )
    encoding = Encoding(
        args.device, args.max_memory, args.batch_size, args.sae_dir, args.sae_release, args.dry_run
    )
    # here the SAEs that fit into memory together share one reading; on a cluster each is a worker's
    # own
    by_sae = (
        [[job.of(sae_id) for job in jobs if sae_id in job.sae_ids] for sae_id in layers]
        if args.scheduler
        else [jobs]
    )
    tasks = [(paths, info, of_sae, encoding) for of_sae in by_sae if of_sae]
    for outcome in run_tasks(Tasks(encode, tasks), cli.workers_of(args, paths, 0), "SAEs"):
        failures += outcome.value or []
        if outcome.error is not None:
            if not args.scheduler:  # all SAEs were in this task
                raise UserError(outcome.error)
            failures.append(outcome.error)
    if not args.dry_run:
        write_checks(paths, info.name, list(layers))
    return cli.report_failures(failures, "files or SAEs")


@dataclass(frozen=True)
class Encoding:
    """The flags that say how to encode."""

    device: str
    max_memory: int | None
    batch_size: int
    sae_dir: Path | None
    sae_release: str | None
    dry_run: bool


def encode(paths: Paths, info: LanguageModel, jobs: list, how: Encoding) -> list[str]:
    """Plan, check memory and disk, encode; a line for each file or SAE that could not be done.

    Raises UserError when the jobs cannot be done in this memory or on this disk.
    """
    import torch

    return_freed_memory()
    failures: list[str] = []
    device = pick_device(how.device)
    free = available_memory(device)
    budget = how.max_memory or int(0.6 * free)
    if budget > free:
        raise UserError(
            f"--max_memory {show_bytes(budget)} is more than the {show_bytes(free)} that are free:"
            " give less"
        )
    encoders = open_encoders(paths, how, info, jobs, failures)
    works = make_plan(jobs, encoders, torch.device(device), budget, how.batch_size)
    rate = product_rate(info.d_model, torch.device(device))
    to_write = print_plan(works, encoders, device, budget, rate)
    if how.dry_run:
        return failures
    require_disk(paths.data_dir, to_write)

    runner = EncodingRun(paths, info, encoders, torch.device(device), how.batch_size, how.sae_dir)
    total = sum(work.n_rows * len(work.sae_ids) for work in works)
    with progress(total=total, desc="encoding", unit="row", unit_scale=True) as bar:
        for work in works:
            failures += runner.run(work, bar)
    # the ceiling before and after: other work on the machine can only lower a measurement
    ceiling = max(rate, product_rate(info.d_model, torch.device(device)))
    print_table(runner.tallies, encoders, ceiling, info.d_model)
    return failures


def choose_ood(paths: Paths, asked: list[str] | None, setting: str) -> list[str]:
    """Datasets whose OOD rows are wanted; says in one line what in the OOD folder is no dataset."""
    if setting not in (SHIFTED.name, cli.EVERY):
        return []
    for file in unlabelled_ood_files(paths):
        print(f"skipping {file.name}: it has no labels and is no dataset")
    try:
        return choose_datasets(paths, asked, ood=True)
    except UserError:
        if setting == SHIFTED.name:
            raise
        return []


def find_jobs(
    paths: Paths,
    model_name: str,
    layers: dict[str, Layer],
    datasets: list[str],
    with_ood: list[str],
    normal: bool,
    sae_dir: Path | None,
    failures: list[str],
) -> tuple[list, int]:
    """(jobs with something to do, number of sets of files in all); a line is added for each dataset
    that cannot be read.
    """

    def is_done(setting: str, name: str, sae_id: str) -> bool:
        files = SaeFiles(paths, model_name, setting, name, sae_id)
        # without a description they are unfinished; with one, its sources must still be what they
        # were
        made = made_from(paths, model_name, name, layers[sae_id], sae_id, setting, sae_dir)
        return bool(files.description()) and files.is_done(made)

    jobs = []
    for layer in sorted(set(layers.values()), key=layer_order):
        of_layer = [sae_id for sae_id in layers if layers[sae_id] == layer]
        for name in datasets:
            try:
                ours = [i for i in of_layer if normal and not is_done(NORMAL.name, name, i)]
                ood = [
                    i for i in of_layer if name in with_ood and not is_done(SHIFTED.name, name, i)
                ]
            except UserError as error:
                failures.append(str(error))
                continue
            if ours or ood:
                described = read_description(
                    paths.model_activations(model_name, name, hook_name(layer))
                )
                n_rows = described.get("n_rows") or dataset_size(paths, name)
                jobs.append(
                    Job(name, layer, ours, ood, n_rows, len(load_ood(paths, name)) if ood else 0)
                )
    return jobs, len(layers) * (normal * len(datasets) + len(with_ood))


def open_encoders(
    paths: Paths, how: Encoding, info: LanguageModel, jobs: list, failures: list[str]
) -> dict:
    """The encoders of the jobs' SAEs; an SAE that cannot be opened is a failure, and the others go
    on.
    """
    encoders = {}
    for sae_id in dict.fromkeys(i for job in jobs for i in job.sae_ids):
        try:
            encoder = open_sae(paths, info.name, sae_id, how.sae_dir, how.sae_release)
            if encoder.d_model != info.d_model:
                raise UserError(
                    f"{sae_id} reads activations of width {encoder.d_model}; those of {info.name}"
                    f" have {info.d_model}"
                )
            encoders[sae_id] = encoder
        except UserError as error:
            failures.append(str(error))
    return encoders


def print_plan(works: list, encoders: dict, device: str, budget: int, rate: float) -> int:
    """Print what will be read, encoded and written; the bytes that will be written, estimated."""
    print(
        f"plan: device {device} ({rate / 1e9:.0f} GFLOP/s), {show_bytes(budget)} for weights and"
        " rows"
    )
    order = {
        "resident": "weights stay in memory",
        "rows": "weights streamed past rows in memory",
        "blocks": "rows streamed past blocks of weights",
    }
    seconds = to_write = to_read = 0.0
    for work in works:
        flops = sum(
            2.0 * work.n_rows * encoders[i].d_model * encoders[i].d_sae for i in work.sae_ids
        )
        seconds += flops / rate
        to_write += work.bytes_to_write
        to_read += work.bytes_to_read
        names = ", ".join(work.sae_ids)
        print(
            f"  layer {work.jobs[0].layer}: {names}: {len(work.jobs)} datasets, {work.n_rows} rows,"
            f" {order[work.order]}, reads {show_bytes(work.bytes_to_read)}"
        )
    print(
        f"  in all: reads {show_bytes(to_read)}, writes about {show_bytes(to_write)},"
        f" {seconds / 60:.1f} min of products"
    )
    return int(to_write)


def print_table(tallies: dict, encoders: dict, rate: float, d_model: int) -> None:
    """The closing table; warns of a measured L0 far from the one an SAE's id names."""
    if not tallies:
        return
    print(
        f"\n{'SAE':44} {'rows':>8} {'mean L0':>8} {'named L0':>9} {'never fired':>12}"
        f" {'seconds':>8} {'of ceiling':>10}"
    )
    for sae_id, tally in tallies.items():
        encoder = encoders[sae_id]
        mean_l0, named = tally.nonzeros / max(tally.rows, 1), encoder.named_l0
        never_fired = (
            encoder.d_sae - int(tally.fired.sum()) if tally.fired is not None else encoder.d_sae
        )
        share = 2.0 * tally.rows * d_model * encoder.d_sae / max(tally.seconds, 1e-9) / rate
        print(
            f"{sae_id:44} {tally.rows:8d} {mean_l0:8.1f} {named or '–':>9} {never_fired:12d}"
            f" {tally.seconds:8.1f} {share:10.0%}"
        )
        if named and not named / 3 <= mean_l0 <= 3 * named:
            print(
                f"warning: {sae_id}: a row has {mean_l0:.0f} active latents, its id says {named}:"
                " is it the right layer, hook and scaling?"
            )
    print(f"peak memory {show_bytes(peak_memory())}")


def write_checks(paths: Paths, model_name: str, sae_ids: list[str]) -> None:
    """Put the shape and the L0 of these SAEs, over all their files, into the file of all SAEs; a
    broken one is begun anew.
    """
    names = list_datasets(paths)
    found = {sae_id: stored_checks(paths, model_name, sae_id, names) for sae_id in sae_ids}
    path = paths.sae_checks(model_name)
    with locked(path.parent, path.name, wait=60):  # a run on another SAE may add to it just now
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        after = {**before, **{sae_id: checks for sae_id, checks in found.items() if checks}}
        if after != before:
            write_json(path, after)
            print(f"measured L0 in {path}")


def run_original_order(
    paths: Paths,
    args: argparse.Namespace,
    info: LanguageModel,
    layers: dict[str, Layer],
    datasets: list[str],
    with_ood: list[str],
) -> int:
    """The yardstick: for each dataset and setting load the whole SAE and encode each condition
    anew.
    """
    import torch

    device = torch.device(pick_device(args.device))
    wanted = [setting for setting in SETTINGS.values() if setting.name in cli.settings_asked(args)]
    if (
        args.setting == cli.EVERY
    ):  # those that have files of their own: label noise reads those of normal
        wanted = [setting for setting in wanted if setting.exports or not setting.values]
    failures: list[str] = []
    tallies: dict[str, float] = defaultdict(float)
    pieces = [
        (i, s, d) for i in layers for s in wanted for d in (with_ood if s.shifted else datasets)
    ]
    for sae_id, setting, name in progress(pieces, desc="original order", unit="dataset"):
        started = time.monotonic()
        try:
            sae = whole_sae(
                open_sae(paths, info.name, sae_id, args.sae_dir, args.sae_release), device
            )
            hook = hook_name(layers[sae_id])
            activations = load_rows(paths, info.name, name, hook, setting.shifted, info.d_model)
            for condition in conditions(setting.name, len(activations.labels)):
                rows = encode_dense(sae, activations.condition(condition), args.batch_size)
                write_original_split(paths, info.name, name, sae_id, condition, rows)
        except UserError as error:
            failures.append(str(error))
        tallies[sae_id] += time.monotonic() - started
    for sae_id, seconds in tallies.items():
        print(f"{sae_id}: {seconds:.1f} s in the original order")
    return cli.report_failures(failures, "datasets")


if __name__ == "__main__":
    cli.run(main)
