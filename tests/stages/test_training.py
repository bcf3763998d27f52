"""What SAEs are trained on: tokens or vectors of texts, of all datasets alike."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MODEL, write_texts
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

import train_saes
from train_saes import BATCH, Training, collect, tokens_of, training_texts
from utils.datasets import load_dataset
from utils.models import get_model
from utils.runtime.errors import UserError
from utils.saes.training import Schedule, train

HOOK = "blocks.2.hook_resid_post"
TRAINING = Training("texts", None, 8, 40, 1.0, None, 0, "cpu")


class Words:
    """In the place of a model: a token is a word, its activation the word's number and place."""

    def __init__(self, pooling: str) -> None:
        self.info = SimpleNamespace(pooling=pooling)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def run(self, token_ids: list[list[int]], desc: str):
        for row, ids in enumerate(token_ids):
            states = torch.zeros(1, 6, 2)
            states[0, : len(ids), 0] = torch.tensor(ids, dtype=torch.float32)
            states[0, : len(ids), 1] = torch.arange(len(ids), dtype=torch.float32)
            mask = torch.arange(6)[None] < len(ids)
            yield np.array([row]), {HOOK: states}, mask

    def pooled(self, texts: list[str], desc: str) -> dict[str, torch.Tensor]:
        return {HOOK: torch.tensor([[float(text.split()[0]), 0.0] for text in texts])}


def test_a_causal_models_first_tokens_are_left_out_and_an_encoders_are_not():
    texts = ["1 2 3", "4", "5 6"]
    for pooling, expected in (("last", [2, 3, 6]), ("mean", [1, 2, 3, 4, 5, 6])):
        found = tokens_of(Words(pooling), [HOOK], texts, 100)[HOOK]  # type: ignore[arg-type]
        assert found[:, 0].tolist() == expected


def test_samples_are_of_the_kind_asked_for_and_as_many(monkeypatch):
    monkeypatch.setattr(train_saes, "BATCH", 4)
    texts = [f"{number} 7" for number in range(60)]
    for on, first in (("texts", set(range(44))), ("tokens", {7})):
        made = collect(Words("last"), [HOOK], texts, replace(TRAINING, trained_on=on))  # type: ignore[arg-type]
        assert made[HOOK].shape == (44, 2)  # a tenth more, to measure on
        assert set(made[HOOK][:, 0].tolist()) == first
    with pytest.raises(UserError, match="texts are too few to train on"):
        collect(Words("last"), [HOOK], texts[:9], TRAINING)  # type: ignore[arg-type]
    assert BATCH == 512


def test_all_datasets_give_alike_and_long_texts_stay_out(paths):
    write_texts(paths, ["1_first", "2_second", "3_third"], n_rows=300)
    texts = training_texts(paths, MODEL, TRAINING)
    sources: dict[str, str] = {}
    for name in ("1_first", "2_second", "3_third"):
        sources |= dict.fromkeys(load_dataset(paths, name).texts, name)
    counts = {name: sum(sources[text] == name for text in texts[:60]) for name in sources.values()}
    assert max(counts.values()) - min(counts.values()) <= 6  # few texts stand in two of them
    short = training_texts(paths, MODEL, replace(TRAINING, max_characters=35))
    assert 0 < len(short) < len(texts)
    assert max(map(len, short)) <= 35
    with pytest.raises(UserError, match="too long"):
        training_texts(paths, MODEL, replace(TRAINING, max_characters=2))


def test_what_is_trained_on_follows_from_how_texts_are_read():
    def training(model: str, *flags: str) -> Training:
        args = train_saes.make_parser().parse_args(["--model_name", model, *flags])
        return Training.of(args, get_model(model))

    assert training(MODEL).trained_on == "texts"
    assert training("smollm2-135m").trained_on == "tokens"
    assert training(MODEL, "--trained_on", "tokens").n_samples == 250_000
    assert training(MODEL).flags() != training(MODEL, "--max_characters", "9").flags()


def test_training_shows_one_bar_that_leaves_room_and_ends(capsys):
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2))
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    before = sae.W_enc.detach().clone()
    fitted = train(sae, iter([rows] * 8), Schedule(7, 64, 1e-3, 2))
    assert not torch.equal(fitted.W_enc, before)
    said = capsys.readouterr().err
    assert "loss" not in said
    assert "448/448" in said
    assert said.count("Training SAE") == said.count("/448")
