"""One table of the original scripts' SAE probes: their pickles, a file a run, as all_metrics.csv.

    python -m published.combine_runs --model_name gemma-2-9b

Reads data/sae_probes_{model}/{setting}_setting/*.pkl with an unpickler that runs nothing of a file,
and writes results/sae_probes_{model}/{setting}_setting/all_metrics.csv, which every later stage
reads. A table that is there already stays as it is. Our own probes need none of this.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd

from utils import cli
from utils.models import get_model
from utils.paths import Paths
from utils.readers.pickles import read_rows
from utils.results.tidy import is_auc
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import atomic_path, locked
from utils.runtime.progress import progress
from utils.settings import SETTINGS, Setting

NEEDED = ("dataset", "sae_id", "k", "test_auc", "val_auc")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    model_name = get_model(args.model_name, paths).name
    failures = Failures()
    n_tables = 0
    for setting in SETTINGS.values():
        files = sorted(paths.probe_runs(model_name, setting.name).glob("*.pkl"))
        if files:
            n_tables += combine(files, paths, model_name, setting, failures)
    if not n_tables and not failures.lines:
        raise UserError(
            f"no pickles of runs in {paths.probe_runs(model_name, 'normal').parent}: our own probes"
            " write their table at once (make train-sae-probes)"
        )
    return cli.report(failures, "files")


def combine(
    files: list[Path], paths: Paths, model_name: str, setting: Setting, failures: Failures
) -> bool:
    """Write the table of one setting; False where it is there already."""
    path = paths.sae_probe_table(model_name, setting.name)
    needed = (*NEEDED, *([setting.sae_column] if setting.sae_column else []))
    rows: list[dict] = []
    for file in progress(files, desc=f"runs, {setting.name}", unit="file"):
        with failures.caught():
            rows += [checked(row, needed, file) for row in read_rows(file)]
    with locked(path.parent, path.name):
        if path.exists():
            failures.add(f"{path} is there: move it away to have one of the {len(files)} runs")
            return False
        with atomic_path(path) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    print(f"{len(rows)} rows of {len(files)} runs: {path}")
    return True


def checked(row: dict, needed: tuple[str, ...], file: Path) -> dict:
    """A row whose scores are scores.

    Raises UserError for one that lacks a column or has an AUC outside 0 to 1.
    """
    missing = [name for name in needed if name not in row]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: it is no run of an SAE probe")
    for name in ("val_auc", "test_auc"):
        value = row[name]
        if not isinstance(value, int | float) or not (is_auc(value) or math.isnan(value)):
            raise UserError(f"{file}: {name} is {value!r}, not between 0 and 1")
    return row


if __name__ == "__main__":
    cli.run(main)
