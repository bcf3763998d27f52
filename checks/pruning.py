"""Latents pruned by relevance, out of distribution: the paper's study, on our own probes.

    python -m checks.pruning --model_name all-MiniLM-L6-v2 --dataset 5_hist_fig_ismale
    python -m checks.pruning --model_name all-MiniLM-L6-v2 --dataset 5_hist_fig_ismale \\
        --relevance judged.csv

Takes the first latents of an SAE for a dataset with an OOD file, and fits probes on the first 1, 2,
… of them: ordered by their rank, and by a judge's relevance. Without --relevance it writes the file
to fill in, results/pruning_{model}_{dataset}.csv: a row a latent with the texts that fire it most;
in `relevance`, 1 is the latent that should decide. A judge sees no OOD text. Prints validation and
OOD AUC beside logistic regression, and writes them to …_aucs.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from checks.labels import best_sae, require_unfilled
from train_sae_probes import rows_of
from utils import cli
from utils.activations import load_rows
from utils.datasets import choose_datasets, load_dataset, read_csv
from utils.models import LanguageModel, get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.baselines import logreg
from utils.probes.k_sparse import FoldRows, ProbeOptions, choose_C, final_fit, rank_latents
from utils.probes.linear import dense_columns
from utils.probes.scores import roc_auc, validation_folds
from utils.results.cards import shortened
from utils.results.csv_files import write_csv
from utils.runtime.errors import UserError
from utils.settings import SHIFTED, Condition, TrainTest, split

K = 8  # the paper's
N_TEXTS = 3


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="one with an OOD file")
    parser.add_argument(
        "--sae_id", type=cli.sae_id, metavar="ID", help="default: best val_auc in the result table"
    )
    parser.add_argument("--k", type=cli.positive, default=K, help="latents to start from")
    parser.add_argument(
        "--relevance", type=Path, metavar="FILE", help="CSV with the columns latent and relevance"
    )
    cli.add_seed(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    choose_datasets(paths, [args.dataset], ood=True)
    sae_id, layer = best_sae(paths, info, args.dataset, None, args.sae_id)
    if sae_id is None or layer is None:
        command = cli.make_command("train-sae-probes", info.name, [args.dataset])
        raise UserError(f"no SAE probe of {args.dataset}: `{command}` makes them")
    base = {"dataset": args.dataset, "sae_id": sae_id, "method": "sae_probe", "layer": layer}
    source = rows_of(paths, info.name, base, ood=True)
    rows = source.condition(Condition(SHIFTED.name), args.seed)
    latents = rank_latents(rows.X_train, rows.y_train, n_keep=args.k).latents
    path = paths.pruning(info.name, args.dataset)
    if args.relevance is None:
        require_unfilled(path, "relevance")
        write_csv(path, to_judge(paths, args.dataset, rows, source.labels, latents, args.seed))
        print(f"{path}: fill in relevance (1: should decide), then --relevance {path}")
    orders = {"by rank": latents}
    if args.relevance is not None:
        orders["by relevance"] = judged_order(args.relevance, latents)
    table = pd.concat(
        [pruned(rows, order, args.seed).assign(order=name) for name, order in orders.items()]
    )
    dense = logistic_regression(paths, info, args.dataset, layer, args.seed)
    write_csv(path.with_name(f"{path.stem}_aucs.csv"), table)
    shown = table.pivot_table(index="k", columns="order", values=["val_auc", "ood_auc"])
    print(f"{args.dataset}, {len(latents)} latents of {sae_id}:\n{shown.round(3).to_string()}")
    print(f"logistic regression on all activations: OOD AUC {dense:.3f}")
    return 0


def pruned(rows: TrainTest, order: np.ndarray, seed: int) -> pd.DataFrame:
    """k, val_auc, ood_auc of probes on the first k latents of an order."""
    options = ProbeOptions(seed=seed)
    train, test = dense_columns(rows.X_train, order), dense_columns(rows.X_test, order)
    folds = validation_folds(rows.y_train, seed)
    found = []
    for k in range(1, len(order) + 1):
        of_folds = [FoldRows(*fold, train[:, :k]) for fold in folds]
        C, val_auc = choose_C(of_folds, rows.y_train, k, options)
        fit = final_fit(train[:, :k], rows.y_train, C, options)
        ood_auc = roc_auc(rows.y_test, fit.scores(test[:, :k]))
        found.append({"k": k, "val_auc": val_auc, "ood_auc": ood_auc})
    return pd.DataFrame(found)


def to_judge(
    paths: Paths, dataset: str, rows: TrainTest, labels: np.ndarray, latents: np.ndarray, seed: int
) -> pd.DataFrame:
    """A row a latent: its AUC alone on the training rows, and the training texts that fire it
    most.
    """
    texts = load_dataset(paths, dataset).texts
    drawn = split(Condition(SHIFTED.name), labels, seed, ood_labels=rows.y_test)
    train = dense_columns(rows.X_train, latents)
    table = []
    for place, latent in enumerate(latents):
        values = train[:, place]
        first = np.argsort(-values, kind="stable")[:N_TEXTS]
        auc = roc_auc(rows.y_train, values)
        shown = {
            f"text_{i + 1}": shortened(texts[drawn.train[row]]) if values[row] > 0 else ""
            for i, row in enumerate(first)
        }
        table.append({"latent": latent, "auc_alone": round(auc, 4), "relevance": "", **shown})
    return pd.DataFrame(table)


def judged_order(path: Path, latents: np.ndarray) -> np.ndarray:
    """The latents by a judge's relevance, 1 first; a latent without one comes last, by its rank.

    Raises UserError where the file is not of these latents.
    """
    table = read_csv(path, "relevance", ("latent", "relevance"))
    missing = {"latent", "relevance"} - set(table.columns)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    relevance: dict[int, float] = {}
    for line in table.to_dict("records"):
        if not line["relevance"].strip():
            continue
        latent, value = (pd.to_numeric(line[n], errors="coerce") for n in ("latent", "relevance"))
        if not np.isfinite(value):
            raise UserError(f"{path}: relevance {line['relevance']!r} is no number")
        if latent not in latents:
            raise UserError(f"{path} judges latent {line['latent']}, which is none of the probe's")
        if relevance.setdefault(int(latent), float(value)) != value:
            raise UserError(f"{path} judges latent {line['latent']} twice")
    if not relevance:
        raise UserError(f"{path} judges no latent: fill in relevance with 1, 2, …")
    worst = max(relevance.values()) + 1
    by_relevance = np.array([relevance.get(int(latent), worst) for latent in latents])
    return latents[np.argsort(by_relevance, kind="stable")]


def logistic_regression(
    paths: Paths, info: LanguageModel, dataset: str, layer: Layer, seed: int
) -> float:
    """OOD AUC of the probe on all activations."""
    rows = load_rows(
        paths, info.name, dataset, hook_name(layer), ood=True, d_model=info.width_at(layer)
    )
    return float(logreg(rows.condition(Condition(SHIFTED.name), seed), seed)["test_auc"])


if __name__ == "__main__":
    cli.run(main)
