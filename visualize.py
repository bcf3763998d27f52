"""Result tables to a matched comparison, figures and a self-contained report.

    python visualize.py --model_name gemma-2-9b
    python visualize.py --model_name all-MiniLM-L6-v2 --setting scarcity

Reads the tables of train_baselines.py and train_sae_probes.py, or the paper's published ones, or
both, and the latent cards of explain_probes.py. Writes results/comparison_{model}.csv,
results/datasets_{model}.csv, figures/{model}/report.html, each figure beside it as PNG, PDF, SVG
and CSV, and with several SAEs leaderboard.html; prints the headline table. A figure whose table is
missing is left out; one line names them, the report says why. A selection of datasets or settings
has a folder and tables of its own: those of all results stay as they are. Where nothing has changed
since the last run, nothing is drawn (--overwrite draws and prints all again).
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd

from utils import cli
from utils.datasets import choose_datasets
from utils.figures.drawn import Drawn, Shown
from utils.figures.gallery import Material, draw_all, gallery
from utils.figures.report import Report, answers, write_leaderboard, write_report
from utils.models import get_model
from utils.names import parse_layer
from utils.paths import Paths
from utils.probes.k_sparse import PROTOCOLS
from utils.readers.fingerprints import digest
from utils.results.audit import audit
from utils.results.calibration import in_sentences, read_summary
from utils.results.cards import ProbeCards, read_cards
from utils.results.comparison import (
    ALL,
    WORDS_SUFFICE,
    Comparisons,
    Picked,
    against_controls,
    by_sae,
    compare_all,
    headline,
    leaderboard,
    of_protocol,
    protocols,
    val_test_gap,
)
from utils.results.csv_files import write_csv
from utils.results.findings import Kind
from utils.results.multi_token import load_multi_token
from utils.results.paired import PairedErrors
from utils.results.sources import Sources
from utils.results.tidy import SAE, TEXT, Results, load_results
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import locked
from utils.runtime.provenance import current_commit, read_run_settings
from utils.settings import NORMAL, SETTINGS, SplitKind


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default=cli.EVERY)
    cli.add_datasets(parser)
    cli.add_split(parser)
    parser.add_argument("--overwrite", action="store_true", help="draw again what is up to date")
    return parser


class Notes(list):
    """What a run says beside its tables; a run that has nothing to draw says it again."""

    def add(self, line: str) -> None:
        cli.say(line)
        self.append(line)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    model_name = get_model(args.model_name, paths).name
    drawn = Drawn(paths, model_name, vars(args) | {"overwrite": None})
    last = None if args.overwrite else drawn.last()
    if last is not None:
        for note in last.notes:
            cli.say(note)
        print("up to date (--overwrite draws and prints all again)")
        print_end(paths, model_name, last)
        return 0
    notes = Notes()
    loaded = load_results(paths, model_name, cli.settings_asked(args))
    failures = Failures(loaded.unreadable())
    results = chosen_results(paths, model_name, loaded, args.datasets, notes)
    n_all = len(of_model(loaded.tidy))
    selected = selection(of_model(results.tidy), n_all, args.setting)
    with locked(paths.figures(model_name, selected), "report.html", also=paths.results_dir):
        written, shown = show(paths, model_name, results, selected, failures, notes)
        print_end(paths, model_name, shown)
        if not failures.lines:
            drawn.keep(written, shown)
    return cli.report(failures, "result tables")


def chosen_results(
    paths: Paths, model_name: str, results: Results, datasets: list[str] | None, notes: Notes
) -> Results:
    """The results of the datasets that were asked for. Raises UserError where there are none."""
    tidy = results.tidy
    if datasets:
        with_results = sorted(set(tidy["dataset"]))
        absent = [name for name in datasets if name not in with_results]
        if with_results and len(absent) == len(datasets):
            choose_datasets(paths, absent)  # says which name is none
            stages = "train-baselines train-sae-probes"
            command = cli.make_command(stages, model_name, absent[:1], paths.split.flags)
            raise UserError(f"{absent[0]} has no results of {model_name}: `{command}` makes them")
        if absent:
            notes.add(f"without results: {', '.join(absent)}")
        tidy = tidy[tidy["dataset"].isin(datasets)]
    unreadable = results.unreadable()
    if not len(tidy) and unreadable:
        raise UserError(unreadable[0])
    stale = [str(finding) for finding in results.findings if finding.kind is Kind.STALE]
    if not len(tidy) and stale:
        raise UserError(f"no row of {model_name} can be shown: {stale[0]}")
    if not len(tidy):
        raise UserError(
            f"no result tables of {model_name} in {paths.results_dir}: run `make train-baselines"
            f" train-sae-probes MODEL={model_name}{paths.split.make_flags}`"
        )
    for finding in results.findings:
        if finding.weight != "fine" and finding.kind not in (Kind.UNREADABLE, Kind.UNCHECKED):
            notes.add(f"note: {finding}")
    return replace(results, tidy=tidy)


def of_model(tidy: pd.DataFrame) -> list[str]:
    """The datasets on which the model has probes: those on words alone are of all models."""
    return sorted(set(tidy.loc[tidy["kind"] != TEXT, "dataset"]))


def selection(datasets: list[str], n_all: int, setting: str) -> str:
    """The name of a selection of results, the same for the same one; "" for all there are."""
    parts = [] if setting == cli.EVERY else [setting]
    if len(datasets) == 1 < n_all:
        parts += [datasets[0].replace("/", "_")]
    elif len(datasets) < n_all:
        parts += [f"{len(datasets)}_datasets_{digest(datasets)[:6]}"]
    return "_".join(parts)


def show(
    paths: Paths, model_name: str, results: Results, selected: str, failures: Failures, notes: Notes
) -> tuple[list[Path], Shown]:
    """Write the comparison, the figures and the report, and print the headline: (the files, what
    the run ends with).
    """
    tidy = results.tidy
    # figures show one protocol, the paper's where there are both; tables show both
    shown = next(iter(protocols(tidy)), PROTOCOLS[0])
    of_shown = of_protocol(tidy, shown)
    picked = Picked(tidy)
    comparisons = compare_all(picked, shown)
    controls = against_controls(picked.known, shown)
    table_path = paths.comparison_table(model_name, selected)
    datasets_path = paths.datasets_table(model_name, selected)
    write_csv(table_path, comparisons.table())
    write_csv(datasets_path, comparisons.datasets)

    multi_token, unusable = load_multi_token(paths, model_name)
    for finding in unusable:
        failures.add(finding.what)
    gap = val_test_gap(tidy)
    of_table = comparisons.all_rows
    of_table = of_table[of_table["protocol"] == shown]
    picks = {setting: picked.every.of(setting, shown) for setting in picked.every.settings()}
    stated = on_best_rows(comparisons, shown)
    material = Material(of_shown, picks, of_table, stated, gap, multi_token)
    folder = paths.figures(model_name, selected)
    drawings, left_out = draw_all(gallery(paths, model_name), material, folder, failures)
    ranked = write_ranking(folder, model_name, picked, shown)
    if left_out:
        names = ", ".join(line.removeprefix("figure ").split(":")[0] for line in left_out)
        notes.add(f"left out, as the report says why: {len(left_out)} figures ({names})")
    report = Report(
        model_name=model_name,
        about=about(tidy, paths.split),
        shown=of_shown,
        comparisons=comparisons,
        cards=latent_cards(paths, model_name, shown, failures, notes),
        selected=selected,
        leaderboard=ranked,
        controls=controls,
        calibration=calibration(paths) if made_here(tidy) else "",
        gap=gap,
        each_sae=by_sae(picked.known),
        drawings=drawings,
        left_out=left_out,
        findings=audit(paths, results, picked.every),
        settings=run_settings(paths, model_name),
        paired=PairedErrors(paths, model_name),
        make_flags=paths.split.make_flags,
    )
    write_report(folder / "report.html", report)
    print_summary(comparisons)
    pages = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    verdict = in_a_word(comparisons)
    return (
        [table_path, datasets_path, *pages],
        Shown(tuple(notes), selected, len(drawings), verdict),
    )


def print_end(paths: Paths, model_name: str, shown: Shown) -> None:
    """Where everything is, and the answer."""
    folder = paths.figures(model_name, shown.selection)
    table_path = paths.comparison_table(model_name, shown.selection)
    print(
        f"\nfigures  {cli.shown_path(folder)} ({shown.n_figures} as PNG, PDF, SVG and CSV)"
        f"\ntable    {cli.shown_path(table_path)}"
        f"\nreport   {cli.shown_path(folder / 'report.html')}"
    )
    print(cli.folded(f"Are these SAE probes useful? {shown.verdict} Open the report.", ""))


def on_best_rows(comparisons: Comparisons, protocol: str) -> pd.DataFrame:
    """The comparison over all conditions by one protocol, on fresh rows where they are known."""
    rows = comparisons.best_known()
    return rows[(rows["condition"] == ALL) & (rows["protocol"] == protocol)]


def write_ranking(folder: Path, model_name: str, picked: Picked, protocol: str) -> bool:
    """Write the page of all SAEs, on fresh rows where they are known, where there are several; an
    older one goes where there are not.
    """
    path = folder / "leaderboard.html"
    tidy = picked.every.tidy
    shown = (tidy["kind"] == SAE) & (tidy["protocol"] == protocol)
    probes = tidy.loc[shown, ["setting", "sae_id"]]
    n_saes = probes.groupby("setting", observed=True)["sae_id"].nunique()
    setting = max(SETTINGS, key=lambda name: n_saes.get(name, 0))
    tables = leaderboard(picked.known, setting, protocol)
    if len(tables[0]) < 2:
        path.unlink(missing_ok=True)
        return False
    fresh = picked.known.is_fresh(setting, protocol)
    write_leaderboard(path, model_name, setting, tables, fresh)
    return True


def about(tidy: pd.DataFrame, kind: SplitKind) -> str:
    """Which SAEs and layers, splits that are not the paper's, the day and the commit, in a line."""
    probes = tidy[tidy["kind"] == SAE]
    sae_ids = sorted(probes["sae_id"].dropna().unique())
    layers = sorted(probes["layer"].dropna().unique(), key=str)
    named = ", ".join(sae_ids[:3]) + (f" and {len(sae_ids) - 3} more" if len(sae_ids) > 3 else "")
    parts = [f"{len(sae_ids)} SAE{'s' if len(sae_ids) != 1 else ''}: {named}"] if sae_ids else []
    if layers:
        parts.append(f"layer {', '.join(map(str, layers))}")
    parts += [f"{tidy['dataset'].nunique()} datasets"]
    parts += [f"splits{kind.flags}"] if kind.flags else []
    parts += [time.strftime("%Y-%m-%d")]
    commit = current_commit()
    return " · ".join([*parts, *([f"commit {commit[:10]}"] if commit else [])])


def latent_cards(
    paths: Paths, model_name: str, protocol: str, failures: Failures, notes: Notes
) -> list[ProbeCards]:
    """Those of explain_probes.py that are of a protocol's probes and of what there is now; a file
    that cannot be read is a failure.
    """
    try:
        cards = read_cards(paths.latents_table(model_name))
    except UserError as error:
        failures.add(error)
        return []
    sources = Sources(paths, model_name)
    current = []
    for probe in cards:
        layer = parse_layer(probe.hook_name)
        about = {"dataset": probe.dataset, "sae_id": probe.sae_id, "layer": layer, "method": SAE}
        made_from = sources.of(about, NORMAL)
        if probe.protocol == protocol and (not made_from or made_from == probe.made_from):
            current.append(probe)
    if len(current) < len(cards):
        notes.add(
            f"left out: latent cards of {len(cards) - len(current)} probes, which are of another"
            f" protocol or of what is no longer there: `make explain MODEL={model_name}"
            f"{paths.split.make_flags}` makes them again"
        )
    return current


def made_here(tidy: pd.DataFrame) -> bool:
    """Whether any probe on latents is of our own making: published ones do not count weights."""
    return bool(tidy.loc[tidy["kind"] == SAE, "n_nonzero"].notna().any())


def calibration(paths: Paths) -> str:
    """What checks.calibrate found, in sentences; "" where it was not run, or its file is broken."""
    with suppress(KeyError, TypeError, ValueError):
        return in_sentences(read_summary(paths))
    return ""


def run_settings(paths: Paths, model_name: str) -> dict[str, object]:
    """The runs that made the result tables, by the table's folder, and their package versions."""
    runs = {}
    folders = [("baseline_probes", setting.baseline_folder) for setting in SETTINGS.values()]
    folders += [("sae_probes", f"{setting}_setting") for setting in SETTINGS]
    for kind, folder in folders:
        path = paths.results_dir / f"{kind}_{model_name}" / folder / "settings.json"
        if path.is_file():
            runs[f"{kind}/{folder}"] = read_run_settings(path)
    versions = [run.get("versions") for of_folder in runs.values() for run in of_folder]
    distinct = [v for i, v in enumerate(versions) if v not in versions[:i]]
    shown = {
        folder: [{k: v for k, v in run.items() if k != "versions"} for run in of_folder]
        for folder, of_folder in runs.items()
    }
    return {"versions": distinct, "runs": shown} if shown else {}


def print_summary(tables: Comparisons) -> None:
    if len(tables.all_rows):
        print("\nMean test AUC over matched datasets (each probe picked by validation AUC):")
        print_headline(tables.all_rows)
        if len(tables.fresh):
            print("\nThe same on fresh test rows, whose text is in no training row:")
            print_headline(tables.fresh)
        if len(tables.fixed_k):
            print("\nAt a fixed k, nothing picked, on fresh rows where they are known:")
            print(tables.fixed_k.to_string(float_format=short, line_width=cli.LINE))
        print()
        for answer in answers(tables):
            for line in (f"{answer['where']}: {answer['what']}", *answer["further"]):
                cli.say(line)


def in_a_word(tables: Comparisons) -> str:
    """The verdict of each setting: worse, better, … than the best baseline, by one protocol; and on
    how many datasets of the first words alone do as well.
    """
    said = answers(tables)
    if not said:
        return "Nothing to compare yet."
    marks = tables.datasets
    if len(marks):
        marks = marks.loc[marks["setting"] == said[0]["setting"], "words"].dropna()
    n_words = int((marks == WORDS_SUFFICE).sum()) if len(marks) else 0
    of_words = f" Words alone suffice on {n_words} of {len(marks)} datasets." if len(marks) else ""
    shown = [
        f"{answer['setting']}: {answer['said'][2:]}"
        for answer in said
        if answer["protocol"] == said[0]["protocol"]
    ]
    return f"Against the best baseline, {'; '.join(shown)}.{of_words}"


def short(number: float) -> str:
    """A mean AUC, or a count."""
    return f"{number:.0f}" if number > 1 else f"{number:.3f}"


def print_headline(table: pd.DataFrame) -> None:
    """The headline, a table a protocol, narrow enough for a terminal."""
    for protocol, rows in table.groupby("protocol", sort=False, observed=True):
        shown = headline(rows)
        if table["protocol"].nunique() > 1:
            shown.columns.name = f"{protocol} protocol"
        print(shown.to_string(line_width=cli.LINE))


if __name__ == "__main__":
    cli.run(main)
