"""All our ratios in one table: generator, storage, model activations, probes, baselines, workers;
written to docs/benchmarks.md.

    python -m benchmarks.run_all
    python -m benchmarks.run_all --full

Runs the benchmark scripts one after the other, each of which measures both sides in one run, and
writes docs/benchmarks.md and the numbers that benchmarks.plan reads (docs/benchmarks.json). Needs
the demo's files (`make demo`). Takes a quarter of an hour; --full takes the sizes of the README,
hours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measurements import KEPT, machine, read_measurements, taken_from
from utils import cli
from utils.runtime.errors import Failures
from utils.runtime.files import ROOT, atomic_path, write_json
from utils.runtime.provenance import installed_versions

PARTS = ("generate", "models", "probes", "scaling")


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
    ("ladder_ratio", "SAE probes, ten k on a dataset, path solver against saga (median)", faster),
    (
        "baselines_ratio",
        "the five baselines on 1,024 x 3,584 against plain scikit-learn and XGBoost",
        faster,
    ),
    ("scaling_processes", "the demo's SAE-probe sweep, two processes against one", faster),
    ("scaling_cluster", "the same, two workers of a Dask cluster against one", faster),
]
SHORT_PROBES = [
    "--datasets",
    "87_glue_cola",
    "96_spam_is",
    "--only",
    "ladder",
    "baselines",
    "--n_wide",
    "1",
]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--full", action="store_true", help="the sizes of the README")
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
    }
    measured: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": installed_versions(),
    }
    measured["full"] = args.full
    failures = Failures()
    if set(args.only) < set(PARTS):
        measured = {**read_measurements(), **measured}
    for script, flags in scripts.items():
        if script not in args.only:
            continue
        print(f"\n== {script} {' '.join(flags)}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{script}", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        output = ""
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            output += line
        if process.wait():
            failures.add(f"{script} ended with {process.returncode}: its ratios are missing")
        measured.update(taken_from(output))
    write_json(KEPT, measured)
    with atomic_path(KEPT.with_suffix(".md")) as temporary:
        temporary.write_text(as_markdown(measured), encoding="utf-8")
    print(f"\n{as_markdown(measured)}\nwritten to {KEPT.with_suffix('.md')} and {KEPT.name}")
    return cli.report(failures, "benchmarks")


def as_markdown(measured: dict[str, Any]) -> str:
    """The table, one ratio a line; what was not measured is left out."""
    size = "20 datasets" if measured["full"] else "4 datasets"
    lines = [line for line in LINES if line[0] in measured]
    text = (
        "# Benchmarks\n\nMade by `make benchmark`; both sides of a ratio were measured in one run."
    )
    text += f"\n\n- date: {measured['date']}\n- machine: {measured['machine']}\n"
    text += (
        "- versions:"
        f" {', '.join(f'{name} {version}' for name, version in measured['versions'].items())}\n\n"
    )
    text += "| what | ratio |\n| --- | --- |\n"
    text += "".join(
        f"| {what.format(size=size)} | {shown(measured[name])} |\n" for name, what, shown in lines
    )
    if "seconds_predicted" in measured:
        predicted, found = measured["seconds_predicted"], measured["seconds_measured"]
        text += (
            f"\nThe sweep on two processes took {found:.0f} s; the rates of one process on half of"
            " the datasets predicted "
        )
        text += f"{predicted:.0f} s ({predicted / found - 1:+.0%}).\n"
    return text


if __name__ == "__main__":
    cli.run(main)
