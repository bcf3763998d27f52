"""Published tables as a user has them: comparison by a second route, status, audit, every figure.
Needs the reference data.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import ROOT, SHARED, folder_flags, write_texts

import visualize
from checks import audit, claims, status
from published import fetch_results as fetch_published_results
from utils.paths import Paths
from utils.results.comparison import Picks, compare
from utils.results.findings import Kind
from utils.results.tidy import load_results

PUBLISHED = SHARED / "published_results"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the published results are not beside the checkout"
)
COLUMNS = {  # setting: (baseline table, SAE table, their columns of the condition)
    "scarcity": (
        "scarcity/summary/all_results.csv",
        "scarcity_setting/all_metrics.csv",
        "num_train",
        "num_train",
    ),
    "class_imbalance": (
        "imbalance/all_results.csv",
        "class_imbalance_setting/all_metrics.csv",
        "ratio",
        "frac",
    ),
    "label_noise": (
        "corrupt/all_results.csv",
        "label_noise_setting/all_metrics.csv",
        "ratio",
        "corrupt_frac",
    ),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Paths:
    """The published files where published.fetch_results puts them."""
    folder = tmp_path_factory.mktemp("published")
    paths = Paths(folder / "texts", folder / "data", folder / "results", folder / "figures")
    assert fetch_published_results.main(["--from", str(PUBLISHED), *folder_flags(paths)]) == 0
    return paths


def best_by_validation(rows: pd.DataFrame) -> float:
    """Expected test AUC of a uniformly random choice among the rows of the best val_auc."""
    return rows.loc[rows["val_auc"] > rows["val_auc"].max() - 1e-12, "test_auc"].mean()


@needs_published
@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("gemma-2-9b", "scarcity"),
        ("llama-3.1-8b", "class_imbalance"),
        ("gemma-2-9b", "label_noise"),
    ],
)
def test_means_agree_with_plain_pandas(published, model, setting):
    baseline_file, sae_file, baseline_column, sae_column = COLUMNS[setting]
    results = PUBLISHED / "results"
    baselines = pd.read_csv(results / f"baseline_probes_{model}" / baseline_file)
    saes = pd.read_csv(results / f"sae_probes_{model}" / sae_file)
    baselines["c"], saes["c"] = baselines[baseline_column].round(3), saes[sae_column].round(3)
    by_baseline, by_sae = (
        dict(list(table.groupby(["dataset", "c"]))) for table in (baselines, saes)
    )
    shared = sorted(set(by_baseline) & set(by_sae))
    expected = {
        "quiver_baselines": [best_by_validation(by_baseline[key]) for key in shared],
        "sae_only": [best_by_validation(by_sae[key]) for key in shared],
        "quiver_with_sae": [
            best_by_validation(pd.concat([by_baseline[key], by_sae[key]])) for key in shared
        ],
        "logreg": [
            by_baseline[key].query("method == 'logreg'")["test_auc"].mean() for key in shared
        ],
    }
    found = compare(Picks(load_results(published, model, (setting,)).tidy))
    overall = found[found["condition"] == "all"].set_index("contender")
    if setting == "label_noise":  # logreg is the only baseline there, and stands once
        assert expected.pop("logreg") == pytest.approx(expected["quiver_baselines"])
    for contender, values in expected.items():
        by_dataset = pd.Series(values).groupby([dataset for dataset, _ in shared]).mean()
        assert overall.loc[contender, "mean_test_auc"] == pytest.approx(by_dataset.mean(), abs=1e-9)
        assert overall.loc[contender, "n_pairs"] == len(shared)
    differences = pd.Series(expected["sae_only"]) - pd.Series(expected["quiver_baselines"])
    differences = differences.groupby([dataset for dataset, _ in shared]).mean()
    assert overall.loc["sae_only", "wins"] == (differences > 1e-12).sum()
    p = scipy.stats.wilcoxon(differences).pvalue
    assert overall.loc["sae_only", "p_wilcoxon"] == pytest.approx(p)
    one = shared[0][1]
    values = [value for key, value in zip(shared, expected["sae_only"]) if key[1] == one]
    row = found[(found["condition"] == one) & (found["contender"] == "sae_only")].iloc[0]
    assert row["mean_test_auc"] == pytest.approx(sum(values) / len(values), abs=1e-9)


@needs_published
def test_the_papers_ood_table_of_the_9b_model_is_recognised_and_that_of_the_2b_model_is_used(
    published, capsys
):
    assert audit.main(["--model_name", "gemma-2-9b", *folder_flags(published)]) == 3
    assert "48 of 48 AUCs equal the in-distribution AUC" in capsys.readouterr().out
    assert audit.main(["--model_name", "gemma-2-2b", *folder_flags(published)]) == 0
    tidy = load_results(published, "gemma-2-9b", ("OOD",)).tidy
    assert set(tidy["sae_id"].dropna()) == {"published"}
    assert len(load_results(published, "gemma-2-2b", ("OOD",)).tidy.query("kind == 'sae'")) == 768


@needs_published
@pytest.mark.parametrize(("model", "n_figures"), [("gemma-2-9b", 16), ("gemma-2-2b", 8)])
def test_every_figure_whose_table_is_there_is_drawn(published, model, n_figures, capsys):
    assert visualize.main(["--model_name", model, *folder_flags(published)]) == 0
    drawn = {path.stem for path in published.figures(model).glob("*.png")}
    assert len(drawn) == n_figures, drawn
    assert drawn == {path.stem for path in published.figures(model).glob("*.pdf")}
    assert f"left out, as the report says why: {24 - n_figures} figures" in capsys.readouterr().out
    page = (published.figures(model) / "report.html").read_text()
    assert ">Audit</h2>" in page
    assert page.count("<li>figure ") == 24 - n_figures
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


@needs_published
def test_a_second_fetch_keeps_what_is_ours(published, capsys):
    table = published.sae_probe_table("llama-3.1-8b", "normal")
    ours = table.read_bytes()
    try:
        table.write_bytes(ours + b"\n")
        assert (
            fetch_published_results.main(["--from", str(PUBLISHED), *folder_flags(published)]) == 0
        )
        assert f"kept: {table}" in capsys.readouterr().out
        assert table.read_bytes() == ours + b"\n"
    finally:
        table.write_bytes(ours)


def kinds(results) -> list[Kind]:
    """What was found, but that published rows do not say what they were made from."""
    return [found.kind for found in results.findings if found.kind is not Kind.UNCHECKED]


def test_a_folder_without_results_is_no_source(paths, tmp_path):
    with pytest.raises(fetch_published_results.UserError, match="no published results"):
        fetch_published_results.main(["--from", str(tmp_path), *folder_flags(paths)])


def status_of(paths: Paths, capsys, *flags: str) -> str:
    assert status.main(["--model_name", "all-MiniLM-L6-v2", *folder_flags(paths), *flags]) == 0
    return capsys.readouterr().out


def test_status_counts_what_is_there_and_names_the_command_for_what_is_not(paths, capsys, tmp_path):
    write_texts(paths, ["1_first", "2_second"], n_rows=1200, ood=("1_first",))
    good = paths.model_activations("all-MiniLM-L6-v2", "1_first", "blocks.2.hook_resid_post")
    good.parent.mkdir(parents=True)
    torch.save(torch.zeros(3), good)
    broken = paths.model_activations("all-MiniLM-L6-v2", "2_second", "blocks.2.hook_resid_post")
    broken.write_bytes(good.read_bytes()[:-100])
    table = paths.baseline_table("all-MiniLM-L6-v2", "normal", 2)
    table.parent.mkdir(parents=True)
    table.write_text(
        "dataset,method,test_f1,test_acc,test_auc,val_auc\n1_first,logreg,0.5,0.5,0.5,0.5\n"
    )
    (paths.data_dir / "model_activations_all-MiniLM-L6-v2.tar.gz").write_bytes(b"x")
    output = tmp_path / "STATUS.md"
    text = status_of(paths, capsys, "--output", str(output))
    row = next(line for line in text.splitlines() if line.startswith("| normal"))
    assert "1 of 4" in row  # two datasets, two layers; one file is cut off
    assert "1 of 20" in row  # five baselines more
    assert f"{broken} is no whole tensor file" in text
    assert "make extract-data MODEL=all-MiniLM-L6-v2" in text
    assert "make train-baselines MODEL=all-MiniLM-L6-v2 SETTING=scarcity" in text
    assert output.read_text().startswith("# Status of all-MiniLM-L6-v2")
    assert text.count("model_activations_all-MiniLM-L6-v2.tar.gz") == 1


def test_status_says_that_figures_can_be_drawn_where_both_sides_have_results(paths, capsys):
    write_texts(paths, ["1_first"], n_rows=300)
    for table, row in (
        (
            paths.baseline_table("all-MiniLM-L6-v2", "normal", 2),
            "dataset,method,test_auc,val_auc\n1_first,logreg,0.5,0.5\n",
        ),
        (
            paths.sae_probe_table("all-MiniLM-L6-v2", "normal"),
            "test_auc,val_auc,k,dataset,layer,sae_id,reg_type\n0.5,0.5,16,1_first,2,layer_2/width_4k/topk_32,l1\n",
        ),
    ):
        table.parent.mkdir(parents=True)
        table.write_text(row)
    text = status_of(paths, capsys)
    assert "- normal: comparison and figures: `make visualize" in text


def test_one_row_tables_of_the_original_scripts_are_read(paths):
    folder = paths.baseline_runs_folders("gemma-2-9b", "scarcity")[1]
    folder.mkdir(parents=True)
    for method, auc in (("logreg", 0.9), ("pca", 0.8)):
        text = (
            "dataset,method,num_train,test_f1,test_acc,test_auc,val_auc\n5_a"
            f" b,{method},20,0.5,0.5,{auc},1.0\n"
        )
        (folder / f"layer20_5_a b_{method}_numtrain20.csv").write_text(text)
    (folder / "layer20_5_a b_knn_numtrain20.csv").write_text("dataset,method\n5_a b,knn\n")
    results = load_results(paths, "gemma-2-9b", ("scarcity",))
    tidy = results.tidy
    assert tidy[["dataset", "method", "layer", "condition", "test_auc"]].values.tolist() == [
        ["5_a b", "logreg", 20, 20.0, 0.9],
        ["5_a b", "pca", 20, 20.0, 0.8],
    ]
    assert kinds(results) == [Kind.SINGLE_ROWS, Kind.SINGLE_ROWS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "dataset,method,num_train,test_acc,test_f1,test_auc\na,logreg,20,1,1,0.5\n",
            "lacks the column val_auc",
        ),
        (
            "dataset,method,num_train,test_f1,test_acc,test_auc,val_auc\na,logreg,20,1,1,high,0.5\n",
            "not a number",
        ),
        (
            "dataset,method,num_train,test_f1,test_acc,test_auc,val_auc\na,logreg,20,1,1,1.5,0.5\n",
            "outside 0 to 1",
        ),
        (
            'dataset,method,num_train,test_f1,test_acc,test_auc,val_auc\na,"logreg,20,1,1,0.5\n',
            "cannot be read",
        ),
        ("\x00\x01", "lacks the column"),
    ],
)
def test_a_bad_table_gets_one_line_with_its_name(paths, content, message):
    table = paths.baseline_table("gemma-2-9b", "scarcity")
    table.parent.mkdir(parents=True)
    table.write_text(content)
    command = [sys.executable, "visualize.py", "--model_name", "gemma-2-9b", *folder_flags(paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert str(table) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_table_that_was_cut_off_loses_its_last_line_and_says_so(paths, capsys):
    table = paths.baseline_table("gemma-2-9b", "scarcity")
    table.parent.mkdir(parents=True)
    whole = "dataset,method,num_train,test_f1,test_acc,test_auc,val_auc\na,logreg,20,1,1,0.75,0.5\n"
    table.write_text(whole + "b,logreg,20,1,1,0.75,0.")
    results = load_results(paths, "gemma-2-9b", ("scarcity",))
    tidy = results.tidy
    assert tidy["dataset"].tolist() == ["a"]
    assert kinds(results) == [Kind.TORN]
    assert table.read_text() != whole  # reading changes nothing


def test_one_bad_table_does_not_end_the_others(paths, capsys):
    good, bad = (
        paths.baseline_table("gemma-2-9b", "scarcity"),
        paths.sae_probe_table("gemma-2-9b", "normal"),
    )
    for path, content in (
        (good, "dataset,method,num_train,test_auc,val_auc\na,logreg,20,0.75,0.5\n"),
        (bad, "<html>no table</html>\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert visualize.main(["--model_name", "gemma-2-9b", *folder_flags(paths)]) == 1
    assert str(bad) in capsys.readouterr().err
    assert (paths.figures("gemma-2-9b") / "report.html").is_file()
    assert audit.main(["--model_name", "gemma-2-9b", *folder_flags(paths)]) == 1
    assert str(bad) in capsys.readouterr().out


def test_the_page_of_claims_is_that_of_its_numbers():
    content = claims.read_numbers()
    assert claims.PAGE.read_text(encoding="utf-8") == claims.as_page(content)
    assert len(content["claims"]) == len(claims.CLAIMS) >= 25
    assert [row["claim"] for row in content["claims"]] == [claim.claim for claim in claims.CLAIMS]


@needs_published
def test_the_published_tables_give_the_numbers_of_the_claims(published):
    made = claims.measure(claims.Published(published), None)
    for row, written in zip(made, claims.read_numbers()["claims"]):
        found = None if row.published is None else dataclasses.asdict(row.published)
        assert found == written["published"], row.claim


@pytest.mark.parametrize(
    ("claimed", "interval", "expected"),
    [
        (claims.AHEAD, (0.01, 0.03), claims.SAME),
        (claims.AHEAD, (-0.03, -0.01), claims.OTHER),
        (claims.AHEAD, (-0.01, 0.03), claims.UNSURE),
        (claims.BEHIND, (0.01, 0.03), claims.OTHER),
        (claims.BEHIND, (-0.03, -0.01), claims.SAME),
        (claims.BEHIND, (-0.03, 0.01), claims.UNSURE),
        (claims.NOT_AHEAD, (0.01, 0.03), claims.OTHER),
        (claims.NOT_AHEAD, (-0.03, 0.01), claims.SAME),
        (claims.NOT_AHEAD, (-0.01, 0.03), claims.UNSURE),
    ],
)
def test_a_number_agrees_with_a_claim_or_does_not(claimed, interval, expected):
    low, high = interval
    assert claims.agrees(claimed, low, high, (low + high) / 2) == expected
