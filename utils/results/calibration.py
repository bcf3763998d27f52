"""What checks.calibrate found, for those who run it and for the report."""

from __future__ import annotations

import json

import pandas as pd

from utils.paths import Paths
from utils.results.csv_files import read_table

COLUMNS = ("SAE", "quality", "mean_test_auc", "sd", "n_labels")


def read_calibration(paths: Paths) -> pd.DataFrame:
    """A row an SAE: its true quality and the mean test AUC of its probes; empty where none was
    measured. Raises UserError where the file is no table.
    """
    path, _ = paths.calibration()
    table = read_table(path) if path.is_file() else pd.DataFrame()
    return table if set(COLUMNS) <= set(table.columns) else pd.DataFrame(columns=list(COLUMNS))


def read_summary(paths: Paths) -> dict:
    """What an earlier run found; {} where there is none, or none that can be read."""
    try:
        content = json.loads(paths.calibration()[1].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def in_sentences(summary: dict) -> str:
    """The summary of a calibration in words. Raises KeyError where it is no such summary."""
    return (
        f"SAEs of known quality come out in order: Spearman correlation {summary['spearman']:.2f}."
        f" Of studies of {summary['n_datasets']} datasets with equal SAEs,"
        f" {summary['no_difference']:.1%} see no difference. Of studies with a difference of which"
        f" 80 % power is promised, {summary['power']:.1%} see it."
    )
