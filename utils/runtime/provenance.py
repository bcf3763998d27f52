"""What made a result: settings, versions, commit."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.runtime.files import ROOT, write_json

RECORDED_PACKAGES = (
    *("torch", "numpy", "pandas", "scikit-learn", "sae-lens", "transformers"),
    *("xgboost", "xgboost-cpu"),
)


def installed_versions() -> dict[str, str]:
    """Python and the packages on which numbers depend, as they are installed here."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def save_run_settings(path: Path, settings: dict[str, Any]) -> None:
    """Add a run's settings, package versions and commit to those beside the results; a run like
    one before adds nothing.
    """
    run = {"settings": settings, "versions": installed_versions(), "commit": current_commit()}
    run = json.loads(json.dumps(run, default=str))
    runs = read_run_settings(path)
    if run not in runs:
        write_json(path, {"runs": [*runs, run]})


def read_run_settings(path: Path) -> list[dict[str, Any]]:
    """The runs that made the results of a folder, the first first; [] where nothing says so."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    # one run alone: as it was written once
    runs = content.get("runs", [content] if "settings" in content else [])
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def current_commit(checkout: Path = ROOT) -> str | None:
    """Of a checkout, this one by default; None where it is none."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
