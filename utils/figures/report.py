"""The report: one HTML file with everything in it, readable on a phone and on a laptop, without
network. Its words and marks are in ``templates/``.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from utils.figures import explorer
from utils.figures.gallery import DOTS, Drawing
from utils.figures.style import LOOKS
from utils.names import RANDOM, split_twin
from utils.results.cards import ProbeCards
from utils.results.comparison import (
    ALL,
    PROBES,
    TITLES,
    WORDS_SUFFICE,
    Comparisons,
    headline,
    stated,
)
from utils.results.findings import Finding
from utils.results.paired import PairedErrors
from utils.results.statistics import verdict
from utils.results.tidy import BASELINE, SAE
from utils.runtime.files import atomic_path
from utils.settings import SETTINGS

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
    "mde": "visible from",
    "verdict": "verdict",
    "own_datasets": "own datasets",
    "n_datasets": "datasets",
    "n_pairs": "pairs",
    "n_candidates": "candidates",
    "n_candidates_baseline": "baseline's candidates",
    "n_empty": "without weights",
    "n_unmatched": "unmatched",
    "baselines": "baselines",
}
WHOLE = {
    "wins",
    "ties",
    "losses",
    "k",
    "datasets",
    "own datasets",
    "pairs",
    "unmatched",
    "without weights",
}
MARKS = {  # of a verdict: how the page says it, and its colour
    "above": ("▲ better", "better"),
    "below": ("▼ worse", "worse"),
    "perhaps above": ("△ perhaps better", "better"),
    "perhaps below": ("▽ perhaps worse", "worse"),
    "no difference seen": ("≈ not told apart", "same"),
    "too few datasets": ("? too few data", "few"),
}
EXPLORER_COLUMNS = {
    "dataset": "dataset",
    "setting": "setting",
    "difference": "difference",
    "width": "±",
    "baseline": "best baseline",
    "method": "its method",
    "sae": "SAE probe",
    "k": "its k",
    "sae_id": "its SAE",
    "text_only": "text only",
    "twin": "random twin",
    "words": "words alone",
    "rows": "test rows",
}
WEIGHTS = {
    "wrong": "Must not be used as what it is called",
    "doubt": "Warnings",
    "fine": "Checks passed",
}


@dataclass(frozen=True)
class Report:
    """What the page of one model shows; each table may be empty.

    ``about``: the SAEs, the layers, the day and the commit; ``shown``: the rows of the protocol
    that figures show; ``cards``: of explain_probes.py; ``calibration``: what checks.calibrate
    found, in sentences; ``leaderboard``: whether there is one beside the page; ``selected``: the
    name of a selection of results, "" for all; ``settings``: of the runs that made the tables;
    ``paired``: knows the errors of differences whose scores were kept; ``make_flags``: what a make
    target needs for splits that are not the paper's.
    """

    model_name: str
    about: str
    shown: pd.DataFrame
    comparisons: Comparisons
    cards: list[ProbeCards]
    leaderboard: bool
    selected: str
    controls: pd.DataFrame
    calibration: str
    gap: pd.DataFrame
    each_sae: pd.DataFrame
    drawings: list[Drawing]
    left_out: list[str]
    findings: list[Finding]
    settings: dict[str, object]
    paired: PairedErrors | None = None
    make_flags: str = ""


def pages() -> Environment:
    """The templates. Texts are escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    return environment


def write_report(path: Path, report: Report) -> None:
    """Write the page."""
    tables = report.comparisons
    sentences = answers(tables)
    first = sentences[0]["protocol"] if sentences else None
    comparison = readable_columns(tables.all_rows)
    figures = [
        {
            "name": drawing.name,
            "caption": drawing.caption,
            "data": base64.b64encode(drawing.png.read_bytes()).decode("ascii"),
        }
        for drawing in report.drawings
    ]
    by_weight = {w: [f for f in report.findings if f.weight == w] for w in WEIGHTS}
    page = (
        pages()
        .get_template("report.html")
        .render(
            model_name=report.model_name,
            about=report.about,
            answers=[answer for answer in sentences if answer["protocol"] == first],
            others=[answer for answer in sentences if answer["protocol"] != first],
            absent=absent(report),
            citation=citation(report, sentences),
            dots=next((figure for figure in figures if figure["name"] == DOTS), None),
            explorer=explored(report),
            leaderboard=report.leaderboard,
            selected=report.selected,
            against=readable_columns(
                tables.against.assign(control=tables.against["control"].map(TITLES))
                if len(tables.against)
                else tables.against
            ),
            needed=_by_setting(tables.needed),
            fixed_k=_flat(tables.fixed_k),
            headline=_by_setting(tables.all_rows),
            fresh=_by_setting(tables.fresh),
            twins=readable_columns(twins(report.controls)),
            controls=readable_columns(report.controls),
            calibration=report.calibration,
            figures=[figure for figure in figures if figure["name"] != DOTS],
            gap=report.gap,
            each_sae=readable_columns(report.each_sae),
            comparison=comparison.assign(contender=comparison["contender"].map(TITLES)),
            findings=[(title, by_weight[w]) for w, title in WEIGHTS.items() if by_weight[w]],
            left_out=report.left_out,
            settings=json.dumps(report.settings, indent=1, sort_keys=True)
            if report.settings
            else "",
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


RANKED = (
    "SAE", "mean test AUC", "own datasets", "difference", "95 % from", "to", "wins", "losses",
    "Holm p", "verdict", "datasets",
)  # fmt: skip
SIGNS = {"above": "▲", "below": "▼", "perhaps above": "△", "perhaps below": "▽"}
OPPOSITE = {"▲": "▼", "▼": "▲", "△": "▽", "▽": "△", "": ""}


def write_leaderboard(
    path: Path,
    model_name: str,
    setting: str,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    fresh: bool,
) -> None:
    """The page of all SAEs of a model; ``tables``: of ``comparison.leaderboard``."""
    saes, pairs = tables
    signs: dict[tuple[str, str], tuple[str, str]] = {}
    for row in pairs.to_dict("records"):
        sign = SIGNS.get(verdict(row), "")
        numbers = f"{row['mean_difference']:+.3f} ({row['n_datasets']} datasets)"
        signs[row["SAE"], row["other"]] = (sign, f"{row['SAE']} less {row['other']}: {numbers}")
        signs[row["other"], row["SAE"]] = (OPPOSITE[sign], signs[row["SAE"], row["other"]][1])
    names = list(dict.fromkeys([*pairs["SAE"], *pairs["other"]])) if len(pairs) else []
    matrix = [
        {"name": name, "cells": [signs.get((name, other), ("", "")) for other in names]}
        for name in names
    ]
    n_apart = sum(sign in ("▲", "▼") for sign, _ in signs.values()) // 2
    shown = readable_columns(saes)
    page = (
        pages()
        .get_template("leaderboard.html")
        .render(
            model_name=model_name,
            setting=setting,
            fresh=fresh,
            answer=_best_sae(saes, pairs),
            saes=shown[[name for name in RANKED if name in shown]],
            pairs=matrix,
            n_pairs=len(pairs),
            n_apart=n_apart,
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _best_sae(saes: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """The leaderboard in a sentence."""
    best = saes.iloc[0]
    said_first = f"{best['SAE']} has the highest mean test AUC, {best['mean_test_auc']:.3f}"
    if not len(pairs):
        return f"{said_first}. No two of them have the same datasets."
    of_best = pairs[pairs["SAE"] == best["SAE"]]
    n_sure = sum(verdict(row) == "above" for row in of_best.to_dict("records"))
    return f"{said_first}. These datasets tell it from {n_sure} of {len(of_best)} others."


def explored(report: Report) -> dict[str, Any]:
    """The table by dataset and what its rows open, as JSON for the page."""
    datasets = report.comparisons.datasets
    behind = explorer.matched_rows(report.shown, datasets) if len(datasets) else report.shown
    rows = explorer.dataset_rows(behind, datasets, report.paired)
    data = {
        "rows": rows,
        "curves": explorer.curves(behind) if rows else {},
        "cards": explorer.shown_cards(report.cards, {row["dataset"] for row in rows}),
        "titles": explorer.titles(),
        "looks": {name: LOOKS[name].color for name in explorer.titles()},
        "axes": {setting.name: setting.axis_label for setting in SETTINGS.values()},
        "explain": f"make explain MODEL={report.model_name}{report.make_flags}",
    }
    return {
        "rows": rows,
        "columns": list(EXPLORER_COLUMNS.items()),
        "data": Markup(explorer.as_json(data)),
    }


def citation(report: Report, sentences: list[dict[str, Any]]) -> str:
    """A sentence to cite, with all that it depends on; "" where there is nothing to say."""
    if not sentences:
        return ""
    first = sentences[0]
    return f"{report.model_name}, {first['where']}: {first['what']} ({report.about}.)"


def absent(report: Report) -> list[dict[str, str]]:
    """What the page lacks, and the command that makes it; nothing where it is of a selection."""
    if report.selected:
        return []
    make = f"make {{}} MODEL={report.model_name}"
    pairs = report.shown[["setting", "kind"]].drop_duplicates()
    there = set(zip(pairs["setting"], pairs["kind"]))
    needed = {BASELINE: ("baselines", "train-baselines"), SAE: ("SAE probes", "train-sae-probes")}
    lines = []
    for setting in SETTINGS:
        lacking = [needed[kind] for kind in needed if (setting, kind) not in there]
        if lacking:
            names, targets = zip(*lacking)
            command = f"{make.format(' '.join(targets))} SETTING={setting}{report.make_flags}"
            lines.append(
                {"what": f"Not run: {' and '.join(names)} of {setting}:", "command": command}
            )
    return lines


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """A table of contenders by setting and k, its columns and contenders as plain words."""
    if not len(table):
        return table
    names = {column: ", ".join(column) for column in table.columns}
    flat = table.set_axis(list(names.values()), axis=1)
    return flat.rename_axis("contender").reset_index()


def _by_setting(comparison: pd.DataFrame) -> pd.DataFrame | None:
    if not len(comparison):
        return None
    return headline(comparison).rename_axis("contender").reset_index()


def readable_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A table of comparisons with its verdicts, columns named for readers: what it is about first,
    then the rest in the order of COLUMNS.
    """
    if not len(table):
        return table
    judged = table.assign(verdict=[said(row) for row in table.to_dict("records")])
    own = [name for name in table.columns if name not in COLUMNS]
    about = [name for name in ("setting", "k", *own) if name in judged]
    known = [name for name in COLUMNS if name in judged]
    return judged[list(dict.fromkeys([*about, *known]))].rename(columns=COLUMNS)


def said(row: dict) -> str:
    """The verdict of a comparison's row; "" for the row that the others are compared with."""
    return verdict(row) if pd.notna(row.get("mean_difference")) else ""


def twins(controls: pd.DataFrame) -> pd.DataFrame:
    """Each SAE against its random twin; where there is none, all comparisons."""
    if not len(controls):
        return controls
    of_twins = controls[controls["control"].map(_is_random_twin)]
    return of_twins if len(of_twins) else controls


def _is_random_twin(control: str) -> bool:
    return split_twin(control)[1] == RANDOM or "random_" in control


def answers(tables: Comparisons) -> list[dict[str, Any]]:
    """For each setting, in sentences: who is ahead, how sure that is, and what could have been
    seen; on fresh test rows where they are known; then against words alone and the random twin.
    """
    if not len(tables.all_rows):
        return []
    rows = stated(tables.all_rows, tables.fresh)
    several = rows["protocol"].nunique() > 1
    sentences: list[dict[str, Any]] = []
    for row in rows.to_dict("records"):
        where = row["setting"] + (f", {row['protocol']} protocol" if several else "")
        where += ", fresh test rows" if row["test_rows"] == "fresh" else ", all test rows"
        further = [*_against_controls(row, tables.against), *_words(row, tables)]
        said_of_it, mark = MARKS[verdict(row)]
        sentences.append(
            {
                "where": where,
                "what": _answer(row),
                "further": further,
                "setting": row["setting"],
                "protocol": row["protocol"],
                "said": said_of_it,
                "mark": mark,
            }
        )
    return sentences


def _answer(row: dict) -> str:
    n = f"{row['n_datasets']:.0f} dataset{'s' if row['n_datasets'] > 1 else ''}"
    alone = f" ({row['baselines']} alone)" if len(row["baselines"].split()) == 1 else ""
    known = f"SAE probes are {_behind_or_ahead(row)} the best baseline{alone}"
    ahead = f"Ahead on {row['wins']:.0f} of {n}, behind on {row['losses']:.0f}"
    return f"{known}{_interval(row)}: {_hedge(row)}. {ahead}."


def _behind_or_ahead(row: dict) -> str:
    size = f"{abs(row['mean_difference']):.3f}"
    side = "from" if float(size) == 0 else "above" if row["mean_difference"] > 0 else "below"
    return f"{size} AUC {side}"


def _interval(row: dict) -> str:
    if pd.isna(row["ci_low"]):
        return ""
    return f" (95 % interval {row['ci_low']:+.3f} to {row['ci_high']:+.3f})"


def _hedge(row: dict) -> str:
    """How sure a difference is, and what these datasets could have shown."""
    n = f"{row['n_datasets']:.0f} dataset{'s' if row['n_datasets'] > 1 else ''}"
    visible = f"{n} can show a difference of {row['mde']:.3f} or more"
    unseen = "a difference this data cannot tell from none"
    if row["ci_low"] > 0 or row["ci_high"] < 0:
        unseen = "not sure: the interval excludes zero, and the rank test does not agree"
    return {
        "above": "surely ahead",
        "below": "surely behind",
        "perhaps above": "perhaps ahead: with several comparisons it is not sure",
        "perhaps below": "perhaps behind: with several comparisons it is not sure",
        "no difference seen": f"{unseen}; {visible}",
        "too few datasets": f"{n} {'are' if row['n_datasets'] > 1 else 'is'} too few for a verdict",
    }[verdict(row)]


def _against_controls(row: dict, against: pd.DataFrame) -> list[str]:
    """SAE probes against words alone and the twins, each in a sentence."""
    if not len(against):
        return []
    same = (against["setting"] == row["setting"]) & (against["protocol"] == row["protocol"])
    titles = {"text_only": "words alone", "random_sae": "their random twins"}
    return [
        f"They are {_behind_or_ahead(other)} {titles[str(other['control'])]}{_interval(other)}:"
        f" {_hedge(other)}."
        for other in against[same].to_dict("records")
        if other["control"] in titles
    ]


def _words(row: dict, tables: Comparisons) -> list[str]:
    """On how many datasets words suffice, and how SAE probes do on the others."""
    if not len(tables.datasets):
        return []
    marks = tables.datasets.loc[tables.datasets["setting"] == row["setting"], "words"].dropna()
    if not len(marks):
        return []
    n_words = int((marks == WORDS_SUFFICE).sum())
    n_tried, n_all = len(marks), int(row["n_datasets"])
    tried = f" (the other {n_all - n_tried}: make words)" if n_tried < n_all else ""
    said_of_words = f"Words suffice on {n_words} of {n_tried} datasets{tried}"
    needed = tables.needed
    if len(needed):
        same = (needed["setting"] == row["setting"]) & (needed["protocol"] == row["protocol"])
        needed = needed[same & (needed["condition"] == ALL) & (needed["contender"] == PROBES)]
    if not n_words or not len(needed):
        return [f"{said_of_words}."]
    other = needed.iloc[0].to_dict()
    others = f"on the other {other['n_datasets']:.0f} SAE probes are {_behind_or_ahead(other)}"
    return [f"{said_of_words}; {others} the best baseline{_interval(other)}: {_hedge(other)}."]


def cell(value: object, column: str) -> str:
    """A table's value as text."""
    if value is None or value != value:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if column in WHOLE or column.startswith("ahead") or (value > 1 and value == int(value)):
        return f"{value:.0f}"
    if column.endswith(" p") and value < 0.0005:
        return "<0.001"
    return f"{value:.3g}" if column == "condition" else f"{value:.3f}"
