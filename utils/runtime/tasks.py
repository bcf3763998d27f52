"""One task of many: what it gave, or the line that says why it failed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from threadpoolctl import threadpool_limits

from utils.runtime.devices import keep_freed_memory
from utils.runtime.errors import OUT_OF_MEMORY, UserError, is_out_of_memory

T = TypeVar("T")
# a full disk or quota, a file too large, a closed disk
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """Of the task at ``index``: its ``value``, or the ``error`` in one line."""

    index: int
    value: T | None
    error: str | None = None


@dataclass(frozen=True)
class Tasks(Generic[T]):
    """``function(*task)`` for each of many tasks.

    ``prepare(*task)`` can turn a task into larger arguments (arrays). For processes of this machine
    it runs here, just before a task is sent off; on a cluster on the worker, so that only paths
    travel.
    """

    function: Callable[..., T]
    tasks: list[tuple]
    prepare: Callable[..., tuple] | None = None


def attempt(
    function: Callable[..., T],
    task: tuple,
    prepare: Callable[..., tuple] | None = None,
    n_threads: int | None = 1,
) -> tuple[T | None, str | None]:
    """(value, error) of one task on ``n_threads`` (None: all); the error is a line of text.

    Raises OSError when there is no room to write, which ends the run.
    """
    if n_threads is not None:  # in a process that only does tasks
        keep_freed_memory()
    try:
        with threadpool_limits(n_threads):
            return function(*(prepare(*task) if prepare else task)), None
    except UserError as error:
        return None, str(error)
    except Exception as error:  # one task that breaks must not end the run; it is listed at the end
        if is_out_of_memory(error):
            return None, OUT_OF_MEMORY
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        return None, f"{type(error).__name__}: {error}"


def failed(message: str) -> tuple[None, str]:
    """The outcome of a task that could not even be prepared."""
    return None, message
