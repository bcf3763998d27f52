"""Model activations to baseline probes: logistic regression, PCA, k nearest neighbours, XGBoost and
an MLP.

    python train_baselines.py --model_name gemma-2-9b --setting normal
    python train_baselines.py --model_name all-MiniLM-L6-v2 --setting scarcity \
        --conditions 10 53 198

Appends to results/baseline_probes_{model}/{folder of the setting}/… as probes are done, and does
only what is lacking there. The normal setting is done at every layer of the model, the others at
its probe layer. Needs the files of generate_model_activations.py. Trains no SAE probes: that is
train_sae_probes.py.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from itertools import product

from utils import cli
from utils.activations import ModelRows, load_rows
from utils.datasets import choose_datasets, dataset_size, readable
from utils.models import get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.baselines import METHODS, Baseline, methods_of
from utils.results.tables import ResultTable, baseline_table, seconds_table
from utils.runtime.errors import UserError
from utils.runtime.files import locked
from utils.runtime.provenance import save_run_settings
from utils.runtime.tasks import Tasks
from utils.runtime.workers import run_tasks
from utils.settings import Condition, choose_conditions, conditions, get_setting


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser)
    cli.add_datasets(parser)
    parser.add_argument(
        "--method",
        nargs="+",
        type=cli.one_of(tuple(METHODS)),
        metavar="NAME",
        help=f"which baselines, of {', '.join(METHODS)} (default: the setting's)",
    )
    parser.add_argument(
        "--layers",
        "--layer",
        dest="layers",
        nargs="+",
        type=cli.layer,
        metavar="N",
        help="blocks, embed or hooks (default: the setting's)",
    )
    cli.add_seeds(parser)
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.over_settings(train, make_parser().parse_args(argv))


def train(args: argparse.Namespace) -> int:
    """Make the baselines of one setting; the exit status."""
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    setting = args.setting
    layers = args.layers or info.layers_of(get_setting(setting))
    asked = [method for part in args.method or () for method in part]
    methods = asked or methods_of(setting)
    column = get_setting(setting).baseline_column
    tables: dict[Layer, ResultTable] = {
        layer: baseline_table(
            paths.baseline_table(info.name, setting, layer),
            column,
            layer if get_setting(setting).all_layers else info.probe_layer,
        )
        for layer in layers
    }
    written = {table.path.name for table in tables.values()}
    with locked(next(iter(tables.values())).path.parent, *written):
        return probe_all(paths, args, info.name, tables, methods)


def probe_all(
    paths: Paths,
    args: argparse.Namespace,
    model_name: str,
    tables: dict[Layer, ResultTable],
    methods: Sequence[str],
) -> int:
    """Make the probes that the tables lack; the exit status."""
    setting = args.setting
    failures: list[str] = []
    datasets = readable(
        paths,
        choose_datasets(paths, args.datasets, ood=get_setting(setting).shifted),
        failures,
        ood=get_setting(setting).shifted,
    )

    tasks: list[tuple] = []
    n_expected = n_todo = 0
    for layer in tables:
        done = tables[layer].done()
        for dataset in datasets:
            chosen = choose_conditions(setting, dataset_size(paths, dataset), args.conditions)
            wanted: dict[tuple[int, Condition], list[Baseline]] = {}
            for seed, condition, method in product(cli.seeds_of(args), chosen, methods):
                key = tables[layer].key_of(row_of(dataset, layer, condition, method, seed))
                n_expected += 1
                if key in done and not args.overwrite:
                    continue
                wanted.setdefault((seed, condition), []).append(METHODS[method])
            if wanted:
                n_todo += sum(map(len, wanted.values()))
                tasks.append((paths, model_name, dataset, layer, wanted))
    print(
        f"baselines, {model_name}, {setting}: {n_expected} probes; {n_expected - n_todo} done,"
        f" {n_todo} to do"
    )
    if not tasks:
        return cli.report_failures(failures, "datasets")
    if args.randomize_order:
        random.Random(args.seed).shuffle(tasks)
    return run(paths, tables, tasks, args, failures)


def run(
    paths: Paths,
    tables: dict[Layer, ResultTable],
    tasks: list[tuple],
    args: argparse.Namespace,
    failures: list[str],
) -> int:
    started = time.monotonic()
    n_rows = 0
    workers = cli.workers_of(args, paths, args.n_jobs)
    job = Tasks(probe_dataset, tasks, prepare=load_task)
    for outcome in run_tasks(job, workers, f"baselines, {args.setting}"):
        _, _, dataset, layer, _ = tasks[outcome.index]
        rows = outcome.value or []
        if outcome.error is not None:
            failures.append(f"{dataset} at layer {layer}: {outcome.error}")
        for written in (tables[layer], seconds_table(tables[layer])):
            written.append(rows, replacing=args.overwrite)
        n_rows += len(rows)
    for table in tables.values():
        table.finish()
    folder = next(iter(tables.values())).path.parent
    save_run_settings(folder / "settings.json", cli.settings_of(args))
    print(f"{n_rows} probes in {time.monotonic() - started:.0f} s: {folder}")
    return cli.report_failures(failures, "datasets")


def row_of(dataset: str, layer: Layer, condition: Condition, method: str, seed: int) -> dict:
    """The columns of a row that say what it is."""
    row = {"dataset": dataset, "method": method, "layer": layer, "seed": seed}
    column = get_setting(condition.setting).baseline_column
    return {**row, column: condition.label} if column else row


def load_task(paths: Paths, model_name: str, dataset: str, layer: Layer, wanted: dict) -> tuple:
    """A task's arrays, read here because the workers, which run XGBoost, must not load torch."""
    ood = any(get_setting(condition.setting).shifted for _, condition in wanted)
    rows = load_rows(
        paths, model_name, dataset, hook_name(layer), ood, get_model(model_name, paths).d_model
    )
    return rows, dataset, layer, wanted


def probe_dataset(
    activations: ModelRows,
    dataset: str,
    layer: Layer,
    wanted: dict[tuple[int, Condition], list[Baseline]],
) -> list[dict]:
    """All wanted probes of one dataset and layer."""
    n_rows, rows = len(activations.labels), []
    for (seed, condition), baselines in wanted.items():
        if condition not in conditions(condition.setting, n_rows):
            continue  # fewer rows have activations than have texts
        train_test = activations.condition(condition, seed)
        n_train, n_test = len(train_test.y_train), len(train_test.y_test)
        for baseline in baselines:
            started = time.perf_counter()
            scores = baseline(train_test, seed)
            seconds = round(time.perf_counter() - started, 4)
            sizes = {"num_train": n_train, "n_train": n_train, "n_test": n_test}
            rows.append(
                {
                    **row_of(dataset, layer, condition, baseline.name, seed),
                    **sizes,
                    **scores,
                    "seconds": seconds,
                }
            )
    if not rows:
        raise UserError(f"only {n_rows} rows have activations: too few for what was asked")
    return rows


if __name__ == "__main__":
    cli.run(main)
