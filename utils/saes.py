"""Sparse autoencoders: find one on disk or on the hub, and read its encoder in blocks of latents.

Only what encoding needs is read (never the decoder's weights, except their norms where an SAE's definition asks for them),
and never more than a block at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.datasets import first_line
from utils.errors import UserError, unknown_name
from utils.models import LanguageModel, Layer, get_model, layer_order, named_l0, sae_layer
from utils.paths import Paths
from utils.weight_files import WeightArray, stored_arrays

ARCHITECTURES = ("standard", "jumprelu", "topk", "gated")  # read block by block; others through SAELens, whole
SAE_LENS = "sae_lens"
MARKERS = ("params.npz", "cfg.json", "hyperparams.json", "ae.pt")  # a folder with one of these is an SAE
FORMATS = (
    "params.npz (Gemma Scope), cfg.json + sae_weights.safetensors (SAELens), hyperparams.json + checkpoints/ (Llama Scope), "
    "cfg.json + sae.safetensors (sparsify) or config.json + ae.pt (dictionary_learning)"
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
    W_enc: WeightArray | None  # None: encoded by SAELens's own object, which ``load`` makes
    latents_first: bool = False
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    b_dec: np.ndarray | None = None
    normalize_activations: str = "none"
    input_scale: float = 1.0  # multiplies W_enc
    k_active: int = 0  # latents a TopK SAE keeps of a row
    W_dec: WeightArray | None = None  # only where pre-activations are scaled by the decoder's norms
    load: Callable[[torch.device], Any] | None = None

    @property
    def n_bytes(self) -> int:
        """Memory of the whole encoder in float32 (of SAELens's object: of its decoder too)."""
        return self.block_bytes(self.d_sae) * (1 if self.W_enc else 2)

    @property
    def n_file_bytes(self) -> int:
        """Bytes to read it once."""
        return self.W_enc.n_bytes if self.W_enc else self.n_bytes

    def block_bytes(self, n_latents: int) -> int:
        return 4 * n_latents * (self.d_model + 4)

    @property
    def named_l0(self) -> int | None:
        """The mean number of active latents that the id names, or a TopK SAE's own k."""
        return named_l0(self.sae_id) or self.k_active or None

    def described(self) -> dict:
        """Its shape, threshold and named L0, for the file of checks beside the results."""
        threshold = self.vectors.get("threshold")
        return {
            "architecture": self.architecture,
            "d_model": self.d_model,
            "d_sae": self.d_sae,
            "named_l0": self.named_l0,
            "threshold": None if threshold is None else [float(threshold.min()), float(threshold.max())],
        }

    def block(self, start: int, stop: int, device: torch.device) -> EncoderBlock:
        """Read latents start … stop - 1 from the file."""
        if self.W_enc is None:
            assert self.load is not None
            assert (start, stop) == (0, self.d_sae)
            return EncoderBlock(0, torch.empty(0, self.d_sae), {}, None, self.load(device))
        if self.latents_first:
            weights = self.W_enc.rows(start, stop).T
        else:
            weights = self.W_enc.columns(start, stop)
        if self.input_scale != 1.0:
            weights = weights * np.float32(self.input_scale)
        if not np.isfinite(weights.sum(dtype=np.float64)):
            raise UserError(f"{self.W_enc.path} has NaN or infinite weights in latents {start} to {stop - 1}: fetch it again")
        norms = np.linalg.norm(self.W_dec.rows(start, stop), axis=1) if self.W_dec else None
        vectors = {name: torch.from_numpy(array[start:stop]).to(device) for name, array in self.vectors.items()}
        return EncoderBlock(
            start,
            torch.from_numpy(weights).to(device),
            vectors,
            None if norms is None else torch.from_numpy(norms).to(device),
        )

    def whole(self, device: torch.device) -> Any:
        """SAELens's object with all weights, decoder included: what the original scripts load. For comparison only."""
        if self.load is not None:
            return self.load(device)
        from sae_lens import SAE
        from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

        assert self.W_enc is not None
        if self.W_enc.path.suffix != ".npz":
            return SAE.load_from_disk(self.W_enc.path.parent, device=str(device), dtype="float32")
        arrays = stored_arrays(self.W_enc.path)
        state = {name: torch.tensor(arrays[name].read()) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
        cfg = JumpReLUSAEConfig(d_in=self.d_model, d_sae=self.d_sae, apply_b_dec_to_input=False, device="meta")
        sae = JumpReLUSAE(cfg)
        sae.load_state_dict(state, assign=True)
        return sae.to(device)

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
    sae: Any = None  # SAELens's own object, where that encodes

    def __len__(self) -> int:
        return self.weights.shape[1]


def find_sae_folder(sae_dir: Path, sae_id: str) -> Path | None:
    """The folder of an SAE on disk, in any format; None when there is none."""
    folder = sae_dir / sae_id
    return folder if any((folder / marker).is_file() for marker in MARKERS) else None


def list_sae_ids(sae_dir: Path) -> list[str]:
    """Ids of the SAEs below a folder, in name order."""
    if not sae_dir.is_dir():
        return []
    found = {path.parent for marker in MARKERS for path in sae_dir.rglob(marker)}
    for folder in found:
        if not folder.name.isprintable():
            raise UserError(f"{str(folder)!a} has a name that is no text: rename it")
    return sorted(
        folder.relative_to(sae_dir).as_posix()
        for folder in found
        if not any(part.startswith(".") for part in folder.relative_to(sae_dir).parts)
    )


def choose_saes(
    paths: Paths, info: LanguageModel, asked: list[str] | None, sae_dir: Path | None, layers: list[Layer] | None
) -> dict[str, Layer]:
    """{sae_id: layer} of the SAEs asked for, else all on disk, else the paper's; only those of ``layers`` where given.

    Raises UserError when there are none.
    """
    folder = sae_dir or paths.saes(info.name)
    sae_ids = list(dict.fromkeys(asked or ())) or list_sae_ids(folder) or list(info.sae_ids)
    if not sae_ids:
        raise UserError(f"no SAE in {folder}: train some with train_saes.py, or name one with --target_sae_id")
    found = {}
    for sae_id in sae_ids:
        layer = sae_layer(sae_id)
        found[sae_id] = info.probe_layer if layer is None else layer
    chosen = {sae_id: layer for sae_id, layer in found.items() if not layers or layer in layers}
    if not chosen:
        raise UserError(
            f"no SAE reads the layers {layers}; those there are at layers {sorted(set(found.values()), key=layer_order)}"
        )
    return chosen


def open_sae(paths: Paths, model_name: str, sae_id: str, sae_dir: Path | None = None, release: str | None = None) -> Encoder:
    """The encoder of an SAE by its id: from ``sae_dir``, else from a release on the hub (default: the model's own).

    Raises UserError when it is nowhere to be had or is of a kind that cannot be read.
    """
    sae_dir = sae_dir or paths.saes(model_name)
    folder = find_sae_folder(sae_dir, sae_id)
    if folder is None:
        release = release or get_model(model_name, paths).sae_release
        folder = _from_hub(release, sae_id, sae_dir)
        if find_sae_folder(folder, ".") is None:  # a format that only SAELens reads
            return _through_sae_lens(sae_id, release=str(release))
    from utils.foreign_saes import open_dictionary, open_sparsify

    if (folder / "params.npz").is_file():
        return _open_gemma_scope(folder, sae_id)
    if (folder / "ae.pt").is_file():
        return open_dictionary(folder, sae_id)
    if (folder / "sae.safetensors").is_file():
        return open_sparsify(folder, sae_id)
    if (folder / "cfg.json").is_file():
        return _open_sae_lens(folder, sae_id)
    return _open_llama_scope(folder, sae_id)


def _from_hub(release: str | None, sae_id: str, sae_dir: Path) -> Path:
    """Download an SAE's files into the hub's cache and return their folder."""
    known = list_sae_ids(sae_dir)
    here = f"SAEs there: {', '.join(known[:6])}" if known else "there are no SAEs there"
    nowhere = f"no SAE {sae_id!r} at {sae_dir / sae_id} ({here})"
    if release is None:
        raise UserError(f"{nowhere}; it needs {FORMATS}")
    from huggingface_hub import snapshot_download
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise unknown_name("SAE release", release, directory)
    entry = directory[release]
    if sae_id not in entry.saes_map:
        raise UserError(f"{nowhere}, and release {release} has none of that name: {unknown_name('SAE', sae_id, entry.saes_map)}")
    subfolder = entry.saes_map[sae_id]
    try:
        return Path(snapshot_download(entry.repo_id, allow_patterns=[f"{subfolder}/*"])) / subfolder
    except Exception as error:  # offline, gated, missing: the hub client has an error of its own for each
        raise UserError(
            f"{nowhere}, and the hub cannot be reached ({type(error).__name__}); online, "
            f"`hf download {entry.repo_id} --include '{subfolder}/*' --local-dir {sae_dir}` fetches it"
        ) from error


def _through_sae_lens(sae_id: str, release: str | None = None, folder: Path | None = None) -> Encoder:
    """An SAE of a kind that the block reader does not know: SAELens loads it whole and encodes."""
    from sae_lens import SAE

    def load(device: torch.device) -> Any:
        if folder is not None:
            return SAE.load_from_disk(folder, device=str(device), dtype="float32").eval()
        return SAE.from_pretrained(release, sae_id, device=str(device)).to(torch.float32).eval()

    try:
        if folder is not None:
            cfg = read_json(folder / "cfg.json")
            d_in, d_sae = int(cfg["d_in"]), int(cfg["d_sae"])
        else:
            loaded = load(torch.device("cpu"))
            d_in, d_sae = loaded.cfg.d_in, loaded.cfg.d_sae
    except UserError:
        raise
    except Exception as error:  # SAELens has no error type of its own
        raise UserError(f"SAELens cannot load {sae_id} ({type(error).__name__}: {first_line(error)[:120]})") from error
    return Encoder(sae_id, SAE_LENS, d_in, d_sae, None, load=load)


def _open_gemma_scope(folder: Path, sae_id: str) -> Encoder:
    """Gemma Scope's params.npz: JumpReLU, no input bias (as SAELens's gemma_2 loader reads it)."""
    arrays = stored_arrays(folder / "params.npz")
    need(arrays, ("W_enc", "b_enc", "threshold"), folder)
    W_enc = arrays["W_enc"]
    vectors = {name: arrays[name].read() for name in ("b_enc", "threshold")}
    # these were trained on embeddings divided by sqrt(d_model)
    scale = W_enc.shape[0] ** -0.5 if "embedding" in sae_id else 1.0
    return checked(Encoder(sae_id, "jumprelu", W_enc.shape[0], W_enc.shape[1], W_enc, vectors=vectors, input_scale=scale), folder)


def _open_sae_lens(folder: Path, sae_id: str) -> Encoder:
    cfg = read_json(folder / "cfg.json")
    arrays = stored_arrays(folder / "sae_weights.safetensors")
    architecture = cfg.get("architecture", "standard")
    if cfg.get("activation_fn_str", cfg.get("activation_fn")) == "topk":  # SAELens before 6.0
        architecture, cfg["k"] = "topk", (cfg.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in ARCHITECTURES:
        from sae_lens.registry import SAE_CLASS_REGISTRY

        if architecture not in SAE_CLASS_REGISTRY:
            raise unknown_name(f"architecture in {folder / 'cfg.json'}:", architecture, SAE_CLASS_REGISTRY)
        return _through_sae_lens(sae_id, folder=folder)
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(f"{folder / 'cfg.json'}: reshape_activations {cfg['reshape_activations']!r} is for attention heads")
    needed = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    rescaled = architecture == "topk" and cfg.get("rescale_acts_by_decoder_norm", False)
    input_bias = cfg.get("apply_b_dec_to_input", True)
    need(arrays, ("W_enc", *needed, *(("W_dec",) if rescaled else ()), *(("b_dec",) if input_bias else ())), folder)
    W_enc = arrays["W_enc"]
    if architecture == "topk" and not isinstance(cfg.get("k"), int):
        raise UserError(f"{folder / 'cfg.json'}: a topk SAE needs an integer k, not {cfg.get('k')!r}")
    return checked(
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
        ),
        folder,
    )


def _open_llama_scope(folder: Path, sae_id: str) -> Encoder:
    """Llama Scope: one threshold for all latents; the activation norm it was trained at is folded into the weights."""
    cfg = read_json(folder / "hyperparams.json")
    arrays = stored_arrays(folder / "checkpoints" / "final.safetensors")
    need(arrays, ("encoder.weight", "encoder.bias"), folder)
    W_enc = arrays["encoder.weight"]
    try:
        scale = W_enc.shape[1] ** 0.5 / cfg["dataset_average_activation_norm"]["in"]
        threshold = np.full(W_enc.shape[0], cfg["jump_relu_threshold"] * scale, dtype=np.float32)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'hyperparams.json'} lacks {error}: fetch it again") from error
    vectors = {"b_enc": arrays["encoder.bias"].read(), "threshold": threshold}
    d_sae, d_model = W_enc.shape
    encoder = Encoder(sae_id, "jumprelu", d_model, d_sae, W_enc, latents_first=True, vectors=vectors, input_scale=scale)
    return checked(encoder, folder)


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): fetch the SAE again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: fetch the SAE again")
    return content


def need(arrays: Mapping[str, WeightArray], names: tuple[str, ...], folder: Path) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(f"the SAE at {folder} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    if len(arrays[names[0]].shape) != 2:
        raise UserError(f"the SAE at {folder}: {names[0]} has shape {arrays[names[0]].shape}, not two dimensions")


def checked(encoder: Encoder, folder: Path) -> Encoder:
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
    try:
        metadata = read_json(folder / "cfg.json").get("metadata")
    except UserError:  # no SAELens folder, or a broken one: the probes do not need it
        return False
    return isinstance(metadata, dict) and metadata.get("control") == "random"


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names, sizes and samples of an SAE's files: changes when the SAE does, and costs no full reading."""
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix in (".json", ".npz", ".safetensors", ".pt") and p.name != "training.json"
    ):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with open(path, "rb") as file:
            for i in range(64):  # 64 samples of 4 kB, the whole of a small file
                file.seek(size * i // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()
