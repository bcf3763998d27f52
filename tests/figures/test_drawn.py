"""What was drawn stays until anything it was made from is another."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_texts

from utils.figures.drawn import Drawn
from utils.paths import Paths

FLAGS = {"setting": "all", "datasets": None}
SAID = ["report   here", "Are these SAE probes useful? No."]


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
    Drawn(paths, "m", FLAGS).keep([report, table], SAID)
    return paths


def said(paths: Paths, **flags: object) -> list[str] | None:
    return Drawn(paths, "m", {**FLAGS, **flags}).said()


def test_what_is_as_it_was_is_not_drawn_again(there: Paths):
    assert said(there) == SAID
    # what is hidden is no input, and neither is the table that visualize.py writes of others
    write(there.data_dir / ".remembered.json", "{}")
    write(there.comparison_table("other"), "dataset\n")
    assert said(there) == SAID


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
    assert said(there) is None


def test_what_is_gone_is_drawn(there: Paths):
    (there.results_dir / "sae_probes_m" / "t.csv").unlink()
    assert said(there) is None


def test_a_figure_that_is_gone_is_drawn(there: Paths):
    (there.figures("m") / "report.html").unlink()
    assert said(there) is None


def test_other_flags_have_reports_of_their_own(there: Paths):
    assert said(there, setting="normal") is None
    report = write(there.figures("m", "normal") / "report.html", "<html>")
    Drawn(there, "m", {**FLAGS, "setting": "normal"}).keep([report], ["of normal"])
    assert said(there, setting="normal") == ["of normal"]
    assert said(there) == SAID


def test_what_changes_while_it_is_drawn_is_drawn_by_the_next_run(there: Paths):
    drawn = Drawn(there, "m", FLAGS)
    time.sleep(0.01)
    write(there.results_dir / "sae_probes_m" / "t.csv", "a,b\n3,4\n")
    drawn.keep([there.figures("m") / "report.html"], SAID)
    assert said(there) is None


def test_saes_outside_the_data_folder_count(there: Paths, tmp_path: Path):
    elsewhere = replace(there, sae_dir=tmp_path / "elsewhere")
    weights = write(tmp_path / "elsewhere" / "s" / "sae.bin", "1")
    Drawn(elsewhere, "m", FLAGS).keep([there.figures("m") / "report.html"], SAID)
    assert said(elsewhere) == SAID
    write(weights, "22")
    assert said(elsewhere) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "null"])
def test_a_broken_note_is_no_note(there: Paths, content: str):
    kept = there.figures("m") / ".drawn.json"
    names = list(json.loads(kept.read_text()))
    kept.write_text(content.replace("x", names[0]))
    assert said(there) is None
