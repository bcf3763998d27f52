"""Which SAEs there are: on disk, of a model, on the hub; opening one by its id."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from utils.models import LanguageModel, get_model
from utils.names import Layer, layer_order, sae_layer, sae_stem, split_twin
from utils.paths import Paths
from utils.readers.fingerprints import files_fingerprint, folder_fingerprint
from utils.runtime.errors import Failures, UserError, unknown_name
from utils.runtime.files import visible_files
from utils.saes.encoder import Encoder, read_json
from utils.saes.formats import FILE_FORMATS, FORMATS, format_of
from utils.saes.hooks import layer_read_by
from utils.saes.one_file import companions, is_one_file
from utils.saes.releases import as_released
from utils.saes.twins import make_twin

# model types that put a norm behind attention and MLP
NORMED = ("gemma2", "gemma3", "olmo2", "olmo3")
# SAELens's loaders of releases whose paths are files
ONE_FILE_RELEASES = {"goodfire", "deepseek_r1", "qwen_scope", "mwhanna_transcoder"}


def find_sae(sae_dir: Path, sae_id: str) -> Path | None:
    """The folder of an SAE on disk, or its one file, in any format; None when there is none."""
    path = sae_dir / sae_id
    return path if format_of(path) else None


def sae_fingerprint(path: Path) -> str:
    """SHA-256 over the files of an SAE, as ``folder_fingerprint`` takes it."""
    return (
        files_fingerprint([path, *companions(path)]) if path.is_file() else folder_fingerprint(path)
    )


def list_sae_ids(sae_dir: Path) -> list[str]:
    """Ids of the SAEs below a folder, in name order; links to folders are followed, hidden files
    and folders are not looked into.
    """
    if not sae_dir.is_dir():
        return []
    files = list(visible_files(sae_dir))
    markers = {known.marker for known in FORMATS}
    found = {file.parent for file in files if file.name in markers} - {sae_dir}
    # what stands below a folder of an SAE is a part of it, as the checkpoints of its training are
    found |= {
        file
        for file in files
        if format_of(file) and found.isdisjoint(file.parents) and is_one_file(file)
    }
    for path in found:
        if not path.name.isprintable():
            raise UserError(f"{str(path)!a} has a name that is no text: rename it")
    return sorted(path.relative_to(sae_dir).as_posix() for path in found)


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
    asked = [sae_id.rstrip("/") for sae_id in choice.asked or ()]  # as a shell completes folders
    on_disk = list_sae_ids(folder)
    sae_ids = list(dict.fromkeys(asked)) or on_disk or list(info.sae_ids)
    if not sae_ids:
        raise UserError(
            f"no SAE in {folder}: train some with train_saes.py, or name one with --target_sae_id"
        )
    stems: dict[str, str] = {}
    for sae_id in [*sae_ids, *on_disk]:
        stems.setdefault(sae_stem(sae_id), sae_id)
    layers_of: dict[str, Layer] = {}
    refused = Failures()
    for sae_id in sae_ids:
        with refused.caught():
            trained, control = split_twin(sae_id)
            if control:
                raise UserError(
                    f"{sae_id} is a control of {trained}: name that SAE, and --controls {control}"
                )
            other = stems[sae_stem(sae_id)]
            if other != sae_id:
                raise UserError(
                    f"{sae_id} and {other} would have the same files, named {sae_stem(sae_id)}:"
                    " rename one"
                )
            layers_of[sae_id] = _layer_of(paths, info, choice, sae_id)
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


def _layer_of(paths: Paths, info: LanguageModel, choice: SaeChoice, sae_id: str) -> Layer:
    """What an SAE reads; a line where that is by --hook_name and the id alone would mean another.

    Raises UserError where it is not known, or not made of this model.
    """
    on_disk = find_sae(paths.saes(info.name), sae_id)
    # files on disk may be of any release, unless one is named
    release = choice.release or (None if on_disk else info.sae_release)
    layer = layer_read_by(sae_id, on_disk, release, choice.hook_name)
    known = format_of(on_disk) if on_disk else None
    part = str(layer).endswith(("hook_mlp_out", "hook_attn_out"))
    if known and known.of_modules and part and _norms_parts(paths, info):
        raise UserError(
            f"{sae_id} reads what {str(layer).rpartition('_out')[0]} itself gives; in {info.name} a"
            " norm comes behind it, and only what that gives is made here"
        )
    if choice.hook_name and sae_layer(sae_id) not in (None, layer):
        print(f"{sae_id}: read at {choice.hook_name}, as --hook_name says")
    return layer


def _norms_parts(paths: Paths, info: LanguageModel) -> bool:
    """Whether a model puts a norm between attention or MLP and the residual stream."""
    for folder in (paths.language_model(info.name), Path(info.hub_id or "")):
        if (folder / "config.json").is_file():
            kind = str(read_json(folder / "config.json").get("model_type"))
            return kind.startswith(NORMED)
    return re.search(r"gemma-?[23]|olmo-?[23]", f"{info.name} {info.hub_id}".lower()) is not None


def release_used(paths: Paths, info: LanguageModel, sae_id: str, asked: str | None) -> str:
    """The release whose files, scaling and overrides ``open_sae`` takes; "its files" for none."""
    if asked or find_sae(paths.saes(info.name), split_twin(sae_id)[0]):
        return asked or "its files"
    return info.sae_release or "its files"


def open_sae(paths: Paths, model_name: str, sae_id: str, release: str | None = None) -> Encoder:
    """The encoder of an SAE by its id: from the folder of SAEs, else from a release on the hub
    (default: the model's own).

    Raises UserError when it is nowhere to be had or is of a kind that cannot be read.
    """
    sae_dir = paths.saes(model_name)
    trained, twin = split_twin(sae_id)
    if twin:
        return make_twin(open_sae(paths, model_name, trained, release), twin)
    path = find_sae(sae_dir, sae_id)
    if path is None:
        release = release or get_model(model_name, paths).sae_release
        path = _from_hub(release, sae_id, sae_dir)
    known = format_of(path)
    if known is None:
        raise UserError(
            f"{sae_id} of {release} is in no form that is read here: {', '.join(all_forms())}"
        )
    encoder = known.open(path, sae_id)
    if release:
        encoder = as_released(encoder, release, sae_id)
    if encoder.only_release_says:
        raise UserError(
            f"{sae_id}: only its release says {encoder.only_release_says}: name that with"
            " --sae_release"
        )
    return encoder


def all_forms() -> list[str]:
    """What the files of an SAE can be, in words."""
    return [known.needs for known in (*FORMATS, *FILE_FORMATS)]


def _from_hub(release: str | None, sae_id: str, sae_dir: Path) -> Path:
    """Download an SAE's files into the hub's cache; its folder there, or its one file."""
    listed = list_sae_ids(sae_dir)
    here = f"SAEs there: {', '.join(listed[:6])}" if listed else "there are no SAEs there"
    nowhere = f"no SAE {sae_id!r} at {sae_dir / sae_id} ({here})"
    if release is None:
        raise UserError(f"{nowhere}; it needs {' or '.join(all_forms())}")
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
    files, name = files_of(str(entry.conversion_func), entry.saes_map[sae_id])
    try:
        return Path(snapshot_download(entry.repo_id, allow_patterns=files)) / name
    # offline, gated, missing: the hub client has an error of its own for each
    except Exception as error:
        raise UserError(
            f"{nowhere}, and the hub cannot be reached ({type(error).__name__}); online,"
            f" `hf download {entry.repo_id} --include {shlex.join(files)} --local-dir"
            f" {shlex.quote(str(sae_dir))}` fetches it, and `--sae_release {release}"
            f" --target_sae_id {shlex.quote(name)}` names it then"
        ) from error


def files_of(conversion: str, path: str) -> tuple[list[str], str]:
    """(patterns of the files of an SAE in its repository, its folder or file there), of SAELens's
    loader for the release and the path that its registry gives.
    """
    if conversion == "connor_rob_hook_z":
        return [path, f"{path.removesuffix('.pt')}_cfg.json"], path
    if conversion == "mntss_clt_layer_transcoder":
        name = f"W_enc_{path}.safetensors"
        return [name, "config.yaml"], name
    if conversion in ONE_FILE_RELEASES:
        return [path], path
    return [f"{path}/*"], path


def is_control(folder: Path) -> bool:
    """Whether the SAE in a folder says that its weights were never trained."""
    try:
        metadata = read_json(folder / "cfg.json").get("metadata")
    except UserError:  # no SAELens folder, or a broken one: the probes do not need it
        return False
    return isinstance(metadata, dict) and metadata.get("control") == "random"
