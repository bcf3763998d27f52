"""What becomes of one task of many."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from utils.runtime.errors import OUT_OF_MEMORY, UserError
from utils.runtime.tasks import Outcome, Tasks, attempt
from utils.runtime.workers import Workers, run_tasks


def divide(a: int, b: int) -> float:
    if b < 0:
        raise UserError("b is below zero: give another")
    if b == 99:
        raise MemoryError
    return a / b


def doubled(a: int, b: int) -> tuple[int, int]:
    return 2 * a, b


TASKS = [(4, 2), (1, 0), (1, -1), (1, 99), (9, 3)]
ERRORS = [
    None,
    "ZeroDivisionError: division by zero",
    "b is below zero: give another",
    OUT_OF_MEMORY,
    None,
]


@pytest.mark.parametrize("n_jobs", [0, 1, 2])
@pytest.mark.parametrize(("prepare", "factor"), [(None, 1), (doubled, 2)])
def test_tasks_that_fail_are_outcomes_and_the_others_have_values(n_jobs, prepare, factor):
    outcomes = list(run_tasks(Tasks(divide, TASKS, prepare), Workers(n_jobs), "test"))
    assert [outcome.index for outcome in outcomes] == list(range(5))
    assert [outcome.error for outcome in outcomes] == ERRORS
    assert outcomes[0] == Outcome(0, 2.0 * factor)
    assert outcomes[4] == Outcome(4, 3.0 * factor)


def full(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_the_run():
    with pytest.raises(OSError, match="No space"):
        attempt(full, ())


def killed_at(deadly: int, n: int) -> int:
    """n squared; the process of the deadly one is killed, as the system does without memory."""
    if n == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_task_whose_process_is_killed_is_named_and_the_others_are_done(capsys, n_jobs):
    tasks = [(4, n) for n in range(12)]
    outcomes = list(run_tasks(Tasks(killed_at, tasks), Workers(n_jobs), "test"))
    assert [outcome.index for outcome in outcomes] == list(range(12))
    assert [outcome.value for outcome in outcomes] == [n * n if n != 4 else None for n in range(12)]
    assert "its process was ended by the system" in str(outcomes[4].error)
    assert ("one task at a time" in capsys.readouterr().out) == (n_jobs > 1)
