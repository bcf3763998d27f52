"""A positive control: synthetic activations whose features an SAE knows exactly, so that its probes
must win on few rows.

    python -m checks.positive_control

SAELens's synthetic generator makes sparse feature activations and sends them through a dictionary
of more features than dimensions. The label is whether one of the features fires. One SAE has the
true dictionary as its encoder, the other random directions; both go through the same files, encoder
and probes as any SAE. Writes results/positive_control.csv, which visualize.py shows in its report.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from utils import cli
from utils.paths import Paths
from utils.probes.baselines import logreg
from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.readers.sparse_files import to_csr
from utils.runtime.files import atomic_path, write_json
from utils.runtime.progress import progress
from utils.saes.catalog import open_sae
from utils.saes.encode import encode_all, read_block
from utils.settings import Condition, TrainTest, split

D_MODEL, N_FEATURES = 256, 512
FIRING_PROBABILITY = 0.05
N_SAMPLES = 12_000
ROWS_PER_CLASS = 200
SIZES = (10, 143)
K = 16
LOGREG = "logreg on activations"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    parser.add_argument(
        "--n_labels",
        type=cli.positive,
        default=10,
        help="features that are made a label, one dataset each",
    )
    parser.add_argument("--overwrite", action="store_true", help="measure again what is there")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    path = cli.paths_of(args).positive_control()
    settings, described = {"seed": args.seed, "n_labels": args.n_labels}, path.with_suffix(".json")
    made_from = (
        json.loads(described.read_text(encoding="utf-8"))
        if path.is_file() and described.is_file()
        else None
    )
    if made_from == settings and not args.overwrite:
        print(f"done: {path} (--overwrite does it again)")
        return 0
    table = measure(**settings)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    write_json(described, settings)
    print(f"\nMean test AUC over {args.n_labels} labels, each whether one feature fires:")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"\ntable  {path}")
    return 0


def measure(seed: int, n_labels: int, sizes: tuple[int, ...] = SIZES) -> pd.DataFrame:
    """Mean test AUC of each probe: a row a number of training rows and probe, with how often it is
    above logreg.
    """
    import torch
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary

    torch.manual_seed(seed)
    dictionary = FeatureDictionary(N_FEATURES, D_MODEL, seed=seed)
    other = FeatureDictionary(N_FEATURES, D_MODEL, initializer=None, seed=seed + 1)
    features = ActivationGenerator(
        N_FEATURES, FIRING_PROBABILITY, std_firing_magnitudes=0.2
    ).sample(N_SAMPLES)
    with torch.no_grad():
        activations = dictionary(features).numpy()
    latents = {
        "SAE with the true dictionary": encode_with(dictionary.feature_vectors, activations),
        "SAE with random directions": encode_with(other.feature_vectors, activations),
    }
    fires = (features > 0).numpy()
    rng = np.random.default_rng(seed)
    aucs: dict[tuple[int, str], list[float]] = {}
    for feature in progress(
        rng.choice(N_FEATURES, n_labels, replace=False), desc="labels", unit="label"
    ):
        sides = [np.flatnonzero(fires[:, feature] == side) for side in (True, False)]
        rows = np.concatenate([rng.choice(side, ROWS_PER_CLASS, replace=False) for side in sides])
        y = fires[rows, feature].astype(np.int64)
        for n_train in sizes:
            drawn = split(Condition("scarcity", n_train), y)
            train, test = rows[drawn.train], rows[drawn.test]
            scores = logreg(
                TrainTest(activations[train], drawn.y_train, activations[test], drawn.y_test)
            )
            aucs.setdefault((n_train, LOGREG), []).append(scores["test_auc"])
            for name, X in latents.items():
                (probe,) = fit_sae_probes(
                    TrainTest(X[train], drawn.y_train, X[test], drawn.y_test), [K], ProbeOptions()
                )
                aucs.setdefault((n_train, f"{name}, k = {K}"), []).append(probe["test_auc"])
    return pd.DataFrame(
        [
            {
                "n_train": n_train,
                "probe": name,
                "mean_test_auc": np.mean(values),
                "above_logreg": int(np.sum(np.array(values) > np.array(aucs[n_train, LOGREG]))),
                "n_labels": n_labels,
            }
            for (n_train, name), values in aucs.items()
        ]
    )


def encode_with(directions: np.ndarray, activations: np.ndarray) -> csr_array:
    """Latents [n_rows, n_directions] of a TopK SAE with these encoder directions, saved and opened
    as any SAE is.
    """
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    k_active = round(N_FEATURES * FIRING_PROBABILITY)
    cfg = TopKSAEConfig(
        d_in=D_MODEL, d_sae=N_FEATURES, k=k_active, rescale_acts_by_decoder_norm=False
    )
    sae = TopKSAE(cfg)
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_model(Path(folder) / "synthetic")
        encoder = open_sae(Paths(sae_dir=Path(folder)), "synthetic", "synthetic")
        cpu = torch.device("cpu")
        rows = encode_all(encoder, [read_block(encoder, 0, encoder.d_sae, cpu)], activations, cpu)
    return to_csr(rows, N_FEATURES)


if __name__ == "__main__":
    cli.run(main)
