"""SAE activations to SAE probes: logistic regression on the k most telling latents, in each of the
five settings.

    python train_sae_probes.py --model_name gemma-2-9b --setting normal
    python train_sae_probes.py --model_name all-MiniLM-L6-v2 --setting scarcity \
        --conditions 10 53 198 --ks 16 128

Appends to results/sae_probes_{model}/{setting}_setting/all_metrics.csv as probes are done, and does
only what that table lacks. Needs the files of generate_sae_activations_optimized.py; what is
missing is listed at the end. `--controls raw_dims pca_dims` adds the same probe on raw dimensions
and on principal components of the model activations, at the SAEs' layers. Trains no baselines: that
is train_baselines.py.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import asdict
from itertools import product

from utils import cli
from utils.datasets import choose_datasets, dataset_size, load_dataset, load_ood, readable
from utils.models import LanguageModel, get_model
from utils.names import Layer, layer_order
from utils.paths import Paths
from utils.probes.controls import CONTROLS, ControlActivations, control_id
from utils.probes.k_sparse import (
    PROTOCOLS,
    REG_TYPES,
    SELECTIONS,
    SOLVERS,
    ProbeOptions,
    fit_sae_probes,
)
from utils.results import saebench
from utils.results.tables import ResultTable, sae_probe_table, seconds_table
from utils.results.tidy import load_results
from utils.runtime.errors import UserError
from utils.runtime.provenance import save_run_settings
from utils.runtime.tasks import Tasks
from utils.runtime.workers import run_tasks
from utils.saes.catalog import choose_saes, is_control
from utils.saes.store import SaeActivations
from utils.settings import (
    NORMAL,
    Condition,
    ConditionRows,
    choose_conditions,
    conditions,
    get_setting,
)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser)
    cli.add_datasets(parser)
    cli.add_saes(parser)
    parser.add_argument("--reg_type", choices=REG_TYPES, default="l1", help="penalty of the probe")
    parser.add_argument(
        "--binarize", action="store_true", help="probe on (latent > 1) instead of the latent"
    )
    parser.add_argument(
        "--ks",
        nargs="+",
        type=cli.positive,
        metavar="K",
        help="numbers of latents (default: 1 2 4 … 512, or 16 128); beyond d_sae: all",
    )
    parser.add_argument(
        "--solver",
        choices=SOLVERS,
        default="path",
        help="path reaches the optimum; saga is the paper's",
    )
    parser.add_argument(
        "--latent_selection",
        choices=SELECTIONS,
        default="mean_diff_normalized",
        help="how latents are ranked",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="paper",
        help="rank latents on all training rows, or inside each fold (nested)",
    )
    parser.add_argument(
        "--controls",
        nargs="+",
        choices=CONTROLS,
        default=[],
        help="probe these too, chosen as latents are, from model activations",
    )
    parser.add_argument(
        "--export_saebench",
        action="store_true",
        help="normal setting: probe k = 1, 2, 5 too, and write results/saebench/*.json",
    )
    cli.add_seeds(parser)
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if args.export_saebench and args.setting != NORMAL.name:
        raise UserError(
            "--export_saebench is for --setting normal, which is what SAEBench evaluates"
        )
    return cli.over_settings(train, args)


def train(args: argparse.Namespace) -> int:
    """Make the SAE probes of one setting; the exit status."""
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)

    setting = args.setting
    ks = tuple(args.ks or get_setting(setting).ks)
    ks = tuple(sorted({*ks, *(saebench.KS if args.export_saebench else ())}))
    options = [
        ProbeOptions(
            args.reg_type, args.binarize, args.solver, args.latent_selection, args.protocol, seed
        )
        for seed in cli.seeds_of(args)
    ]
    table = sae_probe_table(
        paths.sae_probe_table(info.name, setting), get_setting(setting).sae_column
    )
    layers = choose_saes(paths, info, args.target_sae_id, args.sae_dir, args.layers)
    with table.locked():
        status = probe_all(paths, args, info, layers, table, options, ks)
    if args.export_saebench:
        tidy, _ = load_results(paths, info.name, (NORMAL.name,))
        for path in saebench.export_saebench(tidy, paths, info.name, list(layers), options[0]):
            print(f"SAEBench  {path}")
    return status


def probe_all(
    paths: Paths,
    args: argparse.Namespace,
    info: LanguageModel,
    layers: dict[str, Layer],
    table: ResultTable,
    options: list[ProbeOptions],
    ks: tuple[int, ...],
) -> int:
    """Make the probes that the table lacks; the exit status."""
    setting = args.setting
    failures: list[str] = []
    datasets = readable(
        paths,
        choose_datasets(paths, args.datasets, ood=get_setting(setting).shifted),
        failures,
        ood=get_setting(setting).shifted,
    )
    sae_dir = args.sae_dir or paths.saes(info.name)
    # an SAE with random weights is a control too, and a method of its own
    probed = [
        (i, layer, "random_sae_probe" if is_control(sae_dir / i) else "sae_probe")
        for i, layer in layers.items()
    ]
    read = sorted(set(layers.values()), key=layer_order)
    probed += [
        (control_id(control, layer), layer, control)
        for layer, control in product(read, args.controls)
    ]

    tasks = []
    n_expected = 0
    done = table.done()
    for dataset in datasets:
        chosen = choose_conditions(setting, dataset_size(paths, dataset), args.conditions)
        for sae_id, layer, method in probed:
            base = {"dataset": dataset, "sae_id": sae_id, "layer": layer, "method": method}
            wanted = {}
            for option, condition in product(options, chosen):
                keys = {k: table.key_of(published_row(base, condition, k, option)) for k in ks}
                n_expected += len(keys)
                needed = [k for k in ks if args.overwrite or keys[k] not in done]
                if needed:
                    wanted[option, condition] = needed
            if wanted:
                tasks.append((paths, info.name, base, wanted))
    n_todo = sum(len(needed) for task in tasks for needed in task[3].values())
    print(
        f"SAE probes, {info.name}, {setting}: {n_expected} probes; {n_expected - n_todo} done,"
        f" {n_todo} to do"
    )
    if args.randomize_order:
        random.Random(args.seed).shuffle(tasks)
    return (
        run(paths, table, tasks, args, failures)
        if tasks
        else cli.report_failures(failures, "datasets")
    )


def run(
    paths: Paths,
    table: ResultTable,
    tasks: list[tuple],
    args: argparse.Namespace,
    failures: list[str],
) -> int:
    started = time.monotonic()
    seconds = seconds_table(table)
    workers = cli.workers_of(args, paths, args.n_jobs)
    n_rows = n_unconverged = 0
    for outcome in run_tasks(Tasks(probe_dataset, tasks), workers, f"SAE probes, {args.setting}"):
        base, rows = tasks[outcome.index][2], outcome.value or []
        if outcome.error is not None:
            failures.append(f"{base['dataset']} with {base['sae_id']}: {outcome.error}")
        for written in (table, seconds):
            written.append(rows, replacing=args.overwrite)
        n_rows += len(rows)
        n_unconverged += sum(not row["converged"] for row in rows)
    table.finish()
    save_run_settings(table.path.with_name("settings.json"), cli.settings_of(args))
    print(
        f"{n_rows} probes in {time.monotonic() - started:.0f} s, {n_unconverged} of them not"
        f" converged: {table.path}"
    )
    return cli.report_failures(failures, "datasets and SAEs")


def published_row(base: dict, condition: Condition, k: int, options: ProbeOptions) -> dict:
    """The columns of a row that say what it is."""
    row = {**base, **asdict(options), "k": k}
    column = get_setting(condition.setting).sae_column
    return {**row, column: condition.label} if column else row


def probe_dataset(
    paths: Paths,
    model_name: str,
    base: dict,
    wanted: dict[tuple[ProbeOptions, Condition], list[int]],
) -> list[dict]:
    """All wanted probes of one dataset and SAE; its files are read once."""
    name, sae_id = base["dataset"], base["sae_id"]
    ood = any(get_setting(condition.setting).shifted for _, condition in wanted)
    activations: ConditionRows
    if base["method"] in CONTROLS:
        activations = ControlActivations(
            paths, model_name, name, base["method"], base["layer"], ood
        )
    else:
        remedy = f"`make generate-sae-acts-optimized MODEL={model_name}` makes it"
        ood_labels = load_ood(paths, name).labels if ood else None
        activations = SaeActivations(
            paths, model_name, name, sae_id, load_dataset(paths, name).labels, ood_labels, remedy
        )
    rows = []
    for (options, condition), ks in wanted.items():
        if condition not in conditions(condition.setting, len(activations.labels)):
            continue  # fewer rows have activations than have texts
        for result in fit_sae_probes(activations.condition(condition, options.seed), ks, options):
            rows.append({**published_row(base, condition, result["k"], options), **result})
    if not rows:
        raise UserError(
            f"only {len(activations.labels)} rows have activations: too few for what was asked"
        )
    return rows


if __name__ == "__main__":
    cli.run(main)
