"""What tables tell of themselves: OOD evidence, the published side experiments, SAEBench's form."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from utils.paths import Paths
from utils.probes.k_sparse import ProbeOptions
from utils.results import side_experiments
from utils.results.inventory import Count, is_whole_tensor_file, width_name
from utils.results.ood_evidence import judge
from utils.results.saebench import export_saebench
from utils.runtime.errors import UserError

NAMES = ["a", "b", "c", "d", "e"]


def probes(aucs: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"dataset": NAMES, "sae_id": "s", "k": 16, "test_auc": aucs})


def means(auc: float) -> pd.DataFrame:
    return pd.DataFrame({"dataset": NAMES, "test_auc": auc})


def test_the_same_aucs_in_and_out_of_distribution_are_the_same_rows():
    aucs = [0.9, 0.8, 0.95, 0.7, 0.85]
    verdict = judge(probes(aucs), probes(aucs), means(0.9), means(0.6))
    assert verdict.inside
    assert "5 of 5 AUCs equal" in verdict.evidence
    # four of five equal is still too many for chance, three are not
    assert judge(probes([*aucs[:4], 0.1]), probes(aucs), means(0.9), means(0.6)).inside
    assert not judge(probes([*aucs[:3], 0.1, 0.1]), probes(aucs), means(0.9), means(0.6)).inside


def test_without_the_same_probes_the_nearer_baseline_decides():
    nothing = pd.DataFrame()
    assert judge(probes([0.88] * 5), nothing, means(0.9), means(0.6)).inside
    assert not judge(probes([0.62] * 5), nothing, means(0.9), means(0.6)).inside
    assert judge(probes([0.62] * 5), nothing, nothing, nothing).inside  # unknown: not used as OOD


def test_side_experiments_are_read_where_they_are_and_refused_where_wrong(paths: Paths):
    assert side_experiments.win_rates(paths, "gemma-2-9b") == {}
    assert side_experiments.relabelling(paths, "gemma-2-9b") is None
    folder = paths.architecture_wins("gemma-2-9b")
    folder.mkdir(parents=True)
    (folder / "sae_win_rate_1.csv").write_text("sae1,sae2,win_rate\nx,y,0.25\n")
    (folder / "sae_win_rate_16_corrupt.csv").write_text("sae1,sae2,win_rate\nx,y,0.5\n")
    tables = side_experiments.win_rates(paths, "gemma-2-9b")
    assert {title: table["win_rate"].tolist() for title, table in tables.items()} == {
        "label_noise, k = 16": [0.5],
        "k = 1": [0.25],
    }
    (folder / "sae_win_rate_1.csv").write_text("sae1,win_rate\nx,0.25\n")
    with pytest.raises(UserError, match="lacks the columns sae2"):
        side_experiments.win_rates(paths, "gemma-2-9b")


def test_saebench_gets_the_probes_of_the_options_alone(paths: Paths):
    options = ProbeOptions()
    common = {
        "setting": "normal",
        "condition": "all",
        "layer": 2,
        "seed": 42,
        "test_f1": 0.5,
        "test_acc": 0.5,
    }
    probe = {
        **common,
        "kind": "sae",
        "method": "sae_probe",
        "sae_id": "s",
        "reg_type": "l1",
        "binarize": False,
        "solver": options.solver,
        "latent_selection": options.latent_selection,
        "protocol": "paper",
    }
    rows = [
        {**probe, "dataset": name, "k": k, "test_auc": auc, "val_auc": 0.5}
        for name, k, auc in (("a", 1, 0.6), ("b", 1, 0.8), ("a", 5, 0.9), ("b", 5, 0.9))
    ]
    rows.append({**rows[0], "solver": "saga", "test_auc": 0.1})
    rows.append({**rows[0], "seed": 43, "test_auc": 0.1})
    baseline = {**common, "kind": "baseline", "method": "logreg", "dataset": "a", "test_auc": 0.95}
    table = pd.DataFrame([*rows, baseline])
    (path,) = export_saebench(table, paths, "m", {"s": {}, "unprobed": {}}, options)
    # found by SAEBench's plots: by the folder, and by {release}_{sae_id} with / as _
    assert "sparse_probing" in path.parent.name
    assert path.name == "m_s_eval_results.json"
    written = json.dumps(json.loads(path.read_text()))
    assert "0.7" in written  # the mean of 0.6 and 0.8 at k = 1
    assert "0.95" in written
    assert "0.1," not in written


def test_counts_and_whole_files(tmp_path):
    assert str(Count(2, 3) + Count(1, 1)) == "3 of 4"
    assert not Count(0, 0).complete
    assert Count(4, 4).complete
    assert [width_name(i) for i in ("layer_2/width_16k/l0_3", "layer_2/width_1m/x", "mine")] == [
        "16k",
        "1m",
        "other",
    ]
    torn = tmp_path / "x.pt"
    torn.write_bytes(b"PK\x03\x04" + bytes(100))
    assert not is_whole_tensor_file(torn, 104)
    torn.write_bytes(b"PK\x03\x04" + bytes(78) + b"PK\x05\x06" + bytes(18))
    assert is_whole_tensor_file(torn, 104)
