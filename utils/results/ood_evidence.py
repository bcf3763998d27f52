"""Did a table of OOD probes test on shifted texts? The paper's own table for gemma-2-9b did not;
what the numbers say decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

SAME = 0.005  # AUCs this close are called equal: solvers and machines differ by less
MANY = 0.8  # share of equal AUCs that says two tables tested on the same rows


@dataclass(frozen=True)
class Judgement:
    """``inside``: the table tests on in-distribution rows, so it is no OOD table. ``evidence``: the
    numbers that say so.
    """

    inside: bool
    evidence: str


def judge(
    probes: pd.DataFrame,
    inside: pd.DataFrame,
    inside_baselines: pd.DataFrame,
    ood_baselines: pd.DataFrame,
) -> Judgement:
    """Compare OOD SAE probes with what is known of the same datasets.

    ``probes``, ``inside``: columns dataset, sae_id, k, test_auc; ``inside`` holds in-distribution
    probes. The baselines: columns dataset, test_auc, in and out of distribution. Without probes of
    the same SAEs the means decide which of the two baselines the table is nearer to; without
    anything to compare with it is taken to be inside, as the paper's is.
    """
    key = ["dataset", "sae_id", "k"]
    pairs = (
        probes.merge(inside.drop_duplicates(key), on=key, suffixes=("", "_inside"))
        if len(inside)
        else inside
    )
    if len(pairs):
        difference = (pairs["test_auc"] - pairs["test_auc_inside"]).abs()
        equal = int((difference <= SAME).sum())
        evidence = (
            f"{equal} of {len(pairs)} AUCs equal the in-distribution AUC of the same dataset, SAE"
            f" and k to {SAME}"
        )
        return Judgement(
            equal >= MANY * len(pairs), f"{evidence} (largest difference {difference.max():.4f})"
        )
    means = []
    for baselines in (inside_baselines, ood_baselines):
        of_same = (
            baselines[baselines["dataset"].isin(set(probes["dataset"]))]
            if len(baselines)
            else baselines
        )
        means.append(of_same["test_auc"].mean() if len(of_same) else None)
    at_home, away = means
    mean = probes["test_auc"].mean()
    if at_home is None or away is None:
        return Judgement(
            True,
            "nothing says which rows it tested, nor is there anything to compare its mean AUC"
            f" {mean:.3f} with",
        )
    evidence = (
        f"mean test AUC {mean:.3f}; baselines on these datasets have {at_home:.3f} in and"
        f" {away:.3f} out of distribution"
    )
    return Judgement(abs(mean - at_home) < abs(mean - away), evidence)
