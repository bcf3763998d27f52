"""What was drawn stays until anything it was made from is another."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_texts

from utils.figures import drawn
from utils.figures.drawn import Drawn, Shown, seconds_to_settle
from utils.paths import Paths

FLAGS = {"setting": "all", "datasets": None}
SHOWN = Shown(("left out: 2 figures",), "", 3, "No.")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def there(paths: Paths) -> Paths:
    """Texts, a table, an SAE, activations, and a report of them."""
    write_texts(paths, ["1_first"], n_rows=20)
    write(paths.results_dir / "sae_probes_m" / "t.csv", "a,b\n1,2\n")
    write(paths.data_dir / "saes" / "m" / "layer_2" / "s" / "cfg.json", "{}")
    write(paths.model_activations_folder("m") / "1_first_h.pt", "numbers")
    report = write(paths.figures("m") / "report.html", "<html>")
    table = write(paths.comparison_table("m"), "dataset\n")
    Drawn(paths, "m", FLAGS).keep([report, table], SHOWN)
    return paths


def last(paths: Paths, **flags: object) -> Shown | None:
    return Drawn(paths, "m", {**FLAGS, **flags}).last()


def test_what_is_as_it_was_is_not_drawn_again(there: Paths):
    assert last(there) == SHOWN
    # what is hidden is no input, and neither is the table that visualize.py writes of others
    write(there.data_dir / ".remembered.json", "{}")
    write(there.comparison_table("other"), "dataset\n")
    assert last(there) == SHOWN


@pytest.mark.parametrize(
    "changed",
    [
        "results/sae_probes_m/t.csv",
        "results/sae_probes_m/new.csv",
        "results/latents_m.parquet",
        "data/saes/m/layer_2/s/cfg.json",
        "data/model_activations_m/1_first_h.pt",
        "texts/cleaned_data/1_first.csv",
        "figures/m/report.html",
        "results/comparison_m.csv",
    ],
)
def test_any_change_is_drawn(there: Paths, changed: str):
    folder, _, name = changed.partition("/")
    root = {"results": there.results_dir, "data": there.data_dir, "texts": there.text_dir,
            "figures": there.figures_dir}[folder]  # fmt: skip
    path = root / name
    before = path.stat() if path.exists() else None
    text = path.read_text() if before else ""
    write(path, text[::-1] if len(set(text)) > 1 else "x")
    if before:  # of the same length, and its time of change put back
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert last(there) is None


def test_what_is_gone_is_drawn(there: Paths):
    (there.results_dir / "sae_probes_m" / "t.csv").unlink()
    assert last(there) is None


def test_a_figure_that_is_gone_is_drawn(there: Paths):
    (there.figures("m") / "report.html").unlink()
    assert last(there) is None


def test_other_flags_have_reports_of_their_own(there: Paths):
    assert last(there, setting="normal") is None
    report = write(there.figures("m", "normal") / "report.html", "<html>")
    of_normal = replace(SHOWN, selection="normal")
    Drawn(there, "m", {**FLAGS, "setting": "normal"}).keep([report], of_normal)
    assert last(there, setting="normal") == of_normal
    assert last(there) == SHOWN


def test_what_changes_while_it_is_drawn_is_drawn_by_the_next_run(there: Paths):
    begun = Drawn(there, "m", FLAGS)
    write(there.results_dir / "sae_probes_m" / "t.csv", "a,b\n3,4\n")
    begun.keep([there.figures("m") / "report.html"], SHOWN)
    assert last(there) is None


def test_saes_outside_the_data_folder_count(there: Paths, tmp_path: Path):
    elsewhere = replace(there, sae_dir=tmp_path / "elsewhere")
    weights = write(tmp_path / "elsewhere" / "s" / "sae.bin", "1")
    Drawn(elsewhere, "m", FLAGS).keep([there.figures("m") / "report.html"], SHOWN)
    assert last(elsewhere) == SHOWN
    write(weights, "22")
    assert last(elsewhere) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "null"])
def test_a_broken_note_is_no_note(there: Paths, content: str):
    kept = there.figures("m") / ".drawn.json"
    names = list(json.loads(kept.read_text()))
    kept.write_text(content.replace("x", names[0]))
    assert last(there) is None


@pytest.mark.parametrize("below", ["results/sae_probes_m", "data/saes/m/layer_2"])
def test_what_stands_behind_a_link_counts(there: Paths, tmp_path: Path, below: str):
    folder = tmp_path / below
    assert folder.is_dir()
    elsewhere = tmp_path / "another_disk"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)
    Drawn(there, "m", FLAGS).keep([there.figures("m") / "report.html"], SHOWN)
    assert last(there) == SHOWN
    (file,) = (path for path in elsewhere.rglob("*") if path.is_file())
    write(file, "other")
    assert last(there) is None


def test_links_that_lead_nowhere_or_around_are_no_end(there: Paths):
    (there.data_dir / "gone").symlink_to(there.data_dir / "nowhere")
    (there.data_dir / "around").symlink_to(there.data_dir, target_is_directory=True)
    Drawn(there, "m", FLAGS).keep([there.figures("m") / "report.html"], SHOWN)
    assert last(there) == SHOWN


@pytest.mark.parametrize("place", ["data", "results"])
def test_figures_below_an_input_folder_are_no_inputs(there: Paths, tmp_path: Path, place: str):
    inside = replace(there, figures_dir=tmp_path / place / "figures")
    begun = Drawn(inside, "m", FLAGS)
    begun.keep([write(inside.figures("m") / "report.html", "<html>")], SHOWN)
    assert last(inside) == SHOWN


def test_reports_of_other_splits_are_no_inputs(there: Paths):
    write(there.results_dir / "grouped_split" / "comparison_m.csv", "dataset\n")
    assert last(there) == SHOWN
    write(there.results_dir / "grouped_split" / "t.csv", "dataset\n")
    assert last(there) is None


def test_other_code_packages_or_commits_draw(there: Paths, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(drawn, "current_commit", lambda: "another")
    assert last(there) is None
    monkeypatch.undo()
    assert last(there) == SHOWN
    monkeypatch.setattr(drawn, "installed_packages", lambda: ["matplotlib 0"])
    assert last(there) is None
    monkeypatch.undo()
    monkeypatch.setattr(drawn, "ROOT", tmp_path / "other_code")
    assert last(there) is None


def test_a_file_that_just_changed_is_waited_for():
    fine, coarse = 10**18 + 5, 10**18  # nanoseconds; whole seconds may be all that is kept
    now = 10**9 + 0.001
    assert seconds_to_settle([("a", 1, fine, fine)], now) == pytest.approx(0.019, abs=1e-3)
    assert seconds_to_settle([("a", 1, coarse, fine)], now) == pytest.approx(1.999, abs=1e-3)
    assert seconds_to_settle([("a", 1, fine, fine)], now + 1) == 0
    assert seconds_to_settle([("a", 1, coarse, coarse)], now + 2) == 0
    # a clock that is wrong is not waited for
    assert seconds_to_settle([("a", 1, fine, fine)], now - 1e6) <= 0.02
    assert seconds_to_settle([], now) == 0


def test_folders_behind_a_link_are_the_same_by_both_names(there: Paths, tmp_path: Path):
    """As below /tmp of a Mac: the table that visualize.py writes is no input there either."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    texts, data, results, figures = (
        tmp_path / "link" / folder.relative_to(tmp_path)
        for folder in (there.text_dir, there.data_dir, there.results_dir, there.figures_dir)
    )
    linked = Paths(texts, data, results, figures)
    begun = Drawn(linked, "m", FLAGS)
    table = write(linked.comparison_table("m"), "dataset,changed\n")
    begun.keep([table, linked.figures("m") / "report.html"], SHOWN)
    assert last(linked) == SHOWN
