"""Errors that a user can cause and mend: one clear line, no traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


@dataclass
class Failures:
    """What of a run failed, a line each, while the rest went on; ``main`` prints it at the end."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: object) -> None:
        """Note a failure, once."""
        if str(line) not in self.lines:
            self.lines.append(str(line))

    @contextmanager
    def caught(self, prefix: str = "") -> Iterator[None]:
        """A UserError ends the block and is noted; what follows the block goes on."""
        try:
            yield
        except UserError as error:
            self.add(f"{prefix}{error}")


OUT_OF_MEMORY = (
    "memory ran out: close other programs, or lower --max_memory, --batch_size or --n_jobs"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch on the CPU or a GPU could not get the memory it asked for."""
    return isinstance(error, MemoryError) or bool(
        re.search("allocate memory|out of memory", str(error))
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or ["no details"])[0]


def unknown_name(kind: str, got: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name outside ``known``, with the nearest known names in it."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(str(got), known, n=3, cutoff=0.5)
    listed = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
    if not near and len(known) > 12:
        listed += f" … ({len(known)} in all)"
    return UserError(f"unknown {kind} {got!r}: {listed}{' ' + hint if hint else ''}")
