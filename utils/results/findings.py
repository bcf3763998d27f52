"""What is found in result tables that a reader must know, in one form from file to report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Weight = Literal["wrong", "doubt", "fine"]


class Kind(Enum):
    """What a finding is about. Code asks for the kind; the words are for people."""

    UNREADABLE = "a table or file that cannot be read"
    TORN = "a table whose last line is cut off"
    NAMELESS = "rows without a dataset or a test AUC"
    NO_VAL_AUC = "rows without a validation AUC"
    TWICE = "rows that stand twice"
    SINGLE_ROWS = "tables of one row each, of the original scripts"
    SHIFTED_ROWS = "whether OOD tables test on shifted texts"
    STALE = "rows that were made from other inputs than there are now"
    UNCHECKED = "rows that do not say what they were made from"
    UNFIT_OOD = "OOD files that are not their dataset's task"
    COPIES = "test texts that are training texts"
    UNMATCHED = "decisions of one side only"
    MIXED = "SAE probes of several kinds"
    MISSING = "rows that others lead one to expect"
    ABSENT = "baselines that a setting has and a table has not"
    SMALL_TESTS = "conditions with few test rows"
    SOLVER = "fits that do not say whether they converged"
    EMPTY = "probes without any weight"
    UNCONVERGED = "fits that did not converge"


@dataclass(frozen=True)
class Finding:
    """``weight``: "wrong" (do not use), "doubt" (know it) or "fine" (looked for, not found).

    ``about``: which table or setting.
    """

    kind: Kind
    weight: Weight
    about: str
    what: str

    def __str__(self) -> str:
        return f"{self.about}: {self.what}"
