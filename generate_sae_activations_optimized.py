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
Each SAE is followed by its twins, which show what a probe owes to training: random directions with
the SAE's mean L0, and random directions with its biases and thresholds (--controls none: no twins).
Finished files stay; an interrupted run continues. Trains no probes: that is train_sae_probes.py.

"Optimized" is over the original order of work, which --no-batch_mode keeps: load the SAE anew for
every dataset and setting and encode the rows of every condition again. `make benchmark-generate`
measures the two side by side.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product

from utils import cli
from utils.activations import load_rows, read_description
from utils.datasets import (
    choose_datasets,
    dataset_facts,
    dataset_size,
    list_datasets,
    readable,
    unlabelled_ood_files,
)
from utils.models import LanguageModel, get_model
from utils.names import RANDOM, TWINS, Layer, hook_name, layer_order, sae_stem, split_twin
from utils.paths import Paths
from utils.runtime.devices import available_memory, peak_memory, pick_device, return_freed_memory
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import Place, locked, require_disk, write_json
from utils.runtime.progress import progress
from utils.runtime.tasks import Tasks
from utils.runtime.units import show_bytes
from utils.runtime.workers import Workers, run_tasks
from utils.saes.catalog import SaeChoice, choose_saes, open_sae, release_used
from utils.saes.encode import product_rate
from utils.saes.encoder import Encoder, require_width
from utils.saes.original_order import encode_dense, whole_sae, write_original_split
from utils.saes.plan import Job, Work, make_plan
from utils.saes.run import Encoding, EncodingRun, Tally
from utils.saes.store import Look, SaeFiles, made_from, stored_checks
from utils.saes.twins import NoTwin, with_twins
from utils.settings import NORMAL, SHIFTED, conditions, get_setting


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default=cli.EVERY)
    cli.add_datasets(parser)
    cli.add_saes(parser)
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
    parser.add_argument(
        "--randomize_order", action="store_true", help="work through the datasets in random order"
    )
    cli.add_controls(parser, TWINS, "twins of each SAE that are encoded too")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    cli.add_device(parser)
    cli.add_scheduler(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)

    failures = Failures()
    choice = SaeChoice(args.target_sae_id, args.layers, args.hook_name, args.sae_release)
    layers = choose_saes(paths, info, choice, failures)
    if args.batch_mode:  # the original order knows no twins
        layers = with_twins(layers, cli.controls_of(args))
    datasets = [] if args.setting == SHIFTED.name else choose_datasets(paths, args.datasets)
    if args.randomize_order:
        random.shuffle(datasets)
    with_ood = choose_ood(paths, args.datasets, args.setting)
    wanted = Wanted(
        info,
        layers,
        readable(paths, datasets, failures),
        readable(paths, with_ood, failures, ood=True),
    )
    encoding = Encoding(
        args.device, args.batch_size, args.max_memory, args.sae_release, args.dry_run
    )
    stems = [sae_stem(sae_id) for sae_id in layers]
    root = paths.sae_activations_root(info.name)
    with nullcontext(Place()) if args.dry_run else locked(root, *stems, lazily=True) as place:
        if args.batch_mode:
            generate(paths, wanted, encoding, cli.workers_of(args, paths, 0), failures, place)
        else:
            place.require()
            run_original_order(paths, wanted, encoding, cli.settings_asked(args), failures)
    return cli.report(failures, "files or SAEs")


@dataclass(frozen=True)
class Wanted:
    """The sets of files that a run completes.

    ``layers``: {sae_id: what it reads}; ``datasets``: encoded for the normal setting and those that
    draw from it; ``with_ood``: for the OOD setting.
    """

    info: LanguageModel
    layers: dict[str, Layer]
    datasets: list[str]
    with_ood: list[str]

    def __len__(self) -> int:
        return len(self.layers) * (len(self.datasets) + len(self.with_ood))


def generate(
    paths: Paths,
    wanted: Wanted,
    encoding: Encoding,
    workers: Workers,
    failures: Failures,
    place: Place,
) -> None:
    """Make the files that are missing."""
    info, layers = wanted.info, wanted.layers
    jobs = find_jobs(paths, wanted, encoding.sae_release, failures)
    n_todo = sum(len(job.normal) + len(job.ood) for job in jobs)
    print(
        f"{info.name}: {len(layers)} SAEs, {len(wanted)} sets of files; {len(wanted) - n_todo}"
        f" done, {n_todo} to do"
    )
    # here the SAEs that fit into memory together share one reading; on a cluster each is a worker's
    # own
    by_sae = (
        [[job.of(ids) for job in jobs if ids & set(job.sae_ids)] for ids in families(layers)]
        if workers.scheduler
        else [jobs]
    )
    tasks = [(paths, info, of_sae, encoding) for of_sae in by_sae if of_sae]
    if tasks:
        place.require()
    for outcome in run_tasks(Tasks(encode, tasks), workers, "SAEs"):
        for line in outcome.value or []:
            failures.add(line)
        if outcome.error is not None:
            if not workers.scheduler:  # all SAEs were in this task
                raise UserError(outcome.error)
            failures.add(outcome.error)
    if not encoding.dry_run:
        write_checks(paths, info.name, list(layers))


def families(sae_ids: Iterable[str]) -> list[set[str]]:
    """Each SAE with its twins, whose cuts need what it has active."""
    by_trained = defaultdict(set)
    for sae_id in sae_ids:
        by_trained[split_twin(sae_id)[0]].add(sae_id)
    return list(by_trained.values())


def encode(paths: Paths, info: LanguageModel, jobs: list[Job], encoding: Encoding) -> list[str]:
    """Plan, check memory and disk, encode; a line for each file or SAE that could not be done.

    Raises UserError when the jobs cannot be done in this memory or on this disk.
    """
    import torch

    return_freed_memory()
    failures = Failures()
    encoding = replace(encoding, device=pick_device(encoding.device))
    device = torch.device(encoding.device)
    free = available_memory(encoding.device)
    budget = encoding.max_memory or int(0.6 * free)
    if budget > free:
        raise UserError(
            f"--max_memory {show_bytes(budget)} is more than the {show_bytes(free)} that are free:"
            " give less"
        )
    encoders = open_encoders(paths, encoding, info, jobs, failures)
    works = make_plan(jobs, encoders, device, budget, encoding.batch_size)
    to_write = print_plan(works, encoders, encoding.device, budget)
    if encoding.dry_run:
        print_products(works, encoders, product_rate(info.d_model, device))
        return failures.lines
    require_disk(paths.data_dir, to_write)

    total = sum(work.n_rows * len(work.sae_ids) for work in works)
    with (
        EncodingRun(paths, info, encoders, encoding) as runner,
        progress(total=total, desc="encoding", unit="row", unit_scale=True) as bar,
    ):
        for work in works:
            for line in runner.run(work, bar):
                failures.add(line)
    print_table(runner.tallies, encoders)
    return failures.lines


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


def find_jobs(paths: Paths, wanted: Wanted, release: str | None, failures: Failures) -> list[Job]:
    """The jobs with something to do; a dataset that cannot be read is a failure."""
    info, layers = wanted.info, wanted.layers
    look = Look(paths, info.name)
    releases = {sae_id: release_used(paths, info, sae_id, release) for sae_id in layers}

    def is_done(setting: str, dataset: str, sae_id: str) -> bool:
        files = SaeFiles(paths, info.name, setting, dataset, sae_id)
        # without a description they are unfinished; with one, its sources must still be what they
        # were
        return bool(files.description()) and files.is_done(
            made_from(files, hook_name(layers[sae_id]), releases[sae_id], look)
        )

    jobs = []
    names = list(dict.fromkeys([*wanted.datasets, *wanted.with_ood]))
    for layer, name in product(sorted(set(layers.values()), key=layer_order), names):
        of_layer = [sae_id for sae_id in layers if layers[sae_id] == layer]
        with failures.caught():
            todo = {
                setting: [i for i in of_layer if name in asked and not is_done(setting, name, i)]
                for setting, asked in (
                    (NORMAL.name, wanted.datasets),
                    (SHIFTED.name, wanted.with_ood),
                )
            }
            if not any(todo.values()):
                continue
            path = paths.model_activations(info.name, name, hook_name(layer))
            normal, ood = todo.values()
            # a random twin has as many active latents as its SAE in the normal setting
            for twin in [i for i in (*normal, *ood) if split_twin(i)[1] == RANDOM]:
                trained = split_twin(twin)[0]
                if trained not in (*normal, *ood) and not is_done(NORMAL.name, name, trained):
                    normal.insert(0, trained)
            n_rows = read_description(path).get("n_rows") or dataset_size(paths, name)
            n_ood_rows = dataset_facts(paths, name, ood=True).n_rows if ood else 0
            jobs.append(Job(name, layer, normal, ood, n_rows, n_ood_rows))
    return jobs


def open_encoders(
    paths: Paths, encoding: Encoding, info: LanguageModel, jobs: list[Job], failures: Failures
) -> dict[str, Encoder]:
    """The encoders of the jobs' SAEs; an SAE that cannot be opened is a failure, and the others go
    on.
    """
    encoders = {}
    first_jobs: dict[str, Job] = {}
    for job in jobs:
        for sae_id in job.sae_ids:
            first_jobs.setdefault(sae_id, job)
    for sae_id, job in first_jobs.items():
        with failures.caught():
            try:
                encoder = open_sae(paths, info.name, sae_id, encoding.sae_release)
            except NoTwin as reason:
                print(f"left out: {reason}")
                continue
            path = paths.model_activations(info.name, job.dataset, hook_name(job.layer))
            width = info.width_at(job.layer) or read_description(path).get("width")
            require_width(encoder, width, info.name)
            encoders[sae_id] = encoder
    return encoders


def print_plan(works: list[Work], encoders: dict[str, Encoder], device: str, budget: int) -> int:
    """Print what will be read, encoded and written; the bytes that will be written, estimated."""
    print(f"plan: device {device}, {show_bytes(budget)} for weights and rows")
    order = {
        "resident": "weights stay in memory",
        "rows": "weights streamed past rows in memory",
        "blocks": "rows streamed past blocks of weights",
    }
    to_write = to_read = 0.0
    for work in works:
        to_write += work.bytes_to_write
        to_read += work.bytes_to_read
        names = f"  layer {work.jobs[0].layer}: {', '.join(work.sae_ids)}"
        wrapped = cli.folded(names, "    ")
        print(wrapped)
        print(
            f"    {len(work.jobs)} datasets, {work.n_rows} rows, {order[work.order]}, reads"
            f" {show_bytes(work.bytes_to_read)}"
        )
    print(
        f"  in all: reads {show_bytes(to_read)}, writes about {show_bytes(to_write)},"
        f" {products(works, encoders):.1e} float operations"
    )
    return int(to_write)


def products(works: list[Work], encoders: dict[str, Encoder]) -> float:
    """Float operations of the products that the works need."""
    return sum(
        2.0 * work.n_rows * encoders[i].d_model * encoders[i].d_sae
        for work in works
        for i in work.sae_ids
    )


def print_products(works: list[Work], encoders: dict[str, Encoder], rate: float) -> None:
    """How long the products take at a rate that was measured just now."""
    minutes = products(works, encoders) / rate / 60
    print(f"  {minutes:.1f} min of products at this machine's {rate / 1e9:.0f} GFLOP/s")


def print_table(tallies: dict[str, Tally], encoders: dict[str, Encoder]) -> None:
    """The closing table; warns of a measured L0 far from the one an SAE's id names."""
    if not tallies:
        return
    print(f"\n{'SAE':42} {'rows':>7} {'mean L0':>7} {'named':>5} {'dead':>7} {'s':>6}")
    for sae_id, tally in tallies.items():
        encoder = encoders[sae_id]
        mean_l0, named = tally.nonzeros / max(tally.rows, 1), encoder.named_l0
        never_fired = (
            encoder.d_sae - int(tally.fired.sum()) if tally.fired is not None else encoder.d_sae
        )
        print(
            f"{sae_id:42} {tally.rows:7d} {mean_l0:7.1f} {named or '–':>5} {never_fired:7d}"
            f" {tally.seconds:6.1f}"
        )
        if named and not split_twin(sae_id)[1] and not named / 3 <= mean_l0 <= 3 * named:
            print(
                f"warning: {sae_id}: a row has {mean_l0:.0f} active latents, its id says {named}:"
                " is it the right layer, hook and scaling?"
            )
    print("named: the L0 that an id says; dead: latents that never fired on these rows")
    print(f"peak memory {show_bytes(peak_memory())}")


def write_checks(paths: Paths, model_name: str, sae_ids: list[str]) -> None:
    """Put the shape and the L0 of these SAEs, over all their files, into the file of all SAEs; a
    broken one is begun anew.
    """
    names = list_datasets(paths)
    measured = {sae_id: stored_checks(paths, model_name, sae_id, names) for sae_id in sae_ids}
    path = paths.sae_checks(model_name)
    # a run on another SAE may add to it just now
    with locked(path.parent, path.name, wait=60, lazily=True) as place:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        after = {**before, **{sae_id: checks for sae_id, checks in measured.items() if checks}}
        if after != before:
            place.require()
            write_json(path, after)
            cli.say(f"measured L0 in {cli.shown_path(path)}")


def run_original_order(
    paths: Paths, wanted: Wanted, encoding: Encoding, settings: tuple[str, ...], failures: Failures
) -> None:
    """The yardstick: for each dataset and setting load the SAE, encode each condition anew."""
    import torch

    info = wanted.info
    device = torch.device(pick_device(encoding.device))
    asked = [get_setting(name) for name in settings]
    if len(asked) > 1:  # those that have files of their own: label noise reads those of normal
        asked = [setting for setting in asked if setting.exports or not setting.values]
    pieces = [
        (sae_id, setting, dataset)
        for sae_id, setting in product(wanted.layers, asked)
        for dataset in (wanted.with_ood if setting.shifted else wanted.datasets)
    ]
    seconds: dict[str, float] = defaultdict(float)
    for sae_id, setting, name in progress(pieces, desc="original order", unit="dataset"):
        started = time.monotonic()
        with failures.caught():
            encoder = open_sae(paths, info.name, sae_id, encoding.sae_release)
            sae = whole_sae(encoder, device)
            hook = hook_name(wanted.layers[sae_id])
            activations = load_rows(paths, info.name, name, hook, setting.shifted, encoder.d_model)
            for condition in conditions(setting.name, len(activations.labels)):
                rows = encode_dense(sae, activations.condition(condition), encoding.batch_size)
                write_original_split(paths, info.name, name, sae_id, condition, rows)
        seconds[sae_id] += time.monotonic() - started
    for sae_id, spent in seconds.items():
        print(f"{sae_id}: {spent:.1f} s in the original order")


if __name__ == "__main__":
    cli.run(main)
