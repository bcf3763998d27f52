"""Compare our probes with reference results of the paper's own functions, fit by fit.

    python -m checks.parity --golden ../shared/golden
    python -m checks.parity --golden ../shared/golden --solver saga

The folder holds {dataset}.json (results by setting), activations/{dataset}.npz (X, y) and sae/ (a
TopK SAE in SAELens's format). Prints, by setting and method, the differences in test AUC and
whether the same latents were chosen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from utils import cli
from utils.probes.baselines import METHODS
from utils.probes.k_sparse import SOLVERS, ProbeOptions, fit_sae_probes
from utils.runtime.errors import UserError
from utils.runtime.progress import progress
from utils.settings import Condition, split


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--golden", type=Path, required=True, help="folder with the reference results"
    )
    parser.add_argument("--solver", choices=SOLVERS, default="path", help="of the SAE probes")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    files = sorted(args.golden.glob("*.json"))
    if not files:
        raise UserError(f"no reference results (*.json) in {args.golden}")
    rows = []
    for file in progress(files, desc="reference datasets", unit="dataset"):
        rows += compare_dataset(args.golden, file.stem, args.solver)
    table = pd.DataFrame(rows)
    grouped = table.groupby(["setting", "method"], sort=False, observed=True)
    summary = grouped["difference"].agg(
        fits="size",
        mean="mean",
        mean_absolute=lambda d: d.abs().mean(),
        largest=lambda d: d.abs().max(),
        within_0_01=lambda d: (d.abs() <= 0.01).mean(),
    )
    summary["same_latents"] = grouped["same_latents"].mean()
    print("Test AUC, ours less the reference's:")
    print(summary.to_string(float_format="{:.4f}".format))
    return 0


def reference_cases(golden: dict) -> list[tuple[Condition, dict]]:
    """(condition, its reference results) of a dataset's file."""
    cases = [(Condition("normal"), golden["normal"])]
    for setting in ("scarcity", "label_noise"):
        cases += [
            (Condition(setting, float(v) if "." in v else int(v)), entry)
            for v, entry in golden.get(setting, {}).items()
        ]
    return cases


def reference_latents(folder: Path, X: np.ndarray) -> csr_array:
    """Latents [n_rows, d_sae] of the reference's TopK SAE by numpy's product, as the reference made
    them to the last bit.
    """
    import torch
    from safetensors.numpy import load_file

    weights = load_file(folder / "sae" / "sae_weights.safetensors")
    k_active = json.loads((folder / "sae" / "cfg.json").read_text())["k"]
    values, columns = torch.from_numpy(X @ weights["W_enc"] + weights["b_enc"]).topk(
        k_active, dim=1
    )
    dense = torch.zeros(len(X), weights["W_enc"].shape[1]).scatter_(1, columns, values.relu())
    return csr_array(dense.numpy())


def compare_dataset(folder: Path, name: str, solver: str) -> list[dict]:
    golden = json.loads((folder / f"{name}.json").read_text())
    arrays = np.load(folder / "activations" / f"{name}.npz")
    X, y = arrays["X"], arrays["y"]
    latents = reference_latents(folder, X)
    rows = []
    for condition, expected in reference_cases(golden):
        drawn = split(condition, y)
        common = {"dataset": name, "setting": condition.setting}
        probes = expected["sae_l1"]
        options = ProbeOptions(solver=solver)
        found = fit_sae_probes(drawn.take(latents), [p["k"] for p in probes], options)
        for ours, theirs in zip(found, probes):
            same = ours["latents"].split() == [str(latent) for latent in theirs["latents"]]
            difference = ours["test_auc"] - theirs["test_auc"]
            rows.append(
                {
                    **common,
                    "method": f"SAE probe ({solver})",
                    "difference": difference,
                    "same_latents": float(same),
                }
            )
        for method, scores in expected.get("baselines", {}).items():
            ours = METHODS[method](drawn.take(X))
            rows.append(
                {
                    **common,
                    "method": method,
                    "difference": ours["test_auc"] - scores["test_auc"],
                    "same_latents": np.nan,
                }
            )
    return rows


if __name__ == "__main__":
    cli.run(main)
