"""How far two probes of one dataset are apart, and how sure that is: from the scores of their test
rows that were kept (``--keep_probes all``).
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from utils.activations import rows_with_activations
from utils.datasets import load_dataset, text_codes
from utils.names import parse_layer
from utils.paths import Paths
from utils.results.kept_probes import find_scores
from utils.results.sources import Sources
from utils.results.statistics import delong
from utils.results.tables import baseline_table, sae_probe_table
from utils.results.tidy import BASELINE
from utils.runtime.errors import UserError
from utils.settings import NORMAL, Condition, split


class PairedErrors:
    """The standard errors of differences between probes of one model; labels of a dataset are drawn
    once.
    """

    def __init__(self, paths: Paths, model_name: str) -> None:
        self.paths, self.model_name = paths, model_name
        self.sources = Sources(paths, model_name)
        self._tested: dict[tuple[str, int], tuple[np.ndarray, np.ndarray | None]] = {}

    def error(self, one: dict, other: dict, fresh: bool) -> float | None:
        """DeLong's standard error of the difference in test AUC of two rows of the tidy table, of
        the normal setting and one seed; None where the scores of either are not kept, or are of
        other rows than there are now. ``fresh``: on fresh test rows alone.
        """
        with suppress(UserError):
            y, is_fresh = self.tested(str(one["dataset"]), int(one["seed"]))
            sides = [self.scores(row) for row in (one, other)]
            if (fresh and is_fresh is None) or any(s is None or len(s) != len(y) for s in sides):
                return None
            shown = is_fresh if fresh and is_fresh is not None else np.ones(len(y), dtype=bool)
            if 0 < y[shown].sum() < shown.sum():
                first, second = (np.asarray(side)[shown] for side in sides)
                return (
                    delong(y[shown], first, second) or None
                )  # of no error at all nothing is known
        return None

    def tested(self, dataset: str, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(labels of the test rows, which of them are fresh)."""
        key = (dataset, seed)
        if key not in self._tested:
            n_rows = rows_with_activations(self.paths, self.model_name, dataset)
            labels = load_dataset(self.paths, dataset).labels[:n_rows]
            texts = text_codes(self.paths, dataset, ood=False)
            condition = Condition(NORMAL.name, kind=self.paths.split)
            drawn = split(condition, labels, seed, texts=texts)
            self._tested[key] = drawn.y_test, drawn.fresh(texts)
        return self._tested[key]

    def scores(self, row: dict) -> np.ndarray | None:
        """The kept scores of a probe's test rows."""
        layer = parse_layer(str(row["layer"]))
        if row["kind"] == BASELINE:
            path = self.paths.baseline_table(self.model_name, NORMAL.name, layer)
            table = baseline_table(path, None, layer)
        else:
            table = sae_probe_table(self.paths.sae_probe_table(self.model_name, NORMAL.name), None)
        return find_scores(table, {**row, "layer": layer}, self.sources.of(row, NORMAL))
