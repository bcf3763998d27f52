"""What to distrust in a model's result tables, with the evidence: the known defects of the
published ones, looked for in all.
"""

from __future__ import annotations

import pandas as pd

from utils.datasets import dataset_size, list_datasets
from utils.paths import Paths
from utils.probes.baselines import paper_methods
from utils.probes.k_sparse import PROTOCOLS
from utils.results.comparison import BASELINES, PROBES, Picks, contenders, matched, of_protocol
from utils.results.findings import Finding, Kind
from utils.results.tidy import BASELINE, CONTROL, SAE, Results
from utils.runtime.errors import UserError
from utils.settings import MIN_TEST, PAPERS, SETTINGS, SHIFTED, conditions, get_setting, n_test_rows
from utils.text_checks import KNOWN_UNFIT, known_check, known_ood_check, share_of_copies


def audit(paths: Paths, results: Results, picked: Picks | None = None) -> list[Finding]:
    """All findings on the tables that were read, the worst first; ``results.findings`` included.

    ``picked``: of these tables, where there are any already.
    """
    tidy = results.tidy
    picked = picked or Picks(tidy)
    findings = [*results.findings, *_copies(paths, tidy), *_unfit_ood(paths, tidy)]
    for setting in SETTINGS:
        rows = tidy[tidy["setting"] == setting]
        if len(rows):
            names = picked.protocols(setting)
            for protocol in names:
                several = f"{setting}, {protocol} protocol" if len(names) > 1 else setting
                findings += _unmatched(several, picked.of(setting, protocol))
            findings += _mixed(setting, rows)
            findings += _missing(paths, setting, rows)
            findings += _small_tests(paths, setting, rows)
            findings += _solvers(setting, rows)
            findings += _empty(setting, rows)
    order = {"wrong": 0, "doubt": 1, "fine": 2}
    return sorted(findings, key=lambda finding: order[finding.weight])


def _unmatched(setting: str, picks: dict[str, pd.DataFrame]) -> list[Finding]:
    if not {"quiver_baselines", "sae_only"} <= set(picks):
        return []
    baselines, probes = picks["quiver_baselines"], picks["sae_only"]
    sides = matched({"baselines": baselines, "probes": probes})
    n_matched = len(sides["probes"])
    lone = {"baselines": len(baselines) - n_matched, "SAE probes": len(probes) - n_matched}
    if not any(lone.values()):
        return [
            Finding(
                Kind.UNMATCHED,
                "fine",
                setting,
                f"baselines and SAE probes have the same {n_matched} datasets and conditions",
            )
        ]
    elsewhere = int((~baselines["layer"].isin(set(probes["layer"]))).sum())
    parts = [f"{n} have {side} only" for side, n in lone.items() if n]
    why = f", {elsewhere} of them at layers without an SAE" if elsewhere else ""
    gap = sides["probes"]["test_auc"].mean() - sides["baselines"]["test_auc"].mean()
    careless = probes["test_auc"].mean() - baselines["test_auc"].mean()
    return [
        Finding(
            Kind.UNMATCHED,
            "doubt",
            setting,
            f"{n_matched} decisions match, {' and '.join(parts)}{why}: SAE probes less best"
            f" baseline is {gap:+.3f} over the matched ones (it would be {careless:+.3f} without"
            " matching)",
        )
    ]


def _mixed(setting: str, rows: pd.DataFrame) -> list[Finding]:
    """Probes of one SAE made in several ways: the pick takes the best of all by validation AUC."""
    probes = rows[rows["kind"] == SAE]
    kinds = {
        column: sorted(map(str, probes[column].dropna().unique()))
        for column in ("solver", "reg_type", "binarize", "latent_selection")
    }
    several = [
        f"{column} {' and '.join(values)}" for column, values in kinds.items() if len(values) > 1
    ]
    if not several:
        return []
    return [
        Finding(
            Kind.MIXED,
            "doubt",
            setting,
            "SAE probes of several kinds compete in one pick, which favours them:"
            f" {'; '.join(several)}",
        )
    ]


def _missing(paths: Paths, setting: str, rows: pd.DataFrame) -> list[Finding]:
    """Rows that the other rows of the same setting lead one to expect: methods, datasets and
    conditions that some have.
    """
    if paths.split.grouped:  # how many rows there are to draw from is the activations' to say
        return []
    try:
        sizes = {
            name: dataset_size(paths, name)
            for name in sorted(set(rows["dataset"].unique()) & set(list_datasets(paths)))
        }
    except UserError:
        return []
    findings = []
    for kind, keys in (
        (BASELINE, ["layer", "method", "protocol"]),
        (SAE, ["sae_id", "reg_type", "binarize", "protocol"]),
    ):
        of_kind = rows[rows["kind"] == kind]
        known = {_label(c) for c in of_kind["condition"].unique()}
        there = set(of_kind["dataset"].unique())
        n_ks = len([k for k in get_setting(setting).ks if k in set(of_kind["k"].unique())]) or 1
        expected = {
            (name, label)
            for name in sizes
            if name in there
            for label in (
                _label("all" if c.label is None else c.label)
                for c in conditions(setting, sizes[name], paths.split)
            )
            if label in known
        }
        labels = {condition: _label(condition) for condition in of_kind["condition"].unique()}
        counted = of_kind.groupby(
            [*keys, "dataset", "condition"], dropna=False, sort=False, observed=True
        )["k"]
        counts = counted.count().rename("n").reset_index()  # those that have a k
        for values, group in counts.groupby(keys, dropna=False, observed=True):
            present = set(zip(group["dataset"], map(labels.__getitem__, group["condition"])))
            lacking = [f"{name} at {label}" for name, label in sorted(expected - present)]
            n_rows, n_wanted = int(group["n"].sum()), len(present) * n_ks
            if kind == SAE and 0 < n_rows < n_wanted:
                lacking.append(f"{n_wanted - n_rows} of {n_wanted} values of k")
            if lacking:
                name = " ".join(str(value) for value in values)
                more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
                what = (
                    f"{len(lacking)} of {len(expected)} rows are missing:"
                    f" {', '.join(lacking[:3])}{more}"
                )
                findings.append(Finding(Kind.MISSING, "doubt", f"{setting}, {name}", what))
        if kind == BASELINE:
            for layer, group in of_kind.groupby("layer", sort=False, observed=True):
                absent = [m for m in paper_methods(setting) if m not in set(group["method"])]
                if absent:
                    what = (
                        f"{' and '.join(absent)} of the paper's baselines are absent: the best"
                        " baseline is the best of fewer"
                    )
                    findings.append(
                        Finding(Kind.ABSENT, "doubt", f"{setting}, layer {layer}", what)
                    )
    return findings


def _label(condition: object) -> str:
    """One text for a condition's value, whatever its type in a table."""
    return "all" if condition == "all" else f"{float(str(condition)):g}"


def _unfit_ood(paths: Paths, tidy: pd.DataFrame) -> list[Finding]:
    """OOD files that are not their dataset's task, and the OOD difference with and without them."""
    rows = tidy[tidy["setting"] == SHIFTED.name]
    unfit = []
    for name in dict.fromkeys(rows["dataset"]):
        try:
            check = known_ood_check(paths, name)
        except UserError:  # without the texts, what is known of the paper's files
            if name in KNOWN_UNFIT:
                unfit.append(f"{name} ({KNOWN_UNFIT[name]})")
            continue
        if check.unfit:
            share = check.n_in_both_classes / check.n_rows
            unfit.append(f"{name} ({share:.0%} of its rows are texts that stand in both classes)")
    if not unfit:
        return []
    names = {line.split(" (")[0] for line in unfit}
    means = [_ood_difference(part) for part in (rows, rows[~rows["dataset"].isin(names)])]
    what = f"not the dataset's task: {', '.join(unfit)}"
    if None not in means:
        what += (
            f"; SAE probes less best baseline out of distribution: {means[0]:+.3f} with,"
            f" {means[1]:+.3f} without"
        )
    return [Finding(Kind.UNFIT_OOD, "doubt", SHIFTED.name, what)]


def _ood_difference(rows: pd.DataFrame) -> float | None:
    """Mean over datasets of SAE probes less best baseline; None where a side is missing."""
    picks = contenders(of_protocol(rows, PROTOCOLS[0]))
    if not {BASELINES, PROBES} <= set(picks):
        return None
    sides = matched({name: picks[name] for name in (BASELINES, PROBES)})
    difference = sides[PROBES]["test_auc"] - sides[BASELINES]["test_auc"]
    return float(difference.groupby(sides[PROBES]["dataset"], observed=True).mean().mean())


def _copies(paths: Paths, rows: pd.DataFrame) -> list[Finding]:
    """Test rows whose very text is among the training rows: a probe that only remembers is right on
    them.
    """
    if paths.split != PAPERS:  # the counts are of the paper's
        return []
    try:
        checks = [
            known_check(paths, name)
            for name in sorted(set(rows["dataset"].unique()) & set(list_datasets(paths)))
        ]
    except UserError:
        return []  # no texts, or not all of them
    many, mean = share_of_copies(checks) if checks else (0, 0.0)
    if not many:
        return []
    worst = max(checks, key=lambda check: check.seen)
    return [
        Finding(
            Kind.COPIES,
            "doubt",
            "texts",
            f"in {many} of {len(checks)} datasets a tenth or more of the normal test rows are"
            f" copies of training rows ({mean:.0%} on average; {worst.seen:.0%} in {worst.name}):"
            " `make check-datasets` lists them",
        )
    ]


def _small_tests(paths: Paths, setting: str, rows: pd.DataFrame) -> list[Finding]:
    """Conditions tested on fewer than 100 rows: by the table where it says so, else by the paper's
    rule and the texts.
    """
    told = rows["n_test"].notna()
    few = rows.loc[rows["n_test"] < MIN_TEST, ["dataset", "condition", "n_test"]].drop_duplicates()
    small = {(row.dataset, str(row.condition)): int(row.n_test) for row in few.itertuples()}
    try:
        known = set(list_datasets(paths))
        for name in sorted(set(rows["dataset"].unique()) & known) if not told.any() else ():
            for condition in conditions(setting, dataset_size(paths, name)):
                n_test = n_test_rows(condition, dataset_size(paths, name))
                if n_test is not None and n_test < MIN_TEST:
                    small[name, str(condition.label)] = n_test
    except UserError as error:
        return [
            Finding(
                Kind.SMALL_TESTS, "doubt", setting, f"the sizes of test sets are not known: {error}"
            )
        ]
    if not small:
        return []
    fewest = min(small, key=lambda key: small[key])
    n_datasets = len({name for name, _ in small})
    return [
        Finding(
            Kind.SMALL_TESTS,
            "doubt",
            setting,
            f"{len(small)} conditions of {n_datasets} datasets are tested on fewer than {MIN_TEST}"
            f" rows; the fewest are {small[fewest]} ({fewest[0]})",
        )
    ]


def _empty(setting: str, rows: pd.DataFrame) -> list[Finding]:
    """Probes whose penalty left no weight: their test AUC is 0.5, whatever the data."""
    probes = rows[rows["kind"].isin([SAE, CONTROL])]
    empty = probes[probes["n_nonzero"] == 0]
    if not len(empty):
        return []
    what = f"{len(empty)} of {len(probes)} probes have no weight: their AUC is 0.5 by rule"
    return [Finding(Kind.EMPTY, "doubt", setting, f"{what}; they are hollow in figures")]


def _solvers(setting: str, rows: pd.DataFrame) -> list[Finding]:
    probes = rows[rows["kind"].isin([SAE, CONTROL]) & (rows["reg_type"] == "l1")]
    findings = []
    if len(probes):
        untold = probes["converged"].isna() & (probes["solver"] == "saga")
        if untold.any():
            findings.append(
                Finding(
                    Kind.SOLVER,
                    "doubt",
                    setting,
                    f"{int(untold.sum())} SAE probes were made with saga and 1,000 steps, which"
                    " stops far from the optimum at weak penalties, and do not say whether they"
                    " converged",
                )
            )
    told = rows.loc[rows["converged"].notna(), ["method", "converged"]]
    short = told[~told["converged"].astype(bool)]
    if len(short):
        by_method = ", ".join(
            f"{method} {n}" for method, n in short["method"].astype(object).value_counts().items()
        )
        findings.append(
            Finding(
                Kind.UNCONVERGED,
                "doubt",
                setting,
                f"{len(short)} of {len(told)} fits did not converge ({by_method})",
            )
        )
    return findings
