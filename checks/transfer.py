"""Transfer matrix: the probes of each dataset scored on the test rows of every other.

    python -m checks.transfer --model_name all-MiniLM-L6-v2
    python -m checks.transfer --model_name gemma-2-9b --k 128

Reads the probes that were kept (normal setting): those on k latents of one SAE, and logistic
regression on its layer. Writes results/transfer_{model}.csv, a row a probe and a dataset, which
visualize.py draws. A dataset that has out-of-distribution texts is tested on these too. Test rows
whose text the probe was trained on are left out. An AUC below 0.5 says that the probe tells the
classes apart the other way round. Fits nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from explain_probes import probes_of, stage
from train_sae_probes import rows_of
from utils import cli
from utils.activations import load_rows
from utils.datasets import choose_datasets, list_ood_datasets, load_dataset, load_ood
from utils.models import LanguageModel, get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.k_sparse import PROTOCOLS
from utils.probes.linear import LinearProbe
from utils.probes.scores import roc_auc
from utils.readers.fingerprints import digest
from utils.results.csv_files import write_csv
from utils.results.kept_probes import find_probe, flags_of
from utils.results.sources import Sources
from utils.results.tables import ResultTable, baseline_table, default_sae_probes
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import locked
from utils.runtime.progress import progress
from utils.settings import NORMAL, SHIFTED, Condition, split

K = 16
FEWEST_ROWS = 30
ON_LATENTS, ON_ACTIVATIONS = "SAE probe", "logreg"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_datasets(parser)
    parser.add_argument(
        "--sae_id", type=cli.sae_id, metavar="ID", help="default: the best mean val_auc at k"
    )
    parser.add_argument("--k", type=cli.positive, default=K, help="latents of the SAE probes")
    cli.add_split(parser)
    cli.add_seed(parser)
    return parser


@dataclass(frozen=True)
class Trained:
    """A kept probe, and the texts that it was trained on."""

    dataset: str
    kind: str
    probe: LinearProbe
    texts: frozenset[str]


@dataclass(frozen=True)
class OtherRows:
    """Test rows of a dataset: activations [n, d_model], latents sparse [n, d_sae] or None, labels
    [n] and texts.
    """

    name: str
    dense: np.ndarray
    latents: Any
    y: np.ndarray
    texts: list[str]


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    asked = choose_datasets(paths, args.datasets) if args.datasets else None
    table = probes_of(paths, info)
    sae_rows = probes_of_one_sae(table, asked, args.sae_id, args.k, args.seed)
    if not len(sae_rows):
        of_these = f" for {', '.join(asked)}" if asked else ""
        further = f"{flags_of(PROTOCOLS[0], args.seed)} --ks {args.k}"
        raise UserError(
            f"{table.path} has no SAE probes of {info.name}{of_these} with k = {args.k}: make them"
            f" with `{stage(info.name, asked, paths.split, args.sae_id, further)}`"
        )
    failures = Failures()
    layer, sae_id = sae_rows["layer"].iloc[0], sae_rows["sae_id"].iloc[0]
    trained = kept_probes(paths, info, table, sae_rows, failures)
    trained += kept_baselines(paths, info, layer, list(sae_rows["dataset"]), args.seed, failures)
    rows: list[dict[str, object]] = []
    names = list(sae_rows["dataset"])
    for name in progress(names, desc="transfer", unit="dataset"):
        try:
            for tested in test_rows(paths, info, name, sae_id, layer, args.seed):
                rows += scores(tested, trained)
        except UserError as error:
            failures.add(f"{name}: {error}")
    path = paths.transfer_table(info.name, of_selection(names, table))
    columns = ["trained_on", "tested_on", "probe", "test_auc", "n_test"]
    made = pd.DataFrame(rows, columns=columns).assign(sae_id=sae_id, k=args.k, layer=layer)
    with locked(path.parent, path.name):
        write_csv(path, made)
    print(summary(made))
    print(f"{path}{'' if asked else '; visualize.py draws it'}")
    return cli.report(failures, "datasets")


def of_selection(names: list[str], table: ResultTable) -> str:
    """The name of a selection of the datasets that have probes; "" for all of them."""
    every = set(table.read()["dataset"])
    return "" if set(names) == every else f"{len(names)}_datasets_{digest(sorted(names))[:6]}"


def probes_of_one_sae(
    table: ResultTable, datasets: list[str] | None, sae_id: str | None, k: int, seed: int
) -> pd.DataFrame:
    """The rows of one SAE's probes on k latents, a row a dataset."""
    rows = default_sae_probes(table.read(), PROTOCOLS[0], seed)
    rows = rows[rows["k"] == k]
    if datasets is not None:
        rows = rows[rows["dataset"].isin(datasets)]
    if sae_id is None and len(rows):
        sae_id = rows.groupby("sae_id", observed=True)["val_auc"].mean().idxmax()
    return rows[rows["sae_id"] == sae_id].sort_values("dataset", kind="stable")


def kept_probes(
    paths: Paths, info: LanguageModel, table: ResultTable, rows: pd.DataFrame, failures: Failures
) -> list[Trained]:
    """The probes of SAE rows whose weights are there, made from what there is now."""
    sources = Sources(paths, info.name)
    found = []
    for row in rows.to_dict("records"):
        try:
            kept = find_probe(table, row)
        except UserError as error:
            failures.add(error)
            continue
        made_from = sources.of(row, NORMAL)
        further = f"{flags_of(row['protocol'], int(row['seed']))} --overwrite"
        command = stage(info.name, [row["dataset"]], paths.split, row["sae_id"], further)
        again = f"`{command}` makes it"
        if kept is None:
            failures.add(f"{row['dataset']}: the weights of its SAE probe were not kept: {again}")
        elif not kept.is_of(made_from):
            failures.add(f"{row['dataset']}: its SAE probe was made from other inputs: {again}")
        else:
            texts = training_texts(paths, info, row["dataset"], row["layer"], int(row["seed"]))
            found.append(Trained(row["dataset"], ON_LATENTS, kept.probe, texts))
    return found


def kept_baselines(
    paths: Paths,
    info: LanguageModel,
    layer: Layer,
    datasets: list[str],
    seed: int,
    failures: Failures,
) -> list[Trained]:
    """Logistic regression of the datasets at a layer, where its weights are there."""
    table = baseline_table(paths.baseline_table(info.name, NORMAL.name, layer), None, layer)
    rows = table.read()
    if not len(rows):
        return []
    sources = Sources(paths, info.name)
    mine = rows[
        (rows["method"] == "logreg")
        & rows["dataset"].isin(datasets)
        & (rows["protocol"] == PROTOCOLS[0])
        & (rows["seed"] == seed)
    ]
    found = []
    for row in mine.to_dict("records"):
        with failures.caught():
            kept = find_probe(table, row)
            if kept is not None and kept.is_of(sources.of(row, NORMAL)):
                texts = training_texts(paths, info, row["dataset"], layer, seed)
                found.append(Trained(row["dataset"], ON_ACTIVATIONS, kept.probe, texts))
    return found


def training_texts(
    paths: Paths, info: LanguageModel, dataset: str, layer: Layer, seed: int
) -> frozenset[str]:
    """The texts of the normal split's training rows."""
    width = info.width_at(layer)
    rows = load_rows(paths, info.name, dataset, hook_name(layer), ood=False, d_model=width)
    drawn = split(Condition(NORMAL.name, kind=paths.split), rows.y, seed, texts=rows.texts)
    texts = load_dataset(paths, dataset).texts
    return frozenset(texts[row] for row in drawn.train)


def test_rows(
    paths: Paths, info: LanguageModel, dataset: str, sae_id: str, layer: Layer, seed: int
) -> list[OtherRows]:
    """A dataset's test rows, and those of its OOD file where that was read by the model."""
    base = {"dataset": dataset, "sae_id": sae_id, "method": "sae_probe", "layer": layer}
    width, hook = info.width_at(layer), hook_name(layer)
    found = []
    for setting, name in ((NORMAL, dataset), (SHIFTED, f"{dataset}_OOD")):
        ood = setting is SHIFTED
        if ood and dataset not in list_ood_datasets(paths):
            continue
        try:
            dense = load_rows(paths, info.name, dataset, hook, ood=ood, d_model=width)
            latents = rows_of(paths, info.name, base, ood=ood)
            condition = Condition(setting.name, kind=paths.split)
            of_latents = latents.condition(condition, seed)
        except UserError:
            if ood:  # not every dataset's OOD file was encoded
                continue
            raise
        of_dense = dense.condition(condition, seed)
        texts = (load_ood if ood else load_dataset)(paths, dataset).texts
        drawn = split(condition, dense.y, seed, ood_labels=dense.y_ood, texts=dense.texts)
        read = [texts[row] for row in drawn.test]
        found.append(OtherRows(name, of_dense.X_test, of_latents.X_test, of_dense.y_test, read))
    return found


def scores(tested: OtherRows, trained: list[Trained]) -> list[dict[str, object]]:
    """A row for each probe that can be tested on these rows."""
    rows: list[dict[str, object]] = []
    for one in trained:
        fresh = np.array([text not in one.texts for text in tested.texts])
        if fresh.sum() < FEWEST_ROWS or len(set(tested.y[fresh])) < 2:
            continue
        X = tested.latents if one.kind == ON_LATENTS else tested.dense
        auc = roc_auc(tested.y[fresh], one.probe.scores(X[fresh]))
        about = {"trained_on": one.dataset, "tested_on": tested.name, "probe": one.kind}
        rows.append({**about, "test_auc": auc, "n_test": int(fresh.sum())})
    return rows


def summary(table: pd.DataFrame) -> str:
    """In sentences: how the probes do on their own dataset, its OOD texts and on others."""
    own = table["trained_on"] == table["tested_on"]
    shifted = table["trained_on"] + "_OOD" == table["tested_on"]
    lines = []
    for kind, rows in table.groupby("probe", observed=True):
        parts = [
            f"{rows.loc[mask, 'test_auc'].mean():.3f} {where} ({int(mask[rows.index].sum())})"
            for mask, where in ((own, "on their own datasets"), (shifted, "on its OOD texts"))
            if mask[rows.index].any()
        ]
        others = rows[~own[rows.index] & ~shifted[rows.index]]
        if len(others):
            distance = (others["test_auc"] - 0.5).abs().mean()
            parts.append(f"{distance:.3f} from chance on others ({len(others)})")
        lines.append(f"{kind}: mean test AUC " + ", ".join(parts))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
