"""The original scripts' pickles of SAE probes become one table that the later stages read."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import folder_flags

from published import combine_runs
from utils.results.tidy import load_results
from utils.runtime.errors import UserError


def run(k: int, auc: float, **more: object) -> dict:
    """A row as the original scripts pickle it: numpy's numbers among Python's."""
    return {
        "test_f1": np.float64(0.5),
        "test_acc": 0.5,
        "test_auc": np.float64(auc),
        "val_auc": 0.6,
        "k": k,
        "dataset": "5_hist_fig_ismale",
        "layer": 20,
        "sae_id": "layer_20/width_16k/average_l0_408",
        "reg_type": "l1",
        "binarize": False,
        **more,
    }


def put(paths, setting: str, name: str, content: object) -> None:
    path = paths.probe_runs("gemma-2-9b", setting) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def flags(paths) -> list[str]:
    return ["--model_name", "gemma-2-9b", *folder_flags(paths)]


def test_runs_become_the_table_that_is_read(paths, capsys):
    rounded = run(256, 1.0000000000000002)  # as published AUCs are
    put(paths, "normal", "a_l1.pkl", [run(16, 0.7), run(128, 0.8), rounded])
    put(paths, "scarcity", "a_20_l1.pkl", [run(16, 0.6, num_train=20)])
    assert combine_runs.main(flags(paths)) == 0
    table = pd.read_csv(paths.sae_probe_table("gemma-2-9b", "normal"))
    assert list(table["test_auc"]) == pytest.approx([0.7, 0.8, 1.0])
    tidy = load_results(paths, "gemma-2-9b", ("normal", "scarcity")).tidy
    assert sorted(tidy["test_auc"]) == pytest.approx([0.6, 0.7, 0.8, 1.0])
    capsys.readouterr()
    assert combine_runs.main(flags(paths)) == 1  # never over a table
    assert "move it away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"test_auc": 0.5}, "holds no list of results"),
        ([{"test_auc": 0.5}], "lacks dataset, sae_id, k, val_auc"),
        ([run(16, 1.5)], "test_auc is 1.5, not between 0 and 1"),
        ([run(16, 0.5) | {"test_auc": "high"}], "not between 0 and 1"),
        ([print], "which is not run"),
    ],
)
def test_a_file_that_is_no_run_is_named_and_the_rest_is_done(paths, capsys, content, message):
    put(paths, "normal", "a.pkl", content)
    put(paths, "normal", "b.pkl", [run(16, 0.7)])
    assert combine_runs.main(flags(paths)) == 1
    assert message in capsys.readouterr().err
    assert len(pd.read_csv(paths.sae_probe_table("gemma-2-9b", "normal"))) == 1


def test_without_runs_it_says_where_they_are_looked_for(paths):
    with pytest.raises(UserError, match="no pickles of runs in"):
        combine_runs.main(flags(paths))
