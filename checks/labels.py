"""Label audit: rows whose label the probes deny, when they are not trained on them.

    python -m checks.labels --model_name all-MiniLM-L6-v2 --dataset 96_spam_is
    python -m checks.labels --model_name all-MiniLM-L6-v2 --dataset 96_spam_is --corrected mine.csv

Scores every row by probes trained on the other folds: logistic regression on the model's
activations, and an SAE probe. Writes results/label_audit_{model}_{dataset}.csv, the most denied
rows first, with the latents that deny the label, and in the column `probes` what the probes read.
To say how far that can be trusted, it flips some labels at random and counts how many of the first
rows are flips.
Fill in the column `corrected` where a label is wrong, and give the file to --corrected: it prints
the AUC of probes before and after. This is the paper's study of CoLA, for any dataset.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from train_sae_probes import rows_of
from utils import cli
from utils.activations import load_rows
from utils.datasets import Dataset, choose_datasets, load_dataset, read_csv
from utils.models import LanguageModel, get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.baselines import logreg
from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.probes.scores import roc_auc
from utils.results.csv_files import write_csv
from utils.results.tables import sae_probe_table
from utils.runtime.errors import UserError, unknown_name
from utils.runtime.progress import progress
from utils.settings import NORMAL, Condition, TrainTest, split

N_FOLDS = 5
K = 16
PLANTED = 0.1  # share of labels that are flipped to measure the audit
MOST_DENIERS = 4


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="whose labels")
    parser.add_argument(
        "--sae_id", type=cli.sae_id, metavar="ID", help="default: best val_auc in the result table"
    )
    parser.add_argument("--k", type=cli.positive, default=K, help="latents of the SAE probe")
    parser.add_argument(
        "--layer",
        type=cli.layer,
        metavar="N",
        help="default: the SAE's, or the model's probe layer",
    )
    parser.add_argument(
        "--plant",
        type=flipped_share,
        default=PLANTED,
        help="share of labels flipped as a test (0: none)",
    )
    parser.add_argument(
        "--corrected", type=Path, metavar="FILE", help="CSV with the columns row and corrected"
    )
    cli.add_seed(parser)
    return parser


@dataclass(frozen=True)
class Views:
    """What the probes of one dataset read: activations [n, d_model] and latents, sparse [n, d_sae],
    None where there are none; labels ``y`` [n]; ``groups`` [n], the same for the same text.
    """

    dense: np.ndarray
    latents: Any
    y: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Denial:
    """How far probes that were not trained on a row deny its label, [n], in standard deviations of
    the probe's score; above 0 where a probe says the other class. ``deniers``: of each row the
    latents that pull it there, most first, with what they add.
    """

    dense: np.ndarray
    sae: np.ndarray | None
    deniers: list[list[tuple[int, float]]]

    @property
    def both(self) -> np.ndarray:
        return self.dense if self.sae is None else (self.dense + self.sae) / 2


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    choose_datasets(paths, [args.dataset])
    dataset = load_dataset(paths, args.dataset)
    views, reads = read_views(paths, info, args)
    print(f"{args.dataset}, {len(views.y)} rows: {reads}")
    if args.corrected is not None:
        print(before_and_after(dataset, views, args.corrected, args.k, args.seed))
        return 0
    path = paths.label_audit(info.name, args.dataset)
    require_unfilled(path, "corrected")
    denial = deny(views, views.y, args.k, args.seed, "audit")
    table = as_table(dataset, views.y, denial).assign(probes=reads)
    write_csv(path, table)
    if args.plant:
        print(planted(views, args.plant, args.k, args.seed))
    print(
        f"{len(table)} of {len(views.y)} labels are denied, most denied first: {path}\n"
        f"fill in the column corrected, then: make audit-labels MODEL={info.name}"
        f' DATASET={args.dataset!r} ARGS="--corrected FILE"'
    )
    return 0


def require_unfilled(path: Path, column: str) -> None:
    """Raise UserError where a file of an earlier run has been filled in, or cannot be read and may
    have been: that would be lost.
    """
    if not path.is_file():
        return
    table = read_csv(path, "earlier table", ("row" if column == "corrected" else "latent", column))
    if column in table and table[column].str.strip().ne("").any():
        raise UserError(
            f"{path} has been filled in: give it with --{column}, or move it away first"
        )


def flipped_share(text: str) -> float:
    """A flag's share of labels, from 0 to below a half."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share from 0 to below 0.5, as 0.1")
    return value


def read_views(paths: Paths, info: LanguageModel, args: argparse.Namespace) -> tuple[Views, str]:
    """(what probes read, in words). Raises UserError where activations or latents are missing."""
    sae_id, layer = args.sae_id, args.layer
    sae_id, found = best_sae(paths, info, args.dataset, layer, sae_id)
    layer = found if layer is None else layer
    layer = info.probe_layer if layer is None else layer
    rows = load_rows(
        paths, info.name, args.dataset, hook_name(layer), ood=False, d_model=info.width_at(layer)
    )
    latents, reads = None, f"logistic regression on layer {layer}"
    if sae_id is None:
        reads += "; without an SAE probe, because train_sae_probes.py has made none of it"
    else:
        base = {"dataset": args.dataset, "sae_id": sae_id, "method": "sae_probe", "layer": layer}
        source = rows_of(paths, info.name, base, ood=False)
        latents = source.condition(Condition(NORMAL.name), args.seed)  # says what is wrong with it
        latents = source.rows()  # type: ignore[attr-defined]
        if args.k > latents.shape[1]:
            raise UserError(f"--k {args.k}: {sae_id} has {latents.shape[1]} latents")
        reads += f" and {args.k} latents of {sae_id}"
    codes = rows.texts.rows if rows.texts is not None else np.arange(len(rows.y))
    return Views(rows.X, latents, rows.y, codes[: len(rows.y)]), reads


def best_sae(
    paths: Paths, info: LanguageModel, dataset: str, layer: Layer | None, sae_id: str | None = None
) -> tuple[str | None, Layer | None]:
    """(the SAE whose probe of the dataset has the best val_auc, its layer); None without one.

    Raises UserError where an SAE is named that has no probe of the dataset.
    """
    rows = sae_probe_table(paths.sae_probe_table(info.name, NORMAL.name), None).read()
    mine = rows[(rows["dataset"] == dataset) & (rows["method"] == "sae_probe")]
    if layer is not None:
        mine = mine[mine["layer"].astype(str) == str(layer)]
    if sae_id is not None and sae_id not in set(mine["sae_id"]):
        raise unknown_name(
            "SAE", sae_id, mine["sae_id"].unique(), f"(those with probes of {dataset})"
        )
    if sae_id is not None:
        mine = mine[mine["sae_id"] == sae_id]
    if not len(mine):
        return None, None
    best = mine.sort_values("val_auc", kind="stable").iloc[-1]
    return best["sae_id"], best["layer"]


def deny(views: Views, y: np.ndarray, k: int, seed: int, desc: str) -> Denial:
    """Score each row by probes trained on labels ``y`` of the other folds; the copies of a text are
    in one fold.

    Raises UserError where a class has too few texts for the folds.
    """
    n_least = min(len(set(views.groups[y == label])) for label in (0, 1))
    if n_least < 2 * N_FOLDS:
        raise UserError(f"a class has {n_least} texts: an audit needs at least {2 * N_FOLDS}")
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    dense = np.zeros(len(y))
    sae = None if views.latents is None else np.zeros(len(y))
    deniers: list[list[tuple[int, float]]] = [[] for _ in y]
    for train, test in progress(
        list(folds.split(views.dense, y, views.groups)), desc=desc, unit="fold"
    ):
        of_dense = TrainTest(views.dense[train], y[train], views.dense[test], y[test])
        dense[test] = denied(logreg(of_dense, seed)["row_scores"], y[test])
        if sae is None:
            continue
        of_sae = TrainTest(views.latents[train], y[train], views.latents[test], y[test])
        (fitted,) = fit_sae_probes(of_sae, (k,), ProbeOptions(seed=seed))
        sae[test] = denied(fitted["row_scores"], y[test])
        probe = fitted["probe"]
        parts = probe.read(views.latents[test]) * probe.coef
        for row, part in zip(test, parts):
            against = -(2 * y[row] - 1) * part
            for place in np.argsort(-against, kind="stable")[:MOST_DENIERS]:
                if against[place] > 0:
                    deniers[row].append((int(probe.columns[place]), float(against[place])))
    return Denial(dense, sae, deniers)


def denied(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far scores [n] deny labels [n], in standard deviations of the scores."""
    scale = float(scores.std()) or 1.0
    return -(2 * y - 1) * scores / scale


def as_table(dataset: Dataset, y: np.ndarray, denial: Denial) -> pd.DataFrame:
    """A row for each label that the probes deny on the whole, the most denied first."""
    order = np.argsort(-denial.both, kind="stable")
    order = order[denial.both[order] > 0]
    table = pd.DataFrame(
        {
            "row": order,
            "label": [dataset.classes[y[row]] for row in order],
            "denial": denial.both[order].round(4),
            "denial_dense": denial.dense[order].round(4),
            "denial_sae": np.nan if denial.sae is None else denial.sae[order].round(4),
            "latents_against": [
                " ".join(f"{latent}:{value:.3g}" for latent, value in denial.deniers[row])
                for row in order
            ],
            "corrected": "",
            "text": [dataset.texts[row] for row in order],
        }
    )
    return table if denial.sae is not None else table.drop(columns="denial_sae")


def planted(views: Views, part: float, k: int, seed: int) -> str:
    """In a sentence: of labels flipped at random, how many stand among the first as many rows."""
    rng = np.random.default_rng(seed)
    n_flipped = max(round(part * len(views.y)), 1)
    flipped = np.zeros(len(views.y), dtype=bool)
    flipped[rng.choice(len(views.y), n_flipped, replace=False)] = True
    denial = deny(views, np.where(flipped, 1 - views.y, views.y), k, seed, "with planted flips")

    def found(values: np.ndarray) -> float:
        return float(flipped[np.argsort(-values, kind="stable")[:n_flipped]].mean())

    alone = f"{found(denial.dense):.2f} by activations alone"
    if denial.sae is not None:
        alone += f", {found(denial.sae):.2f} by latents alone"
    return (
        f"tried with {n_flipped} labels flipped at random: of the {n_flipped} most denied,"
        f" {found(denial.both):.2f} are flips ({alone}; {part:.2f} would be by chance)"
    )


def corrected_labels(dataset: Dataset, y: np.ndarray, path: Path) -> np.ndarray:
    """The labels [n] with a file's corrections.

    Raises UserError where it is not understood, contradicts itself, or was made from other texts or
    labels (where it says which).
    """
    table = read_csv(path, "corrected labels", ("row", "corrected"))
    missing = {"row", "corrected"} - set(table.columns)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    codes = {name: code for code, name in enumerate(dataset.classes)}
    given: dict[int, str] = {}
    for line in table.to_dict("records"):
        to = str(line["corrected"]).strip()
        if not to:
            continue
        number = pd.to_numeric(line["row"], errors="coerce")
        if not (0 <= number < len(y) and number == int(number)):
            raise UserError(f"{path}: row {line['row']} is no row of {dataset.name}")
        row = int(number)
        if to not in codes:
            raise UserError(
                f"{path}, row {row}: {to!r} is no class of {dataset.name}"
                f" ({', '.join(dataset.classes)})"
            )
        if given.setdefault(row, to) != to:
            raise UserError(f"{path} corrects row {row} to {given[row]!r} and to {to!r}")
        now = {"text": dataset.texts[row], "label": dataset.classes[y[row]]}
        for column, value in now.items():
            if column in table and line[column].strip() != value.strip():
                raise UserError(
                    f"{path}, row {row}: its {column} is not that of {dataset.name} now: was it"
                    " made from another dataset, or its rows counted from 1?"
                )
    changed = y.copy()
    for row, to in given.items():
        changed[row] = codes[to]
    return changed


def before_and_after(dataset: Dataset, views: Views, path: Path, k: int, seed: int) -> str:
    """The test AUC of probes with the labels as they are and as corrected, on the normal split."""
    changed = corrected_labels(dataset, views.y, path)
    n_changed = int((changed != views.y).sum())
    if not n_changed:
        raise UserError(f"{path} corrects no label: fill in the column corrected")
    drawn = split(Condition(NORMAL.name), views.y, seed)
    lines = [f"{n_changed} labels corrected; test AUC on {len(drawn.test)} rows:"]
    contenders = {"activations": views.dense, f"{k} latents": views.latents}
    for name, X in contenders.items():
        if X is None:
            continue
        for trained, y_train in (("as they are", views.y), ("corrected", changed)):
            rows = TrainTest(X[drawn.train], y_train[drawn.train], X[drawn.test], drawn.y_test)
            scores = (
                logreg(rows, seed)["row_scores"]
                if X is views.dense
                else fit_sae_probes(rows, (k,), ProbeOptions(seed=seed))[0]["row_scores"]
            )
            old, new = (roc_auc(y[drawn.test], scores) for y in (views.y, changed))
            lines.append(
                f"  {name:<12} trained on labels {trained:<12} tested on labels as they are"
                f" {old:.3f}, corrected {new:.3f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
