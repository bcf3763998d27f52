"""Controls for SAE probes: the same probe on k raw dimensions, or on k principal components, of the
model activations.

Both are chosen by the rule that chooses latents, so that what is left between them and an SAE probe
is the SAE.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from utils.activations import ModelRows
from utils.names import Layer, layer_folder
from utils.probes.baselines import principal_components
from utils.settings import SEED, Condition, TrainTest

CONTROLS = ("raw_dims", "pca_dims")


def control_id(control: str, layer: Layer) -> str:
    """What stands for the SAE's id in a result table: "layer_20/raw_dims"."""
    return f"{layer_folder(layer)}/{control}"


class ControlActivations:
    """Rows of one dataset as a control sees them, in the form of ``settings.ConditionRows``.

    ``control``: one of CONTROLS; ``rows``: the model activations that the SAEs read.
    """

    def __init__(self, control: str, rows: ModelRows) -> None:
        self.control, self.rows = control, rows

    @property
    def labels(self) -> np.ndarray:
        return self.rows.y

    def condition(self, condition: Condition, seed: int = SEED) -> TrainTest:
        """Sparse [n, d_model], or [n, n_components] with the components of the training rows."""
        rows = self.rows.condition(condition, seed)
        X_train, X_test = rows.X_train, rows.X_test
        if self.control == "pca_dims":
            X_train, X_test = principal_components(X_train, X_test, min(X_train.shape))
        X_train, X_test = (csr_array(X.astype(np.float32)) for X in (X_train, X_test))
        return replace(rows, X_train=X_train, X_test=X_test)
