"""Small real-shaped inputs that the tests share; nothing here needs the network, a GPU or
downloaded data.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# One thread a process, before numpy is there: the tests run in as many processes as there are
# cores, and libraries whose threads wait for each other on a busy machine take up to ninety times
# as long.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# `make test` tells the make of a test about itself: a test's make is nobody's child
for variable in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(variable, None)

import hypothesis
import numpy as np
import pandas as pd
import pytest

# no clock and no chance: a slow machine is no failure, and every run draws the same examples
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import folder_flags  # noqa: F401
from utils.datasets import list_datasets
from utils.paths import Paths

collect_ignore = ["faults/fuzz.py", "faults/crashes.py"]  # programs, not tests

MODEL = "all-MiniLM-L6-v2"
WORDS = [
    "the",
    "a",
    "house",
    "cat",
    "runs",
    "over",
    "blue",
    "small",
    "old",
    "tree",
    "river",
    "stone",
]
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden").is_dir(), reason="the reference data is not beside the checkout"
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Empty data folders of a test's own."""
    clear_caches()
    return paths_below(tmp_path)


class Evil:
    """Calls whatever it is told to when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def clear_caches() -> None:
    """Forget which datasets there are: texts are read again when their files change."""
    list_datasets.cache_clear()


def paths_below(root: Path) -> Paths:
    """Folders of a world of its own."""
    return Paths(root / "texts", root / "data", root / "results", root / "figures")


def write_texts(
    paths: Paths, names: list[str], n_rows: int = 300, ood: tuple[str, ...] = (), seed: int = 0
) -> None:
    """Text datasets with a master table: balanced, texts of class 1 tell their class by a word."""
    rng = np.random.default_rng(seed)
    words = np.array(WORDS)

    def texts(labels: np.ndarray, mark: str) -> list[str]:
        return [
            " ".join(rng.choice(words, 6)) + (f" {mark}" if label else " plain") for label in labels
        ]

    for path in (paths.master_table(), paths.texts("x"), paths.ood_texts("x")):
        path.parent.mkdir(parents=True, exist_ok=True)
    kinds = ["Binary Classification"] * len(names)
    master = pd.DataFrame(
        {"Data type": kinds, "Dataset save name": [f"cleaned_data/{name}.csv" for name in names]}
    )
    master.to_csv(paths.master_table(), index=False)
    for name in names:
        labels = rng.permutation(np.arange(n_rows) % 2)
        pd.DataFrame({"prompt": texts(labels, "signal"), "target": labels}).to_csv(
            paths.texts(name), index=False
        )
        if name in ood:
            labels = rng.permutation(np.arange(60) % 2)
            pd.DataFrame({"prompt": texts(labels, "sign"), "target": labels}).to_csv(
                paths.ood_texts(name), index=False
            )


def write_tiny_model(paths: Paths) -> None:
    """A randomly initialised six-block BERT of the demo model's width, with a vocabulary for the
    test texts.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder = paths.language_model(MODEL)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "signal", "sign", "plain"])
    )
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
