"""The report: one HTML file with everything in it, readable on a phone and on a laptop, without
network. Its words and marks are in ``templates/``.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from utils.figures.gallery import Drawing
from utils.results.comparison import ALL, TITLES, headline
from utils.results.findings import Finding
from utils.runtime.files import atomic_path

TEMPLATES = Path(__file__).with_name("templates")
COLUMNS = {
    "setting": "setting",
    "protocol": "protocol",
    "condition": "condition",
    "contender": "contender",
    "mean_test_auc": "mean test AUC",
    "mean_difference": "difference",
    "ci_low": "95 % from",
    "ci_high": "to",
    "wins": "wins",
    "ties": "ties",
    "losses": "losses",
    "p_wilcoxon": "Wilcoxon p",
    "p_holm": "Holm p",
    "tie_share": "tied picks",
    "lowest": "ties: lowest",
    "highest": "highest",
    "n_datasets": "datasets",
    "n_pairs": "pairs",
    "n_unmatched": "unmatched",
}
WHOLE = {"wins", "ties", "losses", "n_datasets", "n_pairs", "n_unmatched", "k", "ahead on", "of"}
WHOLE |= {"datasets", "pairs", "unmatched", "above_logreg", "n_labels", "n_train"}
WEIGHTS = {
    "wrong": "Must not be used as what it is called",
    "doubt": "To be known",
    "fine": "Looked for and not found",
}


@dataclass(frozen=True)
class Report:
    """What the page of one model shows; each table may be empty.

    ``settings``: of the runs that made the tables, by their folder.
    """

    model_name: str
    comparison: pd.DataFrame
    against_control: pd.DataFrame
    positive_control: pd.DataFrame
    gap: pd.DataFrame
    each_sae: pd.DataFrame
    drawings: list[Drawing]
    left_out: list[str]
    findings: list[Finding]
    settings: dict[str, dict]


def write_report(path: Path, report: Report) -> None:
    """Write the page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    comparison = report.comparison.rename(columns=COLUMNS)
    comparison = comparison[[name for name in COLUMNS.values() if name in comparison]]
    figures = [
        {
            "name": drawing.name,
            "caption": drawing.caption,
            "data": base64.b64encode(drawing.png.read_bytes()).decode("ascii"),
        }
        for drawing in report.drawings
    ]
    found = {w: [f for f in report.findings if f.weight == w] for w in WEIGHTS}
    page = environment.get_template("report.html").render(
        model_name=report.model_name,
        answers=answers(report.comparison),
        headline=headline(report.comparison).reset_index().rename(columns=COLUMNS)
        if len(report.comparison)
        else None,
        against_control=report.against_control,
        positive_control=report.positive_control,
        known_answer=known_answer(report.positive_control),
        figures=figures,
        gap=report.gap,
        each_sae=report.each_sae,
        comparison=comparison.assign(contender=comparison["contender"].map(TITLES)),
        findings=[(title, found[w]) for w, title in WEIGHTS.items() if found[w]],
        left_out=report.left_out,
        settings=json.dumps(report.settings, indent=1, sort_keys=True) if report.settings else "",
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def answers(comparison: pd.DataFrame) -> list[dict[str, str]]:
    """One sentence a setting: who is ahead and how sure that is."""
    if not len(comparison):
        return []
    overall = comparison[(comparison["condition"] == ALL) & (comparison["contender"] == "sae_only")]
    several = overall["protocol"].nunique() > 1
    sentences = []
    for row in overall.to_dict("records"):
        sure = row["ci_low"] > 0 or row["ci_high"] < 0
        side = "above" if row["mean_difference"] > 0 else "below"
        interval = (
            f" (95 % interval {row['ci_low']:+.3f} to {row['ci_high']:+.3f})"
            if pd.notna(row["ci_low"])
            else ""
        )
        hedge = "" if sure else ", a difference this data cannot tell from none"
        what = (
            f"SAE probes are {abs(row['mean_difference']):.3f} AUC {side} the best"
            f" baseline{interval}{hedge}; ahead in {row['wins']:.0f} of {row['n_pairs']} decisions."
        )
        where = row["setting"] + (f", {row['protocol']} protocol" if several else "")
        sentences.append({"where": where, "what": what})
    return sentences


def known_answer(table: pd.DataFrame) -> str:
    """What the positive control shows, in words taken from its own numbers."""
    if not len(table):
        return ""
    fewest = table[table["n_train"] == table["n_train"].min()]
    shown = "; ".join(
        f"{row['probe']}: {row['mean_test_auc']:.3f}"
        + (
            f", above logreg on {row['above_logreg']} of {row['n_labels']}"
            if row["above_logreg"] or "SAE" in row["probe"]
            else ""
        )
        for row in fewest.to_dict("records")
    )
    return f"With {int(fewest['n_train'].iloc[0])} training rows: {shown}."


def cell(value: object, column: str) -> str:
    """A table's value as text."""
    if value is None or value != value:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if column in WHOLE or column.startswith("ahead"):
        return f"{value:.0f}"
    if column.endswith(" p") and value < 0.0005:
        return "<0.001"
    return f"{value:.3g}" if column == "condition" else f"{value:.3f}"
