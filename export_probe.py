"""A kept probe to a folder of its own, with which score_texts.py reads new texts.

    python export_probe.py --model_name all-MiniLM-L6-v2 --dataset 96_spam_is \\
        --sae_id layer_2/width_1k/topk_32 --k 16 --output my_probe
    python export_probe.py --model_name gemma-2-9b --dataset 96_spam_is --method logreg \\
        --output my_probe

Takes the probe that train_sae_probes.py or train_baselines.py kept (normal setting, all linear
probes), scores its held-out test rows again, and writes weights, thresholds and what the probe
reads. Fits nothing.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pandas as pd

from train_sae_probes import encoder_of, release_of, rows_of
from utils import cli
from utils.activations import load_rows, read_description
from utils.datasets import choose_datasets, load_dataset
from utils.exported_probes import FORMAT, ExportedProbe, HeldOut
from utils.language_models import model_identity
from utils.models import LanguageModel, get_model
from utils.names import hook_name, split_twin
from utils.paths import Paths
from utils.probes.baselines import METHODS
from utils.probes.k_sparse import PROTOCOLS
from utils.results.kept_probes import Kept, find_probe, flags_of
from utils.results.sources import Sources
from utils.results.tables import ResultTable, baseline_table, sae_probe_table
from utils.runtime.errors import UserError
from utils.saes.store import Look
from utils.settings import NORMAL, Condition, TrainTest

LINEAR = [name for name, baseline in METHODS.items() if baseline.linear]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="which it was trained on")
    parser.add_argument(
        "--sae_id", type=cli.sae_id, metavar="ID", help="a probe on this SAE's latents"
    )
    parser.add_argument("--k", type=cli.positive, default=16, help="number of latents")
    parser.add_argument("--binarize", action="store_true", help="the probe on (latent > 1)")
    parser.add_argument("--method", choices=LINEAR, help="or a baseline")
    parser.add_argument(
        "--layer", type=cli.layer, metavar="N", help="its layer (default: the model's probe layer)"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="of its row")
    cli.add_split(parser)
    cli.add_seed(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if bool(args.sae_id) == bool(args.method):
        raise UserError("say which probe: --sae_id for one on latents, or --method for a baseline")
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    choose_datasets(paths, [args.dataset])
    exported = export(args, paths, info)
    exported.save(args.output)
    about = exported.described
    fresh = about["test_auc_fresh"]
    of_fresh = "" if fresh is None else f", {fresh:.3f} on those whose text is in no training row"
    print(
        f"{args.output}: {about['probe']} of {args.dataset}, test AUC {about['test_auc']:.3f} on"
        f" {about['n_held_out']} rows{of_fresh}; classes {' and '.join(about['classes'])}\n"
        f"score texts with it: make score PROBE={args.output} TEXTS=FILE"
    )
    return 0


def export(args: argparse.Namespace, paths: Paths, info: LanguageModel) -> ExportedProbe:
    """The probe that the flags name.

    Raises UserError when it was not made or not kept, or was made from something else than there is
    now.
    """
    table = table_of(args, paths, info)
    row = find_row(table, args)
    if row is None:
        raise UserError(f"there is no such probe of {args.dataset}: make it with `{stage(args)}`")
    kept = find_probe(table, row)
    if kept is None:
        raise UserError(
            f"the weights of this probe of {args.dataset} were not kept: make it again with"
            f" `{stage(args, '--overwrite --keep_probes all')}`"
        )
    made_from = Sources(paths, info.name).of(row, NORMAL)
    if not kept.is_of(made_from):
        raise UserError(
            f"the probe of {args.dataset} was made from other inputs than there are now: run the"
            " stage that made it again"
        )
    rows = rows_read(args, paths, info, row)
    held_out = HeldOut(kept.probe.scores(rows.X_test), rows.y_test)
    described = {
        "format": FORMAT,
        **how_read(paths, info, args.dataset, hook_name(row["layer"])),
        "sae": which_sae(paths, info, args) if args.sae_id else None,
        "classes": list(load_dataset(paths, args.dataset).classes),
        **how_made(args, row, kept),
        "n_held_out": len(held_out.labels),
        "calibration": list(held_out.calibration()),
    }
    return ExportedProbe(described, kept.probe, held_out, paths)


def table_of(args: argparse.Namespace, paths: Paths, info: LanguageModel) -> ResultTable:
    """The table that has the probe's row."""
    if args.method:
        layer = info.probe_layer if args.layer is None else args.layer
        return baseline_table(paths.baseline_table(info.name, NORMAL.name, layer), None, layer)
    if split_twin(args.sae_id)[1]:
        raise UserError(f"{args.sae_id} is a control: export the probe of an SAE")
    return sae_probe_table(paths.sae_probe_table(info.name, NORMAL.name), None)


def find_row(table: ResultTable, args: argparse.Namespace) -> dict | None:
    """The row of the table that the flags name; None where there is none."""
    named = {"dataset": args.dataset, "protocol": args.protocol, "seed": args.seed}
    if args.method:
        named["method"] = args.method
    else:
        named |= {"sae_id": args.sae_id, "k": args.k, "reg_type": "l1", "solver": "path"}
        named["binarize"] = args.binarize
    rows = table.read()
    for row in rows[rows["dataset"] == args.dataset].to_dict("records"):
        if table.key_of({**row, **named}) == table.key_of(row):
            return row
    return None


def stage(args: argparse.Namespace, further: str = "") -> str:
    """The command that makes the probe that the flags name; ``further`` flags of its script."""
    target = "train-sae-probes"
    flags = f"--target_sae_id {shlex.quote(args.sae_id or '')} --ks {args.k}"
    if args.method:
        target, flags = "train-baselines", f"--method {args.method}"
        flags += f" --layers {args.layer}" if args.layer is not None else ""
    flags += flags_of(args.protocol, args.seed, args.binarize and not args.method)
    flags += f"{cli.split_kind(args).flags} {further}"
    return cli.make_command(target, args.model_name, [args.dataset], flags)


def rows_read(args: argparse.Namespace, paths: Paths, info: LanguageModel, row: dict) -> TrainTest:
    """The rows that the probe was trained and tested on, as it reads them."""
    condition = Condition(NORMAL.name, kind=paths.split)
    if args.method:
        width = info.width_at(row["layer"])
        hook = hook_name(row["layer"])
        rows = load_rows(paths, info.name, args.dataset, hook, ood=False, d_model=width)
        return rows.condition(condition, args.seed)
    return rows_of(paths, info.name, row, ood=False).condition(condition, args.seed)


def how_read(paths: Paths, info: LanguageModel, dataset: str, hook: str) -> dict:
    """How the dataset's texts were read, as their activations say; of activations that others made,
    as the model's row of the table says.
    """
    of_table = {
        "model": model_identity(info, paths),
        "pooling": info.pooling,
        "max_seq_len": info.max_seq_len,
        "prepend_bos": info.prepend_bos,
    }
    said = read_description(paths.model_activations(info.name, dataset, hook))
    if said:  # which leave prepend_bos out where there is none
        of_table["prepend_bos"] = False
    read = {name: said.get(name, value) for name, value in of_table.items()}
    return {"model_name": info.name, "hook_name": hook, **read}


def which_sae(paths: Paths, info: LanguageModel, args: argparse.Namespace) -> dict:
    """What tells the SAE that encoded the dataset from others. Raises UserError when it is not at
    hand.
    """
    encoder_of(paths, info.name, args.dataset, args.sae_id)
    return {
        "sae_id": args.sae_id,
        "release": release_of(paths, info.name, args.dataset, args.sae_id),
        "fingerprint": Look(paths, info.name).sae(args.sae_id),
    }


def how_made(args: argparse.Namespace, row: dict, kept: Kept) -> dict:
    """What the probe is, and how it did on test rows."""
    on_latents = f"logistic regression on {len(kept.probe.coef)} latents"
    return {
        "probe": args.method or on_latents,
        "dataset": args.dataset,
        "protocol": args.protocol,
        "seed": args.seed,
        "split": cli.split_kind(args).folder or "paper",
        "C": kept.C,
        "intercept": kept.probe.intercept,
        "binarize": kept.probe.binarize,
        "test_auc": float(row["test_auc"]),
        "test_auc_fresh": _number(row.get("test_auc_fresh")),
        "made_from": kept.made_from,
    }


def _number(value: object) -> float | None:
    """None for what is missing: NaN is no JSON."""
    return float(str(value)) if pd.notna(value) else None


if __name__ == "__main__":
    cli.run(main)
