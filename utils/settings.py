"""The five settings: their conditions, and the rows that each condition trains and tests on (paper, sections 3 and 4).

Every rule, constant and order of draws here is the paper's, so that our rows are the published ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

SETTINGS = ("normal", "scarcity", "class_imbalance", "label_noise", "OOD")
# The column that says which condition of the setting a row belongs to, in SAE probe tables and in baseline tables.
SAE_CONDITION_COLUMN = {"scarcity": "num_train", "class_imbalance": "frac", "label_noise": "corrupt_frac"}
BASELINE_CONDITION_COLUMN = {"scarcity": "num_train", "class_imbalance": "ratio", "label_noise": "ratio"}

MAX_TRAIN = 1024
MIN_TEST = 100
OOD_TRAIN_ROWS = 1500  # OOD training rows are drawn from the first 1,500
SCARCITY_SIZES = tuple(int(n) for n in np.unique(np.round(np.logspace(1, 10, 20, base=2))))
# Kept as numpy makes them (0.39999999999999997): ceil(frac * num_train) must be the paper's.
POS_FRACS = tuple(float(f) for f in np.linspace(0.05, 0.95, 19))
CORRUPT_FRACS = tuple(float(f) for f in np.linspace(0, 0.5, 11))


@dataclass(frozen=True)
class Condition:
    """A setting with its value: num_train, the positive fraction or the flipped fraction; None for normal and OOD."""

    setting: str
    value: float | int | None = None

    @property
    def label(self) -> float | int | None:
        """The value as result tables and keys carry it: fractions rounded to two places."""
        return round(self.value, 2) if isinstance(self.value, float) else self.value


@dataclass(frozen=True)
class Split:
    """Rows and labels of a condition. ``test`` indexes the OOD file in the OOD setting, the dataset otherwise."""

    train: np.ndarray
    test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray


def conditions(setting: str, n_rows: int) -> list[Condition]:
    """All conditions of a setting for a dataset of ``n_rows`` rows, in the paper's order."""
    if setting == "scarcity":
        return [Condition(setting, n) for n in SCARCITY_SIZES if n <= n_rows - MIN_TEST]
    if setting == "class_imbalance":
        return [Condition(setting, frac) for frac in POS_FRACS]
    if setting == "label_noise":
        return [Condition(setting, frac) for frac in CORRUPT_FRACS]
    return [Condition(setting)]


def choose_conditions(setting: str, n_rows: int, asked: list[float] | None) -> list[Condition]:
    """The conditions asked for by value, or all.

    Raises UserError for a value that the setting does not have.
    """
    every = conditions(setting, n_rows)
    if not asked:
        return every
    possible = {"scarcity": SCARCITY_SIZES, "class_imbalance": POS_FRACS, "label_noise": CORRUPT_FRACS}.get(setting, ())
    for value in asked:
        if not any(math.isclose(value, p, abs_tol=1e-9) for p in possible):
            allowed = ", ".join(f"{p:g}" for p in possible) or "none: this setting has one condition"
            raise UserError(f"--conditions {value:g} is no condition of {setting}; allowed: {allowed}")
    return [c for c in every if any(math.isclose(c.value or 0, v, abs_tol=1e-9) for v in asked)]


def draw_rows(
    labels: np.ndarray, num_train: int, num_test: int, pos_ratio: float = 0.5, seed: int = 42
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test row indices, int64 [num_train] and [num_test], disjoint.

    One legacy numpy generator draws, in this order: ceil(pos_ratio * num_train) positives, the remaining negatives, the
    same for the test rows from what is left (sorted), then a permutation of the training rows and one of the test rows.

    Raises UserError when a class has too few rows.
    """
    rng = np.random.RandomState(seed)
    left = [np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)]
    drawn: list[list[np.ndarray]] = []
    for size in (num_train, num_test):
        n_pos = math.ceil(pos_ratio * size)
        parts = []
        for side, n in enumerate((n_pos, size - n_pos)):
            if n > len(left[side]):
                kind = "positive" if side == 0 else "negative"
                raise UserError(f"{n} {kind} rows are needed and {len(left[side])} are left of {len(labels)} rows")
            parts.append(rng.choice(left[side], size=n, replace=False))
        left = [np.setdiff1d(rows, part) for rows, part in zip(left, parts)]
        drawn.append(parts)
    train, test = (rng.permutation(np.concatenate(parts)) for parts in drawn)
    return train.astype(np.int64), test.astype(np.int64)


def normal_sizes(labels: np.ndarray) -> tuple[int, int]:
    """(num_train, num_test) of the normal setting.

    The paper's datasets are balanced: min(N - 100, 1024) and N - num_train - 1. Where one is not, the balanced test set is
    as large as the rarer class allows, and num_train is lowered until 100 test rows remain.

    Raises UserError when even that is impossible.
    """
    num_train = min(len(labels) - MIN_TEST, MAX_TRAIN)
    while num_train >= 2:
        num_test = _num_test(labels, num_train)
        # A balanced dataset of N rows and num_train = N - 100 leaves 99: the paper's "- 1"
        if num_test >= min(MIN_TEST, len(labels) - num_train - 1):
            return num_train, num_test
        num_train -= 1
    n_pos = int((labels == 1).sum())
    raise UserError(f"{n_pos} positive and {len(labels) - n_pos} negative rows are too few for 100 balanced test rows")


def _num_test(labels: np.ndarray, num_train: int) -> int:
    rarer = int(min((labels == 1).sum(), (labels == 0).sum()))
    possible = 2 * (rarer - math.ceil(num_train / 2)) - 1
    n_rest = len(labels) - num_train - 1
    balanced = 2 * rarer == len(labels)
    return n_rest if balanced else min(n_rest, possible)


def n_test_rows(condition: Condition, n_rows: int) -> int | None:
    """Test rows of a condition for a balanced dataset of ``n_rows`` rows; None in OOD, where the OOD file says."""
    setting = condition.setting
    if setting == "OOD":
        return None
    if setting == "class_imbalance":
        largest = int(n_rows / 2 / 0.95)
        return max(MIN_TEST, largest - min(largest - MIN_TEST, MAX_TRAIN) - 1)
    num_train = int(condition.value or 0) if setting == "scarcity" else min(n_rows - MIN_TEST, MAX_TRAIN)
    return n_rows - num_train - 1


def split(condition: Condition, labels: np.ndarray, seed: int = 42, ood_labels: np.ndarray | None = None) -> Split:
    """The rows of a condition for a dataset with these labels [n_rows].

    Raises UserError when the dataset is too small or too one-sided for the condition.
    """
    setting, value = condition.setting, condition.value
    if setting == "OOD":
        if ood_labels is None:
            raise ValueError("the OOD setting needs the labels of the OOD rows")
        pool = labels[:OOD_TRAIN_ROWS]
        num_train = min(MAX_TRAIN, 2 * int(min((pool == 1).sum(), (pool == 0).sum())))
        train, _ = draw_rows(pool, num_train, 0, seed=seed)
        return Split(train, np.arange(len(ood_labels)), pool[train], ood_labels)
    if setting == "class_imbalance":
        n_pos = int((labels == 1).sum())
        largest = int(min((len(labels) - n_pos) / 0.95, n_pos / 0.95))
        num_train = min(largest - MIN_TEST, MAX_TRAIN)
        if num_train < 2:
            raise UserError(f"{n_pos} positive and {len(labels) - n_pos} negative rows are too few for class_imbalance")
        num_test = max(MIN_TEST, largest - num_train - 1)
        train, test = draw_rows(labels, num_train, num_test, float(value or 0), seed)
    elif setting == "scarcity":
        num_train = int(value or 0)
        num_test = _num_test(labels, num_train)
        if num_test < 2:
            raise UserError(f"{len(labels)} rows leave no balanced test set after {num_train} training rows")
        train, test = draw_rows(labels, num_train, num_test, seed=seed)
    else:
        train, test = draw_rows(labels, *normal_sizes(labels), seed=seed)
    y_train = labels[train]
    if setting == "label_noise":
        y_train = flip_labels(y_train, float(value or 0), seed)
    return Split(train, test, y_train, labels[test])


def flip_labels(y: np.ndarray, corrupt_frac: float, seed: int = 42) -> np.ndarray:
    """A copy of y [n] with int(n * corrupt_frac) labels flipped, drawn without replacement."""
    rows = np.random.RandomState(seed).choice(len(y), size=int(len(y) * corrupt_frac), replace=False)
    flipped = y.copy()
    flipped[rows] = 1 - flipped[rows]
    return flipped
