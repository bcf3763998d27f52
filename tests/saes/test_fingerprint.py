"""A fingerprint sees any change of an SAE's small arrays, in every format, and samples its
matrices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from utils.readers.fingerprints import folder_fingerprint as fingerprint

D_MODEL, D_SAE = 384, 4096


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"b_enc": D_SAE, "threshold": D_SAE, "b_dec": D_MODEL}
    matrices = {
        name: rng.normal(size=shape)
        for name, shape in {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL)}.items()
    }
    vectors = {name: rng.normal(size=size) for name, size in sizes.items()}
    return {name: array.astype(np.float32) for name, array in {**matrices, **vectors}.items()}


WRITERS = {
    "params.npz": lambda path, state: np.savez(path, **state),
    "sae_weights.safetensors": lambda path, state: save_file(state, path),
    "ae.pt": lambda path, state: torch.save(
        {name: torch.from_numpy(array) for name, array in state.items()}, path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("array", ["b_enc", "threshold", "b_dec", "W_enc"])
def test_a_change_of_one_number_or_of_a_whole_matrix_is_seen(name, array, tmp_path):
    WRITERS[name](tmp_path / name, arrays())
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    for index in (0, 1234, -1) if array in ("b_enc", "threshold") else (slice(None),):
        state = arrays()
        state[array][index] += 5
        WRITERS[name](tmp_path / name, state)
        assert fingerprint(tmp_path) != before
    WRITERS[name](tmp_path / name, arrays())
    assert fingerprint(tmp_path) == before


def test_a_folder_that_moved_is_the_same_sae(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        WRITERS["params.npz"](tmp_path / folder / "params.npz", arrays())
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "there")
