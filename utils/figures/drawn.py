"""Whether a report is of what there is now: where it is, a second run has nothing to draw.

All files that a report can be made from count, by size and times: a table that changed is never
taken for the one that was drawn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.paths import Paths
from utils.readers.fingerprints import digest
from utils.runtime.files import ROOT, visible_files, write_json
from utils.runtime.provenance import current_commit
from utils.runtime.remembered import FRESH, Stamp, stamp_of

KEPT = ".drawn.json"
WRITTEN = ("comparison_", "datasets_")  # below results/, by visualize.py itself
MOST_LOOKS = 3
TICK = 0.02  # seconds in which a file system with times of nanoseconds may miss a change


@dataclass(frozen=True)
class Shown:
    """What a run of visualize.py ends with: its ``notes``, the folder's ``selection``, how many
    figures it drew, and the ``verdict``.
    """

    notes: tuple[str, ...]
    selection: str
    n_figures: int
    verdict: str


class Drawn:
    """What visualize.py last made of a model by the same ``flags``, kept beside its figures."""

    def __init__(self, paths: Paths, model_name: str, flags: dict[str, Any]) -> None:
        self._path = paths.figures(model_name) / KEPT
        self._name = digest({name: str(value) for name, value in flags.items()})
        # before anything is read: what changes meanwhile is drawn by the next run
        self._inputs = inputs_of(paths, model_name)

    def last(self) -> Shown | None:
        """What the run showed that drew it; None where inputs or outputs are others now."""
        kept = self._kept().get(self._name, {})
        with suppress(OSError, TypeError, KeyError, ValueError):
            if kept["inputs"] == self._inputs and kept["outputs"]:
                now = [list(stamp_of(Path(name))) for name, *_ in kept["outputs"]]
                shown = Shown(**{**kept["shown"], "notes": tuple(kept["shown"]["notes"])})
                return shown if now == kept["outputs"] else None
        return None

    def keep(self, outputs: Iterable[Path], shown: Shown) -> None:
        """Note that all this was drawn."""
        stamps = [stamp_of(path) for path in sorted(set(outputs))]
        record = {"inputs": self._inputs, "outputs": stamps, "shown": asdict(shown)}
        write_json(self._path, {**self._kept(), self._name: record})

    def _kept(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return {name: one for name, one in content.items() if isinstance(one, dict)}
        return {}


def inputs_of(paths: Paths, model_name: str) -> str:
    """A digest of the stamps of all results, texts, activations and SAEs, of our code, and of the
    versions of packages. Waits where a file has just changed and could change again unseen.
    """
    for _ in range(MOST_LOOKS):
        stamps = sorted(input_stamps(paths, model_name))
        wait = seconds_to_settle(stamps, time.time())
        if wait <= 0:
            break
        time.sleep(wait)
    else:  # another run writes all the time: what was drawn now is not known later
        stamps.append(("not settled", 0, 0, time.time_ns()))
    return digest([stamps, current_commit(), installed_packages()])


@cache
def installed_packages() -> list[str]:
    """All packages of this Python with their versions: those that draw and those that count."""
    return sorted(f"{one.name} {one.version}" for one in metadata.distributions())


def input_stamps(paths: Paths, model_name: str) -> Iterator[Stamp]:
    """Of every file that a report can be made from, our code among them; of one that cannot be
    looked at, that it is there.
    """
    # resolved on both sides: a folder below a link (/tmp of a Mac) has two names
    results, figures = paths.results_dir.resolve(), paths.figures_dir.resolve()
    others = (paths.text_dir, paths.data_dir, paths.saes(model_name))
    folders = (results, *(folder.resolve() for folder in others))
    files = [file for folder in folders for file in visible_files(folder)]
    for file in (*files, *visible_files(ROOT / "utils"), ROOT / "visualize.py"):
        ours = file.suffix == ".csv" and file.name.startswith(WRITTEN) and results in file.parents
        # figures may stand below data/ or results/
        if ours or file.suffix == ".pyc" or figures in file.parents:
            continue
        try:
            yield stamp_of(file)
        except OSError:
            yield str(file.absolute()), -1, -1, -1


def seconds_to_settle(stamps: Iterable[Stamp], now: float) -> float:
    """How long until no file of these could change again within one tick of its clock: two seconds
    where times are whole seconds, as on FAT and some network drives.
    """
    wait = 0.0
    for _, _, *changed in stamps:
        for nanoseconds in changed:
            tick = TICK if nanoseconds % 10**9 else FRESH
            wait = max(wait, min(nanoseconds / 1e9 + tick - now, tick))
    return wait
