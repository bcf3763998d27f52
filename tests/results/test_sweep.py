"""A table is filled with what it lacks, whatever fails on the way."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from utils.results.sweep import Sweep, SweepOptions, Task
from utils.results.tables import ResultTable, lock_tables
from utils.runtime.errors import Failures, UserError
from utils.runtime.workers import Workers

HERE = Workers(0)


def rows_of(name: str, ks: list[int], score: float) -> list[dict]:
    if name == "bad":
        raise UserError("bad cannot be read")
    return [
        {"dataset": name, "k": k, "test_auc": score, "seconds": 0.5, "converged": k > 1} for k in ks
    ]


def prepared(name: str, ks: list[int]) -> tuple:
    return name, ks, 0.75


def make_table(tmp_path) -> ResultTable:
    return ResultTable(
        tmp_path / "all_metrics.csv", ("dataset", "k", "test_auc"), {"dataset": None, "k": None}
    )


def fill(
    table: ResultTable, names: list[str], made_from: str | None = None, **options
) -> tuple[list[str], list[str]]:
    """(the labels of the tasks, the failures)."""
    failures = Failures()
    with lock_tables([table]) as place:
        sweep = Sweep("probes", [table], SweepOptions(HERE, {"seed": 1}, **options))
        for name in names:
            ks = [k for k in (1, 2) if sweep.lacks(table, {"dataset": name, "k": k}, made_from)]
            if ks:
                sweep.add(Task(f"{name}!", table, (name, ks), made_from))
        sweep.report()
        sweep.fill(rows_of, failures, place, prepare=prepared)
    return [task.label for task in sweep.tasks], failures.lines


def test_only_what_is_lacking_is_made_and_a_failure_ends_nothing(tmp_path, capsys):
    table = make_table(tmp_path)
    labels, failures = fill(table, ["b", "bad", "a"])
    assert (labels, failures) == (["b!", "bad!", "a!"], ["bad!: bad cannot be read"])
    assert "6 probes; 0 done, 6 to do" in capsys.readouterr().out
    assert table.path.read_text().splitlines()[1:] == [
        "a,1,0.75",
        "a,2,0.75",
        "b,1,0.75",
        "b,2,0.75",
    ]
    assert json.loads((tmp_path / "settings.json").read_text())["runs"][0]["settings"] == {
        "seed": 1
    }
    seconds = pd.read_csv(tmp_path / "all_metrics_seconds.csv")
    assert seconds["seconds"].tolist() == [0.5] * 4
    labels, failures = fill(table, ["b", "bad", "a"])
    assert (labels, failures) == (["bad!"], ["bad!: bad cannot be read"])
    assert "6 probes; 4 done, 2 to do" in capsys.readouterr().out


def test_overwriting_replaces_rows_and_order_changes_no_byte(tmp_path, capsys):
    table = make_table(tmp_path)
    fill(table, ["c", "a", "b"])
    assert "3 of them not converged" in capsys.readouterr().out
    before = table.path.read_bytes()
    labels, _ = fill(table, ["c", "a", "b"], overwrite=True, shuffle_seed=3)
    assert len(labels) == 3
    assert table.path.read_bytes() == before


def test_nothing_to_do_writes_nothing(tmp_path):
    table = make_table(tmp_path)
    fill(table, ["a"])
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    written = {path: path.stat().st_mtime_ns for path in files}
    assert fill(table, ["a"]) == ([], [])
    assert {path: path.stat().st_mtime_ns for path in files} == written


def test_two_runs_do_not_fill_one_table(tmp_path):
    table = make_table(tmp_path)
    with (
        lock_tables([table]),
        pytest.raises(UserError, match="is being written by"),
        lock_tables([table]),
    ):
        pass
