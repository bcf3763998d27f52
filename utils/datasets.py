"""The labelled text datasets: names, texts, labels, and their out-of-distribution partners."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from utils.paths import Paths
from utils.runtime.errors import Failures, UserError, unknown_name

MAX_TEXT_BYTES = 256 << 20  # of a file of texts; the paper's largest has 20 MB
MAX_ROWS = 5000  # the paper uses at most this many rows of a dataset

# Targets of an OOD file that mean a training class under another name. 90_glue_qnli: its training
# targets 0 and 1 are GLUE's codes for entailment and not_entailment, and its OOD file says "1" and
# "not_entailment"; the published code numbers each file's sorted values on its own, which gives the
# same mapping ("1" -> class 0, "not_entailment" -> 1).
OOD_TARGETS = {"90_glue_qnli": {"1": 0, "not_entailment": 1}}


@dataclass(frozen=True)
class Dataset:
    """Texts and labels of one binary dataset; ``labels`` [n_rows] are codes of the sorted distinct
    targets.
    """

    name: str
    texts: list[str]
    labels: np.ndarray
    classes: tuple[str, str]

    def __len__(self) -> int:
        return len(self.labels)


def existing_csv(path: Path) -> Path | None:
    """``path`` or its compressed twin ``path.zst``, whichever is there; the plain file (a user's
    own) wins.
    """
    for candidate in (path, path.with_name(path.name + ".zst")):
        if candidate.is_file():
            return candidate
    return None


def read_csv(path: Path, what: str) -> pd.DataFrame:
    """The table at ``path`` with every cell as text.

    Raises UserError when the file is not there or is no CSV.
    """
    file_path = existing_csv(path)
    if file_path is None:
        raise UserError(f"no {what} at {path}[.zst]: run `make fetch-data`, or put the file there")
    try:
        content = _decompressed(file_path) if file_path.suffix == ".zst" else file_path.read_bytes()
        check_columns(content)
        return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    # pandas, zstandard and codecs each raise their own kinds for a broken file
    except Exception as error:
        raise UserError(
            f"{file_path} cannot be read as CSV ({type(error).__name__}: {first_line(error)}):"
            " fetch it again"
        ) from error


def _decompressed(path: Path) -> bytes:
    import zstandard

    with open(path, "rb") as file:
        content = (
            zstandard.ZstdDecompressor(max_window_size=MAX_TEXT_BYTES)
            .stream_reader(file)
            .read(MAX_TEXT_BYTES + 1)
        )
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_TEXT_BYTES >> 20} MiB")
    return content


def check_columns(content: bytes) -> None:
    """Raise ValueError where a CSV's first line names a column twice: which of the two is meant is
    not for us to guess.
    """
    header = next(csv.reader([content.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")]), [])
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"it has the column {' and '.join(twice)} more than once")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]


@cache
def list_datasets(paths: Paths) -> tuple[str, ...]:
    """Names of the binary datasets, in the order of the paper's master table, then any CSV the user
    added.
    """
    table = read_csv(paths.master_table(), "dataset table")
    missing = {"Data type", "Dataset save name"} - set(table.columns)
    if missing:
        raise UserError(
            f"{paths.master_table()} lacks the columns {sorted(missing)}: run `make fetch-data`"
        )
    binary = table[table["Data type"] == "Binary Classification"]
    listed = [Path(name).stem for name in binary["Dataset save name"]]
    not_binary = {Path(name).stem for name in table["Dataset save name"]} - set(listed)
    folder = paths.texts("x").parent
    on_disk = (
        {file.name.split(".csv")[0] for file in folder.glob("*.csv*")} if folder.is_dir() else set()
    )
    return tuple(listed) + tuple(sorted(on_disk - set(listed) - not_binary))


def list_ood_datasets(paths: Paths) -> list[str]:
    """Datasets with a labelled out-of-distribution file, in the order of ``list_datasets``."""
    return [
        name for name in list_datasets(paths) if existing_csv(paths.ood_texts(name)) is not None
    ]


def unlabelled_ood_files(paths: Paths) -> list[Path]:
    """Files in the OOD folder that are no dataset (the paper's ``66_living-room_translations.csv``
    has no labels).
    """
    folder = paths.ood_texts("x").parent
    return sorted(file for file in folder.glob("*.csv*") if "_OOD.csv" not in file.name)


def choose_datasets(paths: Paths, asked: list[str] | None, ood: bool = False) -> list[str]:
    """The datasets asked for, or all; for ``ood``, those of them that have an OOD partner.

    Raises UserError for an unknown name, or when OOD leaves none.
    """
    known = list_datasets(paths)
    for name in asked or ():
        if name not in known:
            raise unknown_name("dataset", name, known, f"(tables in {paths.text_dir})")
    chosen = list(dict.fromkeys(asked)) if asked else list(known)
    if ood:
        partnered = set(list_ood_datasets(paths))
        chosen = [name for name in chosen if name in partnered]
        if not chosen:
            raise UserError(
                "none of the datasets has an OOD partner; those that have:"
                f" {', '.join(sorted(partnered)) or 'none'}"
            )
    return chosen


def texts_fingerprint(texts: list[str]) -> str:
    """SHA-256 of the texts in order: says whether activations were made from these very texts."""
    hashed = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()


Stamp = tuple[Path, int, int] | None


def _stamp(path: Path) -> Stamp:
    """(file, bytes, time of change) of a table: what is remembered of it holds while this does."""
    file = existing_csv(path)
    if file is None:
        return None
    stat = file.stat()
    return file, stat.st_size, stat.st_mtime_ns


def load_dataset(paths: Paths, name: str) -> Dataset:
    """The first 5,000 texts and labels of a dataset.

    Raises UserError when the file is missing or unreadable, has rows without ``prompt`` or
    ``target``, or has not two classes.
    """
    if not name.isprintable():
        raise UserError(f"{str(paths.texts(name))!a} has a name that is no text: rename it")
    return _load_dataset(paths, name, _stamp(paths.texts(name)))


@lru_cache(maxsize=8)
def _load_dataset(paths: Paths, name: str, _: Stamp) -> Dataset:
    table = _prompt_and_target(paths.texts(name), name).iloc[:MAX_ROWS]
    classes = _sorted_values(table["target"])
    if len(classes) != 2:
        shown = ", ".join(map(repr, classes[:5]))
        raise UserError(
            f"dataset {name} has {len(classes)} classes ({shown}): probes need exactly 2 values of"
            " `target`"
        )
    labels = table["target"].map({value: code for code, value in enumerate(classes)})
    return Dataset(
        name, table["prompt"].tolist(), labels.to_numpy(np.int64), (classes[0], classes[1])
    )


def load_ood(paths: Paths, name: str) -> Dataset:
    """The out-of-distribution texts of a dataset, labels coded by the training classes' values.

    Raises UserError when the file is missing or its classes cannot be matched with the training
    classes.
    """
    stamps = _stamp(paths.texts(name)), _stamp(paths.ood_texts(name))
    return _load_ood(paths, name, stamps)


@lru_cache(maxsize=8)
def _load_ood(paths: Paths, name: str, _: tuple[Stamp, Stamp]) -> Dataset:
    classes = load_dataset(paths, name).classes
    table = _prompt_and_target(paths.ood_texts(name), f"{name}_OOD")
    codes = OOD_TARGETS.get(name, {value: code for code, value in enumerate(classes)})
    strange = sorted(set(table["target"]) - set(codes))
    if strange:
        raise UserError(
            f"{paths.ood_texts(name).name} has targets {strange} that are no class of {name}"
            f" {sorted(classes)}: make them the same words in both files"
        )
    labels = table["target"].map(codes).to_numpy(np.int64)
    return Dataset(f"{name}_OOD", table["prompt"].tolist(), labels, classes)


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of a dataset's texts, and of its texts and labels."""

    texts: str
    texts_and_labels: str


def dataset_fingerprint(
    paths: Paths, name: str, n_rows: int | None = None, ood: bool = False
) -> Fingerprint:
    """Of a dataset's first ``n_rows`` rows (None: all), or of its OOD file; remembered, where the
    texts are not.
    """
    stamps = _stamp(paths.texts(name)), _stamp(paths.ood_texts(name)) if ood else None
    return _dataset_fingerprint(paths, name, n_rows, ood, stamps)


@cache
def _dataset_fingerprint(
    paths: Paths, name: str, n_rows: int | None, ood: bool, _: tuple[Stamp, Stamp]
) -> Fingerprint:
    dataset = load_ood(paths, name) if ood else load_dataset(paths, name)
    texts = texts_fingerprint(dataset.texts[:n_rows])
    labels = dataset.labels[:n_rows].astype(np.int8).tobytes()
    return Fingerprint(texts, hashlib.sha256(texts.encode() + labels).hexdigest())


def dataset_size(paths: Paths, name: str) -> int:
    """Rows of a dataset that are used; remembered, where the texts are not."""
    return _dataset_size(paths, name, _stamp(paths.texts(name)))


@cache
def _dataset_size(paths: Paths, name: str, _: Stamp) -> int:
    return len(load_dataset(paths, name))


def readable(paths: Paths, names: list[str], failures: Failures, ood: bool = False) -> list[str]:
    """Those of the datasets whose files (with ``ood`` the shifted one too) can be read."""
    usable = []
    for name in names:
        with failures.caught():
            dataset_size(paths, name)
            if ood:
                load_ood(paths, name)
            usable.append(name)
    return usable


def _prompt_and_target(path: Path, name: str) -> pd.DataFrame:
    table = read_csv(path, f"texts of {name}")
    missing = {"prompt", "target"} - set(table.columns)
    if missing:
        columns = ", ".join(str(name)[:40] for name in table.columns[:8])
        raise UserError(
            f"{path.name} lacks the column {' and '.join(sorted(missing))}; it has {columns!r}"
        )
    for column, remedy in (("target", "label or remove it"), ("prompt", "fill or remove it")):
        empty = np.flatnonzero(table[column].str.strip() == "")
        if len(empty):
            others = f" and {len(empty) - 1} others" if len(empty) > 1 else ""
            raise UserError(f"{path.name} has no {column} in row {empty[0] + 2}{others}: {remedy}")
    return table


def _sorted_values(targets: pd.Series) -> list[str]:
    """Distinct targets, as numbers in number order where all are numbers, else as text ("False" <
    "True").
    """
    values = targets.unique().tolist()
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)
