"""Probes that are kept beside their table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.results.kept_probes import (
    EVERYTHING,
    NOTHING,
    Keeping,
    Kept,
    choose_kept,
    find_probe,
    keep_probes,
    probes_file,
)
from utils.results.tables import ResultTable, baseline_table, sae_probe_table
from utils.runtime.errors import UserError
from utils.settings import TrainTest

SAE = "layer_2/width_1k/topk_32"


def made_rows(ks=(1, 16, 256), n=200, d_sae=400, seed=0) -> tuple[list[dict], TrainTest]:
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(size=(2 * n, d_sae)) - 0.5, 0)
    y = (X[:, 3] - X[:, 7] + 0.3 * rng.normal(size=2 * n) > 0).astype(np.int64)
    rows = TrainTest(csr_array(X[:n]), y[:n], csr_array(X[n:]), y[n:])
    base = {"dataset": "texts", "sae_id": SAE, "reg_type": "l1", "made_from": "abc"}
    return [{**base, **row} for row in fit_sae_probes(rows, ks, ProbeOptions())], rows


def there(table: ResultTable, row: dict) -> Kept:
    kept = find_probe(table, row)
    assert kept is not None
    return kept


@pytest.fixture
def table(tmp_path):
    return sae_probe_table(tmp_path / "all_metrics.csv", None)


def test_what_is_read_back_scores_the_same_bytes(table):
    made, rows = made_rows()
    keep_probes(table, choose_kept(made, Keeping(EVERYTHING)))
    for row in made:
        kept = there(table, row)
        assert (
            kept.probe.scores(rows.X_test).tobytes() == row["probe"].scores(rows.X_test).tobytes()
        )
        assert (kept.C, kept.made_from) == (row["C"], "abc")
        assert kept.row_scores.tobytes() == row["row_scores"].tobytes()
        # dense rows, by hand
        dense = rows.X_test.toarray()[:, kept.probe.columns] @ kept.probe.coef
        np.testing.assert_allclose(dense + kept.probe.intercept, kept.row_scores, rtol=1e-9)


def test_few_leaves_out_large_k_and_row_scores(table):
    made, _ = made_rows()
    keep_probes(table, choose_kept(made, Keeping()))
    assert [len(there(table, row).row_scores) for row in made[:2]] == [0, 0]
    assert find_probe(table, made[2]) is None
    keep_probes(table, choose_kept(made, Keeping(NOTHING)))
    assert len(pq.read_table(probes_file(table, made[0]))) == 2


def test_the_file_is_the_same_in_any_order_and_a_probe_is_replaced(table):
    made, _ = made_rows(ks=(1, 2, 16))
    keep_probes(table, made)
    content = probes_file(table, made[0]).read_bytes()
    probes_file(table, made[0]).unlink()
    other, _ = made_rows(ks=(2,), seed=1)
    keep_probes(table, other)
    for row in reversed(made):
        keep_probes(table, [row])
    assert probes_file(table, made[0]).read_bytes() == content


def test_files_are_at_most_three_times_the_tables_rows(table):
    made, _ = made_rows(ks=(1, 2, 4, 8, 16, 32, 64, 128), n=600, d_sae=16384)
    table.append(made)
    keep_probes(table, made_without_scores := choose_kept(made, Keeping()))
    rows = table.path.read_text().splitlines(keepends=True)[1:]
    size = probes_file(table, made_without_scores[0]).stat().st_size
    assert size <= 3 * sum(map(len, rows)), (size, sum(map(len, rows)))


def test_a_binarised_probe_reads_whether_a_latent_is_above_one(table):
    made, rows = made_rows(ks=(2,))
    made[0]["binarize"] = True
    made[0]["probe"] = replace(made[0]["probe"], binarize=True)
    keep_probes(table, made)
    probe = there(table, made[0]).probe
    by_hand = (rows.X_test.toarray()[:, probe.columns] > 1) @ probe.coef + probe.intercept
    np.testing.assert_allclose(probe.scores(rows.X_test), by_hand)


def test_baselines_are_kept_a_file_a_layer(tmp_path):
    table = baseline_table(tmp_path / "layer2_results.csv", None, 2)
    made, _ = made_rows(ks=(4,))
    row = {"dataset": "texts", "method": "logreg", "layer": 2, "probe": made[0]["probe"]}
    keep_probes(table, [row])
    assert find_probe(table, row) is not None
    assert find_probe(table, {**row, "method": "lda"}) is None
    assert find_probe(table, {**row, "layer": 5}) is None


def test_a_broken_file_is_named(table):
    made, _ = made_rows(ks=(1,))
    path = probes_file(table, made[0])
    path.parent.mkdir()
    for content in (b"no parquet", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            find_probe(table, made[0])
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(UserError, match="lacks columns"):
        find_probe(table, made[0])


def test_weights_that_are_none_are_refused(table):
    """As a file by others or a fault of a disk may have: no score is made of them."""
    rows = made_rows(ks=(16,))[0]
    keep_probes(table, choose_kept(rows, Keeping()))
    path = probes_file(table, rows[0])
    whole = pq.read_table(path)
    for column, values in (("coef", [[float("nan")] * 16]), ("coef", [None]), ("columns", [[1]])):
        at = whole.schema.get_field_index(column)
        broken = whole.set_column(at, column, pa.array(values, whole.schema.field(column).type))
        pq.write_table(broken, path)
        with pytest.raises(UserError, match="cannot be read"):
            find_probe(table, rows[0])
