"""A made-up release of SAEs through every stage: what the book-keeping costs, and how that grows.

    python -m benchmarks.release
    python -m benchmarks.release --sizes 9x28 34x113 --n_jobs 2

Names, row counts and the shapes of the tables are those of a real study; arrays are tiny (8
dimensions, 32 latents), so that what a stage takes beside its fits is book-keeping. Each stage runs
as a user runs it, from nothing and again. Printed for each stage and size: seconds of both runs,
worker-seconds in fits, what is left for a row, and the exponent with which that grew with the rows
between the two sizes. Of real shape is one SAE on all datasets with
`--sizes 1x113 --shape 2304x16384 --stages generate "SAE probes"`. Needs the texts (`make
fetch-data`). Writes nothing but temporary files.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from benchmarks.measurements import hand_on
from utils import cli
from utils.activations import write_activations
from utils.datasets import (
    existing_csv,
    list_datasets,
    load_dataset,
    load_ood,
    paper_datasets,
    read_csv,
)
from utils.models import LanguageModel, describe_model
from utils.names import hook_name
from utils.paths import Paths
from utils.runtime.devices import default_n_jobs
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT, write_json
from utils.runtime.progress import progress

MODEL, LAYER = "made-up", 0
MOST_L0 = 100  # mean active latents of the made-up SAEs, or a quarter of them


@dataclass(frozen=True)
class Shape:
    """Of the made-up activations and SAEs."""

    d_model: int = 8
    d_sae: int = 32


@dataclass(frozen=True)
class Stage:
    """A command that a user gives, and the table whose rows and seconds in fits are counted
    ("" counts sets of files or rows of all tables).
    """

    name: str
    command: list[str]
    table: str = ""


NO_CONTROLS = ("--controls", "none")  # the SAEs' own cost is measured
STAGES = (
    Stage(
        "generate", ["generate_sae_activations_optimized.py", "--setting", "normal", *NO_CONTROLS]
    ),
    Stage("baselines", ["train_baselines.py", "--method", "logreg"], "baseline normal"),
    Stage(
        "baselines, scarcity",
        ["train_baselines.py", "--method", "logreg", "--setting", "scarcity"],
        "baseline scarcity",
    ),
    Stage("SAE probes", ["train_sae_probes.py", *NO_CONTROLS], "sae normal"),
    Stage(
        "SAE probes, scarcity",
        ["train_sae_probes.py", "--setting", "scarcity", *NO_CONTROLS],
        "sae scarcity",
    ),
    Stage("status", ["-m", "checks.status"]),
    Stage("audit", ["-m", "checks.audit"]),
    Stage("visualize", ["visualize.py"]),
)


@dataclass
class Measured:
    """Of a stage: seconds of the first and the second run, worker-seconds in fits, rows."""

    first: float
    again: float
    in_fits: float
    n_rows: int
    n_jobs: int

    @property
    def keeping(self) -> float:
        """Worker-seconds beside the fits."""
        return self.first * (self.n_jobs if self.in_fits else 1) - self.in_fits


@dataclass
class Size:
    """So many SAEs on so many datasets, and what the stages took."""

    n_saes: int
    n_datasets: int
    stages: dict[str, Measured] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.n_saes}x{self.n_datasets}"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=[size("9x28"), size("34x113")],
        metavar="SAESxDATASETS", help="the smaller first",
    )  # fmt: skip
    parser.add_argument(
        "--stages", nargs="+", choices=[stage.name for stage in STAGES], help="only these"
    )
    parser.add_argument(
        "--shape", type=shape, default=Shape(), metavar="WIDTHxLATENTS", help="of the SAEs"
    )
    parser.add_argument("--n_jobs", type=cli.positive, default=default_n_jobs(), help="processes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make it here and leave it")
    return parser


def size(text: str) -> Size:
    """A flag's size."""
    return Size(*_two_numbers(text, "34x113"))


def shape(text: str) -> Shape:
    """A flag's shape."""
    return Shape(*_two_numbers(text, "2304x16384"))


def _two_numbers(text: str, example: str) -> tuple[int, int]:
    one, _, other = text.partition("x")
    if not (one.isdigit() and other.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: give two numbers, as in {example}")
    return int(one), int(other)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    texts = cli.paths_of(args)
    stages = [stage for stage in STAGES if not args.stages or stage.name in args.stages]
    for of_size in args.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            place = args.keep / str(of_size) if args.keep else Path(temporary)
            paths = made_up(texts, place, of_size, args.shape)
            for stage in stages:
                of_size.stages[stage.name] = run_stage(paths, stage, args.n_jobs)
                print_stage(of_size, stage.name)
    if args.shape != Shape():  # a table of its own: the seconds are not those of tiny arrays
        hand_on(**of_real_shape(args.sizes[-1]))
        return 0
    values: dict = {
        "release": {str(s): {n: vars(m) for n, m in s.stages.items()} for s in args.sizes}
    }
    if len(args.sizes) > 1:
        small, large = args.sizes[0], args.sizes[-1]
        values["release_exponents"] = {
            stage.name: growth(small, large, stage.name) for stage in stages
        }
        print(f"\ngrowth with the rows from {small} to {large} (1 is in proportion):")
        for name, exponent in values["release_exponents"].items():
            print(f"  {name:<22} {exponent:5.2f}")
    hand_on(**values)
    return 0


def of_real_shape(of_size: Size) -> dict[str, float]:
    """Seconds of encoding and of probes where arrays are as large as real ones, and the share of
    the probes' worker-seconds beside the fits.
    """
    encoded, probed = (of_size.stages.get(name) for name in ("generate", "SAE probes"))
    if encoded is None or probed is None:
        return {}
    return {
        "shape_seconds": encoded.first + probed.first,
        "shape_encode": encoded.first,
        "shape_probes": probed.first,
        "shape_beside": probed.keeping / (probed.first * probed.n_jobs),
    }


def growth(small: Size, large: Size, stage: str) -> float:
    """The exponent of a stage's book-keeping in its rows."""
    before, after = small.stages[stage], large.stages[stage]
    return math.log(max(after.keeping, 1e-3) / max(before.keeping, 1e-3)) / math.log(
        after.n_rows / before.n_rows
    )


def print_stage(of_size: Size, name: str) -> None:
    measured = of_size.stages[name]
    per_row = 1e6 * measured.keeping / max(measured.n_rows, 1)
    print(
        f"{of_size!s:<8} {name:<22} {measured.first:7.1f} s, again {measured.again:5.1f} s;"
        f" {measured.n_rows:7d} rows, {measured.in_fits:7.1f} s in fits, beside them"
        f" {measured.keeping:6.1f} s, {per_row:6.0f} microseconds a row",
        flush=True,
    )


def made_up(texts: Paths, folder: Path, of_size: Size, of_shape: Shape = Shape()) -> Paths:
    """A model's activations on real texts and its SAEs, of random numbers.

    Raises UserError where there are too few datasets.
    """
    paths = Paths(folder / "texts", folder / "data", folder / "results", folder / "figures")
    names = paper_datasets(texts)[0]
    if len(names) < of_size.n_datasets:
        raise UserError(f"{of_size.n_datasets} datasets are asked for and {len(names)} are known")
    chosen = [names[i * len(names) // of_size.n_datasets] for i in range(of_size.n_datasets)]
    if paths.master_table().is_file():
        return paths
    _link_texts(texts, paths, chosen)
    rng = np.random.default_rng(0)
    info = LanguageModel(MODEL, None, of_shape.d_model, (LAYER,), LAYER)
    describe_model(info, paths)
    import torch

    for name in progress(chosen, desc="made-up activations", unit="dataset"):
        for ood in (False, True):
            if ood and existing_csv(paths.ood_texts(name)) is None:
                continue
            dataset = load_ood(paths, name) if ood else load_dataset(paths, name)
            rows = rng.normal(size=(len(dataset), of_shape.d_model))
            rows[:, :8] += dataset.labels[:, None] * 0.3
            write_activations(
                paths.model_activations(MODEL, name, hook_name(LAYER), ood),
                torch.tensor(rows, dtype=torch.float32),
                dataset.texts,
                {"model_name": MODEL, "hook_name": hook_name(LAYER)},
            )
    for number in range(of_size.n_saes):
        _write_sae(paths.saes(MODEL) / f"layer_{LAYER}" / f"sae_{number}", of_shape, rng)
    return paths


def _link_texts(texts: Paths, paths: Paths, chosen: list[str]) -> None:
    master = read_csv(texts.master_table(), "dataset table")
    kept = master["Dataset save name"].map(lambda name: Path(name).stem in chosen)
    for target in (paths.texts("x"), paths.ood_texts("x")):
        target.parent.mkdir(parents=True)
    master[kept].to_csv(paths.master_table(), index=False)
    for name in chosen:
        for source, target in (
            (texts.texts(name), paths.texts(name)),
            (texts.ood_texts(name), paths.ood_texts(name)),
        ):
            file = existing_csv(source)
            if file is not None:
                os.link(file, target.with_name(file.name))
    list_datasets.cache_clear()


def _write_sae(folder: Path, of_shape: Shape, rng: np.random.Generator) -> None:
    """A ReLU SAE of random directions, in SAELens's folder format."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    d_model, d_sae = of_shape.d_model, of_shape.d_sae
    share = min(MOST_L0 / d_sae, 0.25)  # of the latents that are active on a row
    weights = {
        "W_enc": rng.normal(size=(d_model, d_sae)) / math.sqrt(d_model),
        "b_enc": np.full(d_sae, NormalDist().inv_cdf(share)),
        "W_dec": np.zeros((d_sae, d_model)),
        "b_dec": np.zeros(d_model),
    }
    save_file(
        {name: value.astype(np.float32) for name, value in weights.items()},
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "standard", "d_in": d_model, "d_sae": d_sae, "dtype": "float32",
        "apply_b_dec_to_input": False, "normalize_activations": "none",
        "metadata": {"hook_name": hook_name(LAYER), "model_name": MODEL},
    }  # fmt: skip
    write_json(folder / "cfg.json", config)


def command_of(paths: Paths, stage: Stage) -> list[str]:
    """A stage's command, as a user gives it."""
    return [sys.executable, *stage.command, "--model_name", MODEL, *cli.folder_flags(paths)]


def run(paths: Paths, stage: Stage, *flags: str) -> float:
    """Run a stage; the seconds that it took.

    Raises UserError when it fails.
    """
    started = time.perf_counter()
    command = [*command_of(paths, stage), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise UserError(f"{stage.name} failed: {(done.stderr or done.stdout)[-1500:]}")
    return time.perf_counter() - started


def run_stage(paths: Paths, stage: Stage, n_jobs: int) -> Measured:
    """Run a stage twice, as a user does.

    Raises UserError when it fails.
    """
    flags = ("--n_jobs", str(n_jobs)) if stage.table else ()
    seconds = [run(paths, stage, *flags) for _ in range(2)]
    if not stage.table:
        return Measured(seconds[0], seconds[1], 0.0, n_rows_of_all(paths, stage), 1)
    kind, setting = stage.table.split()
    table = (
        paths.sae_probe_table(MODEL, setting)
        if kind == "sae"
        else paths.baseline_table(MODEL, setting, LAYER)
    )
    timed = pd.read_csv(table.with_name(f"{table.stem}_seconds.csv"))
    in_fits = float(timed["seconds"].sum())
    return Measured(seconds[0], seconds[1], in_fits, len(timed), n_jobs)


def n_rows_of_all(paths: Paths, stage: Stage) -> int:
    """What a stage that fits nothing goes through: sets of files, or the rows of all tables."""
    if stage.name == "generate":
        return len(list(paths.sae_activations_folder(MODEL, "normal").glob("*.json")))
    tables = [path for path in paths.results_dir.rglob("*.csv") if "seconds" not in path.name]
    return max(sum(max(path.read_bytes().count(b"\n") - 1, 0) for path in tables), 1)


if __name__ == "__main__":
    cli.run(main)
