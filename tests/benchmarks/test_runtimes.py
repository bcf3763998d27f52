"""Another runtime is measured on the same blocks, batches and numbers as our reading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import MODEL, folder_flags, write_texts, write_tiny_model

from benchmarks import runtimes
from utils.language_models import HookedModel
from utils.models import get_model
from utils.names import hook_name


@pytest.fixture
def kept(paths, monkeypatch, tmp_path):
    write_texts(paths, ["1_first"], 120)
    write_tiny_model(paths)
    monkeypatch.setattr(runtimes, "KEPT", tmp_path / "runtimes.json")
    return tmp_path / "runtimes.json"


def test_the_lower_blocks_give_what_the_hook_reads(kept, paths):
    info = get_model(MODEL)
    hook = hook_name(info.probe_layer)
    model = HookedModel(info, [hook], paths, "cpu")
    texts = ["the cat", "a blue house runs", "the"]
    ours = list(model.run(model.tokenize(texts), "texts"))
    batches = runtimes.padded_batches(model, texts)
    read = runtimes.plain(runtimes.lower_blocks(model, int(info.probe_layer) + 1))
    for (_, captured, mask), batch in zip(ours, batches, strict=True):
        assert torch.equal(batch[1].bool(), mask)
        assert np.array_equal(read(batch), captured[hook].numpy())


def test_what_is_off_fails_or_is_not_there_is_said(kept, paths, monkeypatch, capsys):
    def off(lower, batch, folder):
        return lambda batch: runtimes.plain(lower)(batch) * 1.01

    def broken(lower, batch, folder):
        raise RuntimeError("no kernel\nfor this")

    ways = {"off": ((), off), "broken": ((), broken), "absent": (("no_such_module",), off)}
    monkeypatch.setattr(runtimes, "RUNTIMES", ways)
    assert runtimes.main([*folder_flags(paths)[:4], "--n_texts", "20", "--n_turns", "2"]) == 0
    (row,) = json.loads(kept.read_text()).values()
    assert row["runtimes"]["off"]["apart"] == pytest.approx(0.01, rel=1e-3)
    assert row["runtimes"]["off"]["ratio"] > 0
    said = capsys.readouterr().out
    assert "broken: not measured: no kernel" in said
    assert "absent: not measured: no_such_module not installed" in said
