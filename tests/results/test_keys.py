"""Keys by column against keys by cell, and the end of a run against a plain sort."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest

from utils.results.csv_files import read_table
from utils.results.keys import KeyColumns, plain, sortable
from utils.results.tables import ResultTable, sae_probe_table
from utils.runtime.errors import UserError

COLUMNS = ("test_auc", "dataset", "k", "ratio", "seed", "made_from")
KEY: dict[str, object] = {"dataset": None, "k": None, "ratio": None, "seed": 42}


def spelt(rng: np.random.Generator, row: dict) -> dict:
    """A row whose numbers are spelt in one of the ways that tables have."""
    k = str(row["k"]) if rng.random() < 0.5 else f"{row['k']}.0"
    seed = "" if row["seed"] == 42 and rng.random() < 0.5 else str(row["seed"])
    ratio = repr(row["ratio"] + (1e-9 if rng.random() < 0.5 else 0))
    return {**row, "k": k, "seed": seed, "ratio": ratio}


@pytest.fixture
def rows() -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        spelt(rng, {
            "test_auc": "" if rng.random() < 0.1 else round(rng.random(), 4),
            "dataset": rng.choice(["7", "007", "NA", "a b", "a,b", "True"]),
            "k": int(rng.choice([1, 2, 16])), "ratio": float(rng.choice([0.05, 0.4, 0.45])),
            "seed": int(rng.choice([42, 43])), "made_from": rng.choice(["", "aa", "bb"]),
        })
        for _ in range(400)
    ]  # fmt: skip


def written(path, rows) -> ResultTable:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return ResultTable(path, COLUMNS, KEY)


def by_cell(row: dict) -> tuple:
    return tuple(plain(c, row[c] if row[c] != "" else default) for c, default in KEY.items())


def test_what_is_done_is_what_each_row_says_the_last_of_a_key_counting(tmp_path, rows):
    table = written(tmp_path / "t.csv", rows)
    expected = {by_cell(row): row["made_from"] for row in rows if row["test_auc"] != ""}
    done = table.done()
    assert dict(done) == expected
    assert len(done) == len(expected)
    assert ("7", 99, 0.05, 42) not in done
    assert ("nobody", 1, 0.05, 42) not in done


def test_more_possible_keys_than_64_bits_count_are_told_apart_all_the_same(
    tmp_path, rows, monkeypatch
):
    table = written(tmp_path / "t.csv", rows)
    expected = dict(table.done())
    monkeypatch.setattr("utils.results.keys._many", lambda *_: True)
    assert dict(table.done()) == expected
    before = table.path.read_bytes()
    table.finish()
    after = table.path.read_bytes()
    table.path.write_bytes(before)
    monkeypatch.undo()
    table.finish()
    assert table.path.read_bytes() == after


@pytest.mark.parametrize("n_remade", [0, 5])
def test_a_finished_table_is_the_sorted_one_without_what_was_replaced(tmp_path, rows, n_remade):
    table = written(tmp_path / "t.csv", rows)
    keys = [by_cell(row) for row in rows]
    remade = set(keys[:n_remade])
    last = {key: i for i, key in enumerate(keys)}
    kept = [
        (key, i) for i, key in enumerate(keys)
        if last[key] == i or (key not in remade and not rows[last[key]]["made_from"])
    ]  # fmt: skip
    kept.sort(key=lambda pair: [sortable(value) for value in pair[0]])
    lines = table.path.read_bytes().splitlines(keepends=True)
    table.finish(remade)
    assert table.path.read_bytes() == b"".join([lines[0], *(lines[1 + i] for _, i in kept)])


def test_finish_leaves_a_table_in_order_as_it_is(tmp_path, rows, monkeypatch):
    table = written(tmp_path / "t.csv", rows)
    table.finish()
    monkeypatch.setattr("utils.results.tables.reorder_lines", lambda *_: pytest.fail("rewritten"))
    table.finish()


def test_a_cell_of_several_lines_is_refused_and_nothing_lost(tmp_path):
    row = {"test_auc": 0.5, "dataset": "b", "k": 1, "ratio": 0.1, "seed": 42, "made_from": ""}
    table = written(tmp_path / "t.csv", [row, {**row, "dataset": "a\nc"}])
    before = table.path.read_bytes()
    with pytest.raises(UserError, match=r"t\.csv"):
        table.finish()
    assert table.path.read_bytes() == before


def test_numbers_and_words_are_read_as_pandas_reads_them(tmp_path, rows):
    table = written(tmp_path / "t.csv", rows)
    expected = pd.read_csv(
        table.path, dtype={"dataset": object, "made_from": object}, keep_default_na=False,
        na_values={c: [""] for c in COLUMNS},
    )  # fmt: skip
    found = read_table(table.path)
    for column in COLUMNS:
        pd.testing.assert_series_equal(found[column], expected[column], check_dtype=False)


@pytest.mark.parametrize("late", ["0.5", "embed", "x"])
def test_a_column_that_looks_whole_for_a_million_rows_may_say_otherwise_later(tmp_path, late):
    """The reader takes a column's type from its first block."""
    path = tmp_path / "t.csv"
    path.write_text("k,layer,test_auc\n" + "16,20,1\n" * 1_200_000 + f"16,{late},1\n")
    table = read_table(path)
    assert str(table["layer"].iloc[-1]) == late
    assert str(table["layer"].iloc[0]).removesuffix(".0") == "20"
    assert len(table) == 1_200_001


def test_an_empty_key_has_no_number(tmp_path):
    assert KeyColumns({}, KEY).number_of(("a", 1, 0.1, 42)) is None
    assert len(sae_probe_table(tmp_path / "none.csv", None).done()) == 0
