"""Model activations on disk: one tensor [n_rows, d_model] a dataset and hook, row i for text i."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.datasets import (
    MAX_ROWS,
    Dataset,
    dataset_facts,
    dataset_size,
    load_dataset,
    load_ood,
    text_codes,
    texts_fingerprint,
)
from utils.paths import Paths
from utils.readers.fingerprints import digest, file_fingerprint
from utils.readers.pt_files import load_tensor, save_tensor
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import write_json
from utils.settings import SEED, SPLIT_RULES, Condition, TextCodes, TrainTest, get_setting, split

if TYPE_CHECKING:
    import torch


def description_path(path: Path) -> Path:
    """Where a file that we made says what it was made from (published files have none)."""
    return path.with_suffix(".json")


def write_activations(
    path: Path, activations: torch.Tensor, texts: list[str], made_by: dict[str, object]
) -> None:
    """Save [n_rows, d_model] and its description; the tensor appears last, so that where it stands
    both do.
    """
    described = {
        **made_by,
        "n_rows": len(texts),
        "width": activations.shape[1],
        "texts_sha256": texts_fingerprint(texts),
    }
    path.unlink(missing_ok=True)  # an older tensor must not stand under a new description
    write_json(description_path(path), described)
    save_tensor(path, activations.contiguous())


def read_description(path: Path) -> dict:
    """What a file was made from; {} for files that others made.

    Raises UserError when the description is there and cannot be read.
    """
    described = description_path(path)
    if not described.is_file():
        return {}
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("n_rows", 0), int):
            raise ValueError("it is no description")
        return content
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{described} cannot be read ({first_line(error)}): delete it and {path.name}, and make"
            " both again"
        ) from error


def source_fingerprint(path: Path) -> str | None:
    """What a file of activations is: samples of its content, and its description where we made it;
    None where it is not there.
    """
    return digest([read_description(path), file_fingerprint(path)]) if path.is_file() else None


def rows_fingerprint(
    paths: Paths, model_name: str, dataset: str, hook_name: str, ood: bool
) -> str | None:
    """What a probe on model activations is made from: texts, labels, activations and the rules by
    which rows are drawn. None where activations are missing.

    Raises UserError when texts or a description cannot be read.
    """
    sources: list[str | int] = [SPLIT_RULES]
    for is_ood in (False, True) if ood else (False,):
        path = paths.model_activations(model_name, dataset, hook_name, is_ood)
        source = source_fingerprint(path)
        if source is None:
            return None
        # an OOD file counts whole: rows that were added to it are missing
        n_rows = None if is_ood else read_description(path).get("n_rows")
        sources += [source, dataset_facts(paths, dataset, is_ood, n_rows).texts_and_labels]
    return digest(sources)


def rows_with_activations(paths: Paths, model_name: str, dataset: str) -> int | None:
    """The first rows of a dataset that have activations of a model; None where there are none.

    Raises UserError when texts or a description cannot be read.
    """
    folder = paths.model_activations_folder(model_name)
    # a dataset's name may be the beginning of another's, and hold glob's own signs
    of_hook = re.compile(rf"{re.escape(dataset)}_(hook_embed|blocks\.\d+\..+)\.pt")
    files = list(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in files if of_hook.fullmatch(file.name)]
    counts = [read_description(file).get("n_rows") for file in files]
    if not counts:
        return None
    if None in counts:  # files of others have all rows
        counts.append(dataset_facts(paths, dataset).n_rows)
    return max(n for n in counts if n is not None)


def n_rows_to_split(paths: Paths, model_name: str, dataset: str) -> int:
    """Rows of a dataset from which a split can draw; in a grouped one one a text, of those that
    have activations.
    """
    n_rows = dataset_size(paths, dataset)
    if not paths.split.grouped:
        return n_rows
    read = rows_with_activations(paths, model_name, dataset)
    codes = text_codes(paths, dataset, ood=False).rows
    return len(np.unique(codes[: n_rows if read is None else read]))


def load_activations(
    path: Path, dataset: Dataset, remedy: str, d_model: int | None = None
) -> np.ndarray:
    """Activations [n_rows, d_model] float32 of a dataset, checked against its texts.

    A file that we made may cover only the first rows of the dataset (its description says so); then
    n_rows is theirs.

    Raises UserError when the file is missing or broken, belongs to other texts, or has NaN,
    infinite or misshaped values.
    """
    import torch

    tensor = load_tensor(path, remedy)
    remedy = f"delete it, then {remedy}"
    if tensor.ndim != 2 or not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise UserError(
            f"{path} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, not [n_rows,"
            f" d_model] floats: {remedy}"
        )
    if d_model is not None and tensor.shape[1] != d_model:
        raise UserError(f"{path} has d_model {tensor.shape[1]}, not {d_model}: {remedy}")
    made_from = read_description(path)
    n_rows = min(len(tensor), len(dataset))
    expected = made_from.get("n_rows", len(dataset))
    # of a file that others made all rows are counted, but for datasets that are cut at their
    # 5,000th row
    surplus = not made_from and len(dataset) < MAX_ROWS and len(tensor) > len(dataset)
    if (
        surplus
        or min(len(tensor), len(dataset)) != min(expected, len(dataset))
        or len(tensor) < expected
    ):
        raise UserError(
            f"{path} has {len(tensor)} rows, but {dataset.name} has {expected} texts: {remedy}"
        )
    if made_from and made_from.get("texts_sha256") != texts_fingerprint(dataset.texts[:n_rows]):
        raise UserError(f"{path} was made from other texts than {dataset.name} has now: {remedy}")
    activations = tensor[:n_rows].float().numpy()
    if not np.isfinite(activations).all():
        row = int(np.flatnonzero(~np.isfinite(activations).all(axis=1))[0])
        raise UserError(f"{path} has a NaN or infinite value in row {row}: {remedy}")
    return activations


@dataclass(frozen=True)
class ModelRows:
    """A dataset's activations ``X`` [n_rows, d_model] with labels ``y`` [n_rows], and those of its
    OOD file where asked for. Latents have the same form, sparse [n_rows, d_sae].
    """

    X: Any
    y: np.ndarray
    X_ood: Any = None
    y_ood: np.ndarray | None = None
    texts: TextCodes | None = None

    @property
    def labels(self) -> np.ndarray:
        return self.y

    def condition(self, condition: Condition, seed: int = SEED) -> TrainTest:
        """The rows of a condition, [n, d_model]; the test rows of OOD are those of the OOD file."""
        drawn = split(condition, self.y, seed, self.y_ood, self.texts)
        shifted = get_setting(condition.setting).shifted
        return drawn.take(self.X, self.X_ood if shifted else None, self.texts)


def load_rows(
    paths: Paths,
    model_name: str,
    dataset: str,
    hook_name: str,
    ood: bool,
    d_model: int | None = None,
) -> ModelRows:
    """Activations and labels of a dataset at a hook, with ``ood`` those of its OOD file too.

    Raises UserError as ``load_activations`` does.
    """
    remedy = f"`make generate-model-acts MODEL={model_name}` makes it"
    texts = load_dataset(paths, dataset)
    X = load_activations(
        paths.model_activations(model_name, dataset, hook_name), texts, remedy, d_model
    )
    codes = text_codes(paths, dataset, ood)
    if not ood:
        return ModelRows(X, texts.labels[: len(X)], texts=codes)
    shifted = load_ood(paths, dataset)
    X_ood = load_activations(
        paths.model_activations(model_name, dataset, hook_name, ood=True), shifted, remedy, d_model
    )
    if len(X_ood) != len(shifted):
        path = paths.model_activations(model_name, dataset, hook_name, ood=True)
        raise UserError(
            f"{path} has {len(X_ood)} rows, {shifted.name} has {len(shifted)}: {remedy}"
        )
    return ModelRows(X, texts.labels[: len(X)], X_ood, shifted.labels, codes)
