"""The figures that docs/trust.md quotes, measured again and kept in docs/facts.json.

    python -m checks.facts
    python -m checks.facts --published FOLDER --golden ../shared/golden

Each group of figures is measured where its inputs are at hand, and else stays as it was, with a
line that says so: copies (the texts), calibration (make calibrate), ties (the paper's tables: make
fetch-published-results), solver and parity (reference results of the paper's own functions), gap
(the demo's probes by both protocols). `make docs` writes them into the documents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from checks.claims import GEMMA, published_paths
from checks.parity import compare_dataset, reference_cases, reference_latents
from utils import cli
from utils.datasets import list_datasets, paper_datasets
from utils.paths import Paths
from utils.probes.k_sparse import PROTOCOLS, ProbeOptions, fit_sae_probes
from utils.results.calibration import read_summary
from utils.results.comparison import contenders, val_test_gap
from utils.results.tidy import load_results
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT, write_json
from utils.settings import split
from utils.text_checks import known_check, share_of_copies

KEPT = ROOT / "docs" / "facts.json"
MODEL = "all-MiniLM-L6-v2"
FEW_ROWS = 143
NEAR = 0.01  # AUC


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--published", type=Path, metavar="FOLDER", help="with the paper's results/ and data/"
    )
    parser.add_argument(
        "--golden", type=Path, metavar="FOLDER", help="with reference results (make parity)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    published = published_paths(paths, args.published)
    groups: dict[str, Callable[[], dict[str, str]]] = {
        "copies": lambda: copies(paths),
        "calibration": lambda: calibration(paths),
        "ties": lambda: ties(published if args.published else None),
        "solver": lambda: solver(args.golden),
        "parity": lambda: parity(args.golden),
        "gap": lambda: gap(paths),
    }
    measured: dict[str, str] = {}
    for name, measure in groups.items():
        try:
            found = measure()
        except UserError as error:
            print(f"{name}: as it was ({error})")
            continue
        measured |= found
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in found.items())[:300]}")
    keep(measured)
    return 0


def keep(measured: dict[str, str]) -> None:
    """Add figures to the kept ones."""
    kept = read_facts() if KEPT.is_file() else {}
    write_json(KEPT, kept | measured)
    print(f"kept: {KEPT}; make docs writes them into the documents")


def read_facts() -> dict[str, str]:
    content = json.loads(KEPT.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def copies(paths: Paths) -> dict[str, str]:
    """How many test rows of the normal setting are copies of training rows."""
    papers = set(paper_datasets(paths)[0])
    names = [name for name in list_datasets(paths) if name in papers]
    checks = [known_check(paths, name) for name in names]
    n_tenth, mean = share_of_copies(checks)
    most = max(checks, key=lambda check: check.seen)
    return {
        "copies_mean": f"{mean:.0%}",
        "copies_tenth": f"{n_tenth} of {len(checks)} datasets",
        "copies_most": f"{most.seen:.0%} in {most.name}",
    }


def calibration(paths: Paths) -> dict[str, str]:
    summary = read_summary(paths)
    if not summary:
        raise UserError("make calibrate was not run")
    return {
        "calibration_order": f"{summary['spearman']:.2f}",
        "calibration_silent": f"{summary['no_difference']:.1%}",
        "calibration_power": f"{summary['power']:.1%}",
    }


def ties(paths: Paths | None) -> dict[str, str]:
    """Picks that a tie in validation AUC decides, in the paper's scarcity setting."""
    if paths is None:
        raise UserError("the paper's tables: --published FOLDER")
    tidy = load_results(paths, GEMMA, ("scarcity",)).tidy
    picks = contenders(tidy) if len(tidy) else {}
    asked = {"baselines": "quiver_baselines", "with_sae": "quiver_with_sae"}
    if not {"sae_only", *asked.values()} <= set(picks):
        raise UserError(f"{paths.results_dir} has no tables of {GEMMA}")
    return {
        f"ties_{short}": f"{(picks[name]['n_tied'] > 1).mean():.0%}"
        for short, name in asked.items()
    }


def reference_files(golden: Path | None) -> tuple[Path, list[Path]]:
    """The folder of reference results, and its file for each dataset."""
    files = sorted(golden.glob("*.json")) if golden else []
    if golden is None or not files:
        raise UserError("no reference results: --golden FOLDER")
    return golden, files


def parity(golden: Path | None) -> dict[str, str]:
    """How far test AUCs are from those of the paper's own functions: of SAE probes in the normal
    setting and with label noise, of baselines in the normal setting. Few rows are the solver's.
    """
    folder, files = reference_files(golden)
    table = pd.DataFrame(
        [row for file in files for row in compare_dataset(folder, file.stem, "path")]
    )
    apart = table["difference"].abs()
    of_sae = table["method"].str.startswith("SAE probe")
    facts = {}
    for setting, short in (("normal", "normal"), ("label_noise", "noise")):
        fits = apart[of_sae & (table["setting"] == setting)]
        if not len(fits):
            raise UserError(f"{folder} has no reference results of SAE probes, {setting}")
        facts[f"parity_{short}"] = f"{fits.mean():.4f}"
        facts[f"parity_{short}_near"] = f"{(fits <= NEAR).sum()} of {len(fits)} fits within {NEAR}"
    for name in ("logreg", "knn", "mlp", "pca"):
        fits = apart[(table["method"] == name) & (table["setting"] == "normal")]
        if not len(fits):
            raise UserError(f"{folder} has no reference results of {name}, normal")
        facts[f"parity_{name}"] = f"{fits.max():.3f}"
        facts[f"parity_{name}_mean"] = f"{fits.mean():.4f}"
    return facts


def solver(golden: Path | None) -> dict[str, str]:
    """Test AUC of the optimum less that of the paper's saga on at most FEW_ROWS training rows."""
    folder, files = reference_files(golden)
    apart = []
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        arrays = np.load(folder / "activations" / f"{file.stem}.npz")
        latents = reference_latents(folder, arrays["X"])
        for condition, expected in reference_cases(content):
            if condition.setting == "scarcity" and (condition.value or 0) <= FEW_ROWS:
                probes = expected["sae_l1"]
                rows = split(condition, arrays["y"]).take(latents)
                found = fit_sae_probes(rows, [probe["k"] for probe in probes], ProbeOptions())
                apart += [o["test_auc"] - p["test_auc"] for o, p in zip(found, probes)]
    if not apart:
        raise UserError(f"{folder} has no reference results on few rows")
    return {
        "solver_fits": str(len(apart)),
        "solver_mean": f"{-np.mean(apart):.3f}",
        "solver_most": f"{-np.min(apart):.2f}",
    }


def gap(paths: Paths) -> dict[str, str]:
    """Validation less test AUC by protocol, as a Markdown table."""
    tidy = with_both_protocols(load_results(paths, MODEL, ("normal", "scarcity")).tidy)
    table = val_test_gap(tidy) if len(tidy) else pd.DataFrame()
    # the paper's protocol of baselines has no name in that table
    table = table.rename(columns={name: f"{name}, paper" for name in ("baselines", "logreg")})
    kinds = ("SAE probes", "baselines", "logreg")
    columns = [f"{kind}, {protocol}" for kind in kinds for protocol in PROTOCOLS]
    if not set(columns) <= set(table.columns) or set(table["setting"]) != {"normal", "scarcity"}:
        raise UserError(
            f"{paths.results_dir} has not both protocols of {MODEL} in both settings: make demo,"
            f" then make train-baselines train-sae-probes MODEL={MODEL} SETTING=scarcity"
            ' ARGS="--protocol paper nested --conditions 20 143" with the demo\'s DATASETS'
        )
    lines = [["setting", *columns], ["---"] * (len(columns) + 1)]
    for row in table.dropna(subset=columns).to_dict("records"):
        few = f", {int(row['condition'])} rows" if row["setting"] == "scarcity" else ""
        lines.append([f"{row['setting']}{few}", *(f"{row[name]:.3f}" for name in columns)])
    return {"gap_table": "\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"}


def with_both_protocols(tidy: pd.DataFrame) -> pd.DataFrame:
    """The probes that were made by each protocol: the same on both sides of a comparison."""
    if not len(tidy):
        return tidy
    same = ["setting", "condition", "dataset", "layer", "kind", "method", "sae_id", "k", "seed"]
    n_protocols = tidy.groupby(same, dropna=False, observed=True)["protocol"].transform("nunique")
    return tidy[n_protocols == len(PROTOCOLS)]


if __name__ == "__main__":
    cli.run(main)
