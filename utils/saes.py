"""Sparse autoencoders: find one, read its encoder in blocks of latents, encode rows into sparse latents.

Only what encoding needs is read (never the decoder's weights, except their norms where an SAE's definition asks for them),
and never more than a block at a time. The results equal SAELens's own ``encode``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from utils.datasets import first_line
from utils.errors import UserError
from utils.models import get_model
from utils.paths import Paths
from utils.weight_files import StoredArray, stored_arrays

ARCHITECTURES = ("standard", "jumprelu", "topk", "gated")
FORMATS = (
    "params.npz (Gemma Scope), cfg.json + sae_weights.safetensors (SAELens) or hyperparams.json + checkpoints/ (Llama Scope)"
)


@dataclass(frozen=True)
class Encoder:
    """What an SAE's encoder is, and where its weights stand; no weights are in memory.

    ``W_enc`` is [d_model, d_sae], or [d_sae, d_model] where ``latents_first``. ``vectors`` are small arrays [d_sae]
    (b_enc, threshold, b_gate, b_mag, r_mag). The input is normalised, then ``b_dec`` [d_model] is taken off it.
    """

    sae_id: str
    architecture: str
    d_model: int
    d_sae: int
    W_enc: StoredArray
    latents_first: bool = False
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    b_dec: np.ndarray | None = None
    normalize_activations: str = "none"
    input_scale: float = 1.0  # multiplies W_enc
    k_active: int = 0  # latents a TopK SAE keeps of a row
    W_dec: StoredArray | None = None  # only where pre-activations are scaled by the decoder's norms
    is_control: bool = False  # random weights, see train_saes.py

    @property
    def n_bytes(self) -> int:
        """Memory of the whole encoder in float32."""
        return 4 * self.d_sae * (self.d_model + 4)

    def block(self, start: int, stop: int, device: torch.device) -> EncoderBlock:
        """Read latents start … stop - 1 from the file."""
        if self.latents_first:
            weights = self.W_enc.rows(start, stop).T
        else:
            weights = self.W_enc.columns(start, stop)
        if self.input_scale != 1.0:
            weights = weights * np.float32(self.input_scale)
        norms = np.linalg.norm(self.W_dec.rows(start, stop), axis=1) if self.W_dec else None
        vectors = {name: torch.from_numpy(array[start:stop]).to(device) for name, array in self.vectors.items()}
        return EncoderBlock(
            start,
            torch.from_numpy(weights).to(device),
            vectors,
            None if norms is None else torch.from_numpy(norms).to(device),
        )

    def prepare(self, activations: torch.Tensor) -> torch.Tensor:
        """Activations [n_rows, d_model] as SAELens's process_sae_in hands them to the encoder."""
        x = activations
        if self.normalize_activations == "constant_norm_rescale":
            x = x * (self.d_model**0.5 / x.norm(dim=-1, keepdim=True))
        elif self.normalize_activations == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            x = x / (x.std(dim=-1, keepdim=True) + 1e-5)
        return x if self.b_dec is None else x - torch.from_numpy(self.b_dec).to(x.device)


@dataclass(frozen=True)
class EncoderBlock:
    """Latents start … start + n - 1 of an encoder on a device; ``weights`` [d_model, n]."""

    start: int
    weights: torch.Tensor
    vectors: dict[str, torch.Tensor]
    decoder_norms: torch.Tensor | None

    def __len__(self) -> int:
        return self.weights.shape[1]

    @property
    def n_bytes(self) -> int:
        return 4 * self.weights.numel()


@dataclass
class SparseRows:
    """Rows of latents in CSR form: ``indptr`` int64 [n_rows + 1], ``columns`` int32 and ``values`` float32 [n_nonzero]."""

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.indptr) - 1


def encode_block(encoder: Encoder, block: EncoderBlock, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nonzero latents of a block for prepared rows x [n_rows, d_model]: (row, column, value), row by row.

    TopK SAEs: the block's own k strongest of each row, negative ones included; ``keep_top_k`` settles it over all blocks.
    """
    if encoder.architecture == "gated":
        shared = x @ block.weights
        magnitude = shared * block.vectors["r_mag"].exp() + block.vectors["b_mag"]
        keep = (shared + block.vectors["b_gate"] > 0) & (magnitude > 0)
        return _nonzero(keep, magnitude, block.start)
    pre = torch.addmm(block.vectors["b_enc"], x, block.weights)
    if block.decoder_norms is not None:
        pre *= block.decoder_norms
    if encoder.architecture == "topk":
        values, columns = torch.topk(pre, min(encoder.k_active, len(block)), dim=1)
        rows = torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(columns)
        return rows.reshape(-1), columns.reshape(-1) + block.start, values.reshape(-1)
    threshold = block.vectors.get("threshold")
    # JumpReLU applies ReLU too: a negative threshold lets nothing negative through
    return _nonzero(pre > (0 if threshold is None else threshold.clamp(min=0)), pre, block.start)


def _nonzero(keep: torch.Tensor, values: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if keep.device.type == "mps":  # no dependable sparse kernels there
        keep, values = keep.cpu(), values.cpu()
    rows, columns = keep.nonzero(as_tuple=True)
    return rows, columns + start, values[rows, columns]


def keep_top_k(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of candidates in any order, each row's k largest values, then those above zero."""
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    first = np.searchsorted(rows, rows, side="left")
    keep = (np.arange(len(rows)) - first < k) & (values > 0)
    return rows[keep], columns[keep], values[keep]


def to_sparse_rows(encoder: Encoder, n_rows: int, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> SparseRows:
    """Join the blocks' nonzeros of the same rows into CSR, columns ascending within a row."""
    rows, columns, values = (torch.cat([part[i] for part in parts]).cpu().numpy() for i in range(3))
    if encoder.architecture == "topk":
        rows, columns, values = keep_top_k(rows, columns, values, encoder.k_active)
    if len(parts) > 1 or encoder.architecture == "topk":
        order = np.lexsort((columns, rows))
        rows, columns, values = rows[order], columns[order], values[order]
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=indptr[1:])
    return SparseRows(indptr, columns.astype(np.int32), values.astype(np.float32, copy=False))


def concatenate(parts: list[SparseRows]) -> SparseRows:
    """Rows of several pieces, one after the other."""
    counts = np.concatenate([np.diff(part.indptr) for part in parts])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return SparseRows(indptr, np.concatenate([p.columns for p in parts]), np.concatenate([p.values for p in parts]))


def encode(
    encoder: Encoder, blocks: list[EncoderBlock], activations: np.ndarray, device: torch.device, batch_size: int = 128
) -> Iterator[SparseRows]:
    """Sparse latents of activations [n_rows, d_model] float32, ``batch_size`` rows at a time, with all blocks in memory."""
    with torch.inference_mode():
        for start in range(0, len(activations), batch_size):
            batch = torch.from_numpy(activations[start : start + batch_size]).to(device)
            x = encoder.prepare(batch)
            yield to_sparse_rows(encoder, len(x), [encode_block(encoder, block, x) for block in blocks])


# Finding and opening


def find_sae_folder(sae_dir: Path, sae_id: str) -> Path | None:
    """The folder of an SAE on disk, in any format; None when there is none."""
    folder = sae_dir / sae_id
    markers = ("params.npz", "cfg.json", "hyperparams.json")
    return folder if any((folder / marker).is_file() for marker in markers) else None


def list_sae_ids(sae_dir: Path) -> list[str]:
    """Ids of the SAEs below a folder, in name order."""
    if not sae_dir.is_dir():
        return []
    markers = ("params.npz", "cfg.json", "hyperparams.json")
    found = {path.parent for marker in markers for path in sae_dir.rglob(marker)}
    return sorted(
        folder.relative_to(sae_dir).as_posix() for folder in found if not any(part.startswith(".") for part in folder.parts)
    )


def open_sae(paths: Paths, model_name: str, sae_id: str, sae_dir: Path | None = None) -> Encoder:
    """The encoder of an SAE by its id: from ``sae_dir``, else from the model's release on the hub.

    Raises UserError when it is nowhere to be had or is of a kind that cannot be read.
    """
    sae_dir = sae_dir or paths.saes(model_name)
    folder = find_sae_folder(sae_dir, sae_id) or _from_hub(model_name, sae_id, sae_dir)
    if (folder / "params.npz").is_file():
        return _open_gemma_scope(folder, sae_id)
    if (folder / "cfg.json").is_file():
        return _open_sae_lens(folder, sae_id)
    return _open_llama_scope(folder, sae_id)


def _from_hub(model_name: str, sae_id: str, sae_dir: Path) -> Path:
    """Download an SAE's files into the hub's cache and return their folder."""
    release = get_model(model_name).sae_release
    known = list_sae_ids(sae_dir)
    here = f"SAEs there: {', '.join(known[:6])}" if known else "there are no SAEs there"
    if release is None:
        raise UserError(f"no SAE {sae_id!r} at {sae_dir / sae_id} ({here}); it needs {FORMATS}")
    from huggingface_hub import snapshot_download
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    entry = get_pretrained_saes_directory().get(release)
    if entry is None or sae_id not in entry.saes_map:
        raise UserError(
            f"no SAE {sae_id!r} at {sae_dir / sae_id} ({here}), and SAELens's release {release} has none of that name"
        )
    subfolder = entry.saes_map[sae_id]
    try:
        snapshot = snapshot_download(entry.repo_id, allow_patterns=[f"{subfolder}/*"])
    except Exception as error:  # offline, gated, missing: the hub client has an error of its own for each
        raise UserError(
            f"no SAE {sae_id!r} at {sae_dir / sae_id} ({here}), and the hub cannot be reached ({type(error).__name__}); online, "
            f"`hf download {entry.repo_id} --include '{subfolder}/*' --local-dir {sae_dir}` fetches it"
        ) from error
    return Path(snapshot) / subfolder


def _open_gemma_scope(folder: Path, sae_id: str) -> Encoder:
    """Gemma Scope's params.npz: JumpReLU, no input bias (as SAELens's gemma_2 loader reads it)."""
    arrays = stored_arrays(folder / "params.npz")
    _need(arrays, ("W_enc", "b_enc", "threshold"), folder)
    W_enc = arrays["W_enc"]
    vectors = {name: arrays[name].read() for name in ("b_enc", "threshold")}
    # these were trained on embeddings divided by sqrt(d_model)
    scale = W_enc.shape[0] ** -0.5 if "embedding" in sae_id else 1.0
    return _checked(
        Encoder(sae_id, "jumprelu", W_enc.shape[0], W_enc.shape[1], W_enc, vectors=vectors, input_scale=scale), folder
    )


def _open_sae_lens(folder: Path, sae_id: str) -> Encoder:
    cfg = _read_json(folder / "cfg.json")
    arrays = stored_arrays(folder / "sae_weights.safetensors")
    architecture = cfg.get("architecture", "standard")
    if cfg.get("activation_fn_str", cfg.get("activation_fn")) == "topk":  # SAELens before 6.0
        architecture, cfg["k"] = "topk", cfg.get("activation_fn_kwargs", {}).get("k")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{folder / 'cfg.json'}: architecture {architecture!r} cannot be read; known: {', '.join(ARCHITECTURES)}")
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(f"{folder / 'cfg.json'}: reshape_activations {cfg['reshape_activations']!r} is for attention heads")
    needed = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    rescaled = architecture == "topk" and cfg.get("rescale_acts_by_decoder_norm", False)
    input_bias = cfg.get("apply_b_dec_to_input", True)
    _need(arrays, ("W_enc", *needed, *(("W_dec",) if rescaled else ()), *(("b_dec",) if input_bias else ())), folder)
    W_enc = arrays["W_enc"]
    if architecture == "topk" and not isinstance(cfg.get("k"), int):
        raise UserError(f"{folder / 'cfg.json'}: a topk SAE needs an integer k, not {cfg.get('k')!r}")
    return _checked(
        Encoder(
            sae_id,
            architecture,
            W_enc.shape[0],
            W_enc.shape[1],
            W_enc,
            vectors={name: arrays[name].read() for name in needed},
            b_dec=arrays["b_dec"].read() if input_bias else None,
            normalize_activations=cfg.get("normalize_activations", "none"),
            k_active=int(cfg.get("k") or 0),
            W_dec=arrays["W_dec"] if rescaled else None,
            is_control=cfg.get("metadata", {}).get("control") == "random",
        ),
        folder,
    )


def _open_llama_scope(folder: Path, sae_id: str) -> Encoder:
    """Llama Scope: one threshold for all latents; the activation norm it was trained at is folded into the weights."""
    cfg = _read_json(folder / "hyperparams.json")
    arrays = stored_arrays(folder / "checkpoints" / "final.safetensors")
    _need(arrays, ("encoder.weight", "encoder.bias"), folder)
    W_enc = arrays["encoder.weight"]
    try:
        scale = W_enc.shape[1] ** 0.5 / cfg["dataset_average_activation_norm"]["in"]
        threshold = np.full(W_enc.shape[0], cfg["jump_relu_threshold"] * scale, dtype=np.float32)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'hyperparams.json'} lacks {error}: fetch it again") from error
    vectors = {"b_enc": arrays["encoder.bias"].read(), "threshold": threshold}
    d_sae, d_model = W_enc.shape
    encoder = Encoder(sae_id, "jumprelu", d_model, d_sae, W_enc, latents_first=True, vectors=vectors, input_scale=scale)
    return _checked(encoder, folder)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): fetch the SAE again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: fetch the SAE again")
    return content


def _need(arrays: dict[str, StoredArray], names: tuple[str, ...], folder: Path) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(f"the SAE at {folder} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    if len(arrays[names[0]].shape) != 2:
        raise UserError(f"the SAE at {folder}: {names[0]} has shape {arrays[names[0]].shape}, not two dimensions")


def _checked(encoder: Encoder, folder: Path) -> Encoder:
    """The encoder, if all its arrays fit together and are finite."""
    if encoder.normalize_activations not in ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"):
        raise UserError(f"the SAE at {folder}: normalize_activations {encoder.normalize_activations!r} is not known")
    for name, array in encoder.vectors.items():
        if array.shape != (encoder.d_sae,):
            raise UserError(f"the SAE at {folder}: {name} has shape {array.shape}, not ({encoder.d_sae},)")
        if not np.isfinite(array).all():
            raise UserError(f"the SAE at {folder}: {name} has NaN or infinite values")
    if encoder.b_dec is not None and encoder.b_dec.shape != (encoder.d_model,):
        raise UserError(f"the SAE at {folder}: b_dec has shape {encoder.b_dec.shape}, not ({encoder.d_model},)")
    if encoder.architecture == "topk" and not 0 < encoder.k_active <= encoder.d_sae:
        raise UserError(f"the SAE at {folder}: k {encoder.k_active} is not between 1 and {encoder.d_sae}")
    return encoder


def is_control(folder: Path) -> bool:
    """Whether the SAE in a folder says that its weights were never trained."""
    path = folder / "cfg.json"
    return path.is_file() and _read_json(path).get("metadata", {}).get("control") == "random"
