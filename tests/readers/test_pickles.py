"""The restricted unpickler: the published files' constructors give their values, anything else is
refused and never runs.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, Evil
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.paths import Paths
from utils.readers.pickles import read_pickle
from utils.results.multi_token import load_multi_token
from utils.runtime.errors import UserError

PUBLISHED = SHARED / "published_results" / "data"


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "result.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


def test_a_published_result_comes_back_as_it_was(tmp_path):
    weights = torch.arange(12, dtype=torch.float32).reshape(3, 4).T
    result = {
        "test_auc": np.float64(0.75),
        "k": np.int64(3),
        "dataset": "a",
        "weights": weights,
        "flag": np.bool_(True),
    }
    found = read_pickle(write(tmp_path, result))
    assert (found["test_auc"], found["k"], found["dataset"], found["flag"]) == (0.75, 3, "a", True)
    assert torch.equal(found["weights"], weights)


@pytest.mark.parametrize(
    "call",
    [os.system, eval, exec, print, open, np.load, torch.load, getattr, __import__, pickle.loads],
)
def test_a_hostile_pickle_is_refused_by_name_and_does_not_run(tmp_path, call):
    canary = tmp_path / "canary"
    path = write(tmp_path, {"test_auc": Evil(call, f"touch {canary}")})
    with pytest.raises(UserError, match="which is not run"):
        read_pickle(path)
    assert not canary.exists()


def test_a_pickle_inside_a_tensor_is_refused_too(tmp_path):
    canary = tmp_path / "canary"
    inner = pickle.dumps(Evil(os.system, f"touch {canary}"))
    with pytest.raises(UserError):
        read_pickle(write(tmp_path, {"t": Evil(torch.storage._load_from_bytes, inner)}))
    assert not canary.exists()


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    storage = torch.zeros(4).storage()
    arguments: tuple = (storage, 0, (1 << 20, 1 << 20), (1 << 20, 1), False, OrderedDict())
    with pytest.raises(UserError, match="larger than its storage"):
        read_pickle(write(tmp_path, {"t": Evil(torch._utils._rebuild_tensor_v2, *arguments)}))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps(np.array([None, object]))],
)
def test_broken_files_get_one_line(tmp_path, content):
    with pytest.raises(UserError) as raised:
        read_pickle(write(tmp_path, content))
    assert "\n" not in str(raised.value)


def assert_dict_or_one_line(path: Path) -> None:
    message = ""
    try:
        assert isinstance(read_pickle(path), dict)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_give_a_dict_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "x.pkl"
    path.write_bytes(content)
    assert_dict_or_one_line(path)


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
@settings(max_examples=300)
def test_a_published_result_with_changed_bytes_gives_a_dict_or_one_line(tmp_path_factory, at, new):
    whole = pickle.dumps(
        {"test_auc": np.float64(0.5), "weights": torch.ones(5), "dataset": "a", "layer": 20}
    )
    at %= len(whole)
    path = tmp_path_factory.mktemp("fuzz") / "x.pkl"
    path.write_bytes(whole[:at] + new + whole[at + len(new) :])
    assert_dict_or_one_line(path)


def test_a_bad_file_among_the_results_is_named_and_the_others_are_read(tmp_path):
    paths = Paths(data_dir=tmp_path)
    folder = paths.multi_token_folder("gemma-2-9b")
    folder.mkdir()
    common = {"dataset": "a", "layer": 20, "val_auc": 0.9, "test_auc": 0.8}
    results = {
        "a_20_attn_probing": {**common, "best_attn_vector": torch.ones(3)},
        "a_20_baseline_255_20": {**common, "number_to_concat": 255, "pca_k": 20},
        "a_20_width16k_l0408_max_binarized": {
            **common,
            "sae_aggregation_method": "max",
            "sae_id": "layer_20/width_16k/average_l0_408",
        },
        "b": {"dataset": "b"},
        "c": Evil(os.system, "true"),
    }
    for name, result in results.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(result))
    table, findings = load_multi_token(paths, "gemma-2-9b")
    assert sorted(table["method"]) == [
        "20 components of each of 255 tokens",
        "SAE, max over tokens, binarised",
        "attention probe",
    ]
    assert len(findings) == 2


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the published results are not beside the checkout"
)
def test_all_published_pickles_are_read():
    table, findings = load_multi_token(Paths(data_dir=PUBLISHED), "gemma-2-9b")
    assert (len(table), findings) == (460, [])
    assert table["test_auc"].between(0.3, 1).all()
