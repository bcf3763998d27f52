"""Fill result tables: the rows that are expected, those that are there, and tasks for the rest."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from utils import cli
from utils.activations import n_rows_to_split
from utils.paths import Paths
from utils.results.csv_files import MADE_FROM
from utils.results.kept_probes import keep_probes
from utils.results.tables import ResultTable, seconds_table
from utils.runtime.errors import Failures
from utils.runtime.files import Place
from utils.runtime.provenance import save_run_settings
from utils.runtime.tasks import Tasks
from utils.runtime.workers import Workers, run_tasks
from utils.settings import Condition, choose_conditions


@dataclass(frozen=True)
class SweepOptions:
    """How a table is filled.

    ``overwrite``: rows that are there are made again. ``shuffle_seed``: of the tasks' order; None
    leaves them in order. ``settings``: the flags to write beside the tables.
    """

    workers: Workers
    settings: dict[str, object]
    overwrite: bool = False
    shuffle_seed: int | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, paths: Paths, n_jobs: int) -> SweepOptions:
        """As a script's flags say."""
        shuffle_seed = args.seed if getattr(args, "randomize_order", False) else None
        workers = cli.workers_of(args, paths, n_jobs)
        return cls(workers, cli.settings_of(args), args.overwrite, shuffle_seed)


def conditions_asked(
    args: argparse.Namespace, paths: Paths, model_name: str, datasets: Iterable[str]
) -> dict[str, list[Condition]]:
    """{dataset: the conditions of a setting that the flags ask for and it has the rows for}."""
    return {
        dataset: choose_conditions(
            args.setting, n_rows_to_split(paths, model_name, dataset), args.conditions, paths.split
        )
        for dataset in datasets
    }


@dataclass(frozen=True)
class Task:
    """Rows of ``table`` that are made together: ``arguments`` are those of the sweep's function.

    ``label`` begins the line that says that it failed; ``made_from``: the fingerprint of what the
    rows are made from, which those carry that bring none of their own.
    """

    label: str
    table: ResultTable
    arguments: tuple
    made_from: str | None = None


class Sweep:
    """Tables of one folder that a run completes. Ask ``lacks`` for each row, then ``fill``."""

    def __init__(self, title: str, tables: Iterable[ResultTable], options: SweepOptions) -> None:
        self.title, self.options = title, options
        self.tables = list(tables)
        self.tasks: list[Task] = []
        self._done = {table.path: table.done() for table in self.tables}
        self._n_expected = self._n_todo = self._n_stale = 0

    def lacks(self, table: ResultTable, row: dict, made_from: str | None) -> bool:
        """Whether the run must make a row; ``row`` holds the columns of the table's key.

        ``made_from``: what it would be made from, None where that is not known. A row that was made
        from something else is lacking; one that does not say is taken for done.
        """
        before = self._done[table.path].get(table.key_of(row))
        stale = bool(before and made_from and before != made_from)
        lacking = self.options.overwrite or before is None or stale
        self._n_expected += 1
        self._n_todo += lacking
        self._n_stale += stale
        return lacking

    def add(self, task: Task) -> None:
        self.tasks.append(task)

    def report(self) -> None:
        """Say how many rows are there and how many are to be made."""
        n_done = self._n_expected - self._n_todo
        print(f"{self.title}: {self._n_expected} probes; {n_done} done, {self._n_todo} to do")
        if self._n_stale:
            print(f"{self._n_stale} of them were made from other inputs, and are made again")

    def fill(
        self,
        function: Callable[..., list[dict]],
        failures: Failures,
        place: Place,
        prepare: Callable[..., tuple] | None = None,
    ) -> None:
        """Run the tasks; append what ``function(*arguments)`` returns to their tables as it comes.

        ``place``: of the lock that the run holds on the tables. ``prepare``: see ``Tasks``. A task
        that fails is a failure, and the others go on.
        """
        if not self.tasks:
            return
        place.require()
        started = time.monotonic()
        tasks = list(self.tasks)
        if self.options.shuffle_seed is not None:
            random.Random(self.options.shuffle_seed).shuffle(tasks)
        job = Tasks(function, [task.arguments for task in tasks], prepare)
        made: dict[Path, set[tuple]] = {table.path: set() for table in self.tables}
        n_rows = n_unconverged = 0
        for outcome in run_tasks(job, self.options.workers, self.title):
            task = tasks[outcome.index]
            rows = [{MADE_FROM: task.made_from, **row} for row in outcome.value or []]
            if outcome.error is not None:
                failures.add(f"{task.label}: {outcome.error}")
            with failures.caught(f"{task.label}: "):
                keep_probes(task.table, rows)  # first: a row that is there has its probe
            task.table.append(rows)
            seconds_table(task.table).append(row for row in rows if "seconds" in row)
            made[task.table.path] |= {task.table.key_of(row) for row in rows}
            n_rows += len(rows)
            n_unconverged += sum(not row.get("converged", True) for row in rows)
        for table in self.tables:
            table.finish(made[table.path])
            if made[table.path]:
                seconds_table(table).finish(made[table.path])
        folder = self.tables[0].path.parent
        save_run_settings(folder / "settings.json", self.options.settings)
        unsure = f", {n_unconverged} of them not converged" if n_unconverged else ""
        seconds = time.monotonic() - started
        cli.say(f"{n_rows} probes in {seconds:.0f} s{unsure}: {cli.shown_path(folder)}")
