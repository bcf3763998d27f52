"""The figures in README.md and docs/: each stands between markers, made from a file of numbers.

    python -m checks.documents
    python -m checks.documents --record demo
    python -m checks.documents --record full_run --work_dir data/full_run

Without flags it fills in what the files of numbers say.

--record keeps what a run says (its report's sentences, tables and first figure) in docs/runs/. The
other files are docs/claims.json (make claims), docs/words.json (make words),
docs/benchmarks.json (make benchmark), docs/plan.json (benchmarks.plan), docs/runtimes.json
(benchmarks.runtimes), docs/commands.json (benchmarks.commands) and docs/facts.json (checks.facts,
tests/faults/crashes.py). A test fails where a document says something else.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import commands, plan
from benchmarks.measurements import read_measurements
from benchmarks.run_all import quoted
from benchmarks.runtimes import KEPT as RUNTIMES
from checks.claims import GEMMA, LLAMA, SAME, as_page, read_numbers
from checks.claims import PAGE as CLAIMS_PAGE
from checks.facts import read_facts
from checks.words import DOCUMENT as WORDS
from checks.words import sentence
from utils import cli
from utils.figures.gallery import DOTS
from utils.figures.report import answers
from utils.models import get_model
from utils.paths import Paths
from utils.results.comparison import Comparisons, Picked, compare_all, headline
from utils.results.tidy import SAE, load_results
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT, atomic_path, write_json
from utils.runtime.units import show_bytes
from utils.saes.formats import FILE_FORMATS, FORMATS
from utils.settings import SETTINGS

DOCS, RUNS = ROOT / "docs", ROOT / "docs" / "runs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MARKED = re.compile(r"(<!-- made ([\w ]+) -->\n).*?(<!-- -->)", re.DOTALL)
FACT = re.compile(r"(<!-- fact (\w+) -->).*?(<!-- -->)", re.DOTALL)
STAGES = (  # of benchmarks.full_run
    "texts and model", "model activations", "SAEs", "SAE activations", "baselines and words",
    "SAE probes and controls", "comparison and figures",
)  # fmt: skip
NAMES = ("demo", "full_run", "full_run_lm")
PLANNED_LAYER, PLANNED_WORKERS = 20, 64  # of docs/cluster.md
NOT_SURE = ": not sure, as the rank test does not agree"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--record", choices=NAMES, help="keep the numbers of a run")
    parser.add_argument("--model_name", default="all-MiniLM-L6-v2", metavar="NAME")
    parser.add_argument("--work_dir", type=Path, metavar="FOLDER", help="of benchmarks.full_run")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if args.record:
        paths = cli.paths_of(args)
        if args.work_dir is not None:
            data, results, figures = (args.work_dir / n for n in ("data", "results", "figures"))
            paths = replace(paths, data_dir=data, results_dir=results, figures_dir=figures)
        record(paths, args.record, args.model_name, args.work_dir)
    with atomic_path(CLAIMS_PAGE) as temporary:
        temporary.write_text(as_page(read_numbers()), encoding="utf-8")
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            with atomic_path(path) as temporary:
                temporary.write_text(filled, encoding="utf-8")
            print(f"written: {path}")
    return 0


def record(paths: Paths, name: str, model: str, work: Path | None) -> None:
    """Keep what a run says. Raises UserError where it has no results."""
    info = get_model(model, paths)
    tidy = load_results(paths, info.name, tuple(SETTINGS)).tidy
    if not len(tidy):
        raise UserError(f"{paths.results_dir} has no results of {info.name}")
    tables = compare_all(Picked(tidy), "paper")
    said = answers(tables)
    content: dict[str, Any] = {
        "model": info.name,
        "saes": sorted(tidy.loc[tidy["kind"] == SAE, "sae_id"].dropna().unique()),
        "n_datasets": int(tidy["dataset"].nunique()),
        "answers": [answer for answer in said if answer["protocol"] == said[0]["protocol"]],
        "fixed_k": plain_table(at_k(tables)),
        "means": plain_table(means(tables)),
        "against": against(tables),
    }
    log = None if work is None else work / "full_run.json"
    if log is not None and log.is_file():
        content["stages"] = json.loads(log.read_text(encoding="utf-8"))
    RUNS.mkdir(parents=True, exist_ok=True)
    write_json(RUNS / f"{name}.json", content)
    figure = paths.figures(info.name) / f"{DOTS}.png"
    if figure.is_file() and name != "demo":  # whose picks differ from processor to processor
        with atomic_path(RUNS / f"{name}.png") as temporary:
            shutil.copyfile(figure, temporary)
    print(f"kept: {RUNS / f'{name}.json'}")


def means(tables: Comparisons) -> pd.DataFrame:
    """Mean test AUC by setting, on fresh rows where they are known."""
    rows = tables.best_known()
    return headline(rows[rows["protocol"] == "paper"])


def at_k(tables: Comparisons) -> pd.DataFrame:
    """Where nothing is picked: the normal setting at a fixed k."""
    table = tables.fixed_k
    return table if not len(table) else table["normal"]


def against(tables: Comparisons) -> dict[str, Any]:
    """{setting: {control: [difference, from, to]}}."""
    found: dict[str, Any] = {}
    for row in tables.against.to_dict("records"):
        if row["protocol"] == "paper":
            numbers = [row[name] for name in ("mean_difference", "ci_low", "ci_high")]
            found.setdefault(row["setting"], {})[row["control"]] = [round(n, 6) for n in numbers]
    return found


def plain_table(table: pd.DataFrame) -> dict[str, Any]:
    """A table as JSON: columns, and rows with their names."""
    return {
        "columns": [str(name) for name in table.columns],
        "rows": [
            [str(name), *(None if value != value else value for value in row)]
            for name, row in zip(table.index, table.itertuples(index=False, name=None))
        ],
    }


def run_numbers(name: str) -> dict[str, Any]:
    path = RUNS / f"{name}.json"
    if not path.is_file():
        raise UserError(f"{path} is not there: python -m checks.documents --record {name}")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def as_table(first: str, table: dict[str, Any]) -> str:
    """A Markdown table."""

    def cell(value: Any, row: str) -> str:
        if value is None:
            return "–"
        if isinstance(value, (int, float)):
            return f"{value:.0f}" if row in ("datasets", "pairs") else f"{value:.3f}"
        return str(value)

    lines = [[first, *table["columns"]], ["---"] * (len(table["columns"]) + 1)]
    lines += [[row[0], *(cell(value, row[0]) for value in row[1:])] for row in table["rows"]]
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """The rows of a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_sentences(numbers: dict[str, Any]) -> str:
    """The report's sentences, a setting a bullet."""
    return "\n".join(
        f"- **{answer['where']}**: {answer['what']} {' '.join(answer['further'])}".rstrip()
        for answer in numbers["answers"]
    )


def means_over_k(numbers: dict[str, Any]) -> str:
    """Of a run's means at fixed k, over its k: what comes out alike on other processors."""
    table = numbers["fixed_k"]
    rows = {row[0]: [value for value in row[1:] if value is not None] for row in table["rows"]}
    n_datasets = int(rows.pop("datasets")[0])
    said = ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in rows.items())
    ks = " and ".join(name.removeprefix("k = ") for name in table["columns"])
    return f"Mean test AUC over k = {ks} ({n_datasets} datasets, normal, fresh test rows): {said}."


def run_facts() -> dict[str, str]:
    """What the full runs took, as {"full_run_took": "35 minutes", "full_run_memory": …}."""
    facts = {}
    for name in NAMES[1:]:
        stages = run_numbers(name)["stages"].values()
        minutes = sum(stage["seconds"] for stage in stages) / 60
        took = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
        facts[f"{name}_took"] = took
        facts[f"{name}_memory"] = show_bytes(max(stage["peak_bytes"] for stage in stages))
    return facts


def as_stages(numbers: dict[str, Any]) -> str:
    """What each stage of a full run took."""
    lines = ["| stage | seconds | CPU seconds | memory |", "| --- | --- | --- | --- |"]
    for name in STAGES:
        row = numbers["stages"][name]
        seconds, busy = f"{row['seconds']:,.0f}", f"{row['cpu_seconds']:,.0f}"
        lines.append(f"| {name} | {seconds} | {busy} | {show_bytes(row['peak_bytes'])} |")
    return "\n".join(lines)


def short_answer(_: dict[str, Any] | None = None) -> str:
    """README's first sentences: what the paper's tables say, then a run of ours."""
    rows = read_numbers()["claims"]
    found = {row["claim"]: row["published"] for row in rows if row["published"]}
    alone = "SAE probes alone are behind the best baseline"
    behind = [
        value
        for row in rows
        if row["published"]
        and (value := row["published"]["difference"]) is not None
        and alone in row["claim"]
    ]
    added = [
        row["published"]["agrees"]
        for row in rows
        if row["published"] and "adding SAE probes" in row["claim"]
    ]
    shifted = found[f"{GEMMA}: SAE probes are behind logistic regression on OOD texts"]
    ours, lm = run_numbers("full_run"), run_numbers("full_run_lm")
    normal = ours["against"]["normal"]
    first, of_lm = (
        next(a for a in run["answers"] if a["where"].startswith("normal")) for run in (ours, lm)
    )
    verdict = "not as probes" if max(behind) < 0 else "it depends on the setting"
    return "\n".join(
        [
            f"**Short answer: {verdict}.**",
            f"- *The paper's tables* ({GEMMA}, {LLAMA}; all test rows): SAE probes are"
            f" {-max(behind):.3f} to {-min(behind):.3f} AUC behind the best baseline in"
            f" {len(behind)} comparisons of models and settings. Adding them to the baselines"
            f" improves the pick in {added.count('no')} of {len(added)}. Out of distribution"
            f" ({GEMMA}): {shifted['shown']}{'' if shifted['agrees'] == SAME else NOT_SURE}.",
            f"- *[Our own run](docs/full_run.md)* ({ours['model']}, {ours['n_datasets']} datasets,"
            f" {first['where']}): {first['what']}",
            f"- *A causal language model* ({lm['model']}, {lm['n_datasets']} datasets,"
            f" {of_lm['where']}): {of_lm['what']}",
            f"- *Against the controls* ({ours['model']}): {side(normal['text_only'])} words alone,"
            f" which need no model; {side(normal['random_sae'])} SAEs with random directions.",
        ]
    )


def side(numbers: list[float]) -> str:
    """A difference in words, with its interval."""
    word = "above" if numbers[0] > 0 else "below"
    return f"{abs(numbers[0]):.3f} AUC {word} ({numbers[1]:+.3f} to {numbers[2]:+.3f})"


def of_run(name: str, show: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    return lambda: show(run_numbers(name))


def as_runtimes() -> str:
    """What other runtimes give on a CPU, a row a model and runtime."""
    content = json.loads(RUNTIMES.read_text(encoding="utf-8"))
    lines = [
        "| model | runtime | speed | numbers within | ready after |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model, of_model in content.items():
        for name, row in of_model["runtimes"].items():
            if "failed" in row:
                lines.append(f"| {model} | {name} | not measured: {row['failed']} | | |")
                continue
            lines.append(
                f"| {model} | {name} | {row['ratio']:.2f} times | {row['apart']:.0e} |"
                f" {row['prepared_s']:.0f} s |"
            )
    machines = dict.fromkeys(of_model["machine"] for of_model in content.values())
    return "\n".join([*lines, "", f"On {'; '.join(machines)}."])


def as_plan() -> str:
    """What a whole release takes by the rates of benchmarks.json, beside its probe layer alone."""
    measured, study = read_measurements(), plan.read_study()
    studies = (study, study.of_layer(PLANNED_LAYER))
    rate, gpu = measured["product_rate"] / 1e9, plan.GPU_GFLOPS
    probes = [one.probes(SETTINGS, measured["rates"]).values() for one in studies]
    fits = [sum(sweep.fits for sweep in of_study) for of_study in probes]
    hours = [sum(sweep.seconds for sweep in of_study) / 3600 for of_study in probes]
    encoding = [one.flops / 1e9 / 3600 for one in studies]
    rows = {
        "SAEs": [str(len(one.saes)) for one in studies],
        "rows, OOD texts included": [f"{one.n_rows:,}" for one in studies],
        "model activations a layer": [show_bytes(one.acts_bytes) for one in studies],
        "weights to fetch (encoder and decoder; half is read)": [
            show_bytes(one.weight_bytes) for one in studies
        ],
        "SAE activations to store": [show_bytes(one.latents_bytes) for one in studies],
        f"encoding at this machine's {rate:.0f} GFLOP/s": [f"{h / rate:.0f} h" for h in encoding],
        f"encoding at {gpu / 1000:.0f} TFLOP/s, assumed of a GPU": [
            f"{h / gpu:.1f} h" for h in encoding
        ],
        "probes, five settings": [f"{n / 1e6:.2f} million" for n in fits],
        "CPU-hours of probes": [f"{h:.0f}" for h in hours],
        f"the same on {PLANNED_WORKERS} workers": [
            f"{60 * h / PLANNED_WORKERS:.0f} minutes" for h in hours
        ],
    }
    lines = [["", "all layers", f"layer {PLANNED_LAYER} alone"]]
    lines += [["---"] * 3, *([name, *cells] for name, cells in rows.items())]
    return f"{markdown(lines)}\n\nRates of {measured['machine']}."


def plan_facts() -> dict[str, str]:
    """What the plan of a whole release says, for sentences."""
    study = plan.read_study()
    sweeps = study.probes(SETTINGS, read_measurements()["rates"]).values()
    return {
        "plan_weights": show_bytes(study.weight_bytes),
        "plan_read": f"{study.weight_bytes / 2 / 1e9 / 60:.0f} minutes",  # at 1 GB/s
        "plan_fetch": f"{8 * study.weight_bytes / 1e9 / 3600:.1f} hours",  # at 1 Gbit/s
        "plan_hours": f"{sum(sweep.seconds for sweep in sweeps) / 3600:.0f} CPU-hours",
    }


BLOCKS: dict[str, Callable[[], str]] = {
    "plan": as_plan,
    "answer": short_answer,
    "runtimes": as_runtimes,
    "words": lambda: sentence(json.loads(WORDS.read_text(encoding="utf-8"))),
    "formats": lambda: "\n".join(f"- {one.needs}" for one in (*FORMATS, *FILE_FORMATS)),
}
for _name in NAMES:
    BLOCKS |= {
        f"{_name} over_k": of_run(_name, lambda n: "> " + means_over_k(n)),
        f"{_name} sentences": of_run(_name, as_sentences),
        f"{_name} fixed_k": of_run(_name, lambda n: as_table("normal, fresh rows", n["fixed_k"])),
        f"{_name} means": of_run(_name, lambda n: as_table("mean test AUC", n["means"])),
        f"{_name} stages": of_run(_name, as_stages),
    }


def fill(text: str) -> str:
    """A document with what the files of numbers say between its markers."""

    def block(match: re.Match) -> str:
        if match[2] not in BLOCKS:
            raise UserError(f"no figure is called {match[2]!r}: {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}"

    def fact(match: re.Match) -> str:
        if match[2] not in facts:
            raise UserError(
                f"no fact is called {match[2]!r}: benchmarks.commands, benchmarks.plan and"
                " checks.facts measure them"
            )
        return f"{match[1]}{facts[match[2]]}{match[3]}"

    facts = read_facts() | commands.facts() | run_facts() | plan_facts()
    return FACT.sub(fact, MARKED.sub(block, quoted(text, read_measurements())))


if __name__ == "__main__":
    cli.run(main)
