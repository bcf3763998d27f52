"""Write the original scripts' per-condition files from our SAE activations, for people who feed
those scripts.

    python -m published.export_splits --model_name gemma-2-9b --setting scarcity

Our store keeps each row once and draws every condition from it; the original layout has a training
and a test file for each condition (sparse COO, 20 bytes a nonzero). OOD writes the two files a
dataset that the paper's OOD notebook reads, for one SAE: their names say only a width. normal needs
no export (its files have the original names already), nor does label_noise (the original scripts
read the files of normal and flip labels).
"""

from __future__ import annotations

import argparse

from utils import cli
from utils.datasets import choose_datasets
from utils.models import get_model
from utils.names import sae_stem
from utils.paths import Paths
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import locked
from utils.runtime.progress import progress
from utils.runtime.units import show_bytes
from utils.saes.catalog import SaeChoice, choose_saes
from utils.saes.original_order import write_ood_archive, write_original_split
from utils.saes.store import SaeActivations
from utils.settings import SHIFTED, Condition, choose_conditions, conditions, get_setting


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default="scarcity", every=False)
    cli.add_datasets(parser)
    cli.add_saes(parser)
    parser.add_argument(
        "--conditions",
        nargs="+",
        type=float,
        metavar="VALUE",
        help="only these conditions of the setting",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    model_name = info.name
    setting = get_setting(args.setting)
    if not setting.exports and not setting.shifted:
        print(
            f"{args.setting}: nothing to export, the original scripts read the files that are there"
        )
        return 0

    failures = Failures()
    release = args.sae_release
    choice = SaeChoice(args.target_sae_id, args.layers, args.hook_name, release)
    sae_ids = choose_saes(paths, info, choice, failures)
    if setting.shifted and len(sae_ids) > 1:
        raise UserError(
            f"the names of these files do not say of which SAE: name one of {', '.join(sae_ids)}"
            " with --target_sae_id"
        )
    with locked(paths.sae_activations_folder(model_name, args.setting), *map(sae_stem, sae_ids)):
        if setting.shifted:
            export_ood(paths, args, model_name, next(iter(sae_ids)), failures)
        else:
            export(paths, args, model_name, list(sae_ids), failures)
    return cli.report(failures, "datasets")


def export(
    paths: Paths, args: argparse.Namespace, model_name: str, sae_ids: list[str], failures: Failures
) -> None:
    """Write the files of all conditions."""
    jobs = [
        (dataset, sae_id) for dataset in choose_datasets(paths, args.datasets) for sae_id in sae_ids
    ]
    n_files = n_bytes = 0
    for dataset, sae_id in progress(jobs, desc=f"export, {args.setting}", unit="dataset"):
        with failures.caught(f"{dataset} with {sae_id}: "):
            activations = SaeActivations(paths, model_name, dataset, sae_id)
            for condition in choose_conditions(
                args.setting, len(activations.labels), args.conditions
            ):
                if condition in conditions(args.setting, len(activations.labels)):
                    rows = activations.condition(condition)
                    n_bytes += write_original_split(
                        paths, model_name, dataset, sae_id, condition, rows
                    )
                    n_files += 4
    print(
        f"{n_files} files, {show_bytes(n_bytes)}:"
        f" {paths.sae_activations_folder(model_name, args.setting)}"
    )


def export_ood(
    paths: Paths, args: argparse.Namespace, model_name: str, sae_id: str, failures: Failures
) -> None:
    """Write the two files of each dataset that has texts out of distribution."""
    condition = Condition(SHIFTED.name)
    n_files = n_bytes = 0
    names = choose_datasets(paths, args.datasets, ood=True)
    for dataset in progress(names, desc="export, OOD", unit="dataset"):
        with failures.caught(f"{dataset} with {sae_id}: "):
            activations = SaeActivations(paths, model_name, dataset, sae_id, ood=True)
            inside, outside = activations.rows(), activations.condition(condition).X_test
            n_bytes += write_ood_archive(
                paths, model_name, dataset, inside.shape[1], inside, outside
            )
            n_files += 2
    print(f"{n_files} files, {show_bytes(n_bytes)}: {paths.data_dir}")


if __name__ == "__main__":
    cli.run(main)
