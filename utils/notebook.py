"""For people in a notebook: is this SAE useful? One call on an SAE object, whose result is a table.

    from utils.notebook import probe_sae
    table = probe_sae(sae, "gemma-2-9b", "blocks.20.hook_resid_post",
                      datasets=["87_glue_cola", "96_spam_is"])
    table.pivot_table(index=["method", "k"], values="test_auc")

Needs the model activations of generate_model_activations.py (or the paper's) in data/; writes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, vstack
from threadpoolctl import threadpool_limits

from utils.activations import ModelRows, load_rows
from utils.datasets import choose_datasets
from utils.names import hook_name as full_name
from utils.names import parse_layer
from utils.paths import Paths
from utils.probes.baselines import METHODS
from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.results.kept_probes import NOTHING, Keeping, choose_kept
from utils.runtime.errors import UserError, first_line
from utils.runtime.progress import progress
from utils.settings import NORMAL, Condition, conditions, get_setting

if TYPE_CHECKING:
    import torch

BATCH_ROWS = 128


def probe_sae(
    sae: Any,
    model_name: str,
    hook_name: str,
    datasets: Sequence[str] | None = None,
    setting: str = NORMAL.name,
    ks: Sequence[int] = (1, 16, 128),
    baselines: Sequence[str] = ("logreg",),
    protocol: str = "paper",
    seed: int = 42,
    paths: Paths | None = None,
) -> pd.DataFrame:
    """A row a dataset, condition and probe: probes on the k most telling latents of ``sae``, and
    baselines on the same rows.

    sae: any object whose ``encode`` takes a float32 tensor [n_rows, d_model] and returns latents
    [n_rows, d_sae]. hook_name: which activations it reads ("blocks.20.hook_resid_post"). datasets:
    default all whose activations are in data/. setting: normal, scarcity, class_imbalance,
    label_noise or OOD. baselines: of logreg, pca, knn, xgboost, mlp.

    Columns: dataset, setting, condition, method ("sae_probe" or the baseline), k, val_auc,
    test_auc, test_f1, test_acc, C, converged, n_train, n_test, latents (the first chosen), mean_l0
    (latents active on a row).

    Raises UserError when activations are missing or ``encode`` does not return what it should.
    """
    paths = paths or Paths()
    setting = get_setting(setting).name
    try:
        hook = full_name(parse_layer(str(hook_name)))
    except ValueError as error:
        raise UserError(f"{hook_name!r} is no hook: {error}") from None
    names = choose_datasets(
        paths, list(datasets) if datasets else None, ood=get_setting(setting).shifted
    )
    if not datasets:
        names = [
            name for name in names if paths.model_activations(model_name, name, hook).is_file()
        ]
    if not names:
        raise UserError(
            f"no activations of {model_name} at {hook} in {paths.data_dir}: make them with"
            " generate_model_activations.py"
        )
    options = ProbeOptions(protocol=protocol, seed=seed)
    table: list[dict] = []
    for name in progress(names, desc=f"probing on {setting}", unit="dataset"):
        rows = load_rows(paths, model_name, name, hook, ood=get_setting(setting).shifted)
        latents = encode(sae, rows.X)
        encoded = ModelRows(
            latents, rows.y, None if rows.X_ood is None else encode(sae, rows.X_ood), rows.y_ood
        )
        mean_l0 = latents.nnz / latents.shape[0]
        with threadpool_limits(1):  # thousands of small products, which threads only slow down
            for condition in conditions(setting, len(rows.y)):
                common = {"dataset": name, "setting": setting, "condition": _label(condition)}
                for probe in fit_sae_probes(encoded.condition(condition, seed), ks, options):
                    table.append({**common, "method": "sae_probe", **probe, "mean_l0": mean_l0})
                drawn = rows.condition(condition, seed)
                sizes = {"n_train": len(drawn.y_train), "n_test": len(drawn.y_test)}
                for method in baselines:
                    scores = METHODS[method](drawn, seed)
                    table.append({**common, "method": method, **sizes, **scores})
    return pd.DataFrame(choose_kept(table, Keeping(NOTHING)))


def encode(sae: Any, X: np.ndarray) -> csr_array:
    """Sparse latents [n_rows, d_sae] of activations X [n_rows, d_model], in batches of 128 rows.

    A module is read in evaluation mode, in its own dtype and on its own device.

    Raises UserError when ``sae`` has no ``encode``, or it fails or returns anything but one number
    a row and latent, all finite.
    """
    import torch

    if not callable(getattr(sae, "encode", None)):
        raise UserError(f"{type(sae).__name__} has no encode: give an SAE, or an object with one")
    own = next(iter(sae.parameters()), None) if isinstance(sae, torch.nn.Module) else None
    device, dtype = (own.device, own.dtype) if own is not None else ("cpu", torch.float32)
    was_training = isinstance(sae, torch.nn.Module) and sae.training
    parts = []
    try:
        if was_training:
            sae.eval()  # in training some SAEs choose latents over the whole batch
        with torch.no_grad():
            for start in range(0, len(X), BATCH_ROWS):
                batch = torch.from_numpy(X[start : start + BATCH_ROWS]).to(device, dtype, copy=True)
                parts.append(_sparse(sae.encode(batch), batch, start))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"encode failed on rows of width {X.shape[1]} ({type(error).__name__}:"
            f" {first_line(error)[:120]}): does the SAE read this hook?"
        ) from error
    finally:
        if was_training:
            sae.train()
    if len({part.shape[1] for part in parts}) > 1:
        raise UserError("encode returned another number of latents for some rows")
    return csr_array(vstack(parts))


def _sparse(latents: Any, batch: torch.Tensor, start: int) -> csr_array:
    """What ``encode`` returned for a batch, as sparse float32."""
    import torch

    if isinstance(latents, np.ndarray):
        latents = torch.from_numpy(latents)
    if not isinstance(latents, torch.Tensor):
        raise UserError(f"encode returned a {type(latents).__name__}, not a tensor of latents")
    if latents.ndim != 2 or len(latents) != len(batch):
        raise UserError(
            f"encode returned shape {tuple(latents.shape)} for {len(batch)} rows, not"
            f" [{len(batch)}, d_sae]"
        )
    dense = latents.to_dense() if latents.layout != torch.strided else latents
    array = dense.float().cpu().numpy()
    if not np.isfinite(array).all():
        raise UserError(
            f"encode returned NaN or infinite values for rows {start} to {start + len(batch) - 1}"
        )
    return csr_array(array)


def _label(condition: Condition) -> float | int | str:
    return "all" if condition.label is None else condition.label
