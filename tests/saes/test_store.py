"""SAE activations on disk: what is written is what the original scripts can read, and what every
condition draws from.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_texts
from scipy.sparse import csr_array, random_array

from utils.datasets import load_dataset
from utils.readers.sparse_files import load_sparse, save_sparse
from utils.runtime.errors import UserError
from utils.saes.store import SaeActivations, SaeFiles, made_from
from utils.settings import Condition, split


def sparse(n: int, d: int, seed: int = 0) -> csr_array:
    return csr_array(
        random_array((n, d), density=0.05, rng=np.random.default_rng(seed), dtype=np.float32)
    )


def test_files_read_as_the_original_scripts_read_them(tmp_path):
    rows = sparse(40, 1000)
    save_sparse(tmp_path / "x.pt", rows)
    dense = torch.load(tmp_path / "x.pt", weights_only=True).to_dense().float()
    assert np.array_equal(dense.numpy(), rows.toarray())


def test_at_most_nine_bytes_a_nonzero(tmp_path):
    rows = sparse(1000, 16384)
    save_sparse(tmp_path / "x.pt", rows)
    assert (tmp_path / "x.pt").stat().st_size <= 9 * rows.nnz


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_sparse(tmp_path / name, sparse(40, 100))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("layout", ["coo", "dense", "half"])
def test_files_of_others_are_read(tmp_path, layout):
    rows = sparse(20, 50)
    dense = torch.from_numpy(rows.toarray())
    if layout == "half":
        rows, dense = csr_array(rows.toarray().astype(np.float16).astype(np.float32)), dense.half()
    torch.save(dense.to_sparse().coalesce() if layout == "coo" else dense, tmp_path / "x.pt")
    assert np.array_equal(load_sparse(tmp_path / "x.pt", "make it").toarray(), rows.toarray())


def test_rows_come_back_in_dataset_order_for_every_condition(paths):
    write_texts(paths, ["d"])
    rows, labels = sparse(300, 64), load_dataset(paths, "d").labels
    normal = split(Condition("normal"), labels)
    files = SaeFiles(paths, "all-MiniLM-L6-v2", "normal", "d", "layer_2/s")
    made = made_from(files, "blocks.2.hook_resid_post")
    files.write(rows, normal, None, made, {"d_sae": 64})
    assert files.is_done(made)
    assert not files.is_done({**made, "sae_id": "layer_2/other"})
    stored = SaeActivations(paths, "all-MiniLM-L6-v2", "d", "layer_2/s")
    assert np.array_equal(stored.rows().toarray(), rows.toarray())
    table = pd.read_csv(paths.texts("d"))
    table.assign(target=table["target"].sample(frac=1, random_state=0).to_numpy()).to_csv(
        paths.texts("d"), index=False
    )
    assert not files.is_done(made_from(files, "blocks.2.hook_resid_post"))
    with pytest.raises(UserError, match="other texts or labels than there is now"):
        SaeActivations(paths, "all-MiniLM-L6-v2", "d", "layer_2/s").rows()


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "nan"])
def test_a_bad_file_is_named_with_its_remedy(tmp_path, damage):
    path = tmp_path / "x.pt"
    if damage != "missing":
        save_sparse(path, sparse(20, 50))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    if damage == "text":
        path.write_text("no tensor")
    if damage == "nan":
        torch.save(torch.full((3, 3), float("nan")).to_sparse(), path)
    with pytest.raises(UserError, match=r"x\.pt.*make it"):
        load_sparse(path, "make it")


def test_a_pickle_in_a_pt_file_is_not_executed(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    torch.save(Hostile(), tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_sparse(tmp_path / "x.pt", "make it")
    assert not canary.exists()
