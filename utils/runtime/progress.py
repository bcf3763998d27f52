"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_EVERY = 10  # seconds
LOG_WIDTH = 80  # columns
_shown: list[tqdm] = []  # the last progress bar


class Log:
    """Standard error that is no terminal: where tqdm would move to draw a bar anew, a new line."""

    @property
    def encoding(self) -> str:
        """By which tqdm chooses the characters of its bars."""
        return getattr(sys.stderr, "encoding", None) or "ascii"

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable[T] | None = None, **options: Any) -> Any:
    """tqdm with the project's manners: a bar with an estimate on a terminal; in a log a line now
    and then, and none of what is done before the first.
    """
    if sys.stderr.isatty():
        options |= {"mininterval": 0.2, "dynamic_ncols": True}
    else:
        options |= {"mininterval": LOG_EVERY, "delay": LOG_EVERY, "ncols": LOG_WIDTH, "file": Log()}
    # without tqdm's watching thread, which may wait for ever where memory is short
    tqdm.monitor_interval = 0
    bar: tqdm = tqdm(items, **options)
    _shown[:] = [bar]
    return bar


def where_it_stood() -> str:
    """How far the last progress bar was, for the line of a run that is stopped; "" before any."""
    if not _shown:
        return ""
    (bar,) = _shown
    n, total = (f"{number:.0f}" if number is not None else "?" for number in (bar.n, bar.total))
    return f" ({f'{bar.desc}: ' if bar.desc else ''}{n} of {total} {bar.unit}s)"
