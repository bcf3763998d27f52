"""Result tables: CSV files with the published columns first, appended to as rows arrive, and the
state from which runs resume.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.datasets import check_columns, header_of
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import Place, atomic_path, locked
from utils.settings import SHIFTED

# columns that hold text, whatever their cells look like: a dataset may be called "7" or "NA"
TEXT = frozenset(
    {
        "dataset",
        "method",
        "sae_id",
        "reg_type",
        "protocol",
        "solver",
        "latent_selection",
        "latents",
        "fitted_by",
        "made_from",
    }
)
# what an empty cell may look like in the others
EMPTY = ["", "nan", "NaN", "NA", "N/A", "null", "None"]


@dataclass(frozen=True)
class ResultTable:
    """A table at ``path``. ``columns``: the published ones, then ours. ``key``: the columns that
    tell rows apart, each with the value that a published row, which lacks the column, stands
    for.
    """

    path: Path
    columns: tuple[str, ...]
    key: dict[str, object]

    def read(self) -> pd.DataFrame:
        """All rows, key columns filled in; an empty frame when there is no table.

        Raises UserError when the file is there and is no such table, or could not be written.
        """
        self._check_place()
        if not self.path.is_file():
            return pd.DataFrame(columns=list(self.columns))
        return self.filled(read_table(self.path))

    def filled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The file's content with the key columns that it lacks.

        Raises UserError when one is missing for which nothing else can stand.
        """
        for column, default in self.key.items():
            if column not in table.columns:
                if default is None:
                    raise UserError(
                        f"{self.path} lacks the column {column}; it has {', '.join(table.columns)}"
                    )
                table[column] = default
            elif default is not None:
                filled = table[column].astype(object).where(table[column].notna(), default)
                table[column] = filled.infer_objects()
        return table

    def done(self) -> dict[tuple, str]:
        """{key: what the row was made from, "" where it does not say} of the rows that are there
        with their score; a torn last line, left by a run that was killed, is cut off first.
        """
        if self.path.is_file():
            self._mend_last_line()
        table = self.read()
        if SCORE in self.columns:
            table = table[table[SCORE].notna()] if SCORE in table.columns else table[:0]
        known = [*self.key, *([MADE_FROM] if MADE_FROM in table.columns else [])]
        return {
            self.key_of(row): text_of(row.get(MADE_FROM)) for row in table[known].to_dict("records")
        }

    def key_of(self, row: dict) -> tuple:
        """A row's key, with fractions rounded as tables do and numbers and their text alike; what
        is text is never taken for a number.
        """
        return tuple(
            text_of(row.get(column, default))
            if column in TEXT
            else _plain(row.get(column, default))
            for column, default in self.key.items()
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
        if missing or self._is_foreign():
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
        rows = self._cells()
        keys = [self.key_of(row) for row in rows]
        last = {key: i for i, key in enumerate(keys)}
        kept = [
            (key, row)
            for i, (key, row) in enumerate(zip(keys, rows))
            if last[key] == i or (key not in remade and not rows[last[key]].get(MADE_FROM))
        ]
        kept.sort(key=lambda pair: [_sortable(value) for value in pair[0]])
        ordered = [row for _, row in kept]
        # a spreadsheet's line breaks behind a first line of ours
        foreign = bool(rows) and b"\r\n" in self.path.read_bytes()
        if ordered != rows or foreign:
            self._rewrite(self._header(), ordered)

    def _is_foreign(self) -> bool:
        """Whether the file begins or ends its lines as ours do not: a byte-order mark, CRLF, or no
        end of the last line. Looks at its ends alone, as for each append it must.
        """
        with open(self.path, "rb") as file:
            first = file.readline()
        marked = first.startswith(codecs.BOM_UTF8) or first.endswith(b"\r\n")
        return marked or not _ends_its_line(self.path)

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
        content = self.path.read_bytes()
        whole = len(whole_lines(content))
        if whole < len(content):
            with suppress(OSError):  # of a disk that can only be read the whole lines are read
                os.truncate(self.path, whole)
                print(f"{self.path.name}: the last line was torn; it is made again")


def _ends_its_line(path: Path) -> bool:
    """Whether a file ends with a line break, or is empty."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"\n", b"")


def whole_lines(content: bytes) -> bytes:
    """A table's content without a last line that was not written to its end.

    Ours end with a line break, and with a row's fingerprint; others' may end without, and count as
    whole when they have as many cells as the header.
    """
    if not content or content.endswith(b"\n"):
        return content
    end = content.rfind(b"\n") + 1
    if not end:
        return content
    try:
        header, last = header_of(content), header_of(content[end:])
    except (UnicodeDecodeError, csv.Error):
        return content[:end]
    end_of = r"([0-9a-f]{16})?" if header[-1:] == [MADE_FROM] else r"(.*[^.])?"
    whole = len(last) == len(header) and re.fullmatch(end_of, last[-1], re.DOTALL)
    return content if whole else content[:end]


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


def text_of(cell: object) -> str:
    """A cell as text; "" for an empty one, which pandas reads as NaN."""
    return "" if cell is None or cell != cell else str(cell)


def fault_at_end(path: Path) -> str:
    """What is wrong with a table's last line; "" where nothing is."""
    if _ends_its_line(path):
        return ""
    content = path.read_bytes()
    if len(whole_lines(content)) < len(content):
        return "its last line is cut off and left out; rows may be missing"
    if MADE_FROM in header_of(content):  # the last row has its fingerprint
        return ""
    return "its last line has no line break; it is used, but may be cut off"


def read_table(path: Path) -> pd.DataFrame:
    """A CSV with full float precision, TEXT columns as text; of a torn one, the whole lines.

    Raises UserError when it cannot be read as one.
    """
    try:
        content = whole_lines(path.read_bytes())
        check_columns(content)
        header = header_of(content)
        if len(header) == 1 and header[0].count(";") > 2:
            raise ValueError("its cells are separated by ; and not by ,")
        # pandas 3 reads every digit by itself, and deprecates being asked to
        precise = int(pd.__version__.split(".")[0]) >= 3
        options: Any = {} if precise else {"float_precision": "round_trip"}
        return pd.read_csv(
            io.BytesIO(content),
            encoding="utf-8-sig",
            dtype=dict.fromkeys(TEXT & set(header), str),
            keep_default_na=False,
            na_values={column: [""] if column in TEXT else EMPTY for column in header},
            **options,
        )
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as a result table ({first_line(error)}): restore or delete it"
        ) from error


def _plain(value: object) -> object:
    """One form for a key's value: fractions to four places, whole floats as integers, booleans as
    text.
    """
    if isinstance(value, bool) or str(value) in ("True", "False", "TRUE", "FALSE"):
        return str(value).title()
    try:
        number = float(str(value))
    except ValueError:
        return str(value)
    if number != number or number in (float("inf"), -float("inf")):
        return "" if number != number else str(value)
    return int(number) if number == int(number) else round(number, 4)


def _sortable(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


PUBLISHED = "published"
SCORE = "test_auc"  # without it a row says nothing
MADE_FROM = "made_from"  # the fingerprint of a row's inputs; empty in tables of others
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
SAE_PROBE_EXTRAS = (
    "method", "protocol", "latent_selection", "solver", "seed", "C", "n_nonzero", "fitted_by",
    "converged", "n_train", "n_test", "n_tied_at_cut", "latents", MADE_FROM,
)  # fmt: skip
BASELINE_COLUMNS = ("dataset", "method")
BASELINE_SCORES = ("test_f1", "test_acc", "test_auc", "val_auc")
BASELINE_EXTRAS = ("layer", "seed", "protocol", "C", "converged", "n_train", "n_test", MADE_FROM)


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
