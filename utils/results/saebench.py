"""Our probes' results in the JSON form of SAEBench's evaluation ``sparse_probing_sae_probes`` (one
file an SAE).
"""

from __future__ import annotations

import time
import uuid
from importlib import metadata
from pathlib import Path

import pandas as pd

from utils.names import named_width
from utils.paths import Paths
from utils.probes.k_sparse import ProbeOptions
from utils.results.tidy import BASELINE, SAE
from utils.runtime.files import write_json

EVALUATION = "sparse_probing_sae_probes"
KS = (1, 2, 5)  # of SAEBench's own runs
NAMED_KS = (1, 2, 5, 10, 20, 50, 100)  # k with fields of their own; every k is in sae_metrics_by_k
METRICS = {"test_accuracy": "test_acc", "test_auc": "test_auc", "test_f1": "test_f1"}


def export_saebench(
    tidy: pd.DataFrame,
    paths: Paths,
    model_name: str,
    shapes: dict[str, dict],
    options: ProbeOptions,
) -> list[Path]:
    """Write results/saebench/sparse_probing_sae_probes/{model}_{sae_id}_eval_results.json for each
    SAE that has probes of these options.

    ``tidy``: load_results, normal setting, which SAEBench evaluates, with logistic regression as
    baseline. ``shapes``: of each SAE its architecture, d_model and d_sae, as far as they are known.
    """
    rows = tidy[(tidy["setting"] == "normal") & (tidy["seed"] == options.seed)]
    probes = rows[rows["kind"] == SAE]
    for column in ("reg_type", "binarize", "solver", "latent_selection", "protocol"):
        probes = probes[probes[column].astype(str) == str(getattr(options, column))]
    written = []
    for sae_id, shape in shapes.items():
        of_sae = probes[probes["sae_id"] == sae_id]
        if not len(of_sae):
            continue
        logreg = rows[
            (rows["kind"] == BASELINE)
            & (rows["method"] == "logreg")
            & (rows["layer"] == of_sae["layer"].iloc[0])
        ]
        path = paths.saebench(model_name, sae_id)
        write_json(
            path,
            _result(of_sae, logreg, model_name, sae_id, options)
            | {"sae_cfg_dict": _cfg(sae_id, shape)},
        )
        written.append(path)
    return written


def _result(
    probes: pd.DataFrame, logreg: pd.DataFrame, model_name: str, sae_id: str, options: ProbeOptions
) -> dict:
    ks = sorted(int(k) for k in probes["k"].unique())
    datasets = sorted(probes["dataset"].unique())
    logreg = logreg[logreg["dataset"].isin(datasets)]
    mean = _fields(probes.groupby("k", observed=True)[list(METRICS.values())].mean())
    details = []
    for dataset in datasets:
        fields = _fields(probes[probes["dataset"] == dataset].set_index("k"))
        details.append(
            {"dataset_name": dataset, **_baseline(logreg[logreg["dataset"] == dataset]), **fields}
        )
    by_k = mean.pop("sae_metrics_by_k")
    return {
        "eval_type_id": EVALUATION,
        "eval_config": {
            "model_name": model_name,
            "dataset_names": datasets,
            "reg_type": options.reg_type,
            "setting": "normal",
            "ks": ks,
            "binarize": options.binarize,
            "include_llm_baseline": bool(len(logreg)),
            "baseline_method": "logreg",
            "random_seed": options.seed,
        },
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": {"llm": _baseline(logreg), "sae": mean},
        "eval_result_details": details,
        "sae_metrics_by_k": by_k,
        "eval_result_unstructured": None,
        "sae_bench_commit_hash": "not SAEBench: same protocol, other solver",
        "sae_lens_id": sae_id,
        "sae_lens_release_id": model_name,
        "sae_lens_version": metadata.version("sae-lens"),
    }


def _cfg(sae_id: str, shape: dict) -> dict:
    """What SAEBench's plots need of an SAE; of files of others only the width that its id names is
    known.
    """
    return {
        "architecture": shape.get("architecture", "unknown"),
        "d_in": shape.get("d_model"),
        "d_sae": shape.get("d_sae") or named_width(sae_id) or 0,
    }


def _fields(by_k: pd.DataFrame) -> dict:
    """SAEBench's names for scores indexed by k."""
    fields: dict = {"sae_metrics_by_k": {}}
    for k, scores in by_k.iterrows():
        metrics = {name: float(scores[ours]) for name, ours in METRICS.items()}
        fields["sae_metrics_by_k"][int(k)] = metrics
        if int(k) in NAMED_KS:
            fields |= {f"sae_top_{int(k)}_{name}": value for name, value in metrics.items()}
    return fields


def _baseline(logreg: pd.DataFrame) -> dict:
    return {
        f"llm_{name}": float(logreg[ours].mean()) if len(logreg) else None
        for name, ours in METRICS.items()
    }
