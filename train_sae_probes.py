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
from collections import defaultdict
from dataclasses import asdict
from itertools import product
from pathlib import Path

from utils import cli
from utils.activations import load_rows
from utils.datasets import choose_datasets, dataset_size, readable
from utils.models import get_model
from utils.names import Layer, hook_name, layer_order
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
from utils.probes.l1_path import warm_up
from utils.results import saebench
from utils.results.sources import Sources
from utils.results.sweep import Sweep, SweepOptions, Task
from utils.results.tables import lock_tables, sae_probe_table
from utils.results.tidy import load_results
from utils.runtime.errors import Failures, UserError
from utils.saes.catalog import SaeChoice, choose_saes, is_control
from utils.saes.store import SaeActivations, stored_checks
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
        nargs="+",
        choices=PROTOCOLS,
        default=[PROTOCOLS[0]],
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
        help="normal setting: probe k = 1, 2, 5 too, and write results/saebench/",
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
    return cli.over_settings(train, args, "datasets and SAEs")


def train(args: argparse.Namespace, failures: Failures) -> None:
    """Make the SAE probes of one setting that its table lacks."""
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    setting = get_setting(args.setting)
    ks = sorted({*(args.ks or setting.ks), *(saebench.KS if args.export_saebench else ())})
    options = [
        ProbeOptions(
            args.reg_type, args.binarize, args.solver, args.latent_selection, protocol, seed
        )
        for protocol, seed in product(dict.fromkeys(args.protocol), cli.seeds_of(args))
    ]
    choice = SaeChoice(args.target_sae_id, args.layers, args.hook_name, args.sae_release)
    layers = choose_saes(paths, info, choice, failures)
    probed = sources(layers, paths.saes(info.name), args.controls)
    names = choose_datasets(paths, args.datasets, ood=setting.shifted)
    datasets = readable(paths, names, failures, ood=setting.shifted)
    table = sae_probe_table(paths.sae_probe_table(info.name, setting.name), setting.sae_column)
    with lock_tables([table]) as place:
        title = f"SAE probes, {info.name}, {setting.name}"
        made_now = Sources(paths, info.name)
        sweep = Sweep(title, [table], SweepOptions.of(args, paths, args.n_jobs))
        for dataset, source in product(datasets, probed):
            base = {"dataset": dataset, **source}
            chosen = choose_conditions(setting.name, dataset_size(paths, dataset), args.conditions)
            made_from = made_now.of(base, setting)
            wanted = defaultdict(list)
            for option, condition, k in product(options, chosen, ks):
                if sweep.lacks(table, published_row(base, condition, k, option), made_from):
                    wanted[option, condition].append(k)
            if wanted:
                arguments = (paths, info.name, base, dict(wanted))
                label = f"{dataset} with {source['sae_id']}"
                sweep.add(Task(label, table, arguments, made_from))
        sweep.report()
        if sweep.tasks:
            warm_up()
        sweep.fill(probe_dataset, failures, place)
    if args.export_saebench:
        results = load_results(paths, info.name, (NORMAL.name,))
        for line in results.unreadable():
            failures.add(line)
        shapes = {i: stored_checks(paths, info.name, i, names) or {} for i in layers}
        for path in saebench.export_saebench(results.tidy, paths, info.name, shapes, options[0]):
            print(f"SAEBench  {path}")


def sources(layers: dict[str, Layer], sae_dir: Path, controls: list[str]) -> list[dict]:
    """What is probed: {sae_id, layer, method} of each SAE and control at the SAEs' layers."""
    probed = [
        {
            "sae_id": sae_id,
            "layer": layer,
            # an SAE with random weights is a control too, and a method of its own
            "method": "random_sae_probe" if is_control(sae_dir / sae_id) else "sae_probe",
        }
        for sae_id, layer in layers.items()
    ]
    read = sorted(set(layers.values()), key=layer_order)
    return probed + [
        {"sae_id": control_id(control, layer), "layer": layer, "method": control}
        for layer, control in product(read, controls)
    ]


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
        width = get_model(model_name, paths).width_at(base["layer"])
        rows = load_rows(paths, model_name, name, hook_name(base["layer"]), ood, width)
        activations = ControlActivations(base["method"], rows)
    else:
        activations = SaeActivations(paths, model_name, name, sae_id, ood)
        activations.require_hook(hook_name(base["layer"]))
    made = []
    for (options, condition), ks in wanted.items():
        if condition not in conditions(condition.setting, len(activations.labels)):
            continue  # fewer rows have activations than have texts
        for result in fit_sae_probes(activations.condition(condition, options.seed), ks, options):
            made.append({**published_row(base, condition, result["k"], options), **result})
    if not made:
        raise UserError(
            f"only {len(activations.labels)} rows have activations: too few for what was asked"
        )
    return made


if __name__ == "__main__":
    cli.run(main)
