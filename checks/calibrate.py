"""How good is the tool? On synthetic activations whose features are known, it puts SAEs of known
quality in order, tells equal SAEs apart no more often than chance allows, and sees a difference as
often as it says it will.

    python -m checks.calibrate

SAELens's synthetic generator makes sparse feature activations and sends them through a dictionary
of more features than dimensions. A label is whether one of the features fires. SAEs: the true
dictionary, the same in another order, dictionaries whose directions are turned away from the true
ones by more and more, random directions, and one that SAELens trains. All go through the same
files, encoder, probes and statistics as any SAE. Writes results/calibration.csv and
results/calibration.json, which visualize.py shows in its report.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import spearmanr

from utils import cli
from utils.paths import Paths
from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.results.calibration import in_sentences, read_summary
from utils.results.csv_files import write_csv
from utils.results.statistics import describe_difference, verdict, visible_in_deviations
from utils.runtime.files import write_json
from utils.runtime.progress import progress
from utils.saes.catalog import open_sae
from utils.saes.encode import latents_of
from utils.saes.training import Schedule, train
from utils.settings import Condition, TrainTest, split

if TYPE_CHECKING:
    import torch

D_MODEL, N_FEATURES = 256, 512
FIRING_PROBABILITY = 0.05
K_ACTIVE = round(N_FEATURES * FIRING_PROBABILITY)
N_SAMPLES = 12_000
ROWS_PER_CLASS = 200
N_TRAIN, K = 143, 16
QUALITIES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # cosines with the true directions
EQUAL_QUALITY, N_EQUAL = 0.6, 8  # of the SAEs that are as good as each other
N_LABELS_ORDERED, N_LABELS_EQUAL = 40, 120
N_STUDIES, N_DATASETS = 2000, 20  # made-up studies, and the datasets of each
N_TRAINED_ON, N_STEPS, BATCH = 200_000, 1500, 512
RULES = 1  # raised when the same seed gives other numbers


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    parser.add_argument("--overwrite", action="store_true", help="measure again what is there")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    table_path, summary_path = paths.calibration()
    known = read_summary(paths) if table_path.is_file() else {}
    if known.get("made_by") != {"seed": args.seed, "rules": RULES} or args.overwrite:
        world = World.of(args.seed)
        ordered = order_of_saes(world)
        known = {
            "made_by": {"seed": args.seed, "rules": RULES},
            "spearman": float(spearmanr(ordered["quality"], ordered["mean_test_auc"])[0]),
            **shares(equal_saes(world), args.seed),
        }
        write_csv(table_path, ordered)
        write_json(summary_path, known)
    else:
        print(f"done: {table_path} (--overwrite does it again)")
    print(pd.read_csv(table_path).to_string(index=False, float_format="{:.3f}".format))
    print(in_sentences(known))
    return 0


@dataclass(frozen=True)
class World:
    """Activations [n_samples, d_model] made of known features.

    ``directions`` [n_features, d_model]; ``fires`` bool [n_samples, n_features]; ``extra``: further
    activations, to train an SAE on.
    """

    directions: np.ndarray
    activations: np.ndarray
    fires: np.ndarray
    extra: torch.Tensor
    seed: int

    @classmethod
    def of(cls, seed: int) -> World:
        import torch
        from sae_lens.synthetic import ActivationGenerator, FeatureDictionary

        torch.manual_seed(seed)
        dictionary = FeatureDictionary(N_FEATURES, D_MODEL, seed=seed)
        generator = ActivationGenerator(N_FEATURES, FIRING_PROBABILITY, std_firing_magnitudes=0.2)
        with torch.no_grad():
            features = generator.sample(N_SAMPLES)
            return cls(
                dictionary.feature_vectors.detach().numpy(),
                dictionary(features).numpy(),
                (features > 0).numpy(),
                dictionary(generator.sample(N_TRAINED_ON)),
                seed,
            )

    def labels(self, n: int) -> np.ndarray:
        """The features that are made a label, drawn once for a number of them."""
        return np.random.default_rng([self.seed, n]).choice(N_FEATURES, n, replace=False)

    def turned(self, cosine: float, number: int) -> np.ndarray:
        """The true directions turned away by random ones: ``cosine`` with each remains."""
        rng = np.random.default_rng([self.seed, 1, number])
        noise = rng.normal(size=self.directions.shape)
        noise -= (noise * self.directions).sum(axis=1, keepdims=True) * self.directions
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        made = cosine * self.directions + (1 - cosine**2) ** 0.5 * noise
        return made.astype(np.float32)

    def quality(self, directions: np.ndarray, features: np.ndarray) -> float:
        """How well directions stand for the features: the mean of the best cosine of each."""
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        return float((self.directions[features] @ unit.T).max(axis=1).mean())


def order_of_saes(world: World) -> pd.DataFrame:
    """Each SAE with its true quality and what its probes score: the mean test AUC over labels."""
    rng = np.random.default_rng([world.seed, 2])
    saes = {f"cosine {cosine}": world.turned(cosine, 0) for cosine in QUALITIES}
    saes["true, in another order"] = world.directions[rng.permutation(N_FEATURES)]
    noise = rng.normal(size=world.directions.shape).astype(np.float32)
    saes["random"] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    saes["trained by SAELens"] = trained(world)
    features = world.labels(N_LABELS_ORDERED)
    rows = []
    for name, directions in progress(saes.items(), desc="SAEs in order", unit="SAE"):
        aucs = probe_aucs(world, directions, features)
        quality = world.quality(directions, features)
        rows.append({"SAE": name, "quality": quality, "mean_test_auc": aucs.mean(),
                     "sd": aucs.std(ddof=1), "n_labels": len(features)})  # fmt: skip
    return pd.DataFrame(rows).sort_values("quality", ascending=False)


def equal_saes(world: World) -> np.ndarray:
    """Test AUCs [n_saes, n_labels] of SAEs that are equally good: turned away by other noise."""
    features = world.labels(N_LABELS_EQUAL)
    saes = [world.turned(EQUAL_QUALITY, number + 1) for number in range(N_EQUAL)]
    return np.array(
        [probe_aucs(world, sae, features) for sae in progress(saes, desc="equal", unit="SAE")]
    )


def shares(aucs: np.ndarray, seed: int) -> dict[str, float]:
    """Of made-up studies, how many see no difference between equal SAEs, and how many see one that
    they are said to see with 80 % power; aucs [n_saes, n_labels].

    A study draws datasets (labels), and for each two of the equal SAEs, which are two sides of the
    comparison.
    """
    rng = np.random.default_rng([seed, 3])
    n_saes, n_labels = aucs.shape
    # every pair of SAEs, both ways: symmetric, as the difference of equals is
    first, second = np.nonzero(~np.eye(n_saes, dtype=bool))
    differences = aucs[first] - aucs[second]
    mde = visible_in_deviations(N_DATASETS) * float(differences.std())
    datasets = np.array([f"{number:02}" for number in range(N_DATASETS)])
    n_silent = n_seen = 0
    for _ in range(N_STUDIES):
        labels = rng.choice(n_labels, N_DATASETS, replace=False)
        drawn = differences[rng.integers(len(differences), size=N_DATASETS), labels]
        n_silent += judged(drawn, datasets) == "no difference seen"
        n_seen += judged(drawn + mde, datasets) in ("above", "perhaps above")
    return {
        "no_difference": n_silent / N_STUDIES,
        "power": n_seen / N_STUDIES,
        "promised_difference": mde,
        "n_studies": N_STUDIES,
        "n_datasets": N_DATASETS,
    }


def judged(difference: np.ndarray, datasets: np.ndarray) -> str:
    """The verdict of a study with one comparison."""
    row = describe_difference(difference, datasets)
    return verdict({**row, "n_datasets": len(datasets), "p_holm": row["p_wilcoxon"]})


def probe_aucs(world: World, directions: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The test AUC of an SAE's probe of each label [n_features]."""
    latents = encode_with(directions, world.activations)
    aucs = []
    for feature in features:
        rng = np.random.default_rng([world.seed, 4, feature])
        sides = [np.flatnonzero(world.fires[:, feature] == side) for side in (True, False)]
        rows = np.concatenate([rng.choice(side, ROWS_PER_CLASS, replace=False) for side in sides])
        y = world.fires[rows, feature].astype(np.int64)
        drawn = split(Condition("scarcity", N_TRAIN), y)
        train, test = rows[drawn.train], rows[drawn.test]
        split_rows = TrainTest(latents[train], drawn.y_train, latents[test], drawn.y_test)
        (probe,) = fit_sae_probes(split_rows, [K], ProbeOptions())
        aucs.append(probe["test_auc"])
    return np.array(aucs)


def trained(world: World) -> np.ndarray:
    """The encoder directions [d_sae, d_model] of an SAE that SAELens trains on the activations."""
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    torch.manual_seed(world.seed)
    cfg = TopKTrainingSAEConfig(
        d_in=D_MODEL, d_sae=N_FEATURES, k=K_ACTIVE, rescale_acts_by_decoder_norm=False
    )
    order = torch.randint(
        len(world.extra), (N_STEPS + 1, BATCH), generator=torch.Generator().manual_seed(world.seed)
    )
    schedule = Schedule(N_STEPS, BATCH, 3e-3, N_STEPS // 3)
    sae = train(TopKTrainingSAE(cfg), (world.extra[rows] for rows in order), schedule)
    return sae.W_enc.detach().numpy().T.copy()


def encode_with(directions: np.ndarray, activations: np.ndarray) -> csr_array:
    """Latents [n_rows, n_directions] of a TopK SAE with these encoder directions, saved and opened
    as any SAE is.
    """
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    cfg = TopKSAEConfig(
        d_in=D_MODEL, d_sae=len(directions), k=K_ACTIVE, rescale_acts_by_decoder_norm=False
    )
    sae = TopKSAE(cfg)
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(directions.T))
        sae.W_dec.copy_(torch.from_numpy(directions))
    with tempfile.TemporaryDirectory() as folder:
        sae.save_model(Path(folder) / "synthetic")
        encoder = open_sae(Paths(sae_dir=Path(folder)), "synthetic", "synthetic")
        return latents_of(encoder, activations)


if __name__ == "__main__":
    cli.run(main)
