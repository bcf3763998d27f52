"""The original order of work, and the files it leaves.

Our yardstick, and food for the original scripts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from utils.names import set_stem
from utils.paths import Paths
from utils.readers.pt_files import save_tensor
from utils.readers.weight_files import stored_arrays
from utils.runtime.errors import UserError
from utils.saes.encoder import Encoder
from utils.saes.store import condition_suffixes
from utils.settings import OOD_TRAIN_ROWS, Condition, TrainTest

if TYPE_CHECKING:
    import torch


def write_original_split(
    paths: Paths, model_name: str, dataset: str, sae_id: str, condition: Condition, rows: TrainTest
) -> int:
    """Write a condition's files as the original scripts do (coalesced COO, 20 bytes a nonzero); the
    bytes written.
    """
    import torch

    n_bytes = 0
    suffix, *_ = condition_suffixes(condition)
    stem = set_stem(dataset, sae_id, suffix)
    for part, X in zip(("X_train_sae", "X_test_sae"), (rows.X_train, rows.X_test)):
        path = paths.sae_activations(model_name, condition.setting, stem, part)
        n_bytes += _save_coo(path, X)
    for part, labels in (("y_train", rows.y_train), ("y_test", rows.y_test)):
        path = paths.sae_activations(model_name, condition.setting, stem, part)
        save_tensor(path, torch.tensor(labels))
    return n_bytes


def write_ood_archive(
    paths: Paths, model_name: str, dataset: str, width: int, inside: csr_array, outside: csr_array
) -> int:
    """Write the two files that the paper's OOD notebook reads of a dataset: its first rows
    [1500, d_sae], and all rows of its OOD file; the bytes written.

    Their names tell an SAE by its width alone. Raises UserError where a file of that name is there.
    """
    suffix = "_1m" if width == 1 << 20 else ""
    n_bytes = 0
    for rows, ood in ((inside[:OOD_TRAIN_ROWS], False), (outside, True)):
        path = paths.published_ood_archive(model_name, dataset, ood, suffix)
        if path.exists():
            raise UserError(f"{path} is there: its name does not say of which SAE; move it away")
        n_bytes += _save_coo(path, rows)
    return n_bytes


def _save_coo(path: Path, rows: csr_array) -> int:
    """Write rows as the original scripts do; the bytes written."""
    import torch

    coo = rows.tocoo()
    tensor = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)),
        torch.from_numpy(coo.data),
        coo.shape,
        check_invariants=False,
        is_coalesced=True,
    )
    save_tensor(path, tensor)
    return path.stat().st_size


def whole_sae(encoder: Encoder, device: torch.device) -> Any:
    """SAELens's object with all weights, decoder included: what the original scripts load. For
    comparison only.
    """
    if encoder.load is not None:
        return encoder.load(device)
    import torch
    from sae_lens import SAE
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    assert encoder.W_enc is not None
    if encoder.W_enc.path.suffix != ".npz":
        return SAE.load_from_disk(encoder.W_enc.path.parent, device=str(device), dtype="float32")
    arrays = stored_arrays(encoder.W_enc.path)
    state = {
        name: torch.tensor(arrays[name].read())
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    }
    cfg = JumpReLUSAEConfig(
        d_in=encoder.d_model, d_sae=encoder.d_sae, apply_b_dec_to_input=False, device="meta"
    )
    sae = JumpReLUSAE(cfg)
    sae.load_state_dict(state, assign=True)
    return sae.to(device)


def encode_dense(sae: Any, rows: TrainTest, batch_size: int) -> TrainTest:
    """Latents of a condition's rows, encoded for it in dense batches by SAELens's own object."""
    import torch

    device = next(sae.parameters()).device

    @torch.inference_mode()
    def encode(X: np.ndarray) -> csr_array:
        batches = torch.from_numpy(X).split(batch_size)
        return csr_array(
            torch.cat([sae.encode(batch.to(device)).cpu() for batch in batches]).numpy()
        )

    return replace(rows, X_train=encode(rows.X_train), X_test=encode(rows.X_test))
