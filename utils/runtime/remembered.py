"""What took long to find out about files, kept on disk until they change."""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from utils.runtime.files import write_json

FRESH = 2.0  # seconds in which a file may change twice and look as before
Stamp = tuple[str, int, int, int]  # a file, its bytes, and the times of its content and its entry


def stamp_of(file: Path) -> Stamp:
    """What is remembered of a file holds while this does."""
    stat = file.stat()
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class Remembered:
    """Facts by name, each with the stamps of the files that it was found in.

    Kept in one file when the process ends; the workers of a run only read it. Of a folder that
    cannot be written nothing is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts = _read(path)
        self._new: dict[str, dict] = {}
        if multiprocessing.parent_process() is None:
            atexit.register(self.keep)

    def recall(
        self, name: str, stamps: Iterable[Stamp], rules: str, find: Callable[[], Any]
    ) -> Any:
        """The fact of this name, found again where a stamp or the ``rules`` are others.

        ``find`` gives plain data, as JSON has it.
        """
        stamps = list(stamps)
        signs = [rules, *map(list, stamps)]
        known = self._facts.get(name)
        if known is not None and known.get("signs") == signs:
            return known["fact"]
        fact = find()
        self._facts[name] = {"signs": signs, "fact": fact}
        if all(time.time() - max(changed) / 1e9 > FRESH for _, _, *changed in stamps):
            self._new[name] = self._facts[name]
        return fact

    def keep(self) -> None:
        """Write what is new beside what other runs have written meanwhile."""
        if self._new and self.path.parent.is_dir():
            with suppress(OSError):
                write_json(self.path, {**_read(self.path), **self._new})
        self._new = {}


@cache
def remembered(folder: Path) -> Remembered:
    """What is remembered in a folder."""
    return Remembered(folder / ".remembered.json")


@cache
def rules_of(module: str) -> str:
    """A digest of a module's code: facts that it found by another code are found again."""
    loaded = sys.modules[module]
    code = loaded.__loader__.get_data(loaded.__file__)  # type: ignore[union-attr]
    return hashlib.sha256(code).hexdigest()[:16]


def _read(path: Path) -> dict[str, dict]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
            return content
    return {}
