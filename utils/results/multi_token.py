"""Multi-token results: probes on all tokens of a text, one pickled dict a dataset and method
(paper, section on pooling).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from utils.paths import Paths
from utils.readers.pickles import read_pickle
from utils.results.csv_files import MADE_FROM
from utils.results.findings import Finding, Kind
from utils.results.tables import NEW_SCORES, ResultTable
from utils.results.tidy import is_auc
from utils.runtime.errors import UserError

COLUMNS = ("dataset", "layer", "method", "sae_id", "val_auc", "test_auc")
POOLINGS = ("max", "mean")
COMPONENTS = "20 components of each of 255 tokens"
ATTENTION = "attention probe"
LAST_TOKEN, MEAN_TOKEN = "logreg, last token", "logreg, mean over tokens"
# Our probes on tokens follow the paper's idea and not its every step (ranking, binarising, one PCA
# a position, penalty, training of the attention probe, rows): they stand beside its numbers.
OURS = " (ours)"


def sae_method(pooling: str, binarize: bool, control: bool = False) -> str:
    """How a table and a figure call a probe on pooled latents of an SAE, or of a control with
    random weights.
    """
    return f"{'random SAE' if control else 'SAE'}, {pooling} over tokens" + (
        ", binarised" if binarize else ""
    )


def multi_token_table(path: Path) -> ResultTable:
    """The table of train_multi_token_probes.py."""
    key: dict[str, object] = {
        "dataset": None,
        "layer": None,
        "method": None,
        "sae_id": "",
        "seed": 42,
    }
    scores = (
        "test_f1",
        "test_acc",
        "test_auc",
        "val_auc",
        "k",
        "C",
        "n_nonzero",
        "fitted_by",
        "converged",
        "n_train",
        "n_test",
        *NEW_SCORES,
        MADE_FROM,
    )
    return ResultTable(path, (*key, *scores), key)


def load_multi_token(paths: Paths, model_name: str) -> tuple[pd.DataFrame, list[Finding]]:
    """(the paper's pickles and our table, with COLUMNS; a finding for each file of no use).

    ``method`` says what is pooled and how.
    """
    rows: list[dict] = []
    findings: list[Finding] = []
    for path in sorted(paths.multi_token_folder(model_name).glob("*.pkl")):
        try:
            rows.append(_row(path.stem, read_pickle(path)))
        except UserError as error:
            findings.append(Finding(Kind.UNREADABLE, "wrong", "multi-token", str(error)))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            what = (
                f"{path} is no result of a multi-token probe ({type(error).__name__}: {error}):"
                " left out"
            )
            findings.append(Finding(Kind.UNREADABLE, "wrong", "multi-token", what))
    published = pd.DataFrame(rows, columns=list(COLUMNS))
    ours = multi_token_table(paths.multi_token_results(model_name)).read()
    if not len(ours):
        return published.assign(n_test=np.nan), findings
    ours = ours[ours["seed"] == ours["seed"].min()].replace({"sae_id": {"": None}})
    ours = ours.assign(method=ours["method"] + OURS)
    tables = [ours[[*COLUMNS, "n_test"]], published.assign(n_test=np.nan)]
    return pd.concat([table for table in tables if len(table)], ignore_index=True), findings


def _row(stem: str, result: dict) -> dict:
    aucs = {name: float(result[name]) for name in ("val_auc", "test_auc")}
    if not all(is_auc(value) or np.isnan(value) for value in aucs.values()):
        raise ValueError("an AUC outside 0 to 1")
    sae_id = result.get("sae_id")
    if sae_id is not None:
        method = sae_method(result["sae_aggregation_method"], stem.endswith("_binarized"))
    elif "pca_k" in result:
        method = (
            f"{int(result['pca_k'])} components of each of {int(result['number_to_concat'])} tokens"
        )
    elif "best_attn_vector" in result or "attn" in stem:
        method = ATTENTION
    else:
        raise ValueError("of no known kind")
    return {
        "dataset": str(result["dataset"]),
        "layer": int(result["layer"]),
        "method": method,
        "sae_id": sae_id,
        **aucs,
    }
