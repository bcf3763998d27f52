"""What made a result: settings, versions, commit."""

from __future__ import annotations

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
    """Write the settings, package versions and commit that made the results beside them."""
    made_by = {"settings": settings, "versions": installed_versions(), "commit": _commit()}
    write_json(path, made_by)


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
