"""Latent cards against sums written out here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from utils.paths import Paths
from utils.probes.linear import LinearProbe
from utils.results.cards import (
    FALSE_ALARM,
    MISS,
    TOP,
    Card,
    Example,
    ProbeCards,
    choice_over_seeds,
    make_cards,
    read_cards,
    shares_of_score,
    with_tokens,
    write_cards,
)
from utils.results.side_experiments import explanations
from utils.runtime.errors import UserError
from utils.saes.decode import SAME
from utils.saes.releases import neuronpedia_address
from utils.settings import TrainTest

COLUMNS = np.array([3, 7, 11])
TEXTS = [f"text {i // 2}" for i in range(300)]  # each stands twice


def made(seed: int = 0) -> tuple[TrainTest, LinearProbe, list[Card]]:
    """Latent 3 speaks for class 1, 7 for class 0, 11 for nothing."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(size=(600, 20)) - 0.3, 0)
    y = (X[:, 3] - X[:, 7] + 0.5 * rng.normal(size=600) > 0).astype(np.int64)
    fresh = np.arange(300) % 3 != 0
    rows = TrainTest(csr_array(X[:300]), y[:300], csr_array(X[300:]), y[300:], fresh)
    probe = LinearProbe(np.array([2.0, -1.5, 0.1]), 0.2, COLUMNS)
    return rows, probe, make_cards(rows, probe, lambda place: (place + 300, TEXTS[place]), 0)


def test_numbers_of_a_latent_are_those_of_its_column():
    rows, probe, cards = made()
    train, test = rows.X_train.toarray(), rows.X_test.toarray()
    for card, column, toward in zip(cards, COLUMNS, (1, -1, None)):
        toward = toward or (1 if card.speaks_for else -1)
        assert card.latent == column
        assert card.speaks_for == (toward == 1)
        assert card.train_auc == pytest.approx(
            roc_auc_score(rows.y_train, toward * train[:, column])
        )
        assert card.test_auc == pytest.approx(roc_auc_score(rows.y_test, toward * test[:, column]))
        assert card.test_auc_fresh == pytest.approx(
            roc_auc_score(rows.y_test[rows.fresh], toward * test[rows.fresh, column])
        )
        for label in (0, 1):
            values = test[rows.y_test == label, column]
            assert card.fires[label] == pytest.approx((values > 0).mean())
            assert sum(card.counts[label]) == (values > 0).sum()
    assert [card.rank for card in cards] == [1, 2, 3]
    assert cards[0].chosen == cards[1].chosen == 1.0
    assert cards[2].chosen < 1.0
    assert probe.columns is not None


def test_shares_are_what_goes_when_a_latent_is_held_still():
    """A share is a slope: the score regressed on itself, part by part; they sum to 1."""
    rows, probe, cards = made()
    read = rows.X_test.toarray()[:, COLUMNS]
    score = read @ probe.coef
    expected = [
        np.cov(read[:, i] * probe.coef[i], score)[0, 1] / score.var(ddof=1) for i in range(3)
    ]
    assert [card.share for card in cards] == pytest.approx(expected)
    assert sum(card.share for card in cards) == pytest.approx(1)
    assert cards[0].share > cards[1].share > cards[2].share
    assert shares_of_score(np.ones((5, 2)), np.ones(2)).tolist() == [0, 0]


def test_examples_are_the_strongest_and_the_mistakes():
    rows, probe, cards = made()
    test = rows.X_test.toarray()
    scores = probe.scores(rows.X_test)
    for card in cards[:2]:
        values = test[:, card.latent]
        by_kind = {k: [e for e in card.examples if e.kind == k] for k in (TOP, FALSE_ALARM, MISS)}
        assert by_kind[TOP][0].activation == values.max()
        others = values[rows.y_test != card.speaks_for]
        alarms = [e for e in (*by_kind[TOP], *by_kind[FALSE_ALARM]) if e.label != card.speaks_for]
        assert alarms[0].activation == others.max()
        for miss in by_kind[MISS]:
            assert miss.label == card.speaks_for
            assert (miss.score > 0) != bool(card.speaks_for)
            assert miss.activation == values[rows.y_test == card.speaks_for].min()
        wrong = (scores < 0) if card.speaks_for else (scores > 0)
        silent = wrong & (values == 0) & (rows.y_test == card.speaks_for)
        assert abs(by_kind[MISS][0].score) == pytest.approx(np.abs(scores[silent]).max())
        assert len({e.text for e in card.examples}) == len(card.examples)
        assert all(TEXTS[e.row - 300] == e.text for e in card.examples)
        assert all(e.activation == values[e.row - 300] for e in card.examples)


def test_tokens_around_the_strongest_are_kept():
    values = np.zeros(100)
    values[60] = 5.0
    example = with_tokens(Example(TOP, 0, 1, 5.0, 1.0, "x"), [str(i) for i in range(100)], values)
    assert example.tokens[0] == "36"
    assert example.tokens[-1] == "72"
    assert example.tokens[int(np.argmax(example.token_values))] == "60"


def probe_cards(cards: list[Card]) -> ProbeCards:
    return ProbeCards(
        "mails", "layer_2/w", 3, "paper", 42, "blocks.2.hook_resid_post", ["ham", "spam"],
        0.9, 0.91, 300, "", "", "abc", [], cards,
    )  # fmt: skip


def test_a_file_reads_back_as_it_was_written(tmp_path):
    cards = [
        replace(card, test_auc_fresh=0.5, chosen_by_seeds=0.5) for card in made()[2]
    ]  # NaN is not itself
    hostile = "<script>alert(1)</script> \u202e\U0001f600 \"'"
    cards[0].examples[0] = replace(cards[0].examples[0], text=hostile)
    other = replace(probe_cards(cards), dataset="a")
    path = tmp_path / "latents.parquet"
    write_cards(path, [probe_cards(cards), other])
    assert read_cards(path) == [other, probe_cards(cards)]
    before = path.read_bytes()
    write_cards(path, [other, probe_cards(cards)])
    assert path.read_bytes() == before
    assert read_cards(tmp_path / "none.parquet") == []


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "latents.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"explain_probes\.py again"):
        read_cards(path)


def test_an_address_that_is_none_of_neuronpedias_is_refused(tmp_path):
    path = tmp_path / "latents.parquet"
    cards = [replace(card, test_auc_fresh=0.5, chosen_by_seeds=0.5) for card in made()[2]]
    write_cards(path, [replace(probe_cards(cards), neuronpedia="javascript:alert(1)")])
    with pytest.raises(UserError, match="Neuronpedia"):
        read_cards(path)


def test_an_address_is_the_registrys():
    assert neuronpedia_address(
        "gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical"
    ) == ("https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k")
    assert neuronpedia_address("its files", "layer_2/w") == ""


def test_published_explanations_are_found_by_the_saes_name(tmp_path):
    paths = Paths(results_dir=tmp_path)
    sae_id = "layer_20/width_131k/average_l0_114"
    table = paths.sae_probe_table("gemma-2-9b", "normal")
    table.parent.mkdir(parents=True)
    name = "top_1_latent_results_layer_20_width_131k_average_l0_114_with_explanations.csv"
    rows = 'dataset,best_feature,test_auc,explanation\na,7,0.9,"names, of ships"\nb,8,0.5,\n'
    table.with_name(name).write_text(rows)
    assert explanations(paths, "gemma-2-9b", sae_id) == {7: "names, of ships"}
    assert explanations(paths, "gemma-2-9b", "layer_20/other") == {}


def test_choice_over_seeds_is_counted_pair_by_pair():
    rng = np.random.default_rng(3)

    def unit(n):
        vectors = rng.normal(size=(n, 3))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    own, others = unit(8), [unit(5), unit(6), unit(4)]
    found = choice_over_seeds(own, others)
    counted = [sum(any(float(a @ b) >= SAME for b in other) for other in others) / 3 for a in own]
    assert np.allclose(found, counted)
    assert 0 < found.mean() < 1
    assert choice_over_seeds(np.array([[1.0, 0.0]]), [np.array([[-1.0, 0.0]])])[0] == 0
    assert np.isnan(choice_over_seeds(own, [])).all()


def test_a_file_of_an_older_version_says_nothing_of_seeds(tmp_path):
    path = tmp_path / "latents.parquet"
    write_cards(path, [probe_cards(made()[2])])
    table = pq.read_table(path).drop_columns(["chosen_by_seeds", "other_seeds", "explanation"])
    pq.write_table(table, path)
    (probe,) = read_cards(path)
    assert probe.other_seeds == []
    assert all(np.isnan(card.chosen_by_seeds) for card in probe.cards)
