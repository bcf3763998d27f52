"""What of a model's files and results is on disk, what is expected, and what is broken: by names,
sizes and headers alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from utils.activations import read_description
from utils.datasets import dataset_facts, dataset_size, list_datasets, list_ood_datasets
from utils.models import LanguageModel
from utils.names import Layer, hook_name, named_width, set_stem
from utils.paths import Paths
from utils.probes.baselines import paper_methods
from utils.results.findings import Kind
from utils.results.tidy import BASELINE, SAE, load_results
from utils.runtime.errors import UserError
from utils.runtime.units import short_number
from utils.saes.catalog import list_sae_ids
from utils.saes.store import Look, SaeFiles, condition_suffixes, made_from
from utils.settings import NORMAL, SHIFTED, conditions, get_setting

ZIP_START, ZIP_END, LEGACY_START = b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02"


@dataclass(frozen=True)
class Count:
    """How many are there of how many expected."""

    done: int
    expected: int

    @property
    def complete(self) -> bool:
        return self.done >= self.expected > 0

    def __str__(self) -> str:
        return f"{self.done} of {self.expected}"

    def __add__(self, other: Count) -> Count:
        return Count(self.done + other.done, self.expected + other.expected)


@dataclass
class Inventory:
    """Counts by setting. ``model_activations``, ``baselines``: {setting: Count}; of SAEs:
    {(setting, sae_id): Count}.
    """

    sae_ids: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    model_activations: dict[str, Count] = field(default_factory=dict)
    sae_activations: dict[tuple[str, str], Count] = field(default_factory=dict)
    baselines: dict[str, Count] = field(default_factory=dict)
    sae_probes: dict[tuple[str, str], Count] = field(default_factory=dict)
    probed: set[str] = field(default_factory=set)  # settings with any SAE probes
    # SAEs that are neither on disk nor the paper's for this model
    only_in_tables: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)  # made from something else than there is now
    remarks: list[str] = field(default_factory=list)
    whole: dict[Path, bool] = field(default_factory=dict)  # whether a file ends as it should
    judged: dict[SaeFiles, bool] = field(default_factory=dict)  # whether a set is stale


def width_name(sae_id: str) -> str:
    """How a table calls an SAE's width: "16k", "1m", or "other" where its id names none."""
    width = named_width(sae_id)
    return "other" if width is None else short_number(width).lower()


def file_names(folder: Path) -> dict[str, int]:
    """{name: bytes} of the files in a folder; empty when it is not there."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def is_whole_tensor_file(path: Path, n_bytes: int) -> bool:
    """Whether a .pt file begins and ends as torch writes them; what lies between is not read."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, n_bytes - 22))
        end = file.read(22)
    return (start == ZIP_START and end[:4] == ZIP_END) or start[:2] == LEGACY_START


def take_inventory(paths: Paths, info: LanguageModel, settings: tuple[str, ...]) -> Inventory:
    """Count everything of a model for these settings.

    Raises UserError when the text datasets, from which the expected numbers come, are missing.
    """
    inventory, look = Inventory(), Look(paths, info.name)
    for name in list_datasets(paths):
        try:
            inventory.sizes[name] = dataset_size(paths, name)
        except UserError as error:
            inventory.unreadable.append(str(error))
    ood = [name for name in list_ood_datasets(paths) if name in inventory.sizes]
    results = load_results(paths, info.name, settings)
    tables = results.tidy
    inventory.unreadable += results.unreadable()
    unusual = (f for f in results.findings if f.kind is not Kind.UNREADABLE and f.weight != "fine")
    inventory.remarks = [str(finding) for finding in unusual]
    probes = tables[tables["kind"] == SAE]
    inventory.probed = set(probes["setting"])
    at_hand = [*info.sae_ids, *list_sae_ids(paths.saes(info.name))]
    named = [*at_hand, *probes["sae_id"].dropna().unique().tolist()]
    inventory.only_in_tables = set(named) - set(at_hand)
    # "published" stands for the unnamed SAE of the paper's OOD table
    inventory.sae_ids = [sae_id for sae_id in dict.fromkeys(named) if sae_id != "published"]
    for setting in settings:
        names = ood if get_setting(setting).shifted else list(inventory.sizes)
        inventory.model_activations[setting] = _model_activations(
            paths, info, setting, names, inventory
        )
        _sae_activations(look, info, setting, names, inventory)
        _results(info, setting, names, tables[tables["setting"] == setting], inventory)
    return inventory


def _model_activations(
    paths: Paths, info: LanguageModel, setting: str, names: list[str], inventory: Inventory
) -> Count:
    layers: tuple[Layer, ...] = info.layers_of(get_setting(setting))
    done = expected = 0
    for ood in (False, True) if get_setting(setting).shifted else (False,):
        folder = paths.model_activations_folder(info.name, ood)
        files = file_names(folder)
        for name in names:
            for layer in layers:
                path = paths.model_activations(info.name, name, hook_name(layer), ood)
                expected += 1
                good = _is_good(path, files, inventory)
                done += good and _is_of_these_texts(paths, path, name, ood, inventory)
    return Count(done, expected)


def _sae_activations(
    look: Look, info: LanguageModel, setting: str, names: list[str], inventory: Inventory
) -> None:
    """Datasets whose rows of the setting can be had, SAE by SAE: from our files, the original
    scripts', or the OOD archives.
    """
    paths = look.paths
    places = {s: paths.sae_activations_folder(info.name, s) for s in (setting, NORMAL.name)}
    folders = {s: file_names(folder) for s, folder in places.items()}
    row = get_setting(setting)
    for sae_id in inventory.sae_ids:

        def has(stem: str, in_setting: str, part: str) -> bool:
            name = f"{stem}_{part}.pt"
            return _is_good(places[in_setting] / name, folders[in_setting], inventory)

        done = 0
        for name in names:
            own = SHIFTED.name if row.shifted else NORMAL.name
            stem = set_stem(name, sae_id)
            split = all(has(stem, own, part) for part in ("X_train_sae", "X_test_sae"))
            files = SaeFiles(paths, info.name, own, name, sae_id)
            if split and _is_stale(files, inventory, look):
                continue
            if not row.exports:
                done += split or (row.shifted and _in_archive(paths, info, name, sae_id))
            elif split and has(stem, NORMAL.name, "X_rest_sae"):
                done += 1
            else:
                done += all(
                    any(
                        has(set_stem(name, sae_id, suffix), setting, "X_train_sae")
                        for suffix in condition_suffixes(condition)
                    )
                    for condition in conditions(setting, inventory.sizes[name])
                )
        inventory.sae_activations[setting, sae_id] = Count(done, len(names))


def _is_of_these_texts(
    paths: Paths, path: Path, dataset: str, ood: bool, inventory: Inventory
) -> bool:
    """Whether a file of model activations was made from the texts that there are now; those of
    others do not say.
    """
    try:
        made = read_description(path)
        if not made.get("texts_sha256"):
            return True
        now = dataset_facts(paths, dataset, ood, made.get("n_rows")).texts
    except UserError as error:
        inventory.unreadable.append(str(error))
        return False
    if made["texts_sha256"] != now:
        inventory.stale.append(f"{path.name}: made from other texts than {dataset} has now")
    return made["texts_sha256"] == now


def _is_stale(files: SaeFiles, inventory: Inventory, look: Look) -> bool:
    """Whether latents were made from something else than there is now; others' do not say."""
    if files in inventory.judged:  # four settings draw from the files of normal
        return inventory.judged[files]
    described = files.description()
    changed: list[str] = []
    with suppress(UserError):  # of model activations, where it is named
        if described:
            changed = files.changed(made_from(files, described["hook_name"], look=look))
    if changed:
        what = f"latents of {files.sae_id} on {files.dataset}, {files.setting}"
        inventory.stale.append(f"{what}: made from {' and '.join(changed)}")
    inventory.judged[files] = bool(changed)
    return bool(changed)


def _in_archive(paths: Paths, info: LanguageModel, dataset: str, sae_id: str) -> bool:
    """Whether the unpacked OOD archive of this SAE's width is there (the other archive is of the
    131k SAE of the paper).
    """
    width = "_1m" if named_width(sae_id) == 1 << 20 else ""
    return all(
        paths.published_ood_archive(info.name, dataset, ood, width).is_file()
        for ood in (False, True)
    ) and (bool(width) or named_width(sae_id) == 131_072)


def _is_good(path: Path, files: dict[str, int], inventory: Inventory) -> bool:
    n_bytes = files.get(path.name)
    if n_bytes is None:
        return False
    if path not in inventory.whole:  # four settings ask for the files of normal
        inventory.whole[path] = is_whole_tensor_file(path, n_bytes)
        if not inventory.whole[path]:
            remedy = "delete it, and make or unpack it again"
            line = f"{path} is no whole tensor file ({n_bytes} bytes): {remedy}"
            inventory.unreadable.append(line)
    return inventory.whole[path]


def _results(
    info: LanguageModel, setting: str, names: list[str], rows: pd.DataFrame, inventory: Inventory
) -> None:
    n_conditions = {name: len(conditions(setting, inventory.sizes[name])) for name in names}
    n_layers = len(info.layers_of(get_setting(setting)))
    methods = paper_methods(setting)
    baselines = (
        rows[
            (rows["kind"] == BASELINE) & rows["dataset"].isin(names) & rows["method"].isin(methods)
        ]
        if len(rows)
        else rows
    )
    key = ["dataset", "condition", "layer", "method"]
    done = len(baselines.drop_duplicates(key)) if len(baselines) else 0
    inventory.baselines[setting] = Count(done, sum(n_conditions.values()) * n_layers * len(methods))
    ks = get_setting(setting).ks
    of_saes = rows[rows["k"].isin(ks) & rows["dataset"].isin(names)] if len(rows) else rows
    key = ["sae_id", "dataset", "condition", "k"]
    by_sae = (
        of_saes[key].drop_duplicates().groupby("sae_id", observed=True).size() if len(rows) else {}
    )
    for sae_id in inventory.sae_ids:
        expected = sum(n_conditions.values()) * len(ks)
        inventory.sae_probes[setting, sae_id] = Count(int(by_sae.get(sae_id, 0)), expected)
