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
from utils.probes.scores import roc_auc
from utils.results.kept_probes import find_scores
from utils.results.sources import Sources
from utils.results.statistics import delong
from utils.results.tables import baseline_table, sae_probe_table
from utils.results.tidy import BASELINE
from utils.runtime.errors import UserError
from utils.settings import NORMAL, Condition, split

SAME_AUC = 1e-6


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
        the normal setting and one seed. ``fresh``: on fresh test rows alone, of which ``test_auc``
        then is.

        None where the scores of either are not kept, are not those of the row's test AUC on the
        rows that are there now, or know no error.
        """
        with suppress(UserError):
            sides = [self.scores(row) for row in (one, other)]
            if any(side is None for side in sides):
                return None
            y, is_fresh = self.tested(str(one["dataset"]), int(one["seed"]))
            shown = is_fresh if fresh else np.ones(len(y), dtype=bool)
            if shown is None or not 0 < y[shown].sum() < shown.sum():
                return None
            of_rows = []
            for row, side in zip((one, other), sides):
                scores = np.asarray(side)
                if len(scores) != len(y):
                    return None
                if abs(roc_auc(y[shown], scores[shown]) - float(row["test_auc"])) > SAME_AUC:
                    return None
                of_rows.append(scores[shown])
            error = delong(y[shown], *of_rows)
            return error if error > 0 else None
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
