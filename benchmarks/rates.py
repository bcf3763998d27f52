"""How long a study takes: seconds per probe from a measured sweep, times what a release of SAEs
asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from utils.settings import conditions, get_setting

# seconds until a run's first probe is begun: libraries, workers; taken off a measured run before it
# is divided
START = 4.0


def rates_of_table(timed: pd.DataFrame, wall: float, n_workers: int, n_datasets: int) -> dict:
    """What a run of probes cost. ``timed``: its table of seconds; ``wall``: its seconds from start
    to end.

    ``seconds_per_fit``: by number of training rows ("all" in the normal setting) and k;
    ``overhead``: worker-seconds over seconds in fits: files read, rows drawn and written.
    """
    rows = timed.assign(rows=timed["num_train"].astype(str) if "num_train" in timed else "all")
    fits = rows.groupby(["rows", "k"])["seconds"].mean()
    start = min(START, wall / 2)
    return {
        "seconds_per_fit": {f"{n} {k}": float(seconds) for (n, k), seconds in fits.items()},
        "overhead": (wall - start) * n_workers / timed["seconds"].sum(),
        "worker_seconds_per_dataset": (wall - start) * n_workers / n_datasets,
        "seconds_to_start": start,
    }


def seconds_of_sweep(rates: dict, n_datasets: int, n_workers: int) -> float:
    """Wall seconds of the sweep that ``rates`` come from, on this many datasets and workers."""
    return sum(
        rate["seconds_to_start"] + rate["worker_seconds_per_dataset"] * n_datasets / n_workers
        for rate in rates["settings"].values()
    )


@dataclass(frozen=True)
class Sweep:
    """Fits of one SAE over datasets, and their worker-seconds."""

    fits: int
    seconds: float


def probe_sweep(setting: str, sizes: Iterable[int], rates: dict) -> Sweep:
    """One SAE in a setting over datasets of these sizes. Training sizes between measured ones are
    read off the line between them.

    A fit of class imbalance or label noise is taken to cost what one of the normal setting does.
    """
    settings = rates["settings"]
    normal, few = settings["normal"], settings["scarcity"]
    fits, seconds = 0, 0.0
    for size in sizes:
        for condition in conditions(setting, size):
            for k in get_setting(setting).ks:
                fits += 1
                if setting == "scarcity":
                    seconds += few["overhead"] * _by_rows(
                        few["seconds_per_fit"], int(condition.value or 0), k
                    )
                else:
                    seconds += normal["overhead"] * normal["seconds_per_fit"][f"all {k}"]
    return Sweep(fits, seconds)


def _by_rows(seconds: dict[str, float], n_rows: int, k: int) -> float:
    import numpy as np

    known = sorted(
        (int(float(name.split()[0])), value)
        for name, value in seconds.items()
        if int(name.split()[1]) == k
    )
    sizes, values = zip(*known)
    if n_rows > sizes[-1]:  # beyond the largest, in proportion to the rows
        return values[-1] * n_rows / sizes[-1]
    return float(np.interp(n_rows, sizes, values))
