"""Which SAEs there are: on disk, of a model, on the hub; opening one by its id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.models import LanguageModel, get_model
from utils.names import Layer, layer_order
from utils.paths import Paths
from utils.runtime.errors import Failures, UserError, unknown_name
from utils.saes.encoder import Encoder, read_json
from utils.saes.formats import FORMATS, format_of, through_sae_lens
from utils.saes.hooks import layer_read_by
from utils.saes.releases import as_released


def find_sae_folder(sae_dir: Path, sae_id: str) -> Path | None:
    """The folder of an SAE on disk, in any format; None when there is none."""
    folder = sae_dir / sae_id
    return folder if format_of(folder) else None


def list_sae_ids(sae_dir: Path) -> list[str]:
    """Ids of the SAEs below a folder, in name order."""
    if not sae_dir.is_dir():
        return []
    folders = {path.parent for known in FORMATS for path in sae_dir.rglob(known.marker)}
    for folder in folders:
        if not folder.name.isprintable():
            raise UserError(f"{str(folder)!a} has a name that is no text: rename it")
    return sorted(
        folder.relative_to(sae_dir).as_posix()
        for folder in folders
        if not any(part.startswith(".") for part in folder.relative_to(sae_dir).parts)
    )


@dataclass(frozen=True)
class SaeChoice:
    """Which SAEs a run uses: ``asked`` by id (None: all on disk, else the paper's), of ``layers``
    (None: all); ``hook_name``: what those read that do not say it; ``release``: where they are of.
    """

    asked: list[str] | None = None
    layers: list[Layer] | None = None
    hook_name: str | None = None
    release: str | None = None


def choose_saes(
    paths: Paths, info: LanguageModel, choice: SaeChoice, failures: Failures
) -> dict[str, Layer]:
    """{sae_id: the layer it reads}; an SAE of which that is not known, or whose sources disagree,
    is a failure, and the others go on.

    Raises UserError when there are none.
    """
    folder = paths.saes(info.name)
    sae_ids = list(dict.fromkeys(choice.asked or ())) or list_sae_ids(folder) or list(info.sae_ids)
    if not sae_ids:
        raise UserError(
            f"no SAE in {folder}: train some with train_saes.py, or name one with --target_sae_id"
        )
    layers_of: dict[str, Layer] = {}
    refused = Failures()
    for sae_id in sae_ids:
        with refused.caught():
            on_disk = find_sae_folder(folder, sae_id)
            # files on disk may be of any release, unless one is named
            release = choice.release or (None if on_disk else info.sae_release)
            layers_of[sae_id] = layer_read_by(sae_id, on_disk, release, choice.hook_name)
    if not layers_of:
        raise UserError(refused.lines[0])
    for line in refused.lines:
        failures.add(line)
    layers = choice.layers
    chosen = {sae_id: layer for sae_id, layer in layers_of.items() if not layers or layer in layers}
    if not chosen:
        raise UserError(
            f"no SAE reads the layers {layers}; those there are at layers"
            f" {sorted(set(layers_of.values()), key=layer_order)}"
        )
    return chosen


def release_used(paths: Paths, info: LanguageModel, sae_id: str, asked: str | None) -> str:
    """The release whose files, scaling and overrides ``open_sae`` takes; "its files" for none."""
    if asked or find_sae_folder(paths.saes(info.name), sae_id):
        return asked or "its files"
    return info.sae_release or "its files"


def open_sae(paths: Paths, model_name: str, sae_id: str, release: str | None = None) -> Encoder:
    """The encoder of an SAE by its id: from the folder of SAEs, else from a release on the hub
    (default: the model's own).

    Raises UserError when it is nowhere to be had or is of a kind that cannot be read.
    """
    sae_dir = paths.saes(model_name)
    folder = find_sae_folder(sae_dir, sae_id)
    if folder is None:
        release = release or get_model(model_name, paths).sae_release
        folder = _from_hub(release, sae_id, sae_dir)
    known = format_of(folder)
    if known is None:  # of the hub, in a form that only SAELens reads; it applies what it knows
        return through_sae_lens(sae_id, release=str(release))
    encoder = known.open(folder, sae_id)
    return as_released(encoder, release, sae_id) if release else encoder


def _from_hub(release: str | None, sae_id: str, sae_dir: Path) -> Path:
    """Download an SAE's files into the hub's cache and return their folder."""
    listed = list_sae_ids(sae_dir)
    here = f"SAEs there: {', '.join(listed[:6])}" if listed else "there are no SAEs there"
    nowhere = f"no SAE {sae_id!r} at {sae_dir / sae_id} ({here})"
    if release is None:
        raise UserError(f"{nowhere}; it needs {' or '.join(known.needs for known in FORMATS)}")
    from huggingface_hub import snapshot_download
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise unknown_name("SAE release", release, directory)
    entry = directory[release]
    if sae_id not in entry.saes_map:
        raise UserError(
            f"{nowhere}, and release {release} has none of that name:"
            f" {unknown_name('SAE', sae_id, entry.saes_map)}"
        )
    subfolder = entry.saes_map[sae_id]
    try:
        return Path(snapshot_download(entry.repo_id, allow_patterns=[f"{subfolder}/*"])) / subfolder
    # offline, gated, missing: the hub client has an error of its own for each
    except Exception as error:
        raise UserError(
            f"{nowhere}, and the hub cannot be reached ({type(error).__name__}); online, `hf"
            f" download {entry.repo_id} --include '{subfolder}/*' --local-dir {sae_dir}` fetches"
            f" it, and --target_sae_id {subfolder} names it then"
        ) from error


def is_control(folder: Path) -> bool:
    """Whether the SAE in a folder says that its weights were never trained."""
    try:
        metadata = read_json(folder / "cfg.json").get("metadata")
    except UserError:  # no SAELens folder, or a broken one: the probes do not need it
        return False
    return isinstance(metadata, dict) and metadata.get("control") == "random"
