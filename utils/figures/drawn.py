"""Whether a report is of what there is now: where it is, a second run has nothing to draw.

All files that a report can be made from count, by size and times: a table that changed is never
taken for the one that was drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.paths import Paths
from utils.readers.fingerprints import digest
from utils.runtime.files import ROOT, write_json
from utils.runtime.provenance import current_commit, installed_versions
from utils.runtime.remembered import stamp_of

KEPT = ".drawn.json"
WRITTEN = ("comparison_", "datasets_")  # below results/, by visualize.py itself


class Drawn:
    """What visualize.py last made of a model by the same ``flags``, kept beside its figures."""

    def __init__(self, paths: Paths, model_name: str, flags: dict[str, Any]) -> None:
        self._path = paths.figures(model_name) / KEPT
        self._name = digest({name: str(value) for name, value in flags.items()})
        # before anything is read: what changes meanwhile is drawn by the next run
        self._inputs = inputs_of(paths, model_name)

    def said(self) -> list[str] | None:
        """The last lines of the run that drew it; None where inputs or outputs are others now."""
        known = self._kept().get(self._name, {})
        with suppress(OSError, TypeError, KeyError, ValueError):
            if known["inputs"] == self._inputs and known["outputs"]:
                same = [list(stamp_of(Path(name))) for name, *_ in known["outputs"]]
                return list(known["said"]) if same == known["outputs"] else None
        return None

    def keep(self, outputs: Iterable[Path], said: list[str]) -> None:
        """Note that all this was drawn, and what the run said at its end."""
        stamps = [stamp_of(path) for path in sorted(set(outputs))]
        drawn = {"inputs": self._inputs, "outputs": stamps, "said": said}
        write_json(self._path, {**self._kept(), self._name: drawn})

    def _kept(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        return {}


def inputs_of(paths: Paths, model_name: str) -> str:
    """A digest of the stamps of all results, texts, activations and SAEs, of our code, and of the
    versions of packages.
    """
    folders = [paths.results_dir, paths.text_dir, paths.data_dir, paths.saes(model_name)]
    written = {
        str(file.absolute())
        for prefix in WRITTEN
        for file in paths.results_dir.glob(f"{prefix}*.csv")
    }
    files = [file for folder in folders for file in files_below(folder)]
    stamps = [stamp for file in files if (stamp := stamp_of(file))[0] not in written]
    code = [stamp_of(file) for file in (*files_below(ROOT / "utils"), ROOT / "visualize.py")]
    return digest([sorted(stamps), sorted(code), current_commit(), installed_versions()])


def files_below(folder: Path) -> Iterator[Path]:
    """Every file that is not hidden, in no hidden folder, and no compiled code."""
    for root, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(root, name) for name in files if not name.startswith("."))
