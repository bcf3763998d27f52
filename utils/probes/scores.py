"""Scores of a probe, and the folds on which its settings are chosen (paper, appendix on probe
training).
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np

from utils.probes import compiled

Fold = tuple[np.ndarray, np.ndarray]  # training rows, validation rows
FEW_ROWS = 128  # below this, several folds in place of the last rows
INNER_FOLDS = 3
FEWEST_FRESH = 30  # rows for an AUC of their own
MOST_ALARMS = 0.01  # share of class 0


def roc_auc(y: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of scores [n] for y [n] in {0, 1}.

    Equal to scikit-learn's roc_auc_score to the last bit, because many C tie in validation AUC on
    small training sets, and which of them the paper's procedure takes is a matter of rounding. NaN,
    with a warning, when only one class is there.
    """
    n_pos = int(y.sum())
    n_neg = len(y) - n_pos
    if n_pos == 0 or n_neg == 0:
        warnings.warn(
            "AUC is undefined: only one class in the rows scored", RuntimeWarning, stacklevel=2
        )
        return float("nan")
    return float(compiled.auc(compiled.plain(y, np.int64), compiled.plain(scores, np.float64)))


def mean_over_folds(aucs: np.ndarray) -> np.ndarray:
    """[n_settings] means of aucs [n_folds, n_settings], each summed as a list of its folds would
    be.
    """
    return np.ascontiguousarray(aucs.T).mean(axis=1)


def score_test_rows(
    y: np.ndarray, predicted: np.ndarray, scores: np.ndarray, fresh: np.ndarray | None = None
) -> dict[str, float]:
    """What result tables say of predicted classes and scores [n] for y [n] in {0, 1}.

    test_f1 (weighted over the classes), test_acc, test_auc; test_ap, average precision;
    test_recall_1fpr, the largest share of class 1 found with at most 1 % of class 0 called so; and
    test_auc_fresh over the n_fresh rows ``fresh`` (bool [n]), NaN where these are fewer than
    FEWEST_FRESH or of one class.
    """
    f1 = 0.0
    for label in (0, 1):
        n_true = int((y == label).sum())
        n_predicted = int((predicted == label).sum())
        if n_true and n_predicted:
            hits = int(((y == label) & (predicted == label)).sum())
            f1 += n_true / len(y) * 2 * hits / (n_true + n_predicted)
    said = {
        "test_f1": f1,
        "test_acc": float((y == predicted).mean()),
        "test_auc": roc_auc(y, scores),
        **precision_and_recall(y, scores),
    }
    if fresh is not None:
        enough = fresh.sum() >= FEWEST_FRESH and 0 < y[fresh].sum() < fresh.sum()
        auc = roc_auc(y[fresh], scores[fresh]) if enough else float("nan")
        said |= {"test_auc_fresh": auc, "n_fresh": int(fresh.sum())}
    return said


def precision_and_recall(y: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """test_ap and test_recall_1fpr of ``score_test_rows``; NaN where a class is missing."""
    n_positive = int(y.sum())
    if not 0 < n_positive < len(y):
        return {"test_ap": float("nan"), "test_recall_1fpr": float("nan")}
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(y) - 1)
    hits = np.cumsum(y[order])[ends]
    alarms = ends + 1 - hits
    precision, recall = hits / (ends + 1), hits / n_positive
    few = alarms <= MOST_ALARMS * (len(y) - n_positive)
    return {
        "test_ap": float((np.diff(recall, prepend=0.0) * precision).sum()),
        "test_recall_1fpr": float(recall[few].max(initial=0.0)),
    }


def validation_folds(y: np.ndarray, seed: int = 42) -> list[Fold]:
    """The folds for a training set with labels y [n]; none for n <= 3.

    n <= 12: leave two out, the pairs whose labels differ; n < 128: six stratified folds; else the
    last min(n / 5, 100) rows. Folds with one class on either side are left out: they cannot be
    fitted or scored.
    """
    kept = _validation_folds(np.asarray(y, dtype=np.int64).tobytes(), seed)
    return [(train.copy(), val.copy()) for train, val in kept]  # whoever asks may change them


@lru_cache(maxsize=64)  # every SAE of a dataset asks again
def _validation_folds(labels: bytes, seed: int) -> tuple[Fold, ...]:
    from sklearn.model_selection import LeavePOut, StratifiedKFold

    y = np.frombuffer(labels, dtype=np.int64)
    n = len(y)
    if n <= 3:
        return ()
    if n <= 12:
        folds = list(LeavePOut(2).split(y))
    elif n < FEW_ROWS:
        # fewer than six rows of a class: the folds without it are left out below
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")
            folds = list(StratifiedKFold(6, shuffle=True, random_state=seed).split(np.zeros(n), y))
    else:
        n_val = min(int(0.2 * n), 100)
        folds = [(np.arange(n - n_val), np.arange(n - n_val, n))]
    return tuple(_two_classed(folds, y))


def outer_folds(y: np.ndarray, seed: int = 42) -> list[Fold]:
    """The folds on which a whole procedure, its choices included, is scored honestly; labels y [n].

    The paper's last rows where there are 128; else six stratified folds, fewer where a class has
    fewer rows; none where a class has but one. (The paper's pairs of up to 12 rows would make a
    procedure that chooses on pairs itself thousands of fits long.)
    """
    from sklearn.model_selection import StratifiedKFold

    if len(y) >= FEW_ROWS:
        return validation_folds(y, seed)
    n_folds = min(6, int(min(y.sum(), len(y) - y.sum())))
    if n_folds < 2:
        return []
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return _two_classed(list(folds.split(np.zeros(len(y)), y)), y)


def inner_folds(y: np.ndarray, seed: int = 42) -> list[Fold]:
    """The folds of a fold's own training rows, labels y [n]: the last rows where there are 128,
    else three stratified folds.
    """
    from sklearn.model_selection import StratifiedKFold

    if len(y) >= FEW_ROWS:
        return validation_folds(y, seed)
    if min(y.sum(), len(y) - y.sum()) < INNER_FOLDS:
        return []
    return _two_classed(
        list(
            StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=seed).split(np.zeros(len(y)), y)
        ),
        y,
    )


def _two_classed(folds: list[Fold], y: np.ndarray) -> list[Fold]:
    return [fold for fold in folds if all(0 < y[rows].sum() < len(rows) for rows in fold)]
