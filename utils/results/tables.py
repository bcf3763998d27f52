"""Result tables: CSV files with the published columns first, appended to as rows arrive, and the
state from which runs resume.
"""

from __future__ import annotations

import csv
import io
import mmap
import os
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.probes.words import TEXT_ONLY
from utils.results.csv_files import (
    EMPTY,
    MADE_FROM,
    TEXT,
    TextColumn,
    is_foreign,
    read_as_text,
    read_table,
    reorder_lines,
    whole_size,
)
from utils.results.keys import Done, KeyColumns, plain
from utils.runtime.errors import UserError
from utils.runtime.files import Place, atomic_path, locked
from utils.settings import SHIFTED


@dataclass(frozen=True)
class ResultTable:
    """A table at ``path``. ``columns``: the published ones, then ours. ``key``: the columns that
    tell rows apart, each with the value that a published row, which lacks the column, stands
    for.
    """

    path: Path
    columns: tuple[str, ...]
    key: dict[str, object]

    def read(self, leave_out: Collection[str] = (), in_categories: bool = False) -> pd.DataFrame:
        """All rows, key columns filled in; an empty frame when there is no table.

        ``leave_out``: columns that are not wanted; ``in_categories``: texts as pandas categories.

        Raises UserError when the file is there and is no such table, or could not be written.
        """
        self._check_place()
        if not self.path.is_file():
            return pd.DataFrame(columns=list(self.columns))
        return self.filled(read_table(self.path, leave_out, in_categories))

    def filled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The file's content with the key columns that it lacks.

        Raises UserError when one is missing for which nothing else can stand.
        """
        self._check_key(table.columns)
        for column, default in self.key.items():
            if column not in table.columns:
                table[column] = default
            elif default is not None and table[column].isna().any():
                filled = table[column].astype(object).where(table[column].notna(), default)
                table[column] = filled.infer_objects()
        return table

    def _check_key(self, columns: Iterable[str]) -> None:
        there = list(columns)
        for column, default in self.key.items():
            if column not in there and default is None:
                raise UserError(f"{self.path} lacks the column {column}; it has {', '.join(there)}")

    def done(self) -> Done:
        """{key: what the row was made from, "" where it does not say} of the rows that are there
        with their score; a torn last line, left by a run that was killed, is cut off first.
        """
        self._check_place()
        if not self.path.is_file():
            return Done(KeyColumns({}, self.key), None, np.zeros(0, dtype=bool))
        self._mend_last_line()
        keys, columns = self._keys(SCORE)
        counted = np.ones(len(keys.numbers), dtype=bool)
        if SCORE in self.columns:
            counted[:] = False
        if SCORE in self.columns and SCORE in columns:
            score = columns[SCORE]
            told = [plain(SCORE, text) != "" and text not in EMPTY for text in score.texts]
            counted = np.array([*told, False])[score.codes]
        return Done(keys, columns.get(MADE_FROM), counted)

    def _keys(self, *others: str) -> tuple[KeyColumns, dict[str, TextColumn]]:
        """(the keys of all rows, the columns as text)."""
        columns = read_as_text(self.path, [*self.key, MADE_FROM, *others])
        self._check_key(columns)
        return KeyColumns(columns, self.key), columns

    def key_of(self, row: dict) -> tuple:
        """A row's key, with fractions rounded as tables do and numbers and their text alike; what
        is text is never taken for a number.
        """
        return tuple(
            plain(column, row.get(column, default)) for column, default in self.key.items()
        )

    def append(self, rows: Iterable[dict]) -> None:
        """Add rows at the end, all of them or (when killed) some whole rows and a torn one, which
        the next start mends.
        """
        rows = list(rows)
        if not rows:
            return
        header = self._header()
        missing = [column for column in self.columns if column not in header]
        # a new table, or a published one, which gets our columns once; or one that a spreadsheet
        # saved its own way, which gets ours again
        if missing or (header and is_foreign(self.path)):
            self._rewrite([*header, *missing], [*self._cells(), *rows])
            return
        text = as_csv(header, rows)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _check_place(self) -> None:
        folder = self.path.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or (self.path.exists() and not self.path.is_file()):
            raise UserError(
                f"{self.path} cannot be written: {folder} must be a folder that you may write to"
            )

    def finish(self, remade: Collection[tuple] = ()) -> None:
        """Put the rows in the order of their keys, so that the table is the same whatever order
        they were made in. A row goes whose successor stands behind it: of the keys ``remade``, or
        one that says what it was made from.
        """
        if not self.path.is_file():
            return
        if self._has_foreign_lines():  # a spreadsheet's line breaks behind a first line of ours
            self._rewrite(self._header(), self._cells())
        keys, columns = self._keys()
        n_rows = len(keys.numbers)
        order = np.argsort(keys.numbers, kind="stable")
        ordered = keys.numbers[order]
        ends = np.append(ordered[1:] != ordered[:-1], True)  # of the rows of one key
        last = order[np.flatnonzero(ends)[np.append(0, np.cumsum(ends)[:-1])]] if n_rows else order
        made_from = columns.get(MADE_FROM)
        says = np.array([*map(bool, made_from.texts), False])[made_from.codes] if made_from else (
            np.zeros(n_rows, dtype=bool)
        )  # fmt: skip
        again = np.array([n for n in map(keys.number_of, remade) if n is not None], dtype=object)
        again = again.astype(keys.numbers.dtype)
        kept = order[(order == last) | ~(says[last] | np.isin(ordered, again))]
        if len(kept) < n_rows or np.any(kept[1:] < kept[:-1]):
            with atomic_path(self.path) as temporary:
                reorder_lines(self.path, kept, n_rows, temporary)

    def _has_foreign_lines(self) -> bool:
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(b"\r\n") >= 0

    def _header(self) -> list[str]:
        """The columns of the file; [] where there is none."""
        if not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])

    def _cells(self) -> list[dict]:
        """Rows without their empty cells, as they are written: a number read and written again
        could change its form. Only what a spreadsheet makes of True is True again.
        """
        if not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            return [
                {name: cell.title() if cell in ("TRUE", "FALSE") and name not in TEXT else cell
                 for name, cell in row.items() if cell}
                for row in csv.DictReader(file)
            ]  # fmt: skip

    def _rewrite(self, header: list[str], rows: list[dict]) -> None:
        with atomic_path(self.path) as temporary:
            temporary.write_text(
                as_csv(header, rows, with_header=True), encoding="utf-8", newline=""
            )

    def _mend_last_line(self) -> None:
        """Cut off a last line that was not written to its end."""
        whole = whole_size(self.path)
        if whole < self.path.stat().st_size:
            with suppress(OSError):  # of a disk that can only be read the whole lines are read
                os.truncate(self.path, whole)
                print(f"{self.path.name}: the last line was torn; it is made again")


def lock_tables(tables: Iterable[ResultTable]) -> AbstractContextManager[Place]:
    """Only this run writes the tables, which are of one folder, until the block ends; where they
    can only be read, a run that has nothing to do needs no more.

    Raises UserError when another run does.
    """
    paths = [table.path for table in tables]
    return locked(paths[0].parent, *{path.name for path in paths}, lazily=True)


def as_csv(header: list[str], rows: Iterable[dict], with_header: bool = False) -> str:
    """Rows as lines of a table; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=header, extrasaction="ignore", lineterminator="\n")
    if with_header:
        writer.writeheader()
    writer.writerows(
        {name: value for name, value in row.items() if value is not None} for row in rows
    )
    return text.getvalue()


PUBLISHED = "published"
SCORE = "test_auc"  # without it a row says nothing
SAE_PROBE_COLUMNS = (
    "test_f1",
    "test_acc",
    "test_auc",
    "val_auc",
    "k",
    "dataset",
    "layer",
    "sae_id",
    "reg_type",
    "binarize",
)
NEW_SCORES = ("test_ap", "test_recall_1fpr", "test_auc_fresh", "n_fresh")
SAE_PROBE_EXTRAS = (
    "method", "protocol", "latent_selection", "solver", "seed", "C", "n_nonzero", "fitted_by",
    "converged", "n_train", "n_test", *NEW_SCORES, "n_tied_at_cut", "latents", "test_auc_sd",
    MADE_FROM,
)  # fmt: skip
BASELINE_COLUMNS = ("dataset", "method")
BASELINE_SCORES = ("test_f1", "test_acc", "test_auc", "val_auc")
BASELINE_EXTRAS = (
    "layer", "seed", "protocol", "C", "converged", "n_train", "n_test", *NEW_SCORES, MADE_FROM,
)  # fmt: skip


def sae_probe_table(path: Path, condition_column: str | None) -> ResultTable:
    """The table of SAE probes of a setting; ``condition_column`` None for normal and OOD."""
    varied = (condition_column,) if condition_column else ()
    key: dict[str, object] = {
        "dataset": None,
        "sae_id": None,
        "k": None,
        "reg_type": None,
        "binarize": False,
    }
    key |= dict.fromkeys(varied)
    key |= {
        "protocol": "paper",
        "latent_selection": "mean_diff_normalized",
        "solver": "saga",
        "seed": 42,
    }
    return ResultTable(path, (*SAE_PROBE_COLUMNS, *varied, *SAE_PROBE_EXTRAS), key)


def default_sae_probes(rows: pd.DataFrame, protocol: str, seed: int) -> pd.DataFrame:
    """Of a table of SAE probes those on an SAE's own latents, made as train_sae_probes.py does
    unless it is asked for something else: one for each dataset, SAE and k.
    """
    mine = rows[(rows["method"] == "sae_probe") & (rows["protocol"] == protocol)]
    asked = {"seed": seed, "reg_type": "l1", "solver": "path"}
    asked |= {"latent_selection": "mean_diff_normalized"}
    for column, value in asked.items():
        mine = mine[mine[column] == value]
    return mine[~mine["binarize"].astype(bool)]


def seconds_table(table: ResultTable) -> ResultTable:
    """Beside a result table, how long each row took. Not a column of it: its bytes must not change
    from run to run.
    """
    return ResultTable(
        table.path.with_name(f"{table.path.stem}_seconds.csv"), (*table.key, "seconds"), table.key
    )


def baseline_table(path: Path, condition_column: str | None, layer: object) -> ResultTable:
    """The table of baselines of a setting; ``layer`` is what rows of a published table, which do
    not say, stand for.
    """
    varied = (
        (condition_column, "num_train")
        if condition_column == "ratio"
        else (condition_column,)
        if condition_column
        else ()
    )
    # the published OOD table names no method: its rows stand beside ours and are not ours
    method = PUBLISHED if path.parent.name == SHIFTED.baseline_folder else None
    key: dict[str, object] = {"dataset": None, "method": method, "layer": layer}
    if condition_column:
        key[condition_column] = None
    key |= {"seed": 42, "protocol": "paper"}
    return ResultTable(path, (*BASELINE_COLUMNS, *varied, *BASELINE_SCORES, *BASELINE_EXTRAS), key)


def text_table(path: Path, condition_column: str | None) -> ResultTable:
    """The table of probes on texts alone, of any model's rows: a dataset's first ``n_rows``."""
    key: dict[str, object] = {"dataset": None, "method": TEXT_ONLY, "n_rows": None}
    if condition_column:
        key[condition_column] = None
    key |= {"seed": 42, "protocol": "paper"}
    varied = (condition_column,) if condition_column else ()
    extras = tuple(name for name in BASELINE_EXTRAS if name != "layer")
    columns = ("dataset", "method", "n_rows", *varied, *BASELINE_SCORES, *extras)
    return ResultTable(path, columns, key)
