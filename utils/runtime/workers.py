"""Where tasks run: in this process, in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from utils.runtime.cluster import run_on_cluster
from utils.runtime.errors import UserError
from utils.runtime.progress import progress
from utils.runtime.tasks import Outcome, Tasks, attempt, failed

T = TypeVar("T")
ENDED = "ended by the system, as where memory runs out"


@dataclass(frozen=True)
class Workers:
    """In ``n_jobs`` processes of one thread each (0: in this very process, with all its cores).

    With ``scheduler`` on the workers of that Dask cluster, which share ``folder``; ``gpu``: on
    those of them that offer the resource GPU.
    """

    n_jobs: int
    scheduler: str | None = None
    folder: Path | None = None
    gpu: bool = False


def run_tasks(job: Tasks[T], workers: Workers, desc: str) -> Iterator[Outcome[T]]:
    """Run a job's tasks, with a progress bar (in this process: with the function's own).

    Yields outcomes as tasks are done, on this machine in the order of the tasks. A task that fails
    is an outcome with an error; the others go on.

    Raises OSError when there is no room to write, UserError when a cluster cannot be used.
    """
    if workers.scheduler:
        assert workers.folder is not None
        outcomes = run_on_cluster(workers.scheduler, job, workers.folder, workers.gpu)
    elif workers.n_jobs == 0:
        for index, task in enumerate(job.tasks):
            yield Outcome(index, *attempt(job.function, task, job.prepare, n_threads=None))
        return
    else:
        outcomes = _run_in_processes(job, workers.n_jobs)
    with progress(total=len(job.tasks), desc=desc, unit="task") as bar:
        for outcome in outcomes:
            bar.update()
            yield outcome


def _run_in_processes(job: Tasks[T], n_jobs: int) -> Iterator[Outcome[T]]:
    """All tasks, whatever becomes of a process: where the system ends one, mostly because memory
    ran out, what is left is done one task at a time, and the task that ends its process then is a
    failure.
    """
    start = 0
    while start < len(job.tasks):
        try:
            for outcome in _run_some(job, start, len(job.tasks), n_jobs):
                start = outcome.index + 1
                yield outcome
        except TerminatedWorkerError:
            if n_jobs > 1:
                n_jobs = 1
                print(f"a process was {ENDED}: the rest is done one task at a time")
            # it may have had a later task, whose results are lost with it: this one alone tells
            try:
                yield from _run_some(job, start, start + 1, n_jobs)
            except TerminatedWorkerError:
                yield Outcome(start, None, f"its process was {ENDED}: it needs more memory")
            start += 1


def _run_some(job: Tasks[T], start: int, stop: int, n_jobs: int) -> Iterator[Outcome[T]]:
    """The tasks start … stop - 1.

    Raises TerminatedWorkerError where a process of theirs was killed.
    """
    tasks = job.tasks[start:stop]

    def calls() -> Iterator:
        for task in tasks:
            try:
                yield delayed(attempt)(job.function, job.prepare(*task) if job.prepare else task)
            except UserError as error:
                yield delayed(failed)(str(error))

    # Never in this process, even for one job: it may have loaded torch, and a worker may run
    # XGBoost, which together crash on arm64 macOS. joblib runs a single job in place, so one job is
    # two workers of which one at a time has a task.
    n_jobs = max(1, min(n_jobs, len(tasks)))
    ahead = 1 if n_jobs == 1 else 2 * n_jobs
    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = Parallel(max(n_jobs, 2), return_as="generator", pre_dispatch=ahead)
        with _signals_wait():  # the workers start here
            outcomes = parallel(calls())
        for index, (value, error) in enumerate(outcomes, start=start):
            yield Outcome(index, value, error)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach this process after the block.

    They never reach the processes started in it, which inherit the mask: a terminal sends Ctrl-C to
    all of them, and each would print a traceback before this one ends them.
    """
    stops = {signal.SIGINT, signal.SIGTERM}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
