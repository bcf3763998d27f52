"""Controls for SAE probes: what a probe reads without the SAE, or without what training gave it.

``raw_dims`` and ``pca_dims``: the same probe on k raw dimensions, or k principal components, of the
model activations, chosen by the rule that chooses latents. ``random`` and ``soft_frozen``: the same
probe on an SAE's twins (utils/saes/twins.py). ``shuffled``: the same probe on the SAE's latents,
trained on shuffled labels. ``reconstruction`` and ``error``: logistic regression on all dimensions
of what the SAE gives back, and of what it loses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from utils.activations import ModelRows
from utils.names import Layer, layer_folder
from utils.probes.baselines import METHODS, principal_components
from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.saes.decode import lost, reconstruct
from utils.saes.encoder import Encoder
from utils.settings import SEED, Condition, ConditionRows, TextCodes, TrainTest

N_SHUFFLES = 5
K_SHUFFLED = 16  # the k whose probes are trained on shuffled labels too


@dataclass(frozen=True)
class Control:
    """A control: the name of its method in result tables, and what it is made for.

    ``of``: "layer" (model activations alone), "twin" (SAE activations of its own) or "latents" (the
    SAE's). ``by_default``: made without being asked for.
    """

    method: str
    of: str
    by_default: bool = True


CONTROLS: dict[str, Control] = {
    "raw_dims": Control("raw_dims", "layer"),
    "pca_dims": Control("pca_dims", "layer"),
    "random": Control("random_sae_probe", "twin"),
    "soft_frozen": Control("soft_frozen_probe", "twin"),
    "shuffled": Control("shuffled_labels", "latents"),
    # logistic regression on d_model columns takes ten times as long as the probes on latents
    "reconstruction": Control("reconstruction", "latents", by_default=False),
    "error": Control("error", "latents", by_default=False),
}
OF_LAYER = tuple(control.method for control in CONTROLS.values() if control.of == "layer")
DENSE = ("reconstruction", "error")  # methods without a k


def control_id(control: str, layer: Layer) -> str:
    """What stands for the SAE's id in a result table: "layer_20/raw_dims"."""
    return f"{layer_folder(layer)}/{control}"


class _OfModelRows:
    """What is made of a dataset's model activations, row by row."""

    def __init__(self, rows: ModelRows) -> None:
        self.rows = rows

    @property
    def labels(self) -> np.ndarray:
        return self.rows.y

    @property
    def texts(self) -> TextCodes | None:
        return self.rows.texts


class ControlActivations(_OfModelRows):
    """Rows of one dataset as a control of a layer sees them, in the form of
    ``settings.ConditionRows``.

    ``control``: raw_dims or pca_dims; ``rows``: the model activations that the SAEs read.
    """

    def __init__(self, control: str, rows: ModelRows) -> None:
        super().__init__(rows)
        self.control = control

    def condition(self, condition: Condition, seed: int = SEED) -> TrainTest:
        """Sparse [n, d_model], or [n, n_components] with the components of the training rows."""
        rows = self.rows.condition(condition, seed)
        X_train, X_test = rows.X_train, rows.X_test
        if self.control == "pca_dims":
            X_train, X_test, _ = principal_components(X_train, X_test, min(X_train.shape))
        X_train, X_test = (csr_array(X.astype(np.float32)) for X in (X_train, X_test))
        return replace(rows, X_train=X_train, X_test=X_test)


class DecodedActivations(_OfModelRows):
    """Rows of one dataset as an SAE gives them back, or what it loses of them, dense [n, d_model].

    ``part``: "reconstruction" or "error"; ``rows`` and ``latents``: of the same dataset.
    """

    def __init__(
        self, part: str, encoder: Encoder, rows: ModelRows, latents: ConditionRows
    ) -> None:
        super().__init__(rows)
        self.part, self.encoder, self.latents = part, encoder, latents

    def condition(self, condition: Condition, seed: int = SEED) -> TrainTest:
        made = {"reconstruction": reconstruct, "error": lost}[self.part]
        rows, latents = (source.condition(condition, seed) for source in (self.rows, self.latents))
        return replace(
            rows,
            X_train=made(self.encoder, latents.X_train, rows.X_train),
            X_test=made(self.encoder, latents.X_test, rows.X_test),
        )


def fit_on_shuffled_labels(rows: TrainTest, ks: Sequence[int], options: ProbeOptions) -> list[dict]:
    """As ``fit_sae_probes``, the mean over ``N_SHUFFLES`` shuffles of the training labels, and
    test_auc_sd, the deviation of test_auc among them. Test rows keep their labels.
    """
    rng = np.random.default_rng([options.seed, len(rows.y_train)])
    runs = [
        fit_sae_probes(replace(rows, y_train=rng.permutation(rows.y_train)), ks, options)
        for _ in range(N_SHUFFLES)
    ]
    results = []
    for of_k in zip(*runs):
        averaged = {
            name: float(np.mean([run[name] for run in of_k]))
            for name in of_k[0]
            if name.startswith(("test_", "val_"))
        }
        spread = float(np.std([run["test_auc"] for run in of_k], ddof=1))
        sizes = {name: of_k[0][name] for name in ("k", "n_train", "n_test", "n_fresh")
                 if name in of_k[0]}  # fmt: skip
        seconds = sum(run["seconds"] for run in of_k)
        converged = all(run["converged"] for run in of_k)
        results.append(
            {**averaged, "test_auc_sd": spread, **sizes, "converged": converged, "seconds": seconds}
        )
    return results


def fit_dense(rows: TrainTest, ks: Sequence[None], options: ProbeOptions) -> list[dict]:
    """Logistic regression on all columns, as the baseline; a row without a k."""
    scores = METHODS["logreg"].by_protocol(rows, options.seed, [options.protocol])
    sizes = {"n_train": len(rows.y_train), "n_test": len(rows.y_test)}
    return [{**scores[options.protocol], "k": None, **sizes}]


FITS: dict[str, Callable[..., list[dict]]] = {
    "shuffled_labels": fit_on_shuffled_labels,
    **dict.fromkeys(DENSE, fit_dense),
}
