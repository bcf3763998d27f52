"""What the report's table by dataset shows and opens, as plain data that goes into the page as
JSON: rows, curves and latent cards. The page sets texts as text, never as HTML.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from utils.results.cards import Card, ProbeCards
from utils.results.comparison import (
    BASELINES,
    CONTENDERS,
    DECISION,
    PROBES,
    TITLES,
    in_words,
    on_fresh_rows,
)
from utils.results.paired import PairedErrors
from utils.results.statistics import TIE, hanley_mcneil
from utils.results.tidy import BASELINE, SAE
from utils.settings import NORMAL, SETTINGS

NO_K = -1.0
MOST_CARDS = 6  # of a dataset: those through which most of the score goes
NEEDED = {
    *DECISION, "setting", "kind", "method", "sae_id", "k", "val_auc", "test_auc", "n_test",
    "n_nonzero", "test_auc_fresh", "n_fresh",
    "protocol", "reg_type", "binarize", "latent_selection", "solver",  # by which scores are kept
}  # fmt: skip
CURVES = (BASELINES, PROBES, "random_sae", "soft_frozen", "raw_dims", "pca_dims", "text_only")


def matched_rows(tidy: pd.DataFrame, datasets: pd.DataFrame) -> pd.DataFrame:
    """The probes behind a table of ``by_dataset``: of the decisions that baselines and SAE probes
    share (without SAE probes, of the baselines), on the test rows that the table says for each
    setting and dataset.
    """
    fresh = datasets.loc[datasets["test_rows"] == "fresh", ["setting", "dataset"]]
    known = tidy[[name for name in tidy if name in NEEDED]]  # millions of rows are a gigabyte
    if len(fresh):
        wants_fresh = pd.MultiIndex.from_frame(known[["setting", "dataset"]]).isin(
            pd.MultiIndex.from_frame(fresh)
        )
        known = pd.concat([on_fresh_rows(known[wants_fresh]), known[~wants_fresh]])
    known = known.reset_index(drop=True)
    decision = known.groupby(DECISION, sort=False, observed=True).ngroup()
    kept = np.zeros(len(known), dtype=bool)
    for setting in known["setting"].unique():
        mine = (known["setting"] == setting).to_numpy()
        baselines, probes = (
            np.unique(decision[mine & (known["kind"] == kind).to_numpy()])
            for kind in (BASELINE, SAE)
        )
        shared = np.intersect1d(baselines, probes) if len(probes) else baselines
        kept |= mine & decision.isin(shared).to_numpy()
    return known[kept]


def dataset_rows(
    matched: pd.DataFrame, datasets: pd.DataFrame, paired: PairedErrors | None = None
) -> list[dict[str, Any]]:
    """A row a setting and dataset: best baseline and its name, words alone, SAE probe with its SAE
    and k, their difference and how wide the number of rows leaves it.

    ``matched``: of ``matched_rows``; ``datasets``: of ``by_dataset``. Where there are several
    decisions, the names are those picked most often, with how often. ``paired``: knows the errors
    of differences whose scores were kept.
    """
    if not len(datasets):
        return []
    first = {kind: _first_picked(matched[matched["kind"] == kind]) for kind in (BASELINE, SAE)}
    best = {kind: _most_picked(rows) for kind, rows in first.items()}
    rows = []
    for row in datasets.to_dict("records"):
        key = (row["setting"], row["dataset"])
        baseline, probe = best[BASELINE].get(key, {}), best[SAE].get(key, {})
        auc = {name: row.get(name) for name in (BASELINES, PROBES, "text_only", "random_sae")}
        picks = [_only(first[kind], row) for kind in (SAE, BASELINE)]
        width, exact = _width(row, auc, picks, paired)
        rows.append(
            {
                "setting": row["setting"],
                "dataset": row["dataset"],
                "words": row["words"],
                "baseline": auc[BASELINES],
                "method": _named(baseline, "method"),
                "text_only": auc["text_only"],
                "sae": auc[PROBES],
                "sae_id": _named(probe, "sae_id"),
                "k": _named(probe, "k"),
                "twin": auc["random_sae"],
                "difference": _difference(auc),
                "width": width,
                "exact": exact,
                "rows": row["n_test"],
                "test_rows": row["test_rows"],
            }
        )
    order = {name: place for place, name in enumerate(SETTINGS)}
    return [plain(row) for row in sorted(rows, key=lambda row: order[row["setting"]])]


def _width(
    row: dict, auc: dict, picks: list[dict | None], paired: PairedErrors | None
) -> tuple[float | None, bool]:
    """(half of the 95 % interval of a difference, whether it is DeLong's)."""
    if row["setting"] != NORMAL.name:
        return None, False
    probe, baseline = picks
    error = None
    if paired and probe and baseline:
        error = paired.error(probe, baseline, row["test_rows"] == "fresh")
    if error is None:
        return interval_width(auc, row["n_test"]), False
    return 1.96 * error, True


def interval_width(auc: dict[str, float | None], n_test: float) -> float | None:
    """Half of the 95 % interval of the difference between SAE probe and baseline on a dataset: from
    Hanley and McNeil's (1982) errors of both AUCs on n_test rows, half of each class, as if the
    probes' errors had nothing in common (they have, so it is rather too wide). None where an AUC is
    0 or 1, of which the formula knows no error.
    """
    sides = [auc[PROBES], auc[BASELINES]]
    if any(side is None or not 0 < side < 1 for side in sides) or not n_test > 3:
        return None
    n = n_test / 2
    return 1.96 * math.hypot(*(hanley_mcneil(float(side or 0), n, n) for side in sides))


def curves(matched: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{dataset: {"by_k": {contender: [[k, AUC], …]}, setting: {contender: [[condition, AUC], …]}}}:
    in the normal setting against k, each contender's best by validation AUC; in the others against
    the condition. What has no k has None in its place, and is a level line.

    ``matched``: of ``matched_rows``.
    """
    by_dataset: dict[str, dict[str, Any]] = {}
    for name in CURVES:
        probes = matched[CONTENDERS[name].rows(matched)].dropna(subset=["test_auc"])
        if not len(probes):
            continue
        normal = probes[probes["setting"] == NORMAL.name]
        of_k = normal.assign(k=normal["k"].fillna(NO_K))
        for dataset, k, auc in _picked_means(of_k, ["dataset", "k"]):
            of_dataset = by_dataset.setdefault(dataset, {}).setdefault("by_k", {})
            of_dataset.setdefault(name, []).append([None if k == NO_K else k, auc])
        varied = probes[probes["setting"].isin([s.name for s in SETTINGS.values() if s.values])]
        for setting, dataset, condition, auc in _picked_means(
            varied, ["setting", "dataset", "condition"]
        ):
            of_setting = by_dataset.setdefault(dataset, {}).setdefault(setting, {})
            of_setting.setdefault(name, []).append([condition, auc])
    return by_dataset


def shown_cards(probes: Sequence[ProbeCards], datasets: set[str]) -> dict[str, Any]:
    """{dataset: its cards}: of the SAE with the best validation AUC, the latents through which most
    of the score goes.
    """
    chosen: dict[str, ProbeCards] = {}
    for probe in probes:
        before = chosen.get(probe.dataset)
        better = before is None or probe.probe_val_auc > before.probe_val_auc
        if probe.dataset in datasets and better:
            chosen[probe.dataset] = probe
    return {
        name: {
            "sae_id": probe.sae_id,
            "k": probe.k,
            "protocol": probe.protocol,
            "seed": probe.seed,
            "hook_name": probe.hook_name,
            "classes": probe.classes,
            "test_auc": probe.probe_test_auc,
            "n_test": probe.n_test,
            "neuronpedia": probe.neuronpedia,
            "n_latents": len(probe.cards),
            "other_seeds": len(probe.other_seeds),
            "cards": [plain(asdict(card)) for card in _first(probe.cards)],
        }
        for name, probe in chosen.items()
    }


def as_json(content: Any) -> str:
    """JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers to four digits after the point, None for what is missing."""
    if isinstance(value, dict):
        return {name: plain(of_name) for name, of_name in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (np.integer, bool, int)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return None if value != value else round(float(value), 4)
    return None if value is pd.NA else value


def titles() -> dict[str, str]:
    return {name: TITLES[name] for name in CURVES}


def _first(cards: list[Card]) -> list[Card]:
    return sorted(cards, key=lambda card: -abs(card.share))[:MOST_CARDS]


def _difference(auc: dict[str, float | None]) -> float | None:
    probe, baseline = auc[PROBES], auc[BASELINES]
    return None if probe is None or baseline is None else probe - baseline


def _first_picked(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each decision the first of the best by val_auc; ``n_tied``: how many are as good."""
    value = rows["val_auc"].fillna(0)
    best = value.groupby([rows[name] for name in DECISION], observed=True).transform("max")
    tied = rows[value >= best - TIE]
    n_tied = tied.groupby(DECISION, observed=True)["val_auc"].transform("size")
    return in_words(tied.assign(n_tied=n_tied).drop_duplicates(DECISION))


def _only(first: pd.DataFrame, row: dict) -> dict | None:
    """The pick of a setting and dataset that has one decision, and no tie in it: of tied probes the
    mean is shown.
    """
    mine = first[(first["setting"] == row["setting"]) & (first["dataset"] == row["dataset"])]
    return mine.iloc[0].to_dict() if len(mine) == 1 and mine["n_tied"].iloc[0] == 1 else None


def _most_picked(first: pd.DataFrame) -> dict[tuple[str, str], dict[str, tuple[Any, int, int]]]:
    """{(setting, dataset): {column: (value picked most, times, decisions)}}."""
    found: dict[tuple[str, str], dict[str, tuple[Any, int, int]]] = {}
    for key, of_dataset in first.groupby(["setting", "dataset"], sort=False, observed=True):
        found[key] = {
            name: (*Counter(of_dataset[name].dropna()).most_common(1)[0], len(of_dataset))
            for name in ("method", "sae_id", "k")
            if of_dataset[name].notna().any()
        }
    return found


def _named(picked: dict[str, tuple[Any, int, int]], column: str) -> Any:
    if column not in picked:
        return None
    value, times, n = picked[column]
    value = int(value) if column == "k" else value
    return value if times == n else f"{value} ({times} of {n})"


def _picked_means(rows: pd.DataFrame, by: list[str]) -> list[list[Any]]:
    """[*values of ``by``, mean test AUC of the best by val_auc]."""
    if not len(rows):
        return []
    each = [*by, *(name for name in ("condition", "layer", "seed") if name not in by)]
    ranked = rows.assign(val_auc=rows["val_auc"].fillna(0))
    best = ranked.groupby(each, observed=True)["val_auc"].transform("max")
    means = ranked[ranked["val_auc"] >= best].groupby(each, observed=True)["test_auc"].mean()
    table = means.groupby(level=by).mean().reset_index()
    ordered = table.iloc[np.argsort([_number(v) for v in table[by[-1]]], kind="stable")]
    return [plain(list(row)) for row in ordered.itertuples(index=False, name=None)]


def _number(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        return math.inf
