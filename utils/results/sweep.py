"""Fill result tables: the rows that are expected, those that are there, and tasks for the rest."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from utils import cli
from utils.paths import Paths
from utils.results.tables import ResultTable, seconds_table
from utils.runtime.errors import Failures
from utils.runtime.provenance import save_run_settings
from utils.runtime.tasks import Tasks
from utils.runtime.workers import Workers, run_tasks


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


@dataclass(frozen=True)
class Task:
    """Rows of ``table`` that are made together: ``arguments`` are those of the sweep's function.

    ``label`` begins the line that says that it failed.
    """

    label: str
    table: ResultTable
    arguments: tuple


class Sweep:
    """Tables of one folder that a run completes. Ask ``lacks`` for each row, then ``fill``."""

    def __init__(self, title: str, tables: Iterable[ResultTable], options: SweepOptions) -> None:
        self.title, self.options = title, options
        self.tables = list(tables)
        self.tasks: list[Task] = []
        self._done = {table.path: table.done() for table in self.tables}
        self._n_expected = self._n_todo = 0

    def lacks(self, table: ResultTable, row: dict) -> bool:
        """Whether the run must make a row; ``row`` holds the columns of the table's key."""
        lacking = self.options.overwrite or table.key_of(row) not in self._done[table.path]
        self._n_expected += 1
        self._n_todo += lacking
        return lacking

    def add(self, task: Task) -> None:
        self.tasks.append(task)

    def report(self) -> None:
        """Say how many rows are there and how many are to be made."""
        n_done = self._n_expected - self._n_todo
        print(f"{self.title}: {self._n_expected} probes; {n_done} done, {self._n_todo} to do")

    def fill(
        self,
        function: Callable[..., list[dict]],
        failures: Failures,
        prepare: Callable[..., tuple] | None = None,
    ) -> None:
        """Run the tasks; append what ``function(*arguments)`` returns to their tables as it comes.

        ``prepare``: see ``Tasks``. A task that fails is a failure, and the others go on.
        """
        if not self.tasks:
            return
        started = time.monotonic()
        tasks = list(self.tasks)
        if self.options.shuffle_seed is not None:
            random.Random(self.options.shuffle_seed).shuffle(tasks)
        job = Tasks(function, [task.arguments for task in tasks], prepare)
        n_rows = n_unconverged = 0
        for outcome in run_tasks(job, self.options.workers, self.title):
            task, rows = tasks[outcome.index], outcome.value or []
            if outcome.error is not None:
                failures.add(f"{task.label}: {outcome.error}")
            task.table.append(rows, replacing=self.options.overwrite)
            timed = [row for row in rows if "seconds" in row]
            seconds_table(task.table).append(timed, replacing=self.options.overwrite)
            n_rows += len(rows)
            n_unconverged += sum(not row.get("converged", True) for row in rows)
        for table in self.tables:
            table.finish()
        folder = self.tables[0].path.parent
        save_run_settings(folder / "settings.json", self.options.settings)
        unsure = f", {n_unconverged} of them not converged" if n_unconverged else ""
        print(f"{n_rows} probes in {time.monotonic() - started:.0f} s{unsure}: {folder}")
