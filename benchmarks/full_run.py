"""Benchmark of a whole study: all 113 datasets on a small model, every control, stopped at random
moments on the way.

    python -m benchmarks.full_run
    python -m benchmarks.full_run --model_name smollm2-135m --max_rows 1500 --quick --no_stops

Runs the stages as a user would, in a folder of their own. Each stage is killed once, with all its
workers, at a random moment and started again with the same command; what that costs is in the wall
time. The memory is that of all processes together (their proportional shares), read once a second.
Writes full_run.json in --work_dir, and prints the stages as docs/full_run.md shows them. Takes
about two hours on 2 cores with all rows, and half an hour with --max_rows 1500 --quick at one
layer; what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from benchmarks.measurements import cpu_seconds, run
from fetch_data import FOR_DEMO
from utils import cli
from utils.datasets import list_datasets
from utils.models import MODELS
from utils.paths import Paths
from utils.runtime.files import ROOT, write_json
from utils.runtime.units import show_bytes

MODEL = "all-MiniLM-L6-v2"
FETCHED = {"smollm2-135m": ["texts", "smollm2"]}  # beside what the demo needs
QUICK = "logreg,pca,knn,mlp,diff_of_means,lda,text_only"  # XGBoost takes most of the time
SCARCE = ("20", "53", "143", "382")
STOP_BETWEEN = (5.0, 60.0)  # seconds after the start of a stage, the first time


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=ROOT / "data" / "full_run",
        help="folder of all files of the run (4 GB)",
    )
    parser.add_argument("--model_name", choices=list(MODELS), default=MODEL, help="a small model")
    parser.add_argument(
        "--layers", nargs="+", metavar="N", help="layers to read (default: the model's)"
    )
    parser.add_argument(
        "--max_rows", type=cli.positive, metavar="N", help="only the first rows of each dataset"
    )
    parser.add_argument("--quick", action="store_true", help="leave out XGBoost")
    parser.add_argument("--no_stops", action="store_true", help="let every stage run undisturbed")
    cli.add_seed(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    work: Path = args.work_dir.resolve()
    paths = Paths(args.text_dir, work / "data", work / "results", work / "figures")
    moments = random.Random(args.seed)
    log = work / "full_run.json"
    measured = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {}
    for stage, commands in stages(args).items():
        empty = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0, "stops": 0}
        done = measured[stage] = {**empty, **measured.get(stage, {})}
        for command in commands:
            stop_after = moments.uniform(*STOP_BETWEEN)
            if args.no_stops or done["stops"]:
                stop_after = float("inf")
            while True:
                before = cpu_seconds()
                seconds, peak, status = run(
                    [sys.executable, *command, *cli.folder_flags(paths)], ROOT, stop_after
                )
                done["seconds"] += seconds
                done["cpu_seconds"] += cpu_seconds() - before
                done["peak_bytes"] = max(done["peak_bytes"], peak)
                if status is not None:
                    break
                done["stops"] += 1
                print(f"-- killed after {stop_after:.0f} s; again", flush=True)
                stop_after = float("inf")
            if status:
                print(f"error: {' '.join(command)} ended with {status}", file=sys.stderr)
                return cli.EXIT_FAILED
            write_json(log, measured)
    seconds = sum(done["seconds"] for done in measured.values())
    rows = f"at most {args.max_rows} rows of each" if args.max_rows else "all rows"
    where = " and ".join(map(str, layers_of(args)))
    print(f"\n{len(list_datasets(paths))} datasets, {rows}, layers {where} of {args.model_name}:")
    for stage, done in measured.items():
        print(
            f"  {stage:<24} {done['seconds']:6.0f} s  {done['cpu_seconds']:6.0f} CPU s"
            f"  {show_bytes(done['peak_bytes']):>10}  stopped {done['stops']} times"
        )
    peak = max(done["peak_bytes"] for done in measured.values())
    print(f"  {'together':<24} {seconds:6.0f} s  {show_bytes(peak):>10}")
    return 0


def layers_of(args: argparse.Namespace) -> list[str]:
    return args.layers or [str(layer) for layer in MODELS[args.model_name].layers]


def stages(args: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The commands of each stage, without folders."""
    model, layers = ["--model_name", args.model_name], ["--layers", *layers_of(args)]
    probe_layer = ["--layers", str(MODELS[args.model_name].probe_layer)]
    rows = ["--max_rows", str(args.max_rows)] if args.max_rows else []
    settings = (
        ["--setting", "normal", *layers],
        ["--setting", "scarcity", "--conditions", *SCARCE, *probe_layer],
        ["--setting", "OOD", *probe_layer],
    )
    of_model = ["logreg,text_only" if "OOD" in setting else QUICK for setting in settings]
    baselines = [
        ["train_baselines.py", *model, *setting, *(["--method", names] if args.quick else [])]
        for setting, names in zip(settings, of_model)
    ]
    return {
        "texts and model": [["fetch_data.py", "--what", *FETCHED.get(args.model_name, FOR_DEMO)]],
        "model activations": [["generate_model_activations.py", *model, *layers, *rows]],
        "SAEs": [["train_saes.py", *model, *layers, "--widths", "2048"]],
        "SAE activations": [["generate_sae_activations_optimized.py", *model, "--setting", "all"]],
        "baselines and words": baselines,
        "SAE probes and controls": [
            ["train_sae_probes.py", *model, *setting, "--controls", "all"] for setting in settings
        ],
        "comparison and figures": [["visualize.py", *model]],
    }


if __name__ == "__main__":
    cli.run(main)
