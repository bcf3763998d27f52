"""The figures that documents quote: measured by a second route, and put where their names stand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from conftest import write_texts

from checks import documents, facts
from utils.datasets import load_dataset
from utils.results.tidy import Results
from utils.runtime.errors import UserError
from utils.settings import Condition, split


def test_copies_are_counted_text_by_text(paths):
    write_texts(paths, ["a", "b"], 400)
    table = pd.read_csv(paths.texts("a"), dtype=str)
    table["prompt"] = [f"{target} {i // 4}" for i, target in enumerate(table["target"])]
    table.to_csv(paths.texts("a"), index=False)
    shares = []
    for name in ("a", "b"):
        dataset = load_dataset(paths, name)
        drawn = split(Condition("normal"), dataset.labels)
        trained = {dataset.texts[i] for i in drawn.train}
        shares.append(np.mean([dataset.texts[i] in trained for i in drawn.test]))
    found = facts.copies(paths)
    assert found["copies_mean"] == f"{np.mean(shares):.0%}"
    assert found["copies_most"] == f"{max(shares):.0%} in a"
    assert found["copies_tenth"] == f"{sum(share >= 0.1 for share in shares)} of 2 datasets"


def test_the_gap_is_validation_less_test(paths, monkeypatch):
    rows = [
        {
            "setting": setting, "condition": condition, "kind": kind, "method": method,
            "protocol": protocol, "dataset": dataset, "val_auc": val, "test_auc": val - less,
            "layer": 2, "sae_id": None, "k": 16, "seed": 42,
        }
        for (setting, condition), (kind, method), (protocol, less), (dataset, val) in product(
            (("normal", "all"), ("scarcity", 20.0)),
            (("sae", "sae_probe"), ("baseline", "logreg"), ("baseline", "knn")),
            (("paper", 0.1), ("nested", 0.02)), (("a", 0.9), ("b", 0.7)),
        )
    ]  # fmt: skip
    monkeypatch.setattr(facts, "load_results", lambda *_: Results(pd.DataFrame(rows), []))
    lines = facts.gap(paths)["gap_table"].strip().splitlines()
    assert lines[0].startswith("| setting | SAE probes, paper | SAE probes, nested | baselines,")
    assert lines[2] == "| normal |" + " 0.100 | 0.020 |" * 3
    assert lines[3] == "| scarcity, 20 rows |" + " 0.100 | 0.020 |" * 3
    # a layer with one protocol is on neither side
    more = [{**row, "layer": 5, "test_auc": 0.0} for row in rows if row["protocol"] == "paper"]
    monkeypatch.setattr(facts, "load_results", lambda *_: Results(pd.DataFrame([*rows, *more]), []))
    assert facts.gap(paths)["gap_table"].strip().splitlines() == lines
    papers = [row for row in rows if row["protocol"] == "paper"]
    for few in (papers, [row for row in rows if row["setting"] == "normal" or row in papers]):
        monkeypatch.setattr(
            facts, "load_results", lambda *_, few=few: Results(pd.DataFrame(few), [])
        )
        with pytest.raises(UserError, match="not both protocols"):
            facts.gap(paths)


def test_what_cannot_be_measured_stays_as_it_was(paths, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(facts, "KEPT", tmp_path / "facts.json")
    write_texts(paths, ["a"], 200)
    (tmp_path / "facts.json").write_text('{"copies_mean": "7%", "solver_mean": "0.5"}')
    flags = ["--text_dir", paths.text_dir, "--results_dir", paths.results_dir]
    assert facts.main([*map(str, flags), "--data_dir", str(paths.data_dir)]) == 0
    kept = facts.read_facts()
    assert kept["solver_mean"] == "0.5"
    assert kept["copies_mean"] != "7%"
    assert "solver: as it was (no reference results" in capsys.readouterr().out


def test_a_fact_stands_where_its_name_does():
    value = facts.read_facts()["copies_mean"]
    text = "On average <!-- fact copies_mean -->old<!-- -->."
    assert documents.fill(text) == f"On average <!-- fact copies_mean -->{value}<!-- -->."
    with pytest.raises(UserError, match="no fact is called 'nothing'"):
        documents.fill("<!-- fact nothing -->1<!-- -->")
