"""The five settings: their conditions, and the rows that each condition trains and tests on.

Source: paper, sections 3 and 4. Every rule, constant and order of draws here is the paper's, so
that our rows are the published ones. All that tells one setting from another is its row in
``SETTINGS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from utils.runtime.errors import UserError, unknown_name

MAX_TRAIN = 1024
MIN_TEST = 100
FEWEST_TWO_SIDED = 20  # of fewer rows the rarer class of the most one-sided condition has none
FEWEST_KEPT = FEWEST_TWO_SIDED + 2  # for the test, whatever share is asked for
OOD_TRAIN_ROWS = 1500  # OOD training rows are drawn from the first 1,500
SEED = 42  # of the paper's row draws and folds
SPLIT_RULES = 2  # raised when a rule below draws other rows: results of older rules are made again
MOST_POSITIVE = 0.95  # the most one-sided condition of class imbalance
KS_NORMAL = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
KS_OTHER = (16, 128)
NO_CONDITION = "all"  # in tables: the condition of a setting that has one


@dataclass(frozen=True)
class Split:
    """Rows and labels of a condition.

    ``test`` indexes the OOD file where the setting is ``shifted``, the dataset otherwise.
    """

    train: np.ndarray
    test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray
    shifted: bool = False

    def take(self, X: Any, X_test: Any = None, texts: TextCodes | None = None) -> TrainTest:
        """The split's rows of X [n_rows, n_columns]; its test rows of ``X_test`` where given."""
        tested = X if X_test is None else X_test
        fresh = self.fresh(texts)
        return TrainTest(X[self.train], self.y_train, tested[self.test], self.y_test, fresh)

    def fresh(self, texts: TextCodes | None) -> np.ndarray | None:
        """bool [n_test]: test rows whose text is in no training row; None where the texts are not
        known.
        """
        if texts is None:
            return None
        tested = texts.ood_rows if self.shifted else texts.rows
        if tested is None:
            return None
        return ~np.isin(tested[self.test], texts.rows[self.train])


@dataclass(frozen=True)
class TextCodes:
    """Numbers in place of texts, the same for the same text: of a dataset's rows [n_rows], and of
    those of its OOD file where these are tested.
    """

    rows: np.ndarray
    ood_rows: np.ndarray | None = None


@dataclass(frozen=True)
class TrainTest:
    """What a probe is made from and scored on.

    ``X_train``, ``X_test``: [n, n_columns], both dense or both sparse (``csr_array``); ``y_train``,
    ``y_test``: [n] in {0, 1}; ``fresh``: bool [n_test], test rows whose text is in no training row,
    None where the texts are not known.
    """

    X_train: Any
    y_train: np.ndarray
    X_test: Any
    y_test: np.ndarray
    fresh: np.ndarray | None = None


class ConditionRows(Protocol):
    """Activations of one dataset, from which every condition takes its rows."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def texts(self) -> TextCodes | None: ...

    def condition(self, condition: Condition, seed: int = SEED) -> TrainTest: ...


@dataclass(frozen=True)
class SplitKind:
    """What of the paper's draw is done otherwise. ``grouped``: a text counts once, so that no text
    is on both sides of a split. ``test_frac``: the share of the rows that is kept for the test, at
    least, in place of 100 rows.
    """

    grouped: bool = False
    test_frac: float | None = None

    def min_test(self, n_rows: int) -> int:
        """Test rows that are kept of a dataset of ``n_rows`` rows."""
        if self.test_frac is None:
            return MIN_TEST
        return max(FEWEST_KEPT, round(self.test_frac * n_rows))

    @property
    def flags(self) -> str:
        """The flags that ask for such splits, to stand behind a command; "" for the paper's."""
        flags = " --split grouped" if self.grouped else ""
        return flags if self.test_frac is None else f"{flags} --test_frac {self.test_frac:g}"

    @property
    def make_flags(self) -> str:
        """The same behind a make target."""
        return f' ARGS="{self.flags.strip()}"' if self.flags else ""

    @property
    def folder(self) -> str:
        """Of its results and figures, below those of the paper's splits; "" for these."""
        frac = None if self.test_frac is None else f"test_{self.test_frac:g}"
        parts = [part for part in ("grouped" if self.grouped else None, frac) if part]
        return "_".join([*parts, "split"]) if parts else ""


PAPERS = SplitKind()


@dataclass(frozen=True)
class Condition:
    """A setting's name with its value: None where the setting has one condition."""

    setting: str
    value: float | int | None = None
    kind: SplitKind = PAPERS

    @property
    def label(self) -> float | int | None:
        """The value as result tables and keys carry it: fractions rounded to two places."""
        return round(self.value, 2) if isinstance(self.value, float) else self.value


@dataclass(frozen=True)
class Setting:
    """One way to draw training and test rows, and all that follows from it.

    ``draw(labels, value, seed, kind)``: the split of a condition. ``fits(value, n_rows,
    min_test)``: whether a dataset has the rows for it and ``min_test`` for the test.
    ``n_test(value, n_rows)``: its test rows in the paper's splits where classes are balanced; None
    where another file says.
    """

    name: str
    draw: Callable[[np.ndarray, float, int, SplitKind], Split]
    n_test: Callable[[float, int], int | None]
    baseline_folder: str  # of the published baseline tables
    win_rates: str  # how the published tables of win rates call the setting
    values: tuple[float | int, ...] = ()  # of its conditions; () is one condition without a value
    fits: Callable[[float, int, int], bool] = lambda value, n_rows, min_test: True
    sae_column: str | None = None  # which holds the value in tables of SAE probes
    baseline_column: str | None = None  # and in those of baselines
    axis_label: str = ""  # of the value
    log_axis: bool = False
    ks: tuple[int, ...] = KS_OTHER  # numbers of latents that are probed
    baselines: tuple[str, ...] | None = None  # None: every baseline there is
    all_layers: bool = False  # of the model; else its probe layer alone
    shifted: bool = False  # tests on the dataset's OOD file
    file_suffix: str | None = None  # of the original scripts' files, before the value
    aliases: tuple[str, ...] = ()  # what other tools call it

    @property
    def exports(self) -> bool:
        """Whether the original scripts have files of its own conditions."""
        return self.file_suffix is not None


def draw_rows(
    labels: np.ndarray, num_train: int, num_test: int, pos_ratio: float = 0.5, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test row indices, int64 [num_train] and [num_test], disjoint.

    One legacy numpy generator draws, in this order: ceil(pos_ratio * num_train) positives, the
    remaining negatives, the same for the test rows from what is left (sorted), then a permutation
    of the training rows and one of the test rows.

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
                raise UserError(
                    f"{n} {kind} rows are needed and {len(left[side])} are left of {len(labels)}"
                    " rows"
                )
            parts.append(rng.choice(left[side], size=n, replace=False))
        left = [np.setdiff1d(rows, part) for rows, part in zip(left, parts)]
        drawn.append(parts)
    train, test = (rng.permutation(np.concatenate(parts)) for parts in drawn)
    return train.astype(np.int64), test.astype(np.int64)


def normal_sizes(labels: np.ndarray, min_test: int = MIN_TEST) -> tuple[int, int]:
    """(num_train, num_test) of the normal setting.

    The paper's: min(N - 100, 1024) and N - num_train - 1, wherever these rows can be drawn. Where
    they cannot, the balanced test set is as large as the rarer class allows, and num_train is
    lowered until 100 test rows (``min_test``) remain.

    Raises UserError when even that is impossible.
    """
    num_train = min(len(labels) - min_test, MAX_TRAIN)
    while num_train >= 2:
        num_test = balanced_test_rows(labels, num_train)
        # A balanced dataset of N rows and num_train = N - 100 leaves 99: the paper's "- 1"
        if num_test >= max(1, min(min_test, len(labels) - num_train - 1)):
            return num_train, num_test
        num_train -= 1
    n_pos = int((labels == 1).sum())
    raise UserError(
        f"{n_pos} positive and {len(labels) - n_pos} negative rows are too few for {min_test}"
        " balanced test rows"
    )


def balanced_test_rows(labels: np.ndarray, num_train: int) -> int:
    """Test rows beside ``num_train`` training rows, both balanced: the paper's N - num_train - 1,
    or as many as the rows of the rarer class allow.
    """
    n_pos = int((labels == 1).sum())
    trained_pos = math.ceil(num_train / 2)
    left_pos, left_neg = n_pos - trained_pos, len(labels) - n_pos - (num_train - trained_pos)
    # of t test rows ceil(t / 2) are positive
    return min(len(labels) - num_train - 1, 2 * left_pos, 2 * left_neg + 1)


def flip_labels(y: np.ndarray, corrupt_frac: float, seed: int = SEED) -> np.ndarray:
    """A copy of y [n] with int(n * corrupt_frac) labels flipped, drawn without replacement."""
    n_flipped = int(len(y) * corrupt_frac)
    rows = np.random.RandomState(seed).choice(len(y), size=n_flipped, replace=False)
    flipped = y.copy()
    flipped[rows] = 1 - flipped[rows]
    return flipped


def _split(labels: np.ndarray, rows: tuple[np.ndarray, np.ndarray]) -> Split:
    train, test = rows
    return Split(train, test, labels[train], labels[test])


def _draw_normal(labels: np.ndarray, value: float, seed: int, kind: SplitKind) -> Split:
    sizes = normal_sizes(labels, kind.min_test(len(labels)))
    return _split(labels, draw_rows(labels, *sizes, seed=seed))


def _draw_scarce(labels: np.ndarray, value: float, seed: int, kind: SplitKind) -> Split:
    num_train = int(value)
    num_test = balanced_test_rows(labels, num_train)
    if num_test < 2:
        raise UserError(
            f"{len(labels)} rows leave no balanced test set after {num_train} training rows"
        )
    return _split(labels, draw_rows(labels, num_train, num_test, seed=seed))


def _draw_imbalanced(labels: np.ndarray, value: float, seed: int, kind: SplitKind) -> Split:
    n_pos = int((labels == 1).sum())
    n_neg = len(labels) - n_pos
    num_train, num_test = _imbalanced_sizes(min(n_neg, n_pos), kind)
    fewest = 2 if kind.test_frac is None else FEWEST_TWO_SIDED
    if min(num_train, num_test) < fewest:
        raise UserError(
            f"{n_pos} positive and {n_neg} negative rows are too few for class_imbalance"
        )
    return _split(labels, draw_rows(labels, num_train, num_test, value, seed))


def _imbalanced_sizes(n_rarer: int, kind: SplitKind = PAPERS) -> tuple[int, int]:
    """(num_train, num_test) such that every ratio is possible."""
    largest = int(n_rarer / MOST_POSITIVE)
    min_test = kind.min_test(largest)
    num_train = min(largest - min_test, MAX_TRAIN)
    if kind.test_frac is not None:  # of either side the positive rows are rounded up
        return num_train, max(largest - num_train - 2, 0)
    return num_train, max(min_test, largest - num_train - 1)


def _draw_noisy(labels: np.ndarray, value: float, seed: int, kind: SplitKind) -> Split:
    clean = _draw_normal(labels, value, seed, kind)
    return Split(clean.train, clean.test, flip_labels(clean.y_train, value, seed), clean.y_test)


def _draw_shifted(labels: np.ndarray, value: float, seed: int, kind: SplitKind) -> Split:
    """The training rows; the test rows are all those of the OOD file, which ``split`` adds."""
    pool = labels[:OOD_TRAIN_ROWS]
    num_train = min(MAX_TRAIN, 2 * int(min((pool == 1).sum(), (pool == 0).sum())))
    return _split(pool, draw_rows(pool, num_train, 0, seed=seed))


def _normal_test(value: float, n_rows: int) -> int:
    return n_rows - min(n_rows - MIN_TEST, MAX_TRAIN) - 1


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "normal", _draw_normal, _normal_test, "normal_settings", "normal",
            ks=KS_NORMAL, all_layers=True,
        ),
        Setting(
            "scarcity", _draw_scarce, lambda value, n_rows: n_rows - int(value) - 1,
            "scarcity", "scarcity",
            values=tuple(int(n) for n in np.unique(np.round(np.logspace(1, 10, 20, base=2)))),
            fits=lambda value, n_rows, min_test: value <= n_rows - min_test,
            sae_column="num_train", baseline_column="num_train",
            axis_label="training rows", log_axis=True, file_suffix="_",
        ),
        Setting(
            "class_imbalance", _draw_imbalanced,
            lambda value, n_rows: _imbalanced_sizes(n_rows // 2)[1], "imbalance", "imbalance",
            # kept as numpy makes them (0.39999999999999997): ceil(frac * num_train) is the paper's
            values=tuple(float(f) for f in np.linspace(0.05, MOST_POSITIVE, 19)),
            sae_column="frac", baseline_column="ratio",
            axis_label="fraction of positive rows", file_suffix="_frac", aliases=("imbalance",),
        ),
        Setting(
            "label_noise", _draw_noisy, _normal_test, "corrupt", "corrupt",
            values=tuple(float(f) for f in np.linspace(0, 0.5, 11)),
            sae_column="corrupt_frac", baseline_column="ratio",
            axis_label="fraction of training labels flipped", baselines=("logreg",),
            aliases=("noise", "corrupt"),
        ),
        Setting(
            "OOD", _draw_shifted, lambda value, n_rows: None, "ood", "ood",
            baselines=("logreg",), shifted=True, aliases=("ood",),
        ),
    )
}  # fmt: skip
NORMAL, SHIFTED = SETTINGS["normal"], SETTINGS["OOD"]


def get_setting(name: str) -> Setting:
    """The setting of a name or of one of its aliases. Raises UserError for another name."""
    for setting in SETTINGS.values():
        if name == setting.name or name in setting.aliases:
            return setting
    raise unknown_name("setting", name, SETTINGS)


def conditions(setting: str, n_rows: int, kind: SplitKind = PAPERS) -> list[Condition]:
    """All conditions of a setting for a dataset of ``n_rows`` rows, in the paper's order."""
    row, kept = get_setting(setting), kind.min_test(n_rows)
    if not row.values:
        return [Condition(row.name, kind=kind)]
    return [Condition(row.name, v, kind) for v in row.values if row.fits(v, n_rows, kept)]


def is_possible(condition: Condition, n_rows: int) -> bool:
    """Whether a dataset of ``n_rows`` rows has the condition."""
    return condition in conditions(condition.setting, n_rows, condition.kind)


def n_drawable(activations: ConditionRows, condition: Condition) -> int:
    """Rows from which a condition's are drawn: all, or in a grouped split one a text."""
    n_rows = len(activations.labels)
    if not condition.kind.grouped or activations.texts is None:
        return n_rows
    return len(np.unique(activations.texts.rows[:n_rows]))


def choose_conditions(
    setting: str, n_rows: int, asked: Sequence[float] | None = None, kind: SplitKind = PAPERS
) -> list[Condition]:
    """The conditions asked for by value, or all.

    Raises UserError for a value that the setting does not have.
    """
    every = conditions(setting, n_rows, kind)
    if not asked:
        return every
    possible = get_setting(setting).values
    for value in asked:
        if not any(math.isclose(value, other, abs_tol=1e-9) for other in possible):
            allowed = ", ".join(f"{other:g}" for other in possible)
            allowed = allowed or "none: this setting has one condition"
            raise UserError(
                f"--conditions {value:g} is no condition of {setting}; allowed: {allowed}"
            )
    return [c for c in every if any(math.isclose(c.value or 0, v, abs_tol=1e-9) for v in asked)]


def n_test_rows(condition: Condition, n_rows: int) -> int | None:
    """Test rows of a condition for a balanced dataset of ``n_rows`` rows; None where the OOD file
    says."""
    return get_setting(condition.setting).n_test(condition.value or 0, n_rows)


def split(
    condition: Condition,
    labels: np.ndarray,
    seed: int = SEED,
    ood_labels: np.ndarray | None = None,
    texts: TextCodes | None = None,
) -> Split:
    """The rows of a condition for a dataset with these labels [n_rows]; ``texts``: of its rows,
    which a grouped split needs.

    Raises UserError when the dataset is too small or too one-sided for the condition.
    """
    if condition.kind.grouped:
        return _grouped_split(condition, labels, seed, ood_labels, texts)
    setting = get_setting(condition.setting)
    drawn = _drawn(condition, labels.astype(np.int64).tobytes(), seed)
    if not setting.shifted:
        return drawn
    if ood_labels is None:
        raise ValueError(f"the {setting.name} setting needs the labels of the OOD rows")
    return Split(drawn.train, np.arange(len(ood_labels)), drawn.y_train, ood_labels, shifted=True)


def _grouped_split(
    condition: Condition,
    labels: np.ndarray,
    seed: int,
    ood_labels: np.ndarray | None,
    texts: TextCodes | None,
) -> Split:
    """The paper's draws, from the first row of each text; of OOD rows those whose text is not
    trained on.
    """
    if texts is None:
        raise ValueError("a grouped split needs the texts of the rows")
    first = np.sort(np.unique(texts.rows[: len(labels)], return_index=True)[1])
    alone = replace(condition, kind=replace(condition.kind, grouped=False))
    drawn = split(alone, labels[first], seed, ood_labels)
    train = first[drawn.train]
    if not drawn.shifted:
        return Split(train, first[drawn.test], drawn.y_train, drawn.y_test)
    assert texts.ood_rows is not None
    kept = np.flatnonzero(~np.isin(texts.ood_rows, texts.rows[train]))
    return Split(train, kept, drawn.y_train, drawn.y_test[kept], shifted=True)


@lru_cache(maxsize=64)  # every SAE of a dataset asks again
def _drawn(condition: Condition, labels: bytes, seed: int) -> Split:
    setting = get_setting(condition.setting)
    y = np.frombuffer(labels, dtype=np.int64)
    drawn = setting.draw(y, condition.value or 0, seed, condition.kind)
    for rows in (drawn.train, drawn.test, drawn.y_train, drawn.y_test):
        rows.setflags(write=False)
    return drawn
