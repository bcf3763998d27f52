"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_shown: list[tqdm] = []  # the last progress bar


def progress(items: Iterable[T] | None = None, **options: Any) -> Any:
    """tqdm with the project's manners: an estimate on a terminal, a line now and then in a log."""
    quiet = not sys.stderr.isatty()
    options |= {"mininterval": 10 if quiet else 0.2, "dynamic_ncols": not quiet}
    # without tqdm's watching thread, which may wait for ever where memory is short
    tqdm.monitor_interval = 0
    bar: tqdm = tqdm(items, ncols=90 if quiet else None, **options)
    _shown[:] = [bar]
    return bar


def where_it_stood() -> str:
    """How far the last progress bar was, for the line of a run that is stopped; "" before any."""
    if not _shown:
        return ""
    (bar,) = _shown
    n, total = (f"{number:.0f}" if number is not None else "?" for number in (bar.n, bar.total))
    return f" ({f'{bar.desc}: ' if bar.desc else ''}{n} of {total} {bar.unit}s)"
