"""Model activations to baseline probes: logistic regression, PCA, k nearest neighbours, XGBoost, an
MLP, difference of means and LDA; and texts to probes on their words alone.

    python train_baselines.py --model_name gemma-2-9b --setting normal
    python train_baselines.py --model_name gemma-2-9b --method text_only
    python train_baselines.py --model_name all-MiniLM-L6-v2 --setting scarcity \
        --conditions 10 53 198

Appends to results/baseline_probes_{model}/{folder of the setting}/… as probes are done, and does
only what is lacking there. The normal setting is done at every layer of the model, the others at
its probe layer. Needs the files of generate_model_activations.py. The method text_only (TF-IDF and
logistic regression, in results/text_probes/) needs no model: it says what the words alone tell.
Where a model has read only the first rows of a dataset, text_only has the same rows. Trains no SAE
probes: that is train_sae_probes.py.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from itertools import product

from utils import cli
from utils.activations import ModelRows, load_rows, n_rows_to_split, rows_with_activations
from utils.datasets import choose_datasets, dataset_size, readable
from utils.models import get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.baselines import METHODS, Baseline, Machine, methods_of, trees_on
from utils.probes.k_sparse import PROTOCOLS
from utils.probes.words import PROBE, TEXT_ONLY, text_rows
from utils.results.kept_probes import NOTHING, Keeping, add_keep_probes, choose_kept
from utils.results.sources import Sources
from utils.results.sweep import Sweep, SweepOptions, Task, conditions_asked
from utils.results.tables import baseline_table, lock_tables, text_table
from utils.runtime.devices import pick_device
from utils.runtime.errors import Failures, UserError
from utils.settings import Condition, choose_conditions, get_setting, is_possible, n_drawable

# {(seed, condition): the baselines, each with its protocols}
Wanted = dict[tuple[int, Condition], list[tuple[Baseline, list[str]]]]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser)
    cli.add_datasets(parser)
    cli.add_split(parser)
    parser.add_argument(
        "--method",
        nargs="+",
        type=cli.one_of((*METHODS, TEXT_ONLY)),
        metavar="NAME",
        help=f"which, of {', '.join((*METHODS, TEXT_ONLY))} (default: the setting's, {TEXT_ONLY})",
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
    add_keep_probes(parser)
    cli.add_seeds(parser)
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.over_settings(train, make_parser().parse_args(argv), "datasets")


def train(args: argparse.Namespace, failures: Failures) -> None:
    """Make the baselines of one setting that its tables lack."""
    asked = [method for part in args.method or () for method in part]
    methods = asked or (*methods_of(args.setting), TEXT_ONLY)
    of_model = tuple(method for method in methods if method != TEXT_ONLY)
    if TEXT_ONLY in methods:
        train_on_texts(args, failures)
    if of_model:
        train_on_activations(args, of_model, failures)


def train_on_texts(args: argparse.Namespace, failures: Failures) -> None:
    """Make the probes on texts alone of one setting: of the rows that the model has read, or of
    all where it has read none.
    """
    paths = cli.paths_of(args)
    info, setting = get_model(args.model_name, paths), get_setting(args.setting)
    names = choose_datasets(paths, args.datasets, ood=setting.shifted)
    datasets = readable(paths, names, failures, ood=setting.shifted)
    table = text_table(paths.text_table(setting.name), setting.sae_column)
    with lock_tables([table]) as place:
        made_now = Sources(paths, info.name)
        title = f"words alone, {setting.name}"
        sweep = Sweep(title, [table], SweepOptions.of(args, paths, args.n_jobs))
        for dataset in datasets:
            with failures.caught(f"{dataset}: "):
                read = rows_with_activations(paths, info.name, dataset)
                n_rows = dataset_size(paths, dataset) if read is None else read
                made_from = made_now.of_texts(dataset, n_rows, setting)
                base = {"dataset": dataset, "method": TEXT_ONLY, "n_rows": n_rows}
                n_drawn = n_rows
                if paths.split.grouped:
                    n_drawn = n_rows_to_split(paths, info.name, dataset)
                chosen = choose_conditions(setting.name, n_drawn, args.conditions, paths.split)
                wanted: Wanted = defaultdict(list)
                for seed, condition in product(cli.seeds_of(args), chosen):
                    row = {**base, **varied(condition), "seed": seed}
                    lacking = [
                        protocol
                        for protocol in dict.fromkeys(args.protocol)
                        if sweep.lacks(table, {**row, "protocol": protocol}, made_from)
                    ]
                    if lacking:
                        wanted[seed, condition].append((PROBE, lacking))
                if wanted:
                    sweep.add(
                        Task(f"words of {dataset}", table, (paths, base, dict(wanted)), made_from)
                    )
        sweep.report()
        sweep.fill(probe_texts, failures, place)


def varied(condition: Condition) -> dict[str, object]:
    """The column of a condition's value in tables of SAE probes and of texts."""
    column = get_setting(condition.setting).sae_column
    return {column: condition.label} if column else {}


def probe_texts(paths: Paths, base: dict, wanted: Wanted) -> list[dict]:
    """All wanted probes on the texts of one dataset."""
    ood = any(get_setting(condition.setting).shifted for _, condition in wanted)
    counts = text_rows(paths, base["dataset"], base["n_rows"], ood)
    rows = []
    for (seed, condition), ((probe, protocols),) in wanted.items():
        train_test = counts.condition(condition, seed)
        n_train, n_test = len(train_test.y_train), len(train_test.y_test)
        row = {**base, "seed": seed, "n_train": n_train, "n_test": n_test, **varied(condition)}
        for protocol, scores in probe.by_protocol(train_test, seed, protocols).items():
            rows.append({**row, "protocol": protocol, **scores})
    return choose_kept(rows, Keeping(NOTHING))  # its columns are words of these texts alone


def train_on_activations(
    args: argparse.Namespace, methods: tuple[str, ...], failures: Failures
) -> None:
    """Make the probes on model activations of one setting."""
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
    names = choose_datasets(paths, args.datasets, ood=setting.shifted)
    datasets = readable(paths, names, failures, ood=setting.shifted)
    seeds = cli.seeds_of(args)
    device = trees_on(args.device, pick_device(args.device) if args.device != "cpu" else "cpu")
    with lock_tables(tables.values()) as place:
        title = f"baselines, {info.name}, {setting.name}"
        made_now = Sources(paths, info.name)
        sweep = Sweep(title, tables.values(), SweepOptions.of(args, paths, args.n_jobs))
        todo: list[Task] = []
        chosen_of = conditions_asked(args, paths, info.name, datasets)
        for layer, dataset in product(tables, datasets):
            row = {"dataset": dataset, "layer": layer, "method": ""}
            made_from = made_now.of(row, setting)
            wanted: Wanted = defaultdict(list)
            for seed, condition, method in product(seeds, chosen_of[dataset], methods):
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
        keep = Keeping(args.keep_probes, every_condition=not setting.values)
        for task in todo:
            sweep.add(replace(task, arguments=(*task.arguments, on, keep)))
        sweep.report()
        sweep.fill(probe_dataset, failures, place, prepare=load_task)


def row_of(dataset: str, layer: Layer, condition: Condition, method: str, seed: int) -> dict:
    """The columns of a row that say what it is."""
    row = {"dataset": dataset, "method": method, "layer": layer, "seed": seed}
    column = get_setting(condition.setting).baseline_column
    return {**row, column: condition.label} if column else row


def load_task(
    paths: Paths, model_name: str, dataset: str, layer: Layer, wanted: Wanted, *further: object
) -> tuple:
    """A task's arrays, read here because the workers, which run XGBoost, must not load torch."""
    ood = any(get_setting(condition.setting).shifted for _, condition in wanted)
    width = get_model(model_name, paths).width_at(layer)
    rows = load_rows(paths, model_name, dataset, hook_name(layer), ood, width)
    return rows, dataset, layer, wanted, *further


def probe_dataset(
    activations: ModelRows, dataset: str, layer: Layer, wanted: Wanted, on: Machine, keep: Keeping
) -> list[dict]:
    """All wanted probes of one dataset and layer."""
    n_rows, rows = len(activations.labels), []
    for (seed, condition), baselines in wanted.items():
        if not is_possible(condition, n_drawable(activations, condition)):
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
    return choose_kept(rows, keep)


if __name__ == "__main__":
    cli.run(main)
