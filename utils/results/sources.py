"""What the rows of result tables are made from, by one rule for those who write and who read."""

from __future__ import annotations

from utils.activations import rows_fingerprint
from utils.names import hook_name
from utils.paths import Paths
from utils.probes.controls import CONTROLS
from utils.runtime.errors import UserError
from utils.saes.store import SaeFiles, latents_fingerprint
from utils.settings import NORMAL, SHIFTED, Setting


def source_of(paths: Paths, model_name: str, row: dict, setting: Setting) -> str | None:
    """The fingerprint that a row of a result table would carry if it were made now.

    ``row``: its dataset, layer and method, and its sae_id where it is of an SAE. None where the
    inputs are not there or cannot be read: then nothing can be compared.
    """
    hook = hook_name(row["layer"])
    try:
        sae_id = row.get("sae_id")
        if not isinstance(sae_id, str) or not sae_id or row["method"] in CONTROLS:
            return rows_fingerprint(paths, model_name, row["dataset"], hook, setting.shifted)
        name = SHIFTED.name if setting.shifted else NORMAL.name
        return latents_fingerprint(SaeFiles(paths, model_name, name, row["dataset"], sae_id), hook)
    except UserError:  # the task that makes the row will say what is wrong
        return None
