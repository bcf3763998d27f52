"""README's commands as they are typed for the measurement of their times."""

from __future__ import annotations

import json

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
