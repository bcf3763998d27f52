"""The calibration on a small world: order, silence on equals, and promised power."""

from __future__ import annotations

import numpy as np
import pytest

from checks import calibrate
from utils.figures.study import calibration
from utils.results.calibration import in_sentences, read_calibration


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "N_TRAINED_ON", 600)
        yield calibrate.World.of(0)


def test_a_turned_dictionary_has_the_cosine_it_was_turned_to(world):
    for cosine in (1.0, 0.6):
        turned = world.turned(cosine, 1)
        assert np.allclose((turned * world.directions).sum(axis=1), cosine, atol=1e-4)
        assert np.allclose(np.linalg.norm(turned, axis=1), 1, atol=1e-4)
    assert world.quality(world.turned(0.9, 1), np.arange(50)) == pytest.approx(0.9, abs=0.001)
    order = np.random.default_rng(0).permutation(len(world.directions))
    assert world.quality(world.directions[order], np.arange(50)) == pytest.approx(1, abs=1e-4)


def test_better_saes_score_better_whatever_the_order_of_their_latents(world):
    features = world.labels(6)
    order = np.random.default_rng(0).permutation(len(world.directions))
    scores = [
        calibrate.probe_aucs(world, directions, features)
        for directions in (world.directions, world.directions[order], world.turned(0.5, 1))
    ]
    assert scores[0].mean() == pytest.approx(scores[1].mean(), abs=0.02)
    assert scores[0].mean() > scores[2].mean() + 0.1


def test_statistics_are_silent_on_equals_and_see_what_they_promise():
    """On differences as they come from SAEs of one quality, of which the share is known."""
    aucs = 0.8 + 0.05 * np.random.default_rng(1).normal(size=(8, 120))
    found = calibrate.shares(aucs, seed=0)
    assert 0.93 <= found["no_difference"] <= 0.97
    assert 0.77 <= found["power"] <= 0.83
    assert found["promised_difference"] == pytest.approx(0.7 * 0.05 * 2**0.5, rel=0.15)


def test_a_run_is_kept_and_shown(paths, monkeypatch, capsys):
    for name, value in (("N_TRAINED_ON", 600), ("QUALITIES", (1.0, 0.5)), ("N_STUDIES", 40),
                        ("N_LABELS_ORDERED", 4), ("N_LABELS_EQUAL", 20), ("N_EQUAL", 2),
                        ("N_STEPS", 5)):  # fmt: skip
        monkeypatch.setattr(calibrate, name, value)
    flags = ["--results_dir", str(paths.results_dir)]
    assert calibrate.main(flags) == 0
    table = read_calibration(paths)
    assert table["quality"].is_monotonic_decreasing
    assert len(table) == 5
    assert calibration(table).axes
    first = paths.calibration()[1].read_bytes()
    capsys.readouterr()
    assert calibrate.main(flags) == 0
    assert "done:" in capsys.readouterr().out
    assert paths.calibration()[1].read_bytes() == first
    paths.calibration()[1].write_text("{}")
    with pytest.raises(KeyError):
        in_sentences({})
