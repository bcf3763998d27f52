"""Benchmark of more workers: the demo's SAE-probe sweep with one and with two of one thread each,
and what was predicted.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --n_turns 2

Runs the sweep (normal setting and scarcity, SAEs and controls, twelve seeds) in processes of this
machine and on a Dask cluster of its own, with one and two workers in turns, and prints the ratios
of the best times. Rates come from one worker on half of the datasets; the time that they predict
for all datasets on two workers is printed beside the measured one. Needs the demo's SAE activations
(`make demo`). Writes nothing beside the demo's files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.measurements import hand_on
from benchmarks.rates import rates_of_table, seconds_of_sweep
from utils import cli
from utils.models import get_model
from utils.paths import Paths
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT

MODEL = "all-MiniLM-L6-v2"
SWEEP = (("normal", ()), ("scarcity", ("20", "143", "382")))
SEEDS = ",".join(map(str, range(42, 54)))  # so that one process has two minutes' work
CONTROLS = ("--controls", "raw_dims", "pca_dims")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--n_turns", type=cli.positive, default=1, help="runs of each; the best counts"
    )
    parser.add_argument(
        "--without_cluster", action="store_true", help="only processes of this machine"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    folder = paths.sae_activations_folder(MODEL, "normal")
    names = sorted(
        {path.name.split("_2_width")[0] for path in folder.glob("*_2_width_*_X_rest_sae.pt")}
    )
    if len(names) < 2:
        raise UserError(
            f"no SAE activations of {get_model(MODEL).name} in {folder}: run `make demo` first"
        )
    best: dict[str, float] = {}
    for _ in range(args.n_turns):
        for n_workers in (1, 2):
            for kind in ("processes", *(() if args.without_cluster else ("cluster",))):
                seconds, _ = sweep(paths, names, n_workers, kind)
                key = f"{kind} {n_workers}"
                best[key] = min(seconds, best.get(key, seconds))
                print(f"{key}: {seconds:.1f} s", flush=True)
    _, rates = sweep(paths, names[::2], 1, "processes")
    predicted = seconds_of_sweep(rates, len(names), 2)
    values = {
        "scaling_processes": best["processes 1"] / best["processes 2"],
        "seconds_predicted": predicted,
        "seconds_measured": best["processes 2"],
        "rates": rates,
    }
    if not args.without_cluster:
        values["scaling_cluster"] = best["cluster 1"] / best["cluster 2"]
        print(
            f"from one to two workers of a Dask cluster: {values['scaling_cluster']:.2f} times"
            " faster"
        )
    print(f"from one to two processes: {values['scaling_processes']:.2f} times faster")
    error = predicted / best["processes 2"] - 1
    print(
        f"two processes: {predicted:.1f} s predicted, {best['processes 2']:.1f} s measured"
        f" ({error:+.0%})"
    )
    hand_on(**values)
    return 0


def sweep(paths: Paths, names: list[str], n_workers: int, kind: str) -> tuple[float, dict]:
    """(wall seconds of the whole sweep, its rates) into result tables that are thrown away."""
    with tempfile.TemporaryDirectory() as folder, cluster(n_workers, kind) as place:
        into = replace(paths, results_dir=Path(folder))
        rates: dict = {"settings": {}}
        wall = 0.0
        for setting, conditions in SWEEP:
            command = [
                sys.executable,
                str(ROOT / "train_sae_probes.py"),
                "--model_name",
                MODEL,
                "--setting",
                setting,
                *CONTROLS,
                "--seeds",
                SEEDS,
            ]
            command += ["--datasets", *names, *cli.folder_flags(into), *place]
            command += ["--conditions", *conditions] if conditions else []
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            seconds = time.perf_counter() - started
            if done.returncode:
                raise UserError(f"the sweep failed: {done.stderr[-1000:]}")
            wall += seconds
            table = into.sae_probe_table(MODEL, setting)
            timed = pd.read_csv(table.with_name(f"{table.stem}_seconds.csv"))
            rates["settings"][setting] = rates_of_table(timed, seconds, n_workers, len(names))
        return wall, rates


@contextmanager
def cluster(n_workers: int, kind: str) -> Iterator[list[str]]:
    """The flags that make a run use ``n_workers``: processes of its own, or a Dask cluster that is
    there meanwhile.
    """
    if kind == "processes":
        yield ["--n_jobs", str(n_workers)]
        return
    dask = str(Path(sys.executable).with_name("dask"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"

        def start(*flags: str) -> subprocess.Popen:
            command = [
                dask,
                *flags,
                "--scheduler-file",
                str(file),
                "--no-dashboard",
                "--host",
                "127.0.0.1",
            ]
            return subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
            )

        started = [start("scheduler", "--port", "0")]
        try:
            while not file.exists():
                time.sleep(0.1)
            started += [start("worker", "--nthreads", "1") for _ in range(n_workers)]
            from distributed import Client

            with Client(scheduler_file=str(file), set_as_default=False) as client:
                client.wait_for_workers(n_workers)
            yield ["--scheduler", json.loads(file.read_text())["address"]]
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    cli.run(main)
