"""Benchmark of `visualize` on a table of millions of made-up SAE probes.

    python -m benchmarks.tables
    python -m benchmarks.tables --n_saes 100

Writes a table of the scarcity setting (SAEs x datasets x 20 sizes x 2 k, random AUCs) and one of
five baselines into a folder that it removes, runs visualize.py on them, and prints its wall time
and peak memory. Needs `make fetch-data`; 1 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.csv

from benchmarks.measurements import hand_on
from utils import cli
from utils.datasets import list_datasets
from utils.paths import Paths
from utils.results.tables import baseline_table, sae_probe_table
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT
from utils.settings import SETTINGS

MODEL, LAYER = "gemma-2-9b", 20
SETTING = SETTINGS["scarcity"]
MADE_UP = {
    "layer": LAYER, "reg_type": "l1", "binarize": False, "method": "sae_probe", "seed": 42,
    "protocol": "paper", "n_nonzero": 10, "n_test": 500, "converged": True,
}  # fmt: skip
BASELINES = ("logreg", "pca", "knn", "mlp", "xgboost")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--n_saes", type=cli.positive, default=1107, help="1107 are five million rows"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paths = replace(cli.paths_of(args), results_dir=place, figures_dir=place / "figures")
        n_rows = write_tables(paths, args.n_saes)
        seconds, peak = visualize(paths)
    print(f"{n_rows:,} rows: {seconds:.0f} s, {peak / 2**30:.2f} GiB")
    hand_on(tables_seconds=seconds, tables_gib=peak / 2**30, tables_rows=n_rows)
    return 0


def write_tables(paths: Paths, n_saes: int) -> int:
    """Rows of SAE probes that were written."""
    names = list_datasets(paths)
    rng = np.random.default_rng(0)

    def product(**axes: object) -> pd.DataFrame:
        return pd.MultiIndex.from_product(axes.values(), names=list(axes)).to_frame(index=False)

    def with_scores(rows: pd.DataFrame, mean: float) -> pd.DataFrame:
        for name, centre in (("val_auc", mean + 0.02), ("test_auc", mean)):
            drawn = centre + rng.normal(scale=0.05, size=len(rows))
            rows[name] = np.round(np.clip(drawn, 0.5, 1), 6)
        return rows.assign(test_f1=rows["test_auc"], test_acc=rows["test_auc"])

    sae_ids = [f"layer_{LAYER}/width_16k/average_l0_{i + 20}" for i in range(n_saes)]
    probes = with_scores(
        product(sae_id=sae_ids, dataset=names, num_train=SETTING.values, k=SETTING.ks), 0.78
    )
    of_probes = sae_probe_table(paths.sae_probe_table(MODEL, SETTING.name), SETTING.sae_column)
    probes = probes.assign(**MADE_UP).reindex(columns=list(of_probes.columns))
    of_probes.path.parent.mkdir(parents=True)
    pyarrow.csv.write_csv(pa.Table.from_pandas(probes, preserve_index=False), str(of_probes.path))
    column = SETTING.baseline_column
    path = paths.baseline_table(MODEL, SETTING.name)
    of_baselines = baseline_table(path, column, LAYER)
    of_baselines.path.parent.mkdir(parents=True)
    axes = {"dataset": names, str(column): SETTING.values, "method": BASELINES}
    with_scores(product(**axes), 0.8).to_csv(of_baselines.path, index=False)
    return len(probes)


def visualize(paths: Paths) -> tuple[float, int]:
    """(wall seconds, peak bytes). Raises UserError where it fails."""
    command = [sys.executable, "visualize.py", "--model_name", MODEL, *cli.folder_flags(paths)]
    started, peak = time.monotonic(), 0
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with_memory = process.memory_info() if process.is_running() else None
        peak = max(peak, with_memory.rss if with_memory else 0)
        time.sleep(0.05)
    if process.returncode:
        raise UserError(f"visualize.py ended with {process.returncode}")
    return time.monotonic() - started, peak


if __name__ == "__main__":
    cli.run(main)
