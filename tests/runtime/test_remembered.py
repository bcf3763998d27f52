"""Facts about files: found once, found again when a file or the rules change."""

from __future__ import annotations

import json
import os
import time

import pytest
from conftest import write_texts

from utils.datasets import dataset_facts, dataset_size, load_dataset
from utils.runtime.remembered import Remembered, remembered, stamp_of


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("one")
    return path


def age(monkeypatch, seconds: float = 10.0) -> None:
    """Files look old: what changed just now may change again unseen."""
    now = time.time
    monkeypatch.setattr("utils.runtime.remembered.time.time", lambda: now() + seconds)


def recall(path, file, rules="1", fact="found") -> str:
    memory = Remembered(path)
    value = memory.recall("a fact", [stamp_of(file)], rules, lambda: fact)
    memory.keep()
    return value


def test_a_fact_is_found_once(tmp_path, file, monkeypatch):
    age(monkeypatch)
    assert recall(tmp_path / "m.json", file) == "found"
    assert recall(tmp_path / "m.json", file, fact="found again") == "found"


@pytest.mark.parametrize("change", ["content", "time", "rules"])
def test_a_change_is_seen(tmp_path, file, monkeypatch, change):
    age(monkeypatch)
    recall(tmp_path / "m.json", file)
    if change == "content":
        file.write_text("three")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    rules = "2" if change == "rules" else "1"
    assert recall(tmp_path / "m.json", file, rules, "found again") == "found again"


def test_a_file_of_the_same_size_and_time_is_another_when_it_was_replaced(
    tmp_path, file, monkeypatch
):
    """As by `cp -p` or a tool that puts times back: the entry's own time tells."""
    age(monkeypatch)
    recall(tmp_path / "m.json", file)
    stat = file.stat()
    time.sleep(0.02)
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert recall(tmp_path / "m.json", file, fact="found again") == "found again"


def test_what_was_found_in_a_file_of_this_moment_is_not_kept(tmp_path, file):
    recall(tmp_path / "m.json", file)
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"a fact": 3}', "{" * 10_000])
def test_a_broken_memory_is_none(tmp_path, file, content):
    (tmp_path / "m.json").write_text(content)
    assert recall(tmp_path / "m.json", file) == "found"


def test_runs_beside_each_other_keep_what_both_found(tmp_path, file, monkeypatch):
    age(monkeypatch)
    one, two = Remembered(tmp_path / "m.json"), Remembered(tmp_path / "m.json")
    for memory, name in ((one, "a"), (two, "b")):
        memory.recall(name, [stamp_of(file)], "1", lambda: "found")
        memory.keep()
    assert set(json.loads((tmp_path / "m.json").read_text())) == {"a", "b"}


def test_a_datasets_facts_are_those_of_its_texts_and_need_them_once(paths, monkeypatch):
    write_texts(paths, ["a"], 60, ood=("a",))
    paths.data_dir.mkdir()
    age(monkeypatch)
    facts = {
        (ood, n): dataset_facts(paths, "a", ood, n) for ood in (False, True) for n in (None, 20)
    }
    assert facts[False, None].n_rows == len(load_dataset(paths, "a")) == 60
    assert facts[False, 20].n_rows == 20
    assert len({fact.texts_and_labels for fact in facts.values()}) == 4
    remembered(paths.data_dir).keep()
    remembered.cache_clear()
    for name in ("load_dataset", "load_ood"):
        monkeypatch.setattr(f"utils.datasets.{name}", lambda *_: pytest.fail("it is read again"))
    monkeypatch.setattr("utils.datasets._facts", dataset_facts.__globals__["_facts"].__wrapped__)
    for (ood, n), fact in facts.items():
        assert dataset_facts(paths, "a", ood, n) == fact
    assert dataset_size(paths, "a") == 60
