"""CSV files of millions of rows: read by column and not by cell, and only lines that are whole."""

from __future__ import annotations

import codecs
import csv
import io
import mmap
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from utils.datasets import check_columns, header_of
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_path

MADE_FROM = "made_from"  # the fingerprint of a row's inputs; empty in tables of others
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
        MADE_FROM,
    }
)
# columns of numbers that may look whole for thousands of rows
FRACTIONS = frozenset(
    {
        "test_f1",
        "test_acc",
        "test_auc",
        "val_auc",
        "C",
        "ratio",
        "frac",
        "corrupt_frac",
        "seconds",
        "test_ap",
        "test_recall_1fpr",
        "test_auc_fresh",
    }
)
# what an empty cell may look like in columns that hold no text
EMPTY = ["", "nan", "NaN", "NA", "N/A", "null", "None"]
TAIL = 1 << 16  # bytes in which a last line begins
BLOCK = 8 << 20  # bytes that are read at a time


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """A table to a file of its own, whole; the same bytes on every system."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


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


def first_line_of(path: Path) -> bytes:
    """With its line break, where it has one."""
    with open(path, "rb") as file:
        return file.readline()


def whole_size(path: Path) -> int:
    """Bytes of a table up to the end of its last whole line; reads its ends alone."""
    with open(path, "rb") as file:
        first = file.readline()
        size = file.seek(0, os.SEEK_END)
        start = max(len(first), size - TAIL)
        file.seek(start)
        tail = file.read()
    if not tail:  # the header alone
        return size
    return start + len(whole_lines(first + tail)) - len(first)


def ends_its_line(path: Path) -> bool:
    """Whether a file ends with a line break, or is empty."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"\n", b"")


def is_foreign(path: Path) -> bool:
    """Whether a file begins or ends its lines as ours do not: a byte-order mark, CRLF, or no end of
    the last line. Looks at its ends alone, as for each append it must.
    """
    first = first_line_of(path)
    marked = first.startswith(codecs.BOM_UTF8) or first.endswith(b"\r\n")
    return marked or not ends_its_line(path)


def fault_at_end(path: Path) -> str:
    """What is wrong with a table's last line; "" where nothing is."""
    if ends_its_line(path):
        return ""
    if whole_size(path) < path.stat().st_size:
        return "its last line is cut off and left out; rows may be missing"
    if MADE_FROM in header_of(first_line_of(path)):  # the last row has its fingerprint
        return ""
    return "its last line has no line break; it is used, but may be cut off"


def _refused(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as a result table ({first_line(error)}): restore or delete it"
    )


def _checked_header(path: Path) -> list[str]:
    """The columns of a table. Raises ValueError where they are none."""
    first = first_line_of(path)
    check_columns(first)
    header = header_of(first)
    if len(header) == 1 and header[0].count(";") > 2:
        raise ValueError("its cells are separated by ; and not by ,")
    return header


def _read(path: Path, convert: pa.csv.ConvertOptions) -> pa.Table:
    """The columns that ``convert`` includes.

    Never through a Python file: arrow's threads may still read ahead when Python ends.
    """
    whole = whole_size(path)
    source = str(path) if whole == path.stat().st_size else pa.BufferReader(_beginning(path, whole))
    read = pa.csv.ReadOptions(block_size=BLOCK)
    return pa.csv.read_csv(source, read, convert_options=convert).unify_dictionaries()


def _beginning(path: Path, n_bytes: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(n_bytes)


def read_table(
    path: Path, leave_out: Collection[str] = (), in_categories: bool = False
) -> pd.DataFrame:
    """A CSV with full float precision, TEXT columns as text; of a torn one, the whole lines.

    ``leave_out``: columns that are not wanted; ``in_categories``: texts as pandas categories, where
    they can be read by column. Raises UserError when it cannot be read as one.
    """
    try:
        header = [name for name in _checked_header(path) if name not in leave_out]
        for of_words in (TEXT, TEXT | {"layer"}):  # blocks are numbers, hooks beside them are not
            try:
                return _read_by_column(path, header, of_words, in_categories)
            except pa.ArrowInvalid:  # a cell is not what its column holds, or looks whole at first
                continue
        return _read_slowly(path, header)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise _refused(path, error) from error


_WORDS = pa.dictionary(pa.int32(), pa.string())


def _read_by_column(
    path: Path, header: list[str], of_words: Collection[str], in_categories: bool
) -> pd.DataFrame:
    types: dict[str, pa.DataType] = {name: _WORDS for name in header if name in of_words}
    types |= {name: pa.float64() for name in header if name in FRACTIONS}
    convert = pa.csv.ConvertOptions(
        column_types=types, include_columns=header, null_values=EMPTY,
        true_values=["True", "TRUE"], false_values=["False", "FALSE"],
    )  # fmt: skip
    columns: dict[str, pd.Series] = {}
    arrays = _read(path, convert).columns
    for place, name in enumerate(header):
        column, arrays[place] = arrays[place], None  # millions of rows are not held twice
        if name in of_words:
            columns[name] = _in_categories(column) if in_categories else _as_words(column)
        elif pa.types.is_string(column.type):
            of_strings = column.to_pandas()
            columns[name] = of_strings.mask(of_strings.isin(EMPTY))
        else:
            columns[name] = column.to_pandas()
    return pd.DataFrame(columns, columns=header, copy=False)


def _as_words(column: pa.ChunkedArray) -> pd.Series:
    """A column of text as Python strings, one for all rows that have the same; NaN for none."""
    codes, words = _codes(column)
    distinct = np.array([word or np.nan for word in words] + [np.nan], dtype=object)
    return pd.Series(distinct[codes], dtype=object)


def _in_categories(column: pa.ChunkedArray) -> pd.Series:
    codes, words = _codes(column)
    places = {word: i for i, word in enumerate(word for word in words if word)}
    places_of = np.array([*(places.get(word, -1) for word in words), -1])  # "" is none
    return pd.Series(pd.Categorical.from_codes(places_of[codes], list(places)))


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(the place of each row's text among the distinct ones, those); -1 for none."""
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # of no rows
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else None
    if combined is None or not len(combined):
        return np.empty(0, dtype=np.int64), []
    codes = combined.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, combined.dictionary.to_pylist()


def _read_slowly(path: Path, header: list[str]) -> pd.DataFrame:
    """As pandas reads it: any mixture of cells."""
    content = _beginning(path, whole_size(path))
    # pandas 3 reads every digit by itself, and deprecates being asked to
    precise = int(pd.__version__.split(".")[0]) >= 3
    options: Any = {} if precise else {"float_precision": "round_trip"}
    return pd.read_csv(
        io.BytesIO(content),
        encoding="utf-8-sig",
        usecols=header,
        dtype=dict.fromkeys(TEXT & set(header), object),
        keep_default_na=False,
        na_values={column: [""] if column in TEXT else EMPTY for column in header},
        low_memory=False,  # one type a column
        **options,
    )


@dataclass(frozen=True)
class TextColumn:
    """A column's cells as they are written: ``texts``, the distinct ones, and ``codes`` int32
    [n_rows], which of them a row has.
    """

    codes: np.ndarray
    texts: list[str]


def read_as_text(path: Path, columns: Sequence[str]) -> dict[str, TextColumn]:
    """Those of the columns that a table has.

    Raises UserError when it cannot be read as one.
    """
    try:
        header = _checked_header(path)
        there = [name for name in columns if name in header]
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(there, _WORDS), include_columns=there
        )
        table = _read(path, convert)
    except (ValueError, OSError, UnicodeDecodeError) as error:  # ArrowInvalid is a ValueError
        raise _refused(path, error) from error
    return {name: TextColumn(*_codes(column)) for name, column in zip(there, table.columns)}


def reorder_lines(path: Path, rows: np.ndarray, n_rows: int, target: Path) -> None:
    """Write the header of a table and these of its ``n_rows`` rows, in this order, to ``target``.

    Raises UserError where a row has not a line of its own.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        breaks = _line_breaks(content)
        starts, ends = breaks[:-1] + 1, breaks[1:] + 1
        if len(starts) != n_rows:
            raise UserError(
                f"{path} has {n_rows} rows on {len(starts)} lines: a row must be one line; mend it,"
                " or move it away"
            )
        with open(target, "wb") as out:
            out.write(content[: breaks[0] + 1])
            for start, end in _runs(starts, ends, rows):
                out.write(content[start:end])


def _line_breaks(content: mmap.mmap) -> np.ndarray:
    """int64: where they are."""
    found = [
        start + np.flatnonzero(np.frombuffer(content[start : start + BLOCK], np.uint8) == ord("\n"))
        for start in range(0, len(content), BLOCK)
    ]
    return np.concatenate(found)


def _runs(starts: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the pieces of a file that hold these rows."""
    if not len(rows):
        return []
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    first, last = np.append(0, cuts), np.append(cuts, len(rows)) - 1
    return list(zip(starts[rows[first]].tolist(), ends[rows[last]].tolist()))
