"""All result tables of a model, published ones and ours, as one tidy table: a row a probe."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.activations import rows_with_activations
from utils.datasets import dataset_size
from utils.models import get_model
from utils.names import Layer, parse_layer
from utils.paths import Paths
from utils.results.csv_files import MADE_FROM, fault_at_end, read_table
from utils.results.findings import Finding, Kind
from utils.results.ood_evidence import Judgement, judge
from utils.results.sources import Sources
from utils.results.tables import (
    NEW_SCORES,
    PUBLISHED,
    SAE_PROBE_EXTRAS,
    baseline_table,
    sae_probe_table,
    text_table,
)
from utils.runtime.errors import UserError, first_line
from utils.settings import NO_CONDITION, NORMAL, SETTINGS, SHIFTED, get_setting

BASELINE, SAE, CONTROL, TEXT = "baseline", "sae", "control", "text"
TIDY_COLUMNS = (
    "setting", "condition", "dataset", "layer", "kind", "method", "sae_id", "k", "reg_type",
    "binarize", "latent_selection", "solver", "protocol", "seed", "val_auc", "test_auc",
    "test_f1", "test_acc", "n_test", "converged", "n_nonzero", *NEW_SCORES,
)  # fmt: skip
SCORES = (
    "val_auc", "test_auc", "test_f1", "test_acc", "n_test", "converged", "n_nonzero", *NEW_SCORES,
)  # fmt: skip
WORDS = (  # columns of few distinct ones
    "setting", "dataset", "kind", "method", "sae_id", "reg_type", "latent_selection", "solver",
    "protocol",
)  # fmt: skip
UNUSED = set(SAE_PROBE_EXTRAS) - set(TIDY_COLUMNS) - {MADE_FROM}  # columns of millions of rows
ROUNDING = 1e-9  # published AUCs reach 1.0000000000000002


@dataclass(frozen=True)
class Results:
    """``tidy``: a row a probe, columns TIDY_COLUMNS; ``findings``: what is left out or doubtful."""

    tidy: pd.DataFrame
    findings: list[Finding]

    def unreadable(self) -> list[str]:
        """A line for each table that is there and cannot be read."""
        return [str(found) for found in self.findings if found.kind is Kind.UNREADABLE]


def load_results(
    paths: Paths, model_name: str, settings: Sequence[str] = tuple(SETTINGS)
) -> Results:
    """All probes of a model, each table read once.

    ``kind`` is baseline, sae, control (an SAE with random weights, raw dimensions, principal
    components, …) or text (a probe on the texts alone, whose rows stand once for each layer).
    ``condition`` is the varied value, or "all". A table that cannot be read is a finding, and the
    others are used.
    """
    tables = _Tables(paths, model_name)
    frames: list[pd.DataFrame] = []
    findings: list[Finding] = []
    for setting, read in product(settings, (tables.baselines, tables.sae_probes)):
        try:
            frame, of_table = read(setting)
        except UserError as error:
            findings.append(Finding(Kind.UNREADABLE, "wrong", "tables", str(error)))
            continue
        findings += of_table
        if len(frame):
            frame, of_table = _current(tables.sources, frame)
            findings += of_table
            frames.append(frame.reindex(columns=list(TIDY_COLUMNS)))
    for setting in settings:
        with_texts, of_table = tables.texts(setting, frames)
        frames += [with_texts.reindex(columns=list(TIDY_COLUMNS))] if len(with_texts) else []
        findings += of_table
    if not frames:
        return Results(pd.DataFrame(columns=list(TIDY_COLUMNS)), findings)
    tables.forget()  # millions of rows are a gigabyte
    tidy = _in_categories(frames)
    # beside baselines, which have none, pandas makes floats of it
    told = _by_value(tidy["binarize"], lambda v: str(v) in ("True", "1", "1.0"))
    tidy["binarize"] = told.astype(bool)

    def doubt(kind: Kind, rows: pd.DataFrame, what: str) -> None:
        if len(rows):
            what = f"{len(rows)} rows {what} ({_where(rows)})"
            findings.append(Finding(kind, "doubt", "tables", what))

    nameless = tidy["dataset"].isna() | tidy["test_auc"].isna()
    doubt(Kind.NAMELESS, tidy[nameless], "have no dataset or no test_auc and are left out")
    if nameless.any():
        tidy = tidy[~nameless]
    unsure = tidy["val_auc"].isna() & (tidy["setting"] != SHIFTED.name)
    doubt(Kind.NO_VAL_AUC, tidy[unsure], "have no val_auc and cannot be picked")
    key = [c for c in TIDY_COLUMNS if c not in SCORES and _varies(tidy[c])] or ["setting"]
    twice = tidy.duplicated(key)
    repeated = tidy[tidy.duplicated(key, keep=False)].groupby(key, dropna=False, observed=True)[
        "test_auc"
    ]
    differ = int(repeated.nunique().gt(1).sum()) if twice.any() else 0
    but = f", though {differ} of them differ in test_auc" if differ else ""
    doubt(Kind.TWICE, tidy[twice], f"stand twice; the first of each is used{but}")
    if twice.any() or nameless.any():
        tidy = tidy[~twice].reset_index(drop=True)
    return Results(tidy, findings)


def _varies(column: pd.Series) -> bool:
    """Whether two rows differ in it."""
    if not len(column):
        return False
    first = column.iloc[0]
    return not (column.isna() if pd.isna(first) else column == first).all()


def _in_categories(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of all frames, which are used up. Its words and layers are numbers of their
    distinct ones, in their order: millions of rows take a third less memory, and are grouped in a
    fifth of the time.
    """
    for name in (*WORDS, "layer"):
        coded = [pd.factorize(frame[name]) for frame in frames]
        every = {word for _, distinct in coded for word in distinct}
        words = sorted(every, key=lambda word: (isinstance(word, str), word))  # layers may be both
        place = {word: i for i, word in enumerate(words)}
        for frame, (codes, distinct) in zip(frames, coded):
            places = np.array([*(place[word] for word in distinct), -1])
            frame[name] = pd.Categorical.from_codes(places[codes], words)
    tidy = pd.concat(frames, ignore_index=True)
    frames.clear()
    return tidy


def _current(sources: Sources, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """The rows but those that were made from other inputs than there are now, and what was found.

    Rows that do not say what they were made from are kept and named, and so are those whose inputs
    are gone.
    """
    made_from = rows[MADE_FROM] if MADE_FROM in rows else pd.Series("", rows.index)
    codes, fingerprints = pd.factorize(made_from)
    if "" in fingerprints:
        codes[codes == list(fingerprints).index("")] = -1
    told, findings = codes >= 0, []
    if not told.all():
        what = f"{int((~told).sum())} rows do not say what they were made from"
        where = _where(rows.loc[~told, ["kind", "setting"]])
        findings.append(Finding(Kind.UNCHECKED, "doubt", "tables", f"{what} ({where})"))
    if not told.any():
        return rows, findings
    setting = get_setting(str(rows["setting"].iloc[0]))
    if "sae_id" not in rows:
        rows = rows.assign(sae_id=None)
    key = ["dataset", "layer", "method", "sae_id"]
    group = rows.groupby(key, dropna=False, sort=False, observed=True).ngroup().to_numpy()
    numbers, first = np.unique(group[told], return_index=True)
    place = {fingerprint: i for i, fingerprint in enumerate(fingerprints)}
    now = np.full(group.max() + 1, -1)
    for number, row in zip(numbers, rows[key].iloc[np.flatnonzero(told)[first]].to_dict("records")):
        fingerprint = sources.of(row, setting)
        if fingerprint is not None:  # of what is not known now the row's own word stands
            now[number] = place.get(fingerprint, len(place))
    stale = told & (now[group] >= 0) & (now[group] != codes)
    if stale.any():
        what = f"{int(stale.sum())} rows were made from other inputs than there are now"
        remedy = "they are left out; the same command makes them again"
        where = _where(rows.loc[stale, ["kind", "setting"]])
        findings.append(Finding(Kind.STALE, "doubt", "tables", f"{what} ({where}): {remedy}"))
    return rows[~stale] if stale.any() else rows, findings


def _by_value(column: pd.Series, function: Callable[[Any], Any]) -> np.ndarray:
    """``function`` of each cell, called once for each distinct one."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    made = np.empty(len(values), dtype=object)
    made[:] = [function(value) for value in values]
    return made.take(codes)


def _where(rows: pd.DataFrame) -> str:
    """ "baseline scarcity 3, sae OOD 1": the tables that rows are of."""
    tables = rows.groupby(["kind", "setting"], observed=True).size()
    counted = sorted((str(kind), str(setting), n) for (kind, setting), n in tables.items())
    return ", ".join(f"{kind} {setting} {n}" for kind, setting, n in counted)


def existing(path: Path, *others: Path) -> Path | None:
    """The first of the spellings that is there.

    Raises UserError when something that is no file stands in a table's place.
    """
    for candidate in (path, *others):
        if candidate.is_file():
            return candidate
        if candidate.exists():
            raise UserError(f"{candidate} is no file: move it away")
    return None


class _Tables:
    """The tables of a model, each read at most once: what OOD tables tell needs the others too."""

    def __init__(self, paths: Paths, model_name: str) -> None:
        self.paths, self.model_name = paths, model_name
        self.sources = Sources(paths, model_name)
        self._read: dict[tuple[str, str], tuple[pd.DataFrame, list[Finding]]] = {}

    def forget(self) -> None:
        """Let go of what was read."""
        self._read.clear()

    def baselines(self, setting: str) -> tuple[pd.DataFrame, list[Finding]]:
        """The baselines of a setting and what was found about them."""
        key = (BASELINE, setting)
        if key not in self._read:
            self._read[key] = _baselines(self.paths, self.model_name, setting)
        return self._read[key]

    def sae_probes(self, setting: str) -> tuple[pd.DataFrame, list[Finding]]:
        """The SAE probes of a setting and what was found about them."""
        key = (SAE, setting)
        if key not in self._read:
            self._read[key] = _sae_probes(self, setting)
        return self._read[key]

    def texts(self, setting: str, others: list[pd.DataFrame]) -> tuple[pd.DataFrame, list[Finding]]:
        """The probes on the texts that this model has read, a row for each layer at which
        ``others`` have probes of the dataset, and what was found about them.
        """
        row = get_setting(setting)
        path = existing(self.paths.text_table(setting))
        if path is None:
            return pd.DataFrame(), []
        try:
            table = text_table(path, row.sae_column).read()
            _check_scores(table, path, "n_rows", layers=False)
        except UserError as error:
            return pd.DataFrame(), [Finding(Kind.UNREADABLE, "wrong", "tables", str(error))]
        findings = _torn(path)
        read = {name: self._n_rows(name) for name in table["dataset"].unique()}
        table = table[table["n_rows"] == table["dataset"].map(read)]
        now = table["dataset"].map(
            {name: self.sources.of_texts(name, n, row) for name, n in read.items() if n}
        )
        stale = table[MADE_FROM].notna() & now.notna() & (table[MADE_FROM] != now)
        if stale.any():
            what = f"{int(stale.sum())} probes on texts alone were made from other texts"
            remedy = "they are left out; `make train-baselines` makes them again"
            findings.append(Finding(Kind.STALE, "doubt", "tables", f"{what}: {remedy}"))
            table = table[~stale]
        condition = table[row.sae_column].round(4) if row.sae_column else NO_CONDITION
        table = table.assign(kind=TEXT, setting=setting, condition=condition)
        of_setting = [frame[frame["setting"] == setting] for frame in others]
        pairs = pd.concat(
            [frame[["dataset", "layer"]] for frame in of_setting] or
            [pd.DataFrame(columns=["dataset", "layer"])]
        ).drop_duplicates()  # fmt: skip
        if not len(pairs):
            return table.assign(layer=TEXT), findings
        return table.merge(pairs, on="dataset"), findings

    def _n_rows(self, dataset: str) -> int | None:
        try:
            read = rows_with_activations(self.paths, self.model_name, dataset)
            return dataset_size(self.paths, dataset) if read is None else read
        except UserError:  # texts that are gone
            return None


def _baselines(paths: Paths, model_name: str, setting: str) -> tuple[pd.DataFrame, list[Finding]]:
    probe_layer = get_model(model_name, paths).probe_layer
    column = get_setting(setting).baseline_column
    sources: list[tuple[Path, object]] = []
    if get_setting(setting).all_layers:
        folder = paths.baseline_folder(model_name, setting)
        for path in sorted(folder.glob("layer*_results.csv")):
            layer = path.name.removeprefix("layer").removesuffix("_results.csv")
            existing(path)
            sources.append((path, int(layer) if layer.isdigit() else layer))
    else:
        path = paths.baseline_table(model_name, setting)
        file = existing(path, path.parent / "summary" / path.name)
        if file:
            sources.append((file, probe_layer))
    if not sources:
        return _baseline_runs(paths, model_name, setting)
    frames: list[pd.DataFrame] = []
    findings: list[Finding] = []
    for path, at_layer in sources:
        findings += _torn(path)
        content = read_table(path)
        if get_setting(setting).shifted and "test_auc_baseline" in content.columns:
            filled = baseline_table(path, column, at_layer).filled(content)
            frames.append(_published_ood(filled, probe_layer))
            continue
        table = baseline_table(path, column, at_layer).filled(content)
        _check_scores(table, path, *([column] if column else []))
        table["layer"] = _layers(table, path)
        condition = table[column].astype(float).round(4) if column else NO_CONDITION
        frames.append(table.assign(kind=BASELINE, setting=setting, condition=condition))
    return (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()), findings


def _torn(path: Path) -> list[Finding]:
    fault = fault_at_end(path)
    return [Finding(Kind.TORN, "doubt", "tables", f"{path}: {fault}")] if fault else []


def _baseline_runs(
    paths: Paths, model_name: str, setting: str
) -> tuple[pd.DataFrame, list[Finding]]:
    """The original scripts' tables of one row each, as ``baseline_results_{model}.tar.gz`` holds
    them.
    """
    column = get_setting(setting).baseline_column
    rows: list[dict] = []
    findings: list[Finding] = []
    for folder in paths.baseline_runs_folders(model_name, setting):
        for path in sorted(folder.glob("layer*_*.csv")):
            try:
                rows.append(_baseline_run(path, column))
            except (OSError, ValueError, UnicodeDecodeError, csv.Error) as error:
                what = f"{path} is left out: {first_line(error)}"
                findings.append(Finding(Kind.SINGLE_ROWS, "doubt", "tables", what))
    if not rows:
        return pd.DataFrame(), findings
    table = pd.DataFrame(rows)
    table = table.assign(kind=BASELINE, setting=setting, protocol="paper", seed=42)
    what = (
        f"baselines of {setting}: {len(table)} tables of one row in baseline_results_{model_name}"
    )
    findings.append(Finding(Kind.SINGLE_ROWS, "doubt", "tables", what))
    return table.assign(condition=table[column].round(4) if column else NO_CONDITION), findings


def _baseline_run(path: Path, column: str | None) -> dict:
    """The row of layer{layer}_{dataset}_{method}….csv. Raises ValueError when it is not what such a
    file holds.
    """
    needed = {"dataset", "method", "val_auc", "test_auc"} | ({column} if column else set())
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != 1 or not needed <= set(rows[0]):
        raise ValueError(f"it has not one row with {', '.join(sorted(needed))}")
    layer = path.name.removeprefix("layer").split("_")[0]
    row: dict[str, object] = {name: rows[0][name] for name in ("dataset", "method")}
    row["layer"] = int(layer) if layer.isdigit() else layer
    for name in ("val_auc", "test_auc", "test_f1", "test_acc", *([column] if column else [])):
        number = float(rows[0].get(name) or "nan")
        if name.endswith("_auc") and not is_auc(number):
            raise ValueError(f"{name} is {rows[0][name]!r}")
        row[name] = number
    return row


def _published_ood(table: pd.DataFrame, layer: Layer) -> pd.DataFrame:
    """The paper's true OOD AUCs: one column for logistic regression, one for its SAE probe (no
    validation AUC).
    """
    common = {
        "setting": SHIFTED.name,
        "condition": NO_CONDITION,
        "layer": layer,
        "seed": 42,
        "val_auc": np.nan,
        "protocol": "paper",
    }
    ours = (
        table[table["method"].notna() & (table["method"] != PUBLISHED)]
        if "method" in table.columns
        else table.iloc[:0]
    )
    published = table[table["test_auc_baseline"].notna()]
    frames = [
        published[["dataset"]].assign(
            kind=BASELINE, method="logreg", test_auc=published["test_auc_baseline"], **common
        )
    ]
    if "test_auc_sae" in published.columns:  # not in the table of gemma-2-2b
        sae = {"method": "sae_probe", "sae_id": "published", "k": np.nan}
        frames.append(
            published[["dataset"]].assign(
                kind=SAE, test_auc=published["test_auc_sae"], **sae, **common
            )
        )
    if len(ours):
        # ahead of the published rows: of a probe that both have, ours counts
        frames.insert(0, ours.assign(kind=BASELINE, setting=SHIFTED.name, condition=NO_CONDITION))
    return pd.concat(frames, ignore_index=True)


def _judge_untold(tables: _Tables, untold: pd.DataFrame) -> Judgement:
    """What OOD SAE probes tell that do not say how many rows they tested, as published ones.

    Label noise with nothing flipped has the rows of the normal setting.
    """
    inside = [tables.sae_probes(setting)[0] for setting in (NORMAL.name, "label_noise")]
    inside = [rows[rows["condition"].isin([NO_CONDITION, 0.0])] for rows in inside if len(rows)]
    baselines = [tables.baselines(setting)[0] for setting in (NORMAL.name, SHIFTED.name)]
    in_baselines, ood_baselines = (
        rows[rows["kind"] == BASELINE] if len(rows) else rows for rows in baselines
    )
    if len(in_baselines):
        probe_layer = get_model(tables.model_name, tables.paths).probe_layer
        in_baselines = in_baselines[in_baselines["layer"] == probe_layer]
    known = pd.concat(inside, ignore_index=True) if inside else pd.DataFrame()
    return judge(untold, known, in_baselines, ood_baselines)


def _shifted_rows(tables: _Tables, path: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, Finding]:
    """The rows of an OOD table that may be used as such, and what its numbers tell."""
    about = f"{path.parent.name}/{path.name}"
    told = (
        table["n_test"].notna()
        if "n_test" in table.columns
        else pd.Series(False, index=table.index)
    )
    if told.all():
        what = f"its {len(table)} rows say how many OOD rows they tested"
        return table, Finding(Kind.SHIFTED_ROWS, "fine", about, what)
    n_untold = int((~told).sum())
    judgement = _judge_untold(tables, table[~told])
    if judgement.inside:
        what = f"{n_untold} rows are not out of distribution, and are left out"
        finding = Finding(Kind.SHIFTED_ROWS, "wrong", about, f"{what}: {judgement.evidence}")
        return table[told], finding
    what = f"{n_untold} rows do not say which rows they tested; by their numbers OOD, and used"
    return table, Finding(Kind.SHIFTED_ROWS, "doubt", about, f"{what}: {judgement.evidence}")


def _read_sae_table(path: Path, condition_column: str | None) -> pd.DataFrame:
    """A table of SAE probes, checked, its layers and SAE ids in one form."""
    table = sae_probe_table(path, condition_column).read(UNUSED, in_categories=True)
    _check_scores(table, path, "k", *([condition_column] if condition_column else []))
    table["layer"] = _layers(table, path)
    return _with_l0(table)


def _sae_table(paths: Paths, model_name: str, setting: str) -> Path | None:
    path = paths.sae_probe_table(model_name, setting)
    return (
        existing(path, path.parent.with_name("ood_setting") / path.name)
        if get_setting(setting).shifted
        else existing(path)
    )


def _with_l0(table: pd.DataFrame) -> pd.DataFrame:
    """The sweep of architectures tells SAEs of one name apart by the column sae_l0."""
    if "sae_l0" not in table.columns:
        return table
    sae_id = table["sae_id"].astype(object)
    named = sae_id + "_l0_" + table["sae_l0"].round().astype("Int64").astype(str)
    return table.assign(sae_id=sae_id.where(table["sae_l0"].isna(), named))


def _sae_probes(tables: _Tables, setting: str) -> tuple[pd.DataFrame, list[Finding]]:
    path = _sae_table(tables.paths, tables.model_name, setting)
    if path is None:
        return pd.DataFrame(), []
    column = get_setting(setting).sae_column
    table = _read_sae_table(path, column)
    findings = _torn(path)
    if get_setting(setting).shifted:
        table, finding = _shifted_rows(tables, path, table)
        findings.append(finding)
    if "method" not in table.columns:
        table["method"] = "sae_probe"
    elif table["method"].isna().any():
        table["method"] = table["method"].astype(object).fillna("sae_probe")
    table["setting"] = pd.Categorical.from_codes(np.zeros(len(table), dtype=np.int8), [setting])
    of_sae = (table["method"] == "sae_probe").to_numpy()
    table["kind"] = pd.Categorical.from_codes(np.where(of_sae, 0, 1), [SAE, CONTROL])
    table["condition"] = table[column].astype(float).round(4) if column else NO_CONDITION
    return table, findings


def _layers(table: pd.DataFrame, path: Path) -> np.ndarray:
    """The layers of a table's rows, in one form whether they were read as numbers or, beside hooks,
    as their text.
    """

    def parsed(value: object) -> Layer | None:
        try:
            return parse_layer(str(value).removesuffix(".0"))
        except ValueError:
            return None

    layers = _by_value(table["layer"], parsed)
    strange = np.flatnonzero(layers == None)  # noqa: E711
    if len(strange):
        value = table["layer"].iloc[strange[0]]
        raise UserError(
            f"{path}, line {strange[0] + 2}: layer is {value!r}, neither a block's number nor a"
            " hook"
        )
    return layers


def is_auc(number: float) -> bool:
    """Whether a number can be an AUC, up to rounding; NaN is none."""
    return -ROUNDING <= number <= 1 + ROUNDING


def _check_scores(table: pd.DataFrame, path: Path, *numbers: str, layers: bool = True) -> None:
    needed = ("dataset", *(("layer",) if layers else ()), "val_auc", "test_auc", *numbers)
    for column in needed:
        if column not in table.columns:
            raise UserError(
                f"{path} lacks the column {column}; it has {', '.join(map(str, table.columns))}"
            )
    for column in ("val_auc", "test_auc", *numbers):
        if len(table) and not pd.api.types.is_numeric_dtype(table[column]):
            strange = pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()
            row = int(np.flatnonzero(strange)[0]) if strange.any() else 0
            raise UserError(
                f"{path}, line {row + 2}: {column} is {table[column].iloc[row]!r}, not a number"
            )
        if column.endswith("_auc"):
            outside = ~table[column].between(-ROUNDING, 1 + ROUNDING) & table[column].notna()
            if outside.any():
                row = int(np.flatnonzero(outside)[0])
                raise UserError(
                    f"{path}, line {row + 2}: {column} is {table[column].iloc[row]}, outside 0 to 1"
                )
