"""SAE activations on disk, sparse: one set of files a dataset and SAE, from which every condition
takes its rows.

``normal_setting/{stem}_X_train_sae.pt`` and ``_X_test_sae.pt`` hold the rows of the paper's normal
split in the paper's order, ``_X_rest_sae.pt`` the rows that split leaves out, so that together they
are the whole dataset once: scarcity, class imbalance and label noise only draw other rows from it.
``OOD_setting`` holds the OOD split. All are sparse CSR tensors of 8 bytes a nonzero;
``torch.load(path, weights_only=True).to_dense().float()`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy.sparse import csr_array, vstack

from utils.activations import read_description, source_fingerprint
from utils.datasets import dataset_facts, load_dataset, load_ood, text_codes
from utils.names import named_width, set_stem, split_twin
from utils.paths import Paths
from utils.readers.fingerprints import digest, file_fingerprint
from utils.readers.pt_files import load_tensor, save_tensor
from utils.readers.sparse_files import load_sparse, save_sparse
from utils.runtime.errors import UserError
from utils.runtime.files import write_json, written_together
from utils.saes.catalog import find_sae, sae_fingerprint
from utils.saes.twins import TWIN_RULES
from utils.settings import (
    NORMAL,
    PAPERS,
    SEED,
    SHIFTED,
    SPLIT_RULES,
    Condition,
    Split,
    TrainTest,
    get_setting,
    split,
)

T = TypeVar("T")
Described = tuple["dict | None", "str | None"]  # a description and a fingerprint
ENCODE_RULES = 1  # raised when latents of the same SAE and rows come out otherwise
SOURCES = {
    "sae": "another SAE",
    "activations": "other model activations",
    "ood_activations": "other OOD model activations",
    "texts_and_labels": "other texts or labels",
    "ood_texts_and_labels": "other OOD texts or labels",
    "n_rows": "another number of rows",
    "hook_name": "another hook",
    "release": "another release",
    "encode_rules": "other rules of encoding",
    "split_rules": "other rules of drawing rows",
}
X_PARTS = {
    NORMAL.name: ("X_train_sae", "X_rest_sae", "X_test_sae"),
    SHIFTED.name: ("X_train_sae", "X_test_sae"),
}


@dataclass(frozen=True)
class SaeFiles:
    """The files of one dataset and SAE in the normal or OOD setting."""

    paths: Paths
    model_name: str
    setting: str
    dataset: str
    sae_id: str

    @cached_property
    def _stem(self) -> str:
        return set_stem(self.dataset, self.sae_id)

    def path(self, part: str) -> Path:
        return self.paths.sae_activations(self.model_name, self.setting, self._stem, part)

    @cached_property
    def description_path(self) -> Path:
        folder = self.paths.sae_activations_folder(self.model_name, self.setting)
        return folder / f"{self._stem}.json"

    def description(self) -> dict:
        """What the files were made from; {} where others made them or they are unfinished."""
        try:
            stat = self.description_path.stat()
            return _described(self.description_path, stat.st_size, stat.st_mtime_ns)
        except (OSError, ValueError, RecursionError):
            return {}

    def is_done(self, made_from: dict) -> bool:
        """Whether all files are there and were made from this."""
        parts = (*X_PARTS[self.setting], "y_train", "y_test")
        return not self.changed(made_from) and all(self.path(part).is_file() for part in parts)

    def changed(self, made_from: dict) -> list[str]:
        """What is another thing now than when the files were made, in words.

        What is not at hand is not compared: the weights of an SAE of the hub, deleted activations.
        """
        made = self.description()
        unknown = {name for name, value in made_from.items() if value is None}
        if made.get("sae") is None:
            unknown.add("sae")
        return [
            SOURCES.get(name, f"another {name}")
            for name, value in made_from.items()
            if name not in unknown and value != made.get(name)
        ]

    def write(
        self, rows: csr_array, drawn: Split, ood_rows: csr_array | None, made_from: dict, sae: dict
    ) -> None:
        """Write X and y of a split; the description comes last and says that the set is whole.

        rows: [n_rows, d_sae] of the dataset; ood_rows: those of the OOD file, which the OOD split's
        test indexes; sae: the encoder's shape.
        """
        import torch

        self.description_path.unlink(missing_ok=True)
        test_rows = rows if ood_rows is None else ood_rows
        # of the OOD set its own rows: those of the dataset are counted in the normal set
        measured = {**sae, "rows": test_rows.shape[0], "nonzeros": test_rows.nnz}
        with written_together():
            save_sparse(self.path("X_train_sae"), rows[drawn.train])
            save_sparse(self.path("X_test_sae"), test_rows[drawn.test])
            if "X_rest_sae" in X_PARTS[self.setting]:
                save_sparse(self.path("X_rest_sae"), rows[rest_rows(drawn, rows.shape[0])])
            save_tensor(self.path("y_train"), torch.tensor(drawn.y_train))
            save_tensor(self.path("y_test"), torch.tensor(drawn.y_test))
            write_json(self.description_path, {**made_from, "measured": measured})


@lru_cache(maxsize=16384)
def _described(path: Path, _size: int, _changed: int) -> dict:
    """A description, read once while it stays as it is."""
    return json.loads(path.read_text(encoding="utf-8"))


def stored_checks(
    paths: Paths, model_name: str, sae_id: str, datasets: Iterable[str]
) -> dict | None:
    """An SAE's shape and the mean L0 over all rows whose latents are on disk; None where there are
    none of ours.
    """
    checks: dict = {}
    rows = nonzeros = 0
    for setting, dataset in product(X_PARTS, datasets):
        measured = (
            SaeFiles(paths, model_name, setting, dataset, sae_id).description().get("measured")
        )
        if measured:
            checks = measured
            rows, nonzeros = rows + measured["rows"], nonzeros + measured["nonzeros"]
    if not rows:
        return None
    return {
        **{k: v for k, v in checks.items() if k != "nonzeros"},
        "rows": rows,
        "mean_l0": round(nonzeros / rows, 2),
    }


class Look:
    """What the files of a model are, each looked at once: for runs, or parts of runs, that change
    none of them.
    """

    def __init__(self, paths: Paths, model_name: str) -> None:
        self.paths, self.model_name = paths, model_name
        self._seen: dict[tuple, Any] = {}

    def _once(self, find: Callable[..., T], *about: Any) -> T:
        key = (find, *about)
        if key not in self._seen:
            self._seen[key] = find(*about)
        return self._seen[key]

    def sae(self, sae_id: str) -> str | None:
        """The fingerprint of an SAE; None where it is not on disk."""
        return self._once(self._sae, sae_id)

    def _sae(self, sae_id: str) -> str | None:
        trained, twin = split_twin(sae_id)
        if twin:
            fingerprint = self.sae(trained)
            return digest([fingerprint, twin, TWIN_RULES]) if fingerprint else None
        on_disk = find_sae(self.paths.saes(self.model_name), sae_id)
        return sae_fingerprint(on_disk) if on_disk else None

    def activations(
        self, dataset: str, hook_name: str, ood: bool
    ) -> tuple[dict | None, str | None]:
        """(the description, the fingerprint) of a file of model activations; None where it is not
        there.
        """
        return self._once(self._activations, dataset, hook_name, ood)

    def _activations(
        self, dataset: str, hook_name: str, ood: bool
    ) -> tuple[dict | None, str | None]:
        path = self.paths.model_activations(self.model_name, dataset, hook_name, ood)
        return (read_description(path) if path.is_file() else None), source_fingerprint(path)

    def texts(self, dataset: str, n_rows: int | None, ood: bool) -> str:
        """The fingerprint of a dataset's first rows with their labels."""
        return self._once(self._texts, dataset, n_rows, ood)

    def _texts(self, dataset: str, n_rows: int | None, ood: bool) -> str:
        return dataset_facts(self.paths, dataset, ood, n_rows).texts_and_labels


def made_from(
    files: SaeFiles, hook_name: str, release: str | None = None, look: Look | None = None
) -> dict:
    """What SAE activations depend on, as their description records it: when it changes they are
    made again. What is None is not known here, and not compared.

    ``release``: whose scaling and overrides the encoder has, "its files" for those of none.
    ``look``: shared by many calls.
    """
    look = look or Look(files.paths, files.model_name)
    made: dict = {
        "sae_id": files.sae_id,
        "model_name": files.model_name,
        "hook_name": hook_name,
        "setting": files.setting,
    }
    for kind, ood in (("activations", False), ("ood_activations", True)):
        if ood and not get_setting(files.setting).shifted:
            continue
        described, fingerprint = look.activations(files.dataset, hook_name, ood)
        n_rows = None
        if not ood:  # an OOD file counts whole
            # where activations are deleted the latents themselves say of how many rows they are
            said = files.description() if described is None else described
            n_rows = made["n_rows"] = said.get("n_rows")
        made[kind] = fingerprint
        # rows are drawn by the labels: with others a row would stand for another text
        texts = "ood_texts_and_labels" if ood else "texts_and_labels"
        made[texts] = look.texts(files.dataset, n_rows, ood)
    made |= {"split_rules": SPLIT_RULES, "encode_rules": ENCODE_RULES, "release": release}
    made["sae"] = look.sae(files.sae_id)
    return made


def latents_fingerprint(files: SaeFiles, hook_name: str, look: Look | None = None) -> str | None:
    """What a probe on these latents is made from: texts, labels, activations, SAE, and the rules by
    which rows are drawn. None where nothing tells.

    Raises UserError when texts or a description cannot be read.
    """
    described = files.description()
    if not described:  # of the original scripts, or the paper's
        path = files.path("X_train_sae")
        return file_fingerprint(path) if path.is_file() else None
    made = made_from(files, hook_name, look=look)
    if described.get("sae") is None:  # of the hub: what is in the folder now is not compared
        made["sae"] = None
    return digest({k: described.get(k) if v is None else v for k, v in made.items()})


def rest_rows(drawn: Split, n_rows: int) -> np.ndarray:
    """The rows that a split neither trains nor tests on, ascending."""
    return np.setdiff1d(np.arange(n_rows), np.concatenate([drawn.train, drawn.test]))


class SaeActivations:
    """The latents of one dataset and SAE, from which every condition takes its rows.

    Reads our own files, whose rows are the whole dataset once; the original scripts' files, one
    split a condition; and the published OOD archives. Raises UserError when files are missing,
    unreadable, or do not belong to these labels.
    """

    def __init__(
        self, paths: Paths, model_name: str, dataset: str, sae_id: str, ood: bool = False
    ) -> None:
        self.paths, self.model_name, self.dataset, self.sae_id = paths, model_name, dataset, sae_id
        self.remedy = f"`make generate-sae-acts-optimized MODEL={model_name}` makes it"
        self.normal = SaeFiles(paths, model_name, NORMAL.name, dataset, sae_id)
        self.ood = SaeFiles(paths, model_name, SHIFTED.name, dataset, sae_id)
        # only the first rows of a dataset may have activations
        labels = load_dataset(paths, dataset).labels
        self.labels = labels[
            : self.normal.description().get("n_rows")
            or self.ood.description().get("n_rows")
            or len(labels)
        ]
        self.ood_labels = load_ood(paths, dataset).labels if ood else None
        self.texts = text_codes(paths, dataset, ood)
        self._rows: csr_array | None = None

    def require_hook(self, hook_name: str) -> None:
        """Raise UserError where the latents are of another hook than a probe's layer."""
        for files in (self.normal, self.ood):
            made = files.description().get("hook_name", hook_name)
            if made != hook_name:
                raise UserError(
                    f"the latents of {self.sae_id} are of {made}, not of {hook_name}: say so with"
                    f" --hook_name {made}, or with --sae_release; otherwise {self.remedy}"
                )

    def rows(self) -> csr_array:
        """Sparse [n_rows, d_sae] in dataset order, from our own files."""
        if self._rows is None:
            pieces = [
                load_sparse(self.normal.path(part), self.remedy)
                for part in ("X_train_sae", "X_test_sae", "X_rest_sae")
            ]
            if len({piece.shape[1] for piece in pieces}) != 1:
                raise UserError(
                    f"{self.normal.path('X_train_sae')} and its companions are of different SAEs:"
                    f" delete them, then {self.remedy}"
                )
            stacked = vstack(pieces, format="csr")
            if stacked.shape[0] != len(self.labels):
                raise UserError(
                    f"{self.normal.path('X_train_sae')}: {stacked.shape[0]} rows, but"
                    f" {self.dataset} has {len(self.labels)} texts: {self.remedy}"
                )
            normal = split(Condition(NORMAL.name), self.labels)
            if not self.normal.description():
                raise UserError(
                    f"{self.normal.path('X_rest_sae')} is of a set that was not finished:"
                    f" {self.remedy}"
                )
            _check_made_from(self.normal, self.remedy)
            _check_labels(self.normal, normal, self.remedy)
            order = np.empty(len(self.labels), dtype=np.int64)
            order[
                np.concatenate([normal.train, normal.test, rest_rows(normal, len(self.labels))])
            ] = np.arange(len(order))
            self._rows = stacked[order]
        return self._rows

    def condition(self, condition: Condition, seed: int = SEED) -> TrainTest:
        """The rows of a condition: sparse [n, d_sae], in the order of its split."""
        drawn = split(condition, self.labels, seed, self.ood_labels, self.texts)
        if get_setting(condition.setting).shifted and not condition.kind.grouped:
            X_train, X_test = self._ood_rows(drawn, seed)
        elif get_setting(condition.setting).shifted:
            X_train, X_test = self._grouped_ood_rows(drawn)
        elif self._rows is not None or self.normal.path("X_rest_sae").is_file():
            return drawn.take(self.rows(), texts=self.texts)
        else:
            X_train, X_test = self._original_split(condition, drawn, seed)
        return TrainTest(X_train, drawn.y_train, X_test, drawn.y_test, drawn.fresh(self.texts))

    def _ood_rows(self, rows_of: Split, seed: int) -> tuple[csr_array, csr_array]:
        if self.ood.path("X_test_sae").is_file():
            _check_made_from(self.ood, self.remedy)
            _check_labels(self.ood, rows_of, self.remedy, ("y_test",))
            if seed == SEED:
                _check_labels(self.ood, rows_of, self.remedy, ("y_train",))
                train = load_sparse(self.ood.path("X_train_sae"), self.remedy)
            else:
                train = self.rows()[rows_of.train]
            return train, load_sparse(self.ood.path("X_test_sae"), self.remedy)
        width = named_width(self.sae_id)
        suffix = "_1m" if width == 1 << 20 and self._archives("_1m")[0].is_file() else ""
        archives = self._archives(suffix)
        if not all(path.is_file() for path in archives):
            raise UserError(f"no file {self.ood.path('X_test_sae')}: {self.remedy}")
        inside, outside = (load_sparse(path, self.remedy) for path in archives)
        if width is not None and inside.shape[1] != width:
            raise UserError(
                f"{archives[0]} has {inside.shape[1]} latents, not those of {self.sae_id}: unpack"
                " the archive of that SAE"
            )
        if outside.shape[0] != len(rows_of.y_test) or rows_of.train.max() >= inside.shape[0]:
            raise UserError(
                f"{archives[1]} has other rows than the texts of {self.dataset}: {self.remedy}"
            )
        return inside[rows_of.train], outside

    def _grouped_ood_rows(self, drawn: Split) -> tuple[csr_array, csr_array]:
        """Of our own files alone: the training rows are of the whole dataset."""
        if not self.ood.path("X_test_sae").is_file():
            raise UserError(f"no file {self.ood.path('X_test_sae')}: {self.remedy}")
        _check_made_from(self.ood, self.remedy)
        shifted = load_sparse(self.ood.path("X_test_sae"), self.remedy)
        return self.rows()[drawn.train], shifted[drawn.test]

    def _archives(self, width: str) -> list[Path]:
        return [
            self.paths.published_ood_archive(self.model_name, self.dataset, ood, width)
            for ood in (False, True)
        ]

    def _original_split(
        self, condition: Condition, rows_of: Split, seed: int
    ) -> tuple[csr_array, csr_array]:
        """The original scripts' files hold the paper's split and nothing else; label noise has the
        files of normal.
        """
        setting = condition.setting if get_setting(condition.setting).exports else NORMAL.name
        paths = [
            self.paths.sae_activations(
                self.model_name, setting, set_stem(self.dataset, self.sae_id, suffix), "X_train_sae"
            )
            for suffix in condition_suffixes(condition)
        ]
        train_path = next((path for path in paths if path.is_file()), None)
        if train_path is None:
            raise UserError(
                f"no file {self.normal.path('X_rest_sae')} and no {paths[0]}: {self.remedy}"
            )
        if seed != SEED or condition.kind != PAPERS:
            which = "the paper's split" if condition.kind != PAPERS else "seed 42"
            raise UserError(f"{train_path} holds the rows of {which} only: {self.remedy}")
        train = load_sparse(train_path, self.remedy)
        test = load_sparse(
            train_path.with_name(train_path.name.replace("_X_train_sae", "_X_test_sae")),
            self.remedy,
        )
        if (train.shape[0], test.shape[0]) != (len(rows_of.train), len(rows_of.test)):
            raise UserError(
                f"{train_path} and its test file have {train.shape[0]} and {test.shape[0]} rows,"
                f" the split has {len(rows_of.train)} and {len(rows_of.test)}: {self.remedy}"
            )
        return train, test


def condition_suffixes(condition: Condition) -> list[str]:
    """What the original scripts append to a file's stem for a condition, in both spellings of a
    fraction.
    """
    prefix = get_setting(condition.setting).file_suffix
    if prefix is None:
        return [""]
    return list(dict.fromkeys([f"{prefix}{condition.value}", f"{prefix}{condition.label}"]))


def _check_made_from(files: SaeFiles, remedy: str) -> None:
    """Raise UserError where a set was made from something else than there is now.

    Which rows a split has follows from the labels, and y_train alone does not tell.
    """
    described = files.description()
    changed = files.changed(made_from(files, described["hook_name"])) if described else []
    if changed:
        raise UserError(
            f"{files.path('X_train_sae')} was made from {' and '.join(changed)} than there"
            f" {'is' if len(changed) == 1 else 'are'} now: {remedy}"
        )


def _check_labels(
    files: SaeFiles, expected: Split, remedy: str, names: Iterable[str] = ("y_train", "y_test")
) -> None:
    import torch

    wanted = {"y_train": expected.y_train, "y_test": expected.y_test}
    for name in names:
        stored = load_tensor(files.path(name), remedy)
        if (
            stored.layout != torch.strided
            or stored.is_complex()
            or not torch.equal(stored.double(), torch.tensor(wanted[name]).double())
        ):
            raise UserError(
                f"{files.path(name)} has other labels than the texts of {files.dataset}: delete it,"
                f" then {remedy}"
            )
