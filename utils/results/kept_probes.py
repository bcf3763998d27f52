"""Fitted probes beside the table of their scores: a Parquet file a dataset and SAE (or layer), with
a row for each row of the table, by its key.

``probes/{dataset}_{sae}.parquet`` has the columns of the table's key as text, then ``made_from``,
``C``, ``columns`` (list of int32: the latents or dimensions that the probe reads, in the order in
which they were chosen; empty for all), ``coef`` (list of float64), ``intercept``, and
``row_scores`` (list of float64, of the test rows in the order of the split; empty where they are
not kept). Any scaling of the columns is in the weights. Of a probe that is not linear, scores alone
are kept: its ``coef`` is empty.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.names import layer_folder, set_stem
from utils.probes.controls import DENSE
from utils.probes.k_sparse import PROTOCOLS
from utils.probes.linear import LinearProbe
from utils.results.csv_files import MADE_FROM
from utils.results.keys import plain, sortable
from utils.results.tables import ResultTable
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_path
from utils.settings import SEED

FEW, EVERYTHING, NOTHING = KEEP = ("few", "all", "none")
MOST_COLUMNS = 128  # of the probes that are kept without being asked for
OF_COMPONENTS = ("pca_dims",)  # whose columns are principal components, which are on no disk


@dataclass(frozen=True)
class Kept:
    """A probe with what it was made from and, where they were kept, the scores of its test rows."""

    probe: LinearProbe
    C: float
    made_from: str
    row_scores: np.ndarray

    def is_of(self, made_from: str | None) -> bool:
        """Whether it was made from these inputs."""
        return _agree(made_from, self.made_from)


def _agree(now: str | None, then: str | None) -> bool:
    """Whether two fingerprints are one; what is not known cannot be compared."""
    return not now or not then or now == then


def probes_file(table: ResultTable, row: dict) -> Path:
    """Where the probe of a row of ``table`` is kept."""
    if "sae_id" in table.key:
        stem = set_stem(row["dataset"], row["sae_id"])
    else:
        stem = f"{row['dataset']}_{layer_folder(row['layer'])}"
    return table.path.parent / "probes" / f"{stem}.parquet"


@dataclass(frozen=True)
class Keeping:
    """Which probes are kept. ``which``: "few" keeps those of up to 128 columns, and those on all
    dimensions where a dataset has one condition (``every_condition``); "all" keeps every one, with
    the scores of its test rows.
    """

    which: str = FEW
    every_condition: bool = True

    def keeps(self, row: dict) -> bool:
        """Whether the probe of a row is one to keep."""
        probe = row.get("probe")
        if probe is None or self.which == NOTHING or row.get("method") in OF_COMPONENTS:
            return False
        if self.which == EVERYTHING or len(probe.coef) <= MOST_COLUMNS:
            return True
        if row.get("method") in DENSE:  # d_model weights that nobody reads
            return False
        return probe.columns is None and self.every_condition


def choose_kept(rows: Iterable[dict], keep: Keeping) -> list[dict]:
    """Rows without the probes and scores that are not to be kept: they need not travel."""
    chosen = []
    for row in rows:
        left_out = {"row_scores"} if keep.which != EVERYTHING else set()
        if not keep.keeps(row):
            left_out.add("probe")
        chosen.append({name: value for name, value in row.items() if name not in left_out})
    return chosen


def flags_of(protocol: str, seed: int, binarize: bool = False) -> str:
    """The flags of the training scripts that ask for such a probe, where it is not the usual one.

    >>> flags_of("paper", 42), flags_of("nested", 7)
    ('', ' --protocol nested --seed 7')
    """
    flags = f" --protocol {protocol}" if protocol != PROTOCOLS[0] else ""
    flags += f" --seed {seed}" if seed != SEED else ""
    return flags + (" --binarize" if binarize else "")


def add_keep_probes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep_probes",
        choices=KEEP,
        default=FEW,
        help=f"few: weights of probes of up to {MOST_COLUMNS} columns, and of linear baselines"
        " where a setting has one condition; all: every linear probe, and the scores"
        " of test rows of every probe, from which the report takes DeLong's intervals",
    )


def keep_probes(table: ResultTable, rows: Iterable[dict]) -> None:
    """Add the probes of rows to their files, each whole; one of the same key is replaced."""
    by_file: dict[Path, list[dict]] = {}
    for row in rows:
        if "probe" in row or "row_scores" in row:
            by_file.setdefault(probes_file(table, row), []).append(row)
    for path, of_file in by_file.items():
        there = read_rows(path) if path.is_file() else []
        by_key = {tuple(row[name] for name in table.key): row for row in there}
        for row in of_file:
            key = table.key_of(row)
            by_key[tuple(map(str, key))] = _as_kept(table, row, key)
        ordered = sorted(
            by_key.values(),
            key=lambda row: [sortable(plain(name, row[name])) for name in table.key],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pq.write_table(
                pa.Table.from_pylist(ordered, schema=_schema(table)),
                temporary,
                compression="zstd",
                use_dictionary=False,  # pages of their own, larger than so few values
                write_statistics=False,
                store_schema=False,
            )


def find_scores(table: ResultTable, row: dict, made_from: str | None) -> np.ndarray | None:
    """The kept scores [n_test] of a row's test rows in the order of the split; None where there are
    none, or they were made from something else.

    Raises UserError when the file cannot be read.
    """
    kept = _find(table, row)
    if kept is None or not _agree(made_from, kept[MADE_FROM]):
        return None
    scores = np.array(kept["row_scores"] or (), dtype=np.float64)
    return scores if len(scores) and np.isfinite(scores).all() else None


def find_probe(table: ResultTable, row: dict) -> Kept | None:
    """The kept probe of a row (its key and, of a baseline, its layer); None where there is none.

    Raises UserError when the file cannot be read, or its weights are none.
    """
    kept = _find(table, row)
    if kept is None or (kept["coef"] == [] and kept["row_scores"]):  # scores alone
        return None
    columns = np.array(kept["columns"] or (), dtype=np.int64)
    coef = np.array(kept["coef"] or (), dtype=np.float64)
    numbers = np.append(coef, np.nan if kept["intercept"] is None else kept["intercept"])
    unfit = len(columns) and (len(columns) != len(coef) or columns.min() < 0)
    if not len(coef) or not np.isfinite(numbers).all() or unfit:
        raise _unreadable(probes_file(table, row), "a probe without weights")
    probe = LinearProbe(
        coef, kept["intercept"], columns if len(columns) else None, kept.get("binarize") == "True"
    )
    scores = np.array(kept["row_scores"] or (), dtype=np.float64)
    return Kept(probe, kept["C"], kept[MADE_FROM], scores)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file of probes. Raises UserError when it is none."""
    try:
        rows = pq.read_table(path).to_pylist()
        if rows and not {"coef", "columns", "intercept", "row_scores", MADE_FROM} <= set(rows[0]):
            raise ValueError("it lacks columns of kept probes")
        return rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, first_line(error)) from error


def _find(table: ResultTable, row: dict) -> dict[str, Any] | None:
    """The row of a file of probes that has the key of a row of the table."""
    path = probes_file(table, row)
    if not path.is_file():
        return None
    key = tuple(map(str, table.key_of(row)))
    of_key = (kept for kept in read_rows(path) if tuple(kept.get(n, "") for n in table.key) == key)
    return next(of_key, None)


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} cannot be read ({why}): delete it, and make its probes again with --overwrite"
    )


def _as_kept(table: ResultTable, row: dict, key: tuple) -> dict[str, Any]:
    probe: LinearProbe | None = row.get("probe")
    scores = row.get("row_scores", ())
    return {
        **{name: str(value) for name, value in zip(table.key, key)},
        MADE_FROM: row.get(MADE_FROM) or "",
        "C": row.get("C"),
        "columns": [] if probe is None or probe.columns is None else probe.columns.tolist(),
        "coef": [] if probe is None else probe.coef.tolist(),
        "intercept": None if probe is None else float(probe.intercept),
        "row_scores": np.asarray(scores).tolist(),
    }


def _schema(table: ResultTable) -> pa.Schema:
    numbers = pa.list_(pa.float64())
    return pa.schema(
        [
            *((name, pa.string()) for name in table.key),
            (MADE_FROM, pa.string()),
            ("C", pa.float64()),
            ("columns", pa.list_(pa.int32())),
            ("coef", numbers),
            ("intercept", pa.float64()),
            ("row_scores", numbers),
        ]
    )
