"""All our ratios in one table: generator, storage, model activations, probes, baselines, workers;
written to docs/benchmarks.md.

    python -m benchmarks.run_all --runs 3
    python -m benchmarks.run_all --full

Runs the benchmark scripts one after the other, each of which measures both sides in one run, and
writes docs/benchmarks.md, the numbers that benchmarks.plan reads (docs/benchmarks.json), and the
figures that README.md and docs/ quote. Further runs on the same machine and versions add to those
that are there: a figure is their median, with its range. Needs the demo's files (`make demo`). A
run takes three quarters of an hour; --full takes larger sizes, hours.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.measurements import KEPT, machine, read_measurements, taken_from
from utils import cli
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import ROOT, atomic_path, write_json
from utils.runtime.provenance import installed_versions

PARTS = ("generate", "models", "probes", "scaling", "tables", "release", "shape", "reach")
# one SAE of real shape on all datasets
REAL_SHAPE = ["--sizes", "1x113", "--shape", "2304x16384", "--stages", "generate", "SAE probes"]
SCRIPTS = {"shape": "release"}  # {part: its script} where the names differ
MOST_RUNS = 5  # of each number
QUOTING = tuple(
    ROOT / "docs" / name
    for name in ("performance.md", "cluster.md", "own_models.md", "reliability.md")
)


def faster(ratio: float) -> str:
    return f"{ratio:.1f} times faster" if ratio < 20 else f"{ratio:.0f} times faster"


LINES: list[tuple[str, str, Callable[[float], str]]] = [
    (
        "generate_ratio_all",
        "SAE activations of all settings, 16k x 3,584, {size}, against the original order of work",
        faster,
    ),
    (
        "generate_ratio_normal",
        "the same in the normal setting alone, start-up and loading on both sides",
        faster,
    ),
    ("generate_share", "the generator's products, of this machine's own rate", "{:.0%}".format),
    (
        "storage_ratio",
        "disk of the SAE activations of all settings, against the original files",
        "1/{:.0f}".format,
    ),
    (
        "models_ratio",
        (
            "reading a model's activations, batches by length that stop at the hook, against a"
            " plain loop"
        ),
        faster,
    ),
    (
        "models_share",
        "its products, of this machine's own rate in products of that width",
        "{:.0%}".format,
    ),
    (
        "ladder_ratio",
        "SAE probes, ten k, path solver against saga: the median of the demo's datasets",
        faster,
    ),
    ("ladder_least", "the same on the dataset where it gains least", faster),
    ("ladder_apart", "how far their test AUCs are apart, on average", "{:.4f}".format),
    ("ladder_furthest", "the same at most, where saga stops short", "{:.3f}".format),
    ("few_rows_ratio", "the same on 10 to 143 training rows, two k (median)", faster),
    (
        "baselines_ratio",
        "the five baselines on 1,024 x 3,584 against plain scikit-learn and XGBoost",
        faster,
    ),
    ("scaling_processes", "the demo's SAE-probe sweep, two processes against one", faster),
    ("scaling_cluster", "the same, two workers of a Dask cluster against one", faster),
    (
        "tables_seconds",
        "`visualize` on five million rows of made-up SAE probes, 1,107 SAEs on 113 datasets",
        "{:.0f} s".format,
    ),
    ("tables_gib", "its peak memory", "{:.1f} GiB".format),
    (
        "shape_seconds",
        "one SAE of real shape (16,384 x 2,304, random numbers) on 113 datasets, normal setting",
        "{:.0f} s".format,
    ),
    ("shape_encode", "of that, to encode", "{:.0f} s".format),
    ("shape_probes", "and for its 1,130 probes", "{:.0f} s".format),
    ("shape_beside", "of the probes' worker-seconds, beside the fits", "{:.0%}".format),
    (
        "reach_kills",
        "parts of a cluster killed while it filled a made-up release, tables as of a quiet run",
        "{:.0f} kills".format,
    ),
]
SHORT_PROBES = ["--only", "ladder", "baselines", "--n_wide", "1"]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--full", action="store_true", help="20 datasets, wide SAEs")
    parser.add_argument("--runs", type=cli.positive, default=1, help="how often to measure")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="measure these anew, keep the other ratios",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    folders = cli.folder_flags(cli.paths_of(args))
    scripts = {
        "generate": [] if args.full else ["--quick", "--only", "order"],
        "models": folders,
        "probes": [*folders, *([] if args.full else SHORT_PROBES)],
        "scaling": folders,
        "tables": folders,
        "release": folders,
        "shape": [*folders, *REAL_SHAPE],
        "reach": folders,
    }
    failures = Failures()
    about = {"machine": machine(), "versions": installed_versions(), "full": args.full}
    for number in range(args.runs):
        run: dict[str, Any] = {"date": time.strftime("%Y-%m-%d")}
        for script in (name for name in scripts if name in args.only):
            print(f"\n== run {number + 1} of {args.runs}: {script}", flush=True)
            run |= measure(script, scripts[script], failures)
        kept = kept_runs(about)
        runs = trimmed([*kept, run])
        write_json(KEPT, {**about, **medians(runs), "runs": runs})
    measured = read_measurements()
    with atomic_path(KEPT.with_suffix(".md")) as temporary:
        temporary.write_text(as_markdown(measured), encoding="utf-8")
    for path in QUOTING:
        with atomic_path(path) as temporary:
            temporary.write_text(quoted(path.read_text(encoding="utf-8"), measured), "utf-8")
    print(f"\n{as_markdown(measured)}\nwritten to {KEPT.with_suffix('.md')} and {KEPT.name}")
    return cli.report(failures, "benchmarks")


def measure(script: str, flags: list[str], failures: Failures) -> dict[str, Any]:
    """What a benchmark script hands on; its output is shown as it comes."""
    module = SCRIPTS.get(script, script)
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        output += line
    if process.wait():
        failures.add(f"{script} ended with {process.returncode}: its ratios are missing")
    return taken_from(output)


def kept_runs(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that were made on this machine with these versions and sizes."""
    try:
        kept = read_measurements()
    except UserError:
        return []
    same = all(kept.get(name) == value for name, value in about.items())
    return kept.get("runs", []) if same else []


def trimmed(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the oldest runs of whose every number there are MOST_RUNS newer ones: a run of one
    part alone pushes out no other part's numbers.
    """
    while runs and all(
        sum(name in newer for newer in runs[1:]) >= MOST_RUNS for name in runs[0] if name != "date"
    ):
        runs = runs[1:]
    return runs


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number over the runs that have it; of what is no number the last."""
    latest: dict[str, Any] = {}
    for run in runs:
        latest |= run
    for name, value in latest.items():
        if isinstance(value, (int, float)):
            latest[name] = median(run[name] for run in runs if name in run)
    return latest


def figure(name: str, measured: dict[str, Any]) -> str:
    """A ratio as documents quote it: the median, and its range where there are several runs."""
    shown = {line[0]: line[2] for line in LINES}.get(name)
    if shown is None or name not in measured:
        raise UserError(f"no measured figure is called {name!r}: `make benchmark` measures them")
    values = [run[name] for run in measured.get("runs", []) if name in run]
    if len(values) < 2:
        return shown(measured[name])
    low, high = shown(min(values)).split()[0], shown(max(values)).split()[0]
    return f"{shown(measured[name])} ({low} to {high} in {len(values)} runs)"


def quoted(text: str, measured: dict[str, Any]) -> str:
    """A document with the figures between its markers ``<!-- measured NAME -->…<!-- -->``."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}{figure(match[2], measured)}{match[3]}"

    return re.sub(r"(<!-- measured (\w+) -->).*?(<!-- -->)", fill, text, flags=re.DOTALL)


def as_markdown(measured: dict[str, Any]) -> str:
    """The table, one ratio a line; what was not measured is left out."""
    size = "20 datasets" if measured["full"] else "4 datasets"
    n_runs = len(measured.get("runs", []))
    lines = [line for line in LINES if line[0] in measured]
    text = (
        "# Benchmarks\n\nMade by `make benchmark`; both sides of a ratio were measured in one run."
        f" Medians of {n_runs} runs, with their range."
    )
    text += f"\n\n- date: {measured['date']}\n- machine: {measured['machine']}\n"
    text += (
        "- versions:"
        f" {', '.join(f'{name} {version}' for name, version in measured['versions'].items())}\n\n"
    )
    text += "| what | ratio |\n| --- | --- |\n"
    text += "".join(
        f"| {what.format(size=size)} | {figure(name, measured)} |\n" for name, what, _ in lines
    )
    if "seconds_predicted" in measured:
        predicted, seconds = measured["seconds_predicted"], measured["seconds_measured"]
        text += (
            f"\nThe sweep on two processes took {seconds:.0f} s; the rates of one process on half"
            " of the datasets predicted "
        )
        text += f"{predicted:.0f} s ({predicted / seconds - 1:+.0%}).\n"
    return text + release_table(measured)


def release_table(measured: dict[str, Any]) -> str:
    """What a made-up release took, stage by stage; "" where it was not measured."""
    if "release" not in measured:
        return ""
    sizes = sorted(measured["release"], key=lambda size: math.prod(map(int, size.split("x"))))
    text = (
        "\n## A made-up release\n\n`make benchmark-release`: real names, row counts and tables,"
        f" tiny arrays; SAEs x datasets {' and '.join(sizes)}, figures of the larger."
        " Worker-seconds beside the fits, and the exponent with which they grow with the"
        " rows.\n\n| stage | rows | first run | again | in fits | beside fits | growth |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    growths = measured.get("release_exponents", {})
    for stage, m in measured["release"][sizes[-1]].items():
        keeping = m["first"] * (m["n_jobs"] if m["in_fits"] else 1) - m["in_fits"]
        growth = f"{growths[stage]:.2f}" if stage in growths else "–"
        text += (
            f"| {stage} | {m['n_rows']} | {m['first']:.1f} s | {m['again']:.1f} s |"
            f" {m['in_fits']:.0f} s | {keeping:.1f} s | {growth} |\n"
        )
    return text


if __name__ == "__main__":
    cli.run(main)
