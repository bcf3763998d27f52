"""Result tables as resume state: appended, torn, mixed with published ones, put in order."""

from __future__ import annotations

import pandas as pd
import pytest

from utils.results.comparison import Picks, compare
from utils.results.csv_files import read_table
from utils.results.tables import baseline_table, sae_probe_table
from utils.results.tidy import load_results
from utils.runtime.errors import UserError
from utils.settings import get_setting

ROW = {
    "test_f1": 0.9, "test_acc": 0.9, "test_auc": 1 / 3, "val_auc": 0.8, "k": 16, "dataset": "d",
    "layer": 2, "sae_id": "s", "reg_type": "l1", "binarize": False, "num_train": 20,
    "method": "sae_probe", "protocol": "paper", "latent_selection": "mean_diff_normalized",
    "solver": "path", "seed": 42,
}  # fmt: skip


@pytest.fixture
def table(tmp_path):
    return sae_probe_table(tmp_path / "t" / "all_metrics.csv", "num_train")


def test_rows_come_back_with_every_digit(table):
    table.append([ROW])
    table.append([{**ROW, "k": 128}])
    assert table.read()["test_auc"].tolist() == [1 / 3, 1 / 3]
    assert set(table.done()) == {table.key_of(ROW), table.key_of({**ROW, "k": 128})}


def test_a_torn_last_line_is_mended(table):
    table.append([ROW, {**ROW, "k": 128}])
    content = table.path.read_text()
    table.path.write_text(content[:-20])
    assert set(table.done()) == {table.key_of(ROW)}
    table.append([{**ROW, "k": 128}])
    assert len(table.read()) == 2


def as_excel(content: str) -> bytes:
    """What Excel's "CSV UTF-8" makes of a table: a mark, CRLF, capitals, no last digits lost."""
    lines = content.replace("False", "FALSE").replace("True", "TRUE").splitlines()
    return b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode()


def test_a_table_that_excel_saved_goes_on_as_ours(table):
    row = {**ROW, "converged": True, "made_from": "0123456789abcdef"}
    table.append([row])
    table.path.write_bytes(as_excel(table.path.read_text()))
    assert table.done() == {table.key_of(row): "0123456789abcdef"}
    more = {**row, "k": 128}
    table.append([more])
    table.finish()
    content = table.path.read_bytes()
    expected = sae_probe_table(table.path.with_name("expected.csv"), "num_train")
    expected.append([row, more])
    assert content == expected.path.read_bytes()
    assert list(read_table(table.path)["test_auc"]) == [1 / 3, 1 / 3]


def test_an_append_reads_no_more_than_the_ends_of_a_table(table, monkeypatch):
    """Whole tables, read at each append, would cost the square of their rows."""
    table.append([{**ROW, "k": k} for k in range(1, 400)])
    for name in ("read_bytes", "read_text"):
        monkeypatch.setattr(
            type(table.path), name, lambda *_, **__: pytest.fail("it is read whole")
        )
    table.append([{**ROW, "k": 400}])
    monkeypatch.undo()
    assert len(table.read()) == 400


def test_line_breaks_of_a_spreadsheet_behind_our_first_line_go_at_the_end_of_a_run(table):
    table.append([ROW])
    first, rest = table.path.read_bytes().split(b"\n", 1)
    table.path.write_bytes(first + b"\n" + rest.replace(b"\n", b"\r\n"))
    table.append([{**ROW, "k": 128}])
    table.finish()
    assert b"\r" not in table.path.read_bytes()
    assert len(table.read()) == 2


def test_a_table_with_another_separator_is_refused_before_it_is_touched(table):
    table.append([ROW])
    content = table.path.read_text().replace(",", ";")
    table.path.write_text(content)
    with pytest.raises(UserError, match="separated by ; and not by ,"):
        table.done()
    assert table.path.read_text() == content


def test_a_dataset_called_true_keeps_its_name_when_a_spreadsheet_saved_the_table(table):
    rows = [{**ROW, "dataset": name, "binarize": True} for name in ("TRUE", "True")]
    table.append(rows)
    table.path.write_bytes(b"\xef\xbb\xbf" + table.path.read_bytes())
    table.append([{**ROW, "k": 2}])
    assert {table.key_of(row) for row in rows} <= set(table.done())


@pytest.mark.parametrize("name", ["7", "007", "1e5", "NA", "null", "True", "nan", "1.0", "a;b"])
def test_a_dataset_may_be_called_anything(table, name):
    row = {**ROW, "dataset": name, "made_from": "0123456789012345"}
    table.append([row])
    assert table.read()["dataset"].tolist() == [name]
    assert table.done() == {table.key_of(row): "0123456789012345"}
    other = {**ROW, "dataset": "100000" if name == "1e5" else "7.0" if name == "7" else "1"}
    assert table.key_of(other) != table.key_of(row)


def test_a_whole_last_line_without_its_break_is_kept(table):
    rows = [{**ROW, "k": k, "made_from": "0123456789abcdef"} for k in (16, 128)]
    table.append(rows)
    whole = table.path.read_bytes()
    table.path.write_bytes(whole[:-1])  # as an editor may leave it
    assert set(table.done()) == {table.key_of(row) for row in rows}
    table.append([{**rows[0], "k": 2}])
    assert len(table.read()) == 3
    unsaid = whole[:-1].removesuffix(b"0123456789abcdef")  # of a published row, or of ours
    table.path.write_bytes(unsaid)
    assert set(table.done()) == {table.key_of(row) for row in rows}
    table.path.write_bytes(whole[:-2])  # one digit of the fingerprint is missing
    assert set(table.done()) == {table.key_of(rows[0])}


def test_published_columns_come_first_and_published_rows_mix(table):
    """A published table lacks our columns: its rows stand for the paper's protocol and saga, and
    stay as they are.
    """
    published = {name: ROW[name] for name in list(ROW)[:11]}
    table.path.parent.mkdir()
    pd.DataFrame([published]).to_csv(table.path, index=False)
    assert table.key_of({**ROW, "solver": "saga"}) in table.done()
    assert table.key_of(ROW) not in table.done()
    table.append([ROW])
    assert list(read_table(table.path).columns[:11]) == list(published)
    assert set(table.done()) == {table.key_of(ROW), table.key_of({**ROW, "solver": "saga"})}


def test_finish_gives_the_same_bytes_for_any_order(tmp_path):
    rows = [{**ROW, "k": k, "dataset": d} for k in (16, 2, 128) for d in ("b", "a")]
    contents = []
    for name, order in (("x", rows), ("y", rows[::-1])):
        table = sae_probe_table(tmp_path / name, "num_train")
        for row in order:
            table.append([row])
        table.finish()
        contents.append(table.path.read_bytes())
    assert contents[0] == contents[1]


def test_fractions_are_one_key_in_every_spelling(tmp_path):
    table = baseline_table(tmp_path / "t.csv", "ratio", 20)
    row = {"dataset": "d", "method": "logreg", "layer": 20, "seed": 42}
    assert table.key_of({**row, "ratio": 0.39999999999999997}) == table.key_of(
        {**row, "ratio": "0.4"}
    )


def test_rows_made_anew_replace_their_predecessors_only_when_they_arrive(table):
    table.append([ROW, {**ROW, "k": 128}])
    table.append([{**ROW, "test_auc": 0.25}])
    table.finish({table.key_of(ROW)})
    assert sorted(table.read()["test_auc"]) == [0.25, 1 / 3]


def test_a_row_that_says_its_source_takes_the_place_of_those_before(table):
    table.append([{**ROW, "made_from": "a"}, ROW, {**ROW, "k": 128}, {**ROW, "k": 128}])
    table.append([{**ROW, "test_auc": 0.25, "made_from": "b"}])
    assert table.done()[table.key_of(ROW)] == "b"
    table.finish()
    # published rows that stand twice are nobody's to remove
    assert table.read()["test_auc"].tolist() == [0.25, 1 / 3, 1 / 3]


def test_an_append_reads_no_row_of_the_table(table, monkeypatch):
    table.append([ROW])
    monkeypatch.setattr(type(table), "_cells", None)
    table.append([{**ROW, "k": 128}])
    assert len(table.read()) == 2


def test_a_place_that_cannot_be_written_is_said_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        sae_probe_table(tmp_path / "file" / "all_metrics.csv", None).done()
    (tmp_path / "all_metrics.csv").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        sae_probe_table(tmp_path / "all_metrics.csv", None).done()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"", b'a,b\n"1,2\n3'])
def test_what_is_no_table_is_named(table, content):
    table.path.parent.mkdir()
    table.path.write_bytes(content)
    with pytest.raises(UserError, match=r"all_metrics\.csv"):
        table.read()


def test_our_ood_baselines_stand_beside_the_published_ones(paths):
    path = paths.baseline_table("gemma-2-9b", "OOD")
    path.parent.mkdir(parents=True)
    path.write_text("dataset,test_auc_baseline,test_auc_sae\na,0.8,0.7\nb,0.6,0.5\n")
    table = baseline_table(path, None, 20)
    row = {
        "dataset": "a",
        "method": "logreg",
        "layer": 20,
        "seed": 42,
        "test_auc": 0.75,
        "val_auc": 0.9,
    }
    assert table.key_of(row) not in table.done()
    table.append([row])
    table.finish()
    assert table.key_of(row) in table.done()
    tidy = load_results(paths, "gemma-2-9b", ("OOD",)).tidy
    baselines = tidy[tidy["kind"] == "baseline"]
    assert sorted(baselines["test_auc"]) == [0.6, 0.75]
    assert tidy.loc[tidy["kind"] == "sae", "test_auc"].tolist() == [0.7, 0.5]


def test_hooks_are_layers_beside_numbers(paths):
    """A table may hold blocks and other hooks; both sides must match."""
    hook = "blocks.3.hook_mlp_out"
    probes = sae_probe_table(paths.sae_probe_table("gemma-2-9b", "normal"), None)
    scores = {
        "test_auc": 0.7,
        "val_auc": 0.8,
        "k": 16,
        "reg_type": "l1",
        "method": "sae_probe",
        "dataset": "a",
    }
    probes.append([{**scores, "sae_id": f"{layer}/mine", "layer": layer} for layer in (3, hook)])
    for layer in (3, hook):
        row = {"dataset": "a", "method": "logreg", "layer": layer, "test_auc": 0.9, "val_auc": 0.9}
        baseline_table(paths.baseline_table("gemma-2-9b", "normal", layer), None, layer).append(
            [row]
        )
    tidy = load_results(paths, "gemma-2-9b", ("normal",)).tidy
    overall = compare(Picks(tidy)).set_index("contender")
    assert overall.loc["sae_only", "n_pairs"] == 2
    assert set(tidy["layer"]) == {3, hook}


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("latent_selection", "mean_diff"),
        ("protocol", "nested"),
        ("solver", "saga"),
        ("seed", 43),
        ("reg_type", "l2"),
        ("binarize", True),
        ("sae_id", "t"),
        ("dataset", "e"),
        ("num_train", 21),
        ("k", 17),
    ],
)
def test_every_choice_is_a_row_of_its_own(table, column, other):
    table.append([{"latent_selection": "mean_diff_normalized", "seed": 42, **ROW}])
    assert table.key_of(ROW) in table.done()
    assert table.key_of({**ROW, column: other}) not in table.done()


@pytest.mark.parametrize(("one", "other"), [(0.05, 0.1), (0.1, 0.15), (0.44, 0.45), (1024, 1025)])
def test_conditions_that_differ_are_different_keys(tmp_path, one, other):
    table = baseline_table(tmp_path / "t.csv", "ratio", 20)
    row = {"dataset": "d", "method": "logreg", "layer": 20, "seed": 42}
    assert table.key_of({**row, "ratio": one}) != table.key_of({**row, "ratio": other})


@pytest.mark.parametrize(
    "fingerprint", ["0123456789012345", "123e456789012345", "00e1234567890123"]
)
def test_a_fingerprint_that_looks_like_a_number_is_text(table, fingerprint):
    table.append([{**ROW, "made_from": fingerprint}])
    assert list(table.done().values()) == [fingerprint]


@pytest.mark.parametrize("setting", ["scarcity", "normal"])
def test_a_table_with_no_rows_is_read_as_such(paths, setting):
    column = get_setting(setting).sae_column
    table = sae_probe_table(paths.sae_probe_table("gemma-2-9b", setting), column)
    table.path.parent.mkdir(parents=True)
    table.path.write_text(",".join(table.columns) + "\n")
    results = load_results(paths, "gemma-2-9b")
    assert not len(results.tidy)
    assert not results.unreadable()
