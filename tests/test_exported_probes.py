"""Probes in folders of their own: what is written reads back, and what does not fit is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from export_probe import how_read
from score_texts import read_texts
from utils.activations import write_activations
from utils.exported_probes import (
    DESCRIPTION,
    FORMAT,
    ExportedProbe,
    HeldOut,
    left_out_means,
    load_probe,
)
from utils.models import get_model
from utils.paths import Paths
from utils.probes.linear import LinearProbe
from utils.runtime.errors import UserError


def exported(tmp_path) -> ExportedProbe:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = rng.normal(size=400) + 2 * labels
    held_out = HeldOut(scores, labels)
    described = {
        "format": FORMAT, "model_name": "all-MiniLM-L6-v2", "model": None, "pooling": "mean",
        "max_seq_len": 128, "prepend_bos": False, "hook_name": "blocks.2.hook_resid_post",
        "sae": None, "classes": ["ham", "spam"], "dataset": "mails", "test_auc": 0.9,
        "intercept": 0.1, "binarize": False, "calibration": list(held_out.calibration()),
    }  # fmt: skip
    return ExportedProbe(
        described, LinearProbe(rng.normal(size=384), 0.1), held_out, Paths(data_dir=tmp_path)
    )


def test_a_folder_scores_the_same_bytes(tmp_path):
    probe = exported(tmp_path)
    probe.save(tmp_path / "probe")
    probe.save(tmp_path / "probe")  # an older probe is replaced
    X = np.random.default_rng(1).normal(size=(7, 384)).astype(np.float32)
    again = load_probe(tmp_path / "probe")
    assert again.score_activations(X).tobytes() == probe.score_activations(X).tobytes()
    assert list(again.classes_) == ["ham", "spam"]


def test_a_threshold_flags_no_more_of_class_0_than_it_says(tmp_path):
    held_out = exported(tmp_path).held_out
    for rate in (0.01, 0.05, 0.3):
        flagged = held_out.scores[held_out.labels == 0] > held_out.threshold(rate)
        assert rate - 1 / 200 <= flagged.mean() <= rate
    with pytest.raises(UserError, match="cannot be set on 200"):
        held_out.threshold(0.001)


def test_probabilities_are_calibrated(tmp_path):
    probe = exported(tmp_path)
    positive = probe.probabilities(probe.held_out.scores)[:, 1]
    assert positive.mean() == pytest.approx(probe.held_out.labels.mean(), abs=1e-3)
    # two normal classes 2 apart: the log odds are 2 (score - 1)
    slope, intercept = probe.described["calibration"]
    assert (slope, intercept / slope) == (pytest.approx(2, abs=0.4), pytest.approx(-1, abs=0.2))


def test_left_out_means_are_the_means_without_each_token():
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    means = left_out_means(vectors)
    np.testing.assert_allclose(means[0], vectors.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(means[3], np.delete(vectors, 2, axis=0).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(left_out_means(vectors[:1]), vectors[[0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"classes": None}, {"hook_name": "nowhere"}, {"intercept": None}]
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, change):
    exported(tmp_path).save(tmp_path / "probe")
    path = tmp_path / "probe" / DESCRIPTION
    described = json.loads(path.read_text())
    described |= change
    if change == {"classes": None}:
        del described["classes"]
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="holds no probe"):
        load_probe(tmp_path / "probe")


def test_a_folder_of_other_files_is_not_written_over(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        exported(tmp_path).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()


def test_texts_are_read_from_lines_and_columns(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read_texts(str(tmp_path / "a.txt"), "prompt") == ["one", "two"]
    (tmp_path / "a.csv").write_text('mail\n"one, two"\n<b>\n')
    assert read_texts(str(tmp_path / "a.csv"), "mail") == ["one, two", "<b>"]
    with pytest.raises(UserError, match="no column 'prompt'"):
        read_texts(str(tmp_path / "a.csv"), "prompt")
    with pytest.raises(UserError, match="one string"):
        exported(tmp_path).decision_function("one")


def test_texts_are_read_as_those_of_the_probe_were(tmp_path):
    paths, hook = Paths(data_dir=tmp_path), "blocks.2.hook_resid_post"
    info = get_model("all-MiniLM-L6-v2")
    assert how_read(paths, info, "mails", hook)["max_seq_len"] == info.max_seq_len
    made_by = {"model": "abc", "pooling": "last", "max_seq_len": 7, "prepend_bos": True}
    path = paths.model_activations(info.name, "mails", hook)
    for said in (made_by, {name: made_by[name] for name in made_by if name != "prepend_bos"}):
        write_activations(path, torch.zeros(2, 384), ["one", "two"], said)
        expected = {"prepend_bos": False, **said, "model_name": info.name, "hook_name": hook}
        assert how_read(paths, info, "mails", hook) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pooling", "max"),
        ("calibration", None),
        ("calibration", [float("nan"), 0]),
        ("classes", ["a"]),
        ("sae", {}),
        ("max_seq_len", "x"),
        ("hook_name", "elsewhere"),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, name, value):
    probe = exported(tmp_path)
    probe.save(tmp_path / "probe")
    path = tmp_path / "probe" / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(UserError, match="holds no probe"):
        load_probe(tmp_path / "probe")


def test_a_probe_of_more_columns_than_there_are_is_refused(tmp_path):
    probe = exported(tmp_path)
    with pytest.raises(UserError, match="reads 384 columns and is given 10"):
        probe.score_activations(np.zeros((2, 10), dtype=np.float32))


def test_texts_of_tables_and_lines(tmp_path):
    cases = {
        "a.csv": 'prompt\n"Hello, you"\nagain\n',
        "a.tsv": "prompt\tlabel\nHello, you\tx\nagain\ty\n",
        "b.csv": "prompt;label\nHello, you;x\nagain;y\n",
        "a.txt": "Hello, you\r\n\nagain\r\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content.encode())
        assert read_texts(str(tmp_path / name), "prompt") == ["Hello, you", "again"]
    line = "one line\u2028of text"
    (tmp_path / "b.txt").write_text(line)
    assert read_texts(str(tmp_path / "b.txt"), "prompt") == [line]
    for name, bad, said in (
        ("c.csv", b"prompt\nHello, you\n", "more cells than its header"),
        ("d.csv", b"prompt\n", "no texts"),
        ("e.csv", b'prompt,n\na,1\n"",2\n', "no prompt in row 1"),
        ("e.txt", "a".encode("utf-16"), "no text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(UserError, match=said):
            read_texts(str(tmp_path / name), "prompt")
