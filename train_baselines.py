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
from collections import defaultdict
from dataclasses import replace
from itertools import product

from utils import cli
from utils.activations import ModelRows, load_rows
from utils.datasets import choose_datasets, dataset_size, readable
from utils.models import get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.baselines import METHODS, Baseline, Machine, methods_of, trees_on
from utils.probes.k_sparse import PROTOCOLS
from utils.results.sources import Sources
from utils.results.sweep import Sweep, SweepOptions, Task
from utils.results.tables import baseline_table, lock_tables
from utils.runtime.devices import pick_device
from utils.runtime.errors import Failures, UserError
from utils.settings import Condition, choose_conditions, conditions, get_setting

# {(seed, condition): the baselines, each with its protocols}
Wanted = dict[tuple[int, Condition], list[tuple[Baseline, list[str]]]]


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
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        default=[PROTOCOLS[0]],
        help="val_auc of the best setting tried, or of the whole procedure on outer folds (nested)",
    )
    parser.add_argument(
        "--device",
        type=cli.device_name,
        default="cpu",
        help="where XGBoost grows its trees: cpu, cuda, cuda:N, or auto",
    )
    cli.add_seeds(parser)
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.over_settings(train, make_parser().parse_args(argv), "datasets")


def train(args: argparse.Namespace, failures: Failures) -> None:
    """Make the baselines of one setting that its tables lack."""
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    setting = get_setting(args.setting)
    tables = {
        layer: baseline_table(
            paths.baseline_table(info.name, setting.name, layer),
            setting.baseline_column,
            layer if setting.all_layers else info.probe_layer,
        )
        for layer in args.layers or info.layers_of(setting)
    }
    asked = [method for part in args.method or () for method in part]
    methods = asked or methods_of(setting.name)
    names = choose_datasets(paths, args.datasets, ood=setting.shifted)
    datasets = readable(paths, names, failures, ood=setting.shifted)
    seeds = cli.seeds_of(args)
    device = trees_on(args.device, pick_device(args.device) if args.device != "cpu" else "cpu")
    with lock_tables(tables.values()) as place:
        title = f"baselines, {info.name}, {setting.name}"
        made_now = Sources(paths, info.name)
        sweep = Sweep(title, tables.values(), SweepOptions.of(args, paths, args.n_jobs))
        todo: list[Task] = []
        for layer, dataset in product(tables, datasets):
            chosen = choose_conditions(setting.name, dataset_size(paths, dataset), args.conditions)
            row = {"dataset": dataset, "layer": layer, "method": ""}
            made_from = made_now.of(row, setting)
            wanted: Wanted = defaultdict(list)
            for seed, condition, method in product(seeds, chosen, methods):
                row = row_of(dataset, layer, condition, method, seed)
                lacking = [
                    protocol
                    for protocol in dict.fromkeys(args.protocol)
                    if sweep.lacks(tables[layer], {**row, "protocol": protocol}, made_from)
                ]
                if lacking:
                    wanted[seed, condition].append((METHODS[method], lacking))
            if wanted:
                label = f"{dataset} at layer {layer}"
                arguments = (paths, info.name, dataset, layer, dict(wanted))
                todo.append(Task(label, tables[layer], arguments, made_from))
        # trees have the cores that tasks leave idle
        on = Machine(device, max(1, args.n_jobs // max(len(todo), 1)))
        for task in todo:
            sweep.add(replace(task, arguments=(*task.arguments, on)))
        sweep.report()
        sweep.fill(probe_dataset, failures, place, prepare=load_task)


def row_of(dataset: str, layer: Layer, condition: Condition, method: str, seed: int) -> dict:
    """The columns of a row that say what it is."""
    row = {"dataset": dataset, "method": method, "layer": layer, "seed": seed}
    column = get_setting(condition.setting).baseline_column
    return {**row, column: condition.label} if column else row


def load_task(
    paths: Paths, model_name: str, dataset: str, layer: Layer, wanted: Wanted, on: Machine
) -> tuple:
    """A task's arrays, read here because the workers, which run XGBoost, must not load torch."""
    ood = any(get_setting(condition.setting).shifted for _, condition in wanted)
    width = get_model(model_name, paths).width_at(layer)
    rows = load_rows(paths, model_name, dataset, hook_name(layer), ood, width)
    return rows, dataset, layer, wanted, on


def probe_dataset(
    activations: ModelRows, dataset: str, layer: Layer, wanted: Wanted, on: Machine
) -> list[dict]:
    """All wanted probes of one dataset and layer."""
    n_rows, rows = len(activations.labels), []
    for (seed, condition), baselines in wanted.items():
        if condition not in conditions(condition.setting, n_rows):
            continue  # fewer rows have activations than have texts
        train_test = activations.condition(condition, seed)
        n_train, n_test = len(train_test.y_train), len(train_test.y_test)
        sizes = {"num_train": n_train, "n_train": n_train, "n_test": n_test}
        for baseline, protocols in baselines:
            row = {**row_of(dataset, layer, condition, baseline.name, seed), **sizes}
            for protocol, scores in baseline.by_protocol(train_test, seed, protocols, on).items():
                rows.append({**row, "protocol": protocol, **scores})
    if not rows:
        raise UserError(f"only {n_rows} rows have activations: too few for what was asked")
    return rows


if __name__ == "__main__":
    cli.run(main)
