"""Write the original scripts' per-condition files from our SAE activations, for people who feed
those scripts.

    python -m published.export_splits --model_name gemma-2-9b --setting scarcity

Our store keeps each row once and draws every condition from it; the original layout has a training
and a test file for each condition (sparse COO, 20 bytes a nonzero). normal and OOD need no export
(their files have the original names already), nor does label_noise (the original scripts read the
files of normal and flip labels).
"""

from __future__ import annotations

import argparse

from utils import cli
from utils.datasets import choose_datasets
from utils.models import get_model
from utils.names import sae_stem
from utils.paths import Paths
from utils.runtime.errors import Failures
from utils.runtime.files import locked
from utils.runtime.progress import progress
from utils.runtime.units import show_bytes
from utils.saes.catalog import SaeChoice, choose_saes
from utils.saes.original_order import write_original_split
from utils.saes.store import SaeActivations
from utils.settings import choose_conditions, conditions, get_setting


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
    if not get_setting(args.setting).exports:
        print(
            f"{args.setting}: nothing to export, the original scripts read the files that are there"
        )
        return 0

    failures = Failures()
    release = args.sae_release
    choice = SaeChoice(args.target_sae_id, args.layers, args.hook_name, release)
    sae_ids = choose_saes(paths, info, choice, failures)
    with locked(paths.sae_activations_folder(model_name, args.setting), *map(sae_stem, sae_ids)):
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


if __name__ == "__main__":
    cli.run(main)
