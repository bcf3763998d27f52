"""What a dataset's texts say about its scores: texts in both classes, test rows that are copies of
training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from utils.datasets import Dataset, load_dataset, load_ood, text_stamps
from utils.paths import Paths
from utils.runtime.errors import UserError
from utils.runtime.remembered import remembered, rules_of
from utils.settings import NORMAL, Condition, split


@dataclass(frozen=True)
class TextCheck:
    """Of one dataset: rows, rows of class 1, rows that repeat an earlier text, rows whose text
    stands in both classes, test rows of the normal setting and those of them whose very text is
    among the training rows; ``trouble``: why it cannot be split.
    """

    name: str
    n_rows: int
    n_positive: int
    n_repeated: int
    n_in_both_classes: int
    n_test: int = 0
    n_test_seen: int = 0
    trouble: str | None = None

    @property
    def seen(self) -> float:
        """Share of the test rows that are copies of training rows: on them a probe that only
        remembers is right.
        """
        return self.n_test_seen / self.n_test if self.n_test else 0.0


def share_of_copies(checks: Sequence[TextCheck]) -> tuple[int, float]:
    """(datasets where a tenth or more of the test rows are copies of training rows, the mean
    share).
    """
    return sum(check.seen >= 0.1 for check in checks), sum(check.seen for check in checks) / len(
        checks
    )


MANY_IN_BOTH = (
    0.05  # share of rows whose text stands in both classes: no probe can be right on them
)
# OOD files that are not their dataset's task, as read in the files
KNOWN_UNFIT = {"90_glue_qnli": "the answers stand without their questions"}


@dataclass(frozen=True)
class OodCheck:
    """Of a dataset's OOD file: rows, rows whose text stands in both classes, and distinct texts
    that are texts of the dataset itself.
    """

    name: str
    n_rows: int
    n_in_both_classes: int
    n_shared: int

    @property
    def unfit(self) -> bool:
        """Whether so many texts stand in both classes that this cannot be the dataset's task."""
        return self.n_in_both_classes >= MANY_IN_BOTH * self.n_rows


def check_ood_texts(dataset: Dataset, shifted: Dataset) -> OodCheck:
    """Compare the texts of an OOD file with each other and with those of its dataset."""
    shared = len(set(dataset.texts) & set(shifted.texts))
    return OodCheck(dataset.name, len(shifted), _in_both_classes(shifted), shared)


def _in_both_classes(dataset: Dataset) -> int:
    """Rows whose text stands in both classes."""
    classes = [
        {text for text, text_label in zip(dataset.texts, dataset.labels) if text_label == label}
        for label in (0, 1)
    ]
    ambiguous = classes[0] & classes[1]
    return sum(text in ambiguous for text in dataset.texts)


def check_texts(dataset: Dataset) -> TextCheck:
    """Compare the texts of a dataset with each other, letter by letter."""
    codes = np.unique(np.array(dataset.texts, dtype=object), return_inverse=True)[1]
    classes = [set(codes[dataset.labels == label].tolist()) for label in (0, 1)]
    ambiguous = np.isin(codes, list(classes[0] & classes[1]))
    n_repeated = len(codes) - len(np.unique(codes))
    check = TextCheck(
        dataset.name, len(codes), int(dataset.labels.sum()), n_repeated, int(ambiguous.sum())
    )
    try:
        rows = split(Condition(NORMAL.name), dataset.labels)
    except UserError as error:
        return replace(check, trouble=str(error))
    seen = np.isin(codes[rows.test], codes[rows.train])
    return replace(check, n_test=len(rows.test), n_test_seen=int(seen.sum()))


def known_check(paths: Paths, name: str) -> TextCheck:
    """``check_texts`` of a dataset, remembered from run to run."""

    def find() -> dict:
        return asdict(check_texts(load_dataset(paths, name)))

    return TextCheck(**_recalled(paths, name, False, find))


def known_ood_check(paths: Paths, name: str) -> OodCheck:
    """``check_ood_texts`` of a dataset's files, remembered from run to run."""

    def find() -> dict:
        return asdict(check_ood_texts(load_dataset(paths, name), load_ood(paths, name)))

    return OodCheck(**_recalled(paths, name, True, find))


def _recalled(paths: Paths, name: str, ood: bool, find: Callable[[], dict]) -> dict:
    stamps = text_stamps(paths, name, ood)
    if None in stamps:
        return find()  # which says what is missing
    rules = " ".join(map(rules_of, (__name__, "utils.datasets", "utils.settings")))
    about = f"check of {name}{' and its OOD file' if ood else ''} in {paths.text_dir.absolute()}"
    return remembered(paths.data_dir).recall(about, filter(None, stamps), rules, find)
