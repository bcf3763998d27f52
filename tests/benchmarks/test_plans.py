"""Plans: rates from a measured sweep, and what they say of another; the benchmark's hand-over and
its page.
"""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from conftest import ROOT, folder_flags, write_texts

from benchmarks import measurements, plan, probes, tables
from benchmarks import run_all as benchmark
from benchmarks.rates import START, probe_sweep, rates_of_table, seconds_of_sweep
from checks import documents
from utils.names import make_sae_id
from utils.results.comparison import Picks, compare
from utils.results.tidy import load_results
from utils.runtime.errors import UserError
from utils.settings import KS_NORMAL, KS_OTHER, SETTINGS, conditions


def timed(k_seconds: dict[int, float], sizes: list[int] | None = None) -> pd.DataFrame:
    rows = [
        {"k": k, "seconds": s, **({"num_train": n} if n else {})}
        for n in sizes or [0]
        for k, s in k_seconds.items()
    ]
    return pd.DataFrame(rows)


def rates() -> dict:
    """Fits of one second in the normal setting, of a second per hundred rows in scarcity; the
    overhead is as much again.
    """
    normal = rates_of_table(timed(dict.fromkeys(KS_NORMAL, 1.0)), START + 2 * len(KS_NORMAL), 1, 1)
    few = pd.concat([timed(dict.fromkeys(KS_OTHER, n / 100), [n]) for n in (100, 200)])
    return {
        "settings": {
            "normal": normal,
            "scarcity": rates_of_table(few, START + 2 * few["seconds"].sum(), 1, 1),
        }
    }


def test_a_plan_is_the_sum_of_its_fits():
    sweep = probe_sweep("normal", [2000, 3000], rates())
    assert (sweep.fits, sweep.seconds) == (
        2 * len(KS_NORMAL),
        pytest.approx(2 * 2 * len(KS_NORMAL)),
    )
    sizes = [int(c.value or 0) for c in conditions("scarcity", 1000)]
    expected = sum(2 * len(KS_OTHER) * min(max(n, 100), max(n, 200)) / 100 for n in sizes)
    assert probe_sweep("scarcity", [1000], rates()).seconds == pytest.approx(expected)
    assert probe_sweep("label_noise", [1000], rates()).seconds == pytest.approx(
        11 * 2 * len(KS_OTHER)
    )


def test_two_workers_take_half_but_for_the_start():
    one, two = (seconds_of_sweep(rates(), 8, n) for n in (1, 2))
    assert one - 2 * START == pytest.approx(2 * (two - 2 * START))


def test_measurements_are_handed_on_and_shown(capsys):
    measurements.hand_on(models_ratio=3.25, scaling_processes=1.8)
    measurements.hand_on(ladder_ratio=75.2)
    found = measurements.taken_from("noise\n" + capsys.readouterr().out)
    assert found == {"models_ratio": 3.25, "scaling_processes": 1.8, "ladder_ratio": 75.2}
    page = benchmark.as_markdown(
        {**found, "date": "2026-01-01", "machine": "m", "versions": {"torch": "2"}, "full": False}
    )
    assert "| 75 times faster |" in page
    assert "| 1.8 times faster |" in page
    assert "disk of" not in page


def test_the_plan_of_a_release(paths, tmp_path, monkeypatch, capsys):
    write_texts(paths, ["1_first", "2_second"], n_rows=400, ood=("1_first",))
    monkeypatch.setattr(measurements, "KEPT", tmp_path / "none.json")
    monkeypatch.setattr(
        plan, "read_measurements", lambda: measurements.read_measurements(tmp_path / "none.json")
    )
    flags = [
        "--model_name",
        "gemma-2-9b",
        *folder_flags(paths),
        "--workers",
        "10",
        "--layers",
        "20",
    ]
    with pytest.raises(UserError, match="run `make benchmark` after `make demo`"):
        plan.main(flags)
    kept = {"rates": rates(), "product_rate": 1e12, "date": "2026-01-01", "machine": "m"}
    (tmp_path / "none.json").write_text(json.dumps(kept))
    assert plan.main(flags) == 0
    said = capsys.readouterr().out
    assert "gemma-scope-9b-pt-res" in said
    assert "2 datasets, 860 rows" in said
    n_saes = int(said.split("gemma-scope-9b-pt-res: ")[1].split()[0])
    # normal alone: two datasets, ten k of two worker-seconds each
    line = next(line for line in said.splitlines() if line.startswith("normal "))
    assert f"{2 * len(KS_NORMAL) * n_saes} probes" in " ".join(line.split())
    assert float(line.split()[-2]) == pytest.approx(
        2 * 2 * len(KS_NORMAL) * n_saes / 3600, abs=0.01
    )
    with pytest.raises(UserError, match="did you mean"):
        plan.main([*flags, "--sae_release", "gemma-scope-9b-pt-ress"])


def test_documents_say_what_the_files_of_numbers_say():
    """One source for each figure: nothing between the markers is anybody's own."""
    used = set()
    n_ratios = 0
    for path in documents.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert documents.fill(text) == text, f"make docs changes {path.name}"
        used |= set(re.findall(r"<!-- made ([\w ]+) -->", text))
        n_ratios += text.count("<!-- measured ")
    assert used <= set(documents.BLOCKS)
    assert {"answer", "words", "demo over_k", "full_run means", "formats"} <= used
    assert n_ratios >= 8
    measured = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    assert benchmark.as_markdown(measured) == (ROOT / "docs" / "benchmarks.md").read_text()
    assert len(measured["runs"]) >= 3


def test_a_figure_between_markers_is_written_again():
    old = "a\n<!-- made words -->\nwrong\n<!-- -->\nb"
    new = documents.fill(old)
    assert "wrong" not in new
    assert "TF-IDF" in new
    assert new.startswith("a\n<!-- made words -->\n")
    assert new.endswith("\n<!-- -->\nb")
    with pytest.raises(UserError, match="no figure is called 'nothing'"):
        documents.fill("<!-- made nothing -->\n<!-- -->")


def test_links_between_pages_lead_somewhere():
    for path in documents.DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_a_figure_is_a_median_with_its_range():
    runs = [{"ladder_ratio": value, "note": "x"} for value in (50.0, 90.0, 70.0)]
    measured = {**benchmark.medians(runs), "runs": runs}
    assert measured["ladder_ratio"] == 70
    assert benchmark.figure("ladder_ratio", measured) == "70 times faster (50 to 90 in 3 runs)"
    marked = "a <!-- measured ladder_ratio -->old<!-- --> b"
    assert benchmark.quoted(marked, measured) == (
        "a <!-- measured ladder_ratio -->70 times faster (50 to 90 in 3 runs)<!-- --> b"
    )
    assert benchmark.figure("ladder_ratio", {"ladder_ratio": 12.34}) == "12.3 times faster"


def test_runs_of_another_machine_are_not_mixed_in(monkeypatch):
    kept = {"machine": "a", "versions": {}, "full": False, "runs": [{"x": 1}]}
    monkeypatch.setattr(benchmark, "read_measurements", lambda: kept)
    assert benchmark.kept_runs({"machine": "a", "versions": {}, "full": False}) == [{"x": 1}]
    assert benchmark.kept_runs({"machine": "b", "versions": {}, "full": False}) == []


def test_made_up_tables_are_read_as_any_others(paths):
    write_texts(paths, ["a", "b"], 300)
    n_rows = tables.write_tables(paths, 3)
    assert n_rows == 3 * 2 * len(SETTINGS["scarcity"].values) * len(KS_OTHER)
    results = load_results(paths, tables.MODEL)
    assert not results.unreadable()
    assert (results.tidy["kind"] == "sae").sum() == n_rows
    picked = compare(Picks(results.tidy))
    assert {"sae_only", "quiver_baselines"} <= set(picked["contender"])


def test_benchmarks_and_documents_name_the_sae_that_the_demo_trains():
    (found,) = re.findall(
        r"train_saes\.py.* --layers (\d+) --widths (\d+) ", (ROOT / "demo.sh").read_text()
    )
    layer, width = map(int, found)
    sae_id = make_sae_id(layer, width, k_active=32, seed=42)
    assert sae_id == probes.SAE_ID
    page = (ROOT / "docs" / "own_models.md").read_text(encoding="utf-8")
    assert f"--sae_id {sae_id} " in page


def test_a_study_is_sized_by_hand():
    saes = [plan.SizedSae("20", 16, 10.0), plan.SizedSae("3", 32, 20.0)]
    study = plan.Study("r", 4, saes, sizes=[100, 50], sizes_with_ood=[50], n_ood_rows=30)
    assert study.n_rows == 180
    assert study.flops == 2 * 180 * 4 * (16 + 32)
    assert study.weight_bytes == 2 * 4 * 4 * (16 + 32)  # two float32 matrices [4, width] each
    assert study.latents_bytes == pytest.approx(180 * 30 * plan.BYTES_A_NONZERO)
    alone = study.of_layer(20)
    assert alone.saes == [saes[0]]
    assert alone.sizes == study.sizes


def test_the_plan_that_documents_show_is_that_of_its_parts():
    """The page against the plan's own sums, by another way: every fit looked up."""
    study = plan.read_study()
    assert len(study.saes) == 536
    measured = measurements.read_measurements()
    assert f"| SAEs | 536 | {len(study.of_layer(20).saes)} |" in documents.as_plan()
    hours = sum(
        probe_sweep(setting, study.sizes if setting != "OOD" else study.sizes_with_ood,
                    measured["rates"]).seconds
        for setting in SETTINGS
    ) * len(study.saes) / 3600  # fmt: skip
    assert documents.plan_facts()["plan_hours"] == f"{hours:.0f} CPU-hours"
    assert f"| CPU-hours of probes | {hours:.0f} |" in documents.as_plan()


def test_a_run_of_one_part_pushes_out_no_other():
    most = benchmark.MOST_RUNS
    whole = [{"date": str(i), "a": i, "b": i} for i in range(most)]
    parts = [{"date": "x", "b": i} for i in range(most + 2)]
    kept = benchmark.trimmed([*whole, *parts])
    assert [run["a"] for run in kept if "a" in run] == list(range(most))
    # of a number that newer runs have all of, the oldest goes
    assert benchmark.trimmed([*whole, {"date": "y", "a": 9, "b": 9}]) == [
        *whole[1:],
        {"date": "y", "a": 9, "b": 9},
    ]
