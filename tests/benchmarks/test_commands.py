"""README's commands as they are typed for the measurement of their times."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from benchmarks import commands

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_blocks_are_those_of_one_section():
    text = "## A\n```\nls\n```\n## B\nwords\n```\npwd\ncd\n```\n```\nls -l\n```\n"
    assert commands.blocks_of(text, "B") == ["pwd\ncd\n", "ls -l\n"]
    assert commands.blocks_of(text, "C") == []


def test_commands_are_those_of_the_readme(tmp_path):
    assert commands.script_of("demo", README, tmp_path).split()[:2] == ["make", "demo"]
    assert commands.script_of("again", README, tmp_path) == commands.script_of(
        "demo", README, tmp_path
    )
    assert commands.script_of("test", README, tmp_path).split()[:2] == ["make", "test"]
    own = commands.script_of("own", README, tmp_path)
    assert f'"--hf_model {tmp_path / "my-model"} ' in own
    assert own.count("MODEL=mine") == 3
    # what the README says of the place of an SAE is where the made-up one is put
    assert f"`{commands.SAE_FOLDER}`" in README
    assert commands.MODEL_FOLDER in README


def test_a_part_is_not_measured_without_what_it_needs(tmp_path, monkeypatch, capsys):
    """What would be made first would count in its time; what was measured before stays."""
    monkeypatch.setattr(commands, "KEPT", tmp_path / "commands.json")
    monkeypatch.setattr(commands, "machine", lambda: "a machine")
    clone = tmp_path / "work" / "clone"
    clone.mkdir(parents=True)
    monkeypatch.setattr(commands, "cloned", lambda work: clone)
    (clone / "README.md").write_text(README)
    ran = []

    def run(command, folder, environment):
        ran.append(command[-1])
        (clone / ".venv").mkdir()
        (clone / commands.INSTALLED).touch()
        return 61.0, 1 << 30, 0

    monkeypatch.setattr(commands, "run", run)
    flags = ["--work_dir", str(tmp_path / "work"), "--only", "setup", "again", "own"]
    assert commands.main(flags) == commands.cli.EXIT_FAILED
    assert ran == ["make setup"]
    errors = capsys.readouterr().err
    assert "again: it needs what the part demo makes" in errors
    assert "own: it needs what the part demo makes" in errors
    (kept,) = commands.read_runs()
    assert kept["setup"] == {"seconds": 61.0, "peak_bytes": 1 << 30}
    assert "again" not in kept


def test_a_clone_of_another_commit_is_refused(tmp_path, monkeypatch):
    (tmp_path / "clone").mkdir()
    commits = {ROOT: "this", tmp_path / "clone": "that"}
    monkeypatch.setattr(commands, "current_commit", lambda checkout=ROOT: commits[checkout])
    with pytest.raises(commands.UserError, match="another commit"):
        commands.cloned(tmp_path)


def test_variables_of_the_makefile_do_not_reach_the_commands(monkeypatch):
    for name in ("DATA_DIR", "DATASETS", "ARGS", "MAKEFLAGS", "PYTHON", "HOME"):
        monkeypatch.setenv(name, "x")
    passed = commands.without_make()
    assert {"DATA_DIR", "DATASETS", "ARGS", "MAKEFLAGS"}.isdisjoint(passed)
    assert {"PYTHON", "HOME"} <= set(passed)


def test_a_span_holds_all_runs():
    assert commands.span([250.0, 312.0]) == "4 to 6 minutes"
    assert commands.span([34.0, 37.0]) == "30 to 40 seconds"
    assert commands.span([119.0, 121.0]) == "1 to 3 minutes"
    assert commands.span([240.0]) == "4 to 5 minutes"


def test_facts_are_of_the_runs_that_have_them(tmp_path, monkeypatch):
    runs = [
        {"machine": "a", "demo": {"seconds": 250.0, "peak_bytes": 1 << 30, "disk_bytes": 2 << 30}},
        {"machine": "b", "demo": {"seconds": 312.0, "peak_bytes": 3 << 30, "disk_bytes": 1 << 30}},
        {"machine": "a", "test": {"seconds": 290.0, "peak_bytes": 1 << 20}},
    ]
    monkeypatch.setattr(commands, "KEPT", tmp_path / "commands.json")
    assert commands.read_runs() == []
    commands.KEPT.write_text(json.dumps({"runs": runs}))
    assert commands.facts() == {
        "commands_machine": "a; b",
        "demo_took": "4 to 6 minutes",
        "demo_memory": "3.00 GiB",
        "demo_disk": "2.00 GiB",
        "test_took": "4 to 5 minutes",
        "test_memory": "1.0 MiB",
    }
