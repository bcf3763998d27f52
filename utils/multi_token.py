"""Multi-token results: probes on all tokens of a text, one pickled dict a dataset and method (paper, section on pooling)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.paths import Paths
from utils.pickles import read_pickle
from utils.tidy_results import ROUNDING

COLUMNS = ("dataset", "layer", "method", "sae_id", "val_auc", "test_auc")


def load_multi_token(paths: Paths, model_name: str) -> tuple[pd.DataFrame, list[str]]:
    """(table with COLUMNS, remarks): ``method`` says what is pooled and how; a remark is a line on a file left out."""
    rows, remarks = [], []
    for path in sorted(paths.multi_token_folder(model_name).glob("*.pkl")):
        try:
            rows.append(_row(path.stem, read_pickle(path)))
        except UserError as error:
            remarks.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            remarks.append(f"{path} is no result of a multi-token probe ({type(error).__name__}: {error}): left out")
    return pd.DataFrame(rows, columns=list(COLUMNS)), remarks


def _row(stem: str, result: dict) -> dict:
    aucs = {name: float(result[name]) for name in ("val_auc", "test_auc")}
    if not all(-ROUNDING <= value <= 1 + ROUNDING or np.isnan(value) for value in aucs.values()):
        raise ValueError("an AUC outside 0 to 1")
    sae_id = result.get("sae_id")
    if sae_id is not None:
        method = f"SAE, {result['sae_aggregation_method']} over tokens" + (", binarised" if stem.endswith("_binarized") else "")
    elif "pca_k" in result:
        method = f"{int(result['pca_k'])} components of each of {int(result['number_to_concat'])} tokens"
    elif "best_attn_vector" in result or "attn" in stem:
        method = "attention probe"
    else:
        raise ValueError("of no known kind")
    return {"dataset": str(result["dataset"]), "layer": int(result["layer"]), "method": method, "sae_id": sae_id, **aucs}
