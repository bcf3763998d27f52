"""The labelled text datasets: names, texts, labels, and their out-of-distribution partners."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.paths import Paths
from utils.runtime.errors import Failures, UserError, first_line, unknown_name
from utils.runtime.remembered import Stamp, remembered, rules_of, stamp_of
from utils.settings import MIN_TEST, TextCodes

MAX_TEXT_BYTES = 256 << 20  # of a file of texts; the paper's largest has 20 MB
MAX_ROWS = 5000  # the paper uses at most this many rows of a dataset
FEWEST_ROWS = 200  # below, more rows of a user's dataset are tested on than trained on
DRAW_SEED = 42  # of the rows of a user's own larger dataset
ENDS = ("", ".zst", ".gz")  # of a file of texts, behind .csv
OTHER_KINDS = (".jsonl", ".json", ".tsv", ".parquet", ".xlsx", ".xls", ".ods", ".txt")

# Targets of an OOD file that mean a training class under another name. 90_glue_qnli: its training
# targets 0 and 1 are GLUE's codes for entailment and not_entailment, and its OOD file says "1" and
# "not_entailment"; the published code numbers each file's sorted values on its own, which gives the
# same mapping ("1" -> class 0, "not_entailment" -> 1).
OOD_TARGETS = {"90_glue_qnli": {"1": 0, "not_entailment": 1}}


@dataclass(frozen=True)
class Dataset:
    """Texts and labels of one binary dataset; ``labels`` [n_rows] are codes of the sorted distinct
    targets; ``notes``: what was understood of the file that another reader could take otherwise.
    """

    name: str
    texts: list[str]
    labels: np.ndarray
    classes: tuple[str, str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def existing_csv(path: Path) -> Path | None:
    """``path`` or its compressed twin, whichever is there; the plain file (a user's own) wins. A
    name in another Unicode normal form, or with .CSV at its end, is the same name.
    """
    for end in ENDS:
        candidate = path.with_name(path.name + end)
        if candidate.is_file():
            return candidate
    wanted = file_dataset(path)
    return next((file for file in _files(path.parent) if file_dataset(file) == wanted), None)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # a link that leads nowhere is named when it is read
    return sorted(f for f in folder.iterdir() if f.is_file() or (f.is_symlink() and not f.exists()))


def file_dataset(file: Path) -> str | None:
    """The dataset that a file is named for; None for hidden files, those that systems and
    spreadsheets leave beside others, and other kinds.

    >>> [file_dataset(Path(name)) for name in ("mine.csv.zst", "Mine.CSV", "._mine.csv")]
    ['mine', 'Mine', None]
    """
    match = re.fullmatch(r"(?![.~])(.+)\.csv(\.zst|\.gz)?", file.name, re.IGNORECASE | re.DOTALL)
    return unicodedata.normalize("NFC", match.group(1)) if match else None


def other_kinds(paths: Paths) -> dict[str, Path]:
    """{dataset: file} of files of texts that are of a kind that is not read."""
    return {
        file.name.split(".")[0]: file
        for file in _files(paths.texts("x").parent)
        if file.suffix.lower() in OTHER_KINDS and not file.name.startswith((".", "~"))
    }


def read_csv(path: Path, what: str, wanted: tuple[str, ...] = ()) -> pd.DataFrame:
    """The table at ``path`` with every cell as text. ``wanted``: columns by which its separator
    (comma, semicolon or tab) is known.

    Raises UserError when the file is not there or is no CSV.
    """
    file_path, content = _content(path, what)
    try:
        separator, content = _separator(content, wanted)
        return _table(content, separator)
    # pandas and codecs each raise their own kinds for a broken file
    except Exception as error:
        raise _no_csv(file_path, error) from error


def _table(content: bytes, separator: str) -> pd.DataFrame:
    """Raises ValueError where a column stands twice, or a row has more cells than the header: what
    belongs to which column is then a guess.
    """
    check_columns(content, separator)
    table = pd.read_csv(
        io.BytesIO(content), dtype=str, keep_default_na=False, sep=separator, encoding="utf-8-sig"
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more cells than its header: a comma in a text?")
    return table


def _no_csv(path: Path, error: Exception) -> UserError:
    remedy = "fetch it again, or mend it"
    if isinstance(error, UnicodeDecodeError):
        remedy = "save it in UTF-8"
    return UserError(
        f"{path} cannot be read as CSV ({type(error).__name__}: {first_line(error)}): {remedy}"
    )


def _content(path: Path, what: str) -> tuple[Path, bytes]:
    """(the file, its bytes, unpacked)."""
    file_path = existing_csv(path)
    if file_path is None:
        raise UserError(f"no {what} at {path}[.zst]: run `make fetch-data`, or put the file there")
    try:
        return file_path, _unpacked(file_path)
    except Exception as error:  # zstandard and gzip each raise their own kinds
        raise _no_csv(file_path, error) from error


def _unpacked(path: Path) -> bytes:
    if path.suffix not in (".zst", ".gz"):
        return path.read_bytes()
    import zstandard

    with open(path, "rb") as file:
        unpacker: Any = (
            gzip.GzipFile(fileobj=file)
            if path.suffix == ".gz"
            else zstandard.ZstdDecompressor(max_window_size=MAX_TEXT_BYTES).stream_reader(file)
        )
        content = unpacker.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_TEXT_BYTES >> 20} MiB")
    return content


def header_of(content: bytes, separator: str = ",") -> list[str]:
    """The cells of a CSV's first line, without the byte-order mark that spreadsheets put before it.

    Raises UnicodeDecodeError for other encodings than UTF-8.
    """
    first = content.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    return next(csv.reader([first], delimiter=separator), [])


def check_columns(content: bytes, separator: str = ",") -> None:
    """Raise ValueError where a CSV's first line names a column twice: which of the two is meant is
    not for us to guess.
    """
    header = header_of(content, separator)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"it has the column {' and '.join(twice)} more than once")


@cache
def paper_datasets(paths: Paths) -> tuple[tuple[str, ...], frozenset[str]]:
    """(the paper's binary datasets in the order of its master table, its other datasets)."""
    table = read_csv(paths.master_table(), "dataset table")
    missing = {"Data type", "Dataset save name"} - set(table.columns)
    if missing:
        raise UserError(
            f"{paths.master_table()} lacks the columns {sorted(missing)}: run `make fetch-data`"
        )
    binary = table[table["Data type"] == "Binary Classification"]
    listed = tuple(Path(name).stem for name in binary["Dataset save name"])
    return listed, frozenset(Path(name).stem for name in table["Dataset save name"]) - set(listed)


@cache
def list_datasets(paths: Paths) -> tuple[str, ...]:
    """Names of the binary datasets, in the order of the paper's master table, then any CSV the user
    added.
    """
    listed, not_binary = paper_datasets(paths)
    on_disk = {file_dataset(file) for file in _files(paths.texts("x").parent)} - {None}
    return listed + tuple(sorted(str(n) for n in on_disk - set(listed) - not_binary))


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
    return [
        file
        for file in _files(folder)
        if (name := file_dataset(file)) is not None and not name.endswith("_OOD")
    ]


def choose_datasets(paths: Paths, asked: list[str] | None, ood: bool = False) -> list[str]:
    """The datasets asked for, or all; for ``ood``, those of them that have an OOD partner.

    Raises UserError for an unknown name, or when OOD leaves none.
    """
    known = list_datasets(paths)
    asked = [unicodedata.normalize("NFC", name) for name in asked or ()]
    for name in asked:
        if name in known:
            continue
        longer = next((k for k in known if " " in k and k.split(" ")[0] == name), None)
        if longer:
            raise UserError(
                f"no dataset {name!r}; a name with spaces is quoted: --datasets '{longer}', or"
                f" make DATASETS=\"'{longer}'\""
            )
        if "," in name and set(name.split(",")) <= set(known):
            raise UserError(f"{name!r}: names are separated by spaces: {name.replace(',', ' ')}")
        seen = other_kinds(paths).get(name.split(".")[0])
        if seen:
            raise UserError(f"{seen} is there, but .csv, .csv.gz and .csv.zst are read: convert it")
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


def _stamp(path: Path) -> Stamp | None:
    """Of a table of texts; None where it is not there, or a link that leads nowhere."""
    file = existing_csv(path)
    return stamp_of(file) if file is not None and file.exists() else None


def load_dataset(paths: Paths, name: str) -> Dataset:
    """The texts and labels of a dataset, at most 5,000: of the paper's the first, as there; of a
    user's own drawn from all rows.

    Raises UserError when the file is missing or unreadable, has rows without ``prompt`` or
    ``target``, or has not two classes.
    """
    if not name.isprintable():
        raise UserError(f"{str(paths.texts(name))!a} has a name that is no text: rename it")
    return _load_dataset(paths, name, _stamp(paths.texts(name)))


@lru_cache(maxsize=8)
def _load_dataset(paths: Paths, name: str, _: Stamp | None) -> Dataset:
    table, notes = _prompt_and_target(paths.texts(name), name)
    n_rows = len(table)
    if n_rows > MAX_ROWS:
        if name in paper_datasets(paths)[0]:
            table = table.iloc[:MAX_ROWS]
        else:
            drawn = np.random.default_rng(DRAW_SEED).choice(n_rows, MAX_ROWS, replace=False)
            table = table.iloc[np.sort(drawn)]
            notes.append(f"{MAX_ROWS} of its {n_rows} rows are used, drawn with seed {DRAW_SEED}")
    own = name not in paper_datasets(paths)[0]
    if own and len(table) < FEWEST_ROWS:
        n_train = max(len(table) - MIN_TEST, 0)
        other = ", or the flag --test_frac 0.3" if n_train >= 2 else ""
        notes.append(
            f"of its {len(table)} rows {n_train} are trained on and {len(table) - n_train - 1}"
            f" tested on: give it {FEWEST_ROWS} or more{other} (docs/own_data.md)"
        )
    classes = _sorted_values(table["target"])
    if len(classes) != 2:
        shown = ", ".join(map(repr, classes[:5]))
        raise UserError(
            f"dataset {name} has {len(classes)} classes ({shown}): probes need exactly 2 values of"
            " `target`"
        )
    labels = table["target"].map({value: code for code, value in enumerate(classes)})
    return Dataset(
        name,
        table["prompt"].tolist(),
        labels.to_numpy(np.int64),
        (classes[0], classes[1]),
        tuple(notes),
    )


def load_ood(paths: Paths, name: str) -> Dataset:
    """The out-of-distribution texts of a dataset, labels coded by the training classes' values.

    Raises UserError when the file is missing or its classes cannot be matched with the training
    classes.
    """
    return _load_ood(paths, name, text_stamps(paths, name, ood=True))


@lru_cache(maxsize=8)
def _load_ood(paths: Paths, name: str, _: tuple[Stamp | None, ...]) -> Dataset:
    classes = load_dataset(paths, name).classes
    table, notes = _prompt_and_target(paths.ood_texts(name), f"{name}_OOD")
    codes = OOD_TARGETS.get(name, {value: code for code, value in enumerate(classes)})
    spelt = {_spelling(value): code for value, code in codes.items()}
    codes = {
        **{t: spelt[_spelling(t)] for t in set(table["target"]) if _spelling(t) in spelt},
        **codes,
    }
    strange = sorted(set(table["target"]) - set(codes))
    if strange:
        raise UserError(
            f"{paths.ood_texts(name).name} has targets {strange} that are no class of {name}"
            f" {sorted(classes)}: make them the same words in both files"
        )
    labels = table["target"].map(codes).to_numpy(np.int64)
    if len(set(labels)) < 2:
        raise UserError(
            f"{paths.ood_texts(name).name} has one class alone ({table['target'].iloc[0]!r}): an"
            " AUC needs both"
        )
    return Dataset(f"{name}_OOD", table["prompt"].tolist(), labels, classes, tuple(notes))


def text_codes(paths: Paths, name: str, ood: bool) -> TextCodes:
    """Numbers in place of a dataset's texts; with ``ood`` also of those of its OOD file.

    Raises UserError as ``load_dataset`` and ``load_ood`` do.
    """
    return _text_codes(paths, name, ood, text_stamps(paths, name, ood))


@lru_cache(maxsize=8)
def _text_codes(paths: Paths, name: str, ood: bool, _: tuple[Stamp | None, ...]) -> TextCodes:
    texts = load_dataset(paths, name).texts
    shifted = load_ood(paths, name).texts if ood else []
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(text, len(numbers)) for text in (*texts, *shifted)])
    return TextCodes(codes[: len(texts)], codes[len(texts) :] if ood else None)


@dataclass(frozen=True)
class Facts:
    """What is known of a dataset, or of its OOD file, without its texts.

    ``texts``, ``texts_and_labels``: SHA-256 of its rows; ``notes``: as in ``Dataset``.
    """

    n_rows: int
    texts: str
    texts_and_labels: str
    notes: tuple[str, ...]


def dataset_facts(paths: Paths, name: str, ood: bool = False, n_rows: int | None = None) -> Facts:
    """Of a dataset's first ``n_rows`` rows (None: all), or of its OOD file; remembered from run to
    run, because the texts of all datasets take seconds to read.

    Raises UserError as ``load_dataset`` and ``load_ood`` do.
    """
    return _facts(paths, name, ood, n_rows, text_stamps(paths, name, ood))


def text_stamps(paths: Paths, name: str, ood: bool) -> tuple[Stamp | None, ...]:
    """Of a dataset's file of texts, and with ``ood`` of its OOD file; None for one that is not
    there.
    """
    return _stamp(paths.texts(name)), *([_stamp(paths.ood_texts(name))] if ood else [])


@cache
def _facts(
    paths: Paths, name: str, ood: bool, n_rows: int | None, stamps: tuple[Stamp | None, ...]
) -> Facts:
    def find() -> list:
        dataset = load_ood(paths, name) if ood else load_dataset(paths, name)
        texts = texts_fingerprint(dataset.texts[:n_rows])
        labels = dataset.labels[:n_rows].astype(np.int8).tobytes()
        both = hashlib.sha256(texts.encode() + labels).hexdigest()
        return [len(dataset.labels[:n_rows]), texts, both, list(dataset.notes)]

    there = [stamp for stamp in stamps if stamp is not None]
    if len(there) < len(stamps):
        find()  # which says what is missing
    about = f"{name}{'_OOD' if ood else ''}{'' if n_rows is None else f', {n_rows} rows'}"
    known = remembered(paths.data_dir).recall(
        f"texts of {about} in {paths.text_dir.absolute()}", there, rules_of(__name__), find
    )
    n_known, texts, texts_and_labels, notes = known
    return Facts(n_known, texts, texts_and_labels, tuple(notes))


def dataset_size(paths: Paths, name: str) -> int:
    """Rows of a dataset that are used."""
    return dataset_facts(paths, name).n_rows


def readable(paths: Paths, names: list[str], failures: Failures, ood: bool = False) -> list[str]:
    """Those of the datasets whose files (with ``ood`` the shifted one too) can be read; a line for
    what was understood of one that could be read otherwise.
    """
    usable = []
    for name in names:
        with failures.caught():
            for is_ood in (False, True) if ood else (False,):
                dataset_facts(paths, name, is_ood)
                _say(paths, name, is_ood)
            usable.append(name)
    return usable


@cache
def _say(paths: Paths, name: str, ood: bool) -> None:
    """Print the notes on a file, once."""
    for note in dataset_facts(paths, name, ood).notes:
        print(f"{name}{'_OOD' if ood else ''}: {note}")


def _prompt_and_target(path: Path, name: str) -> tuple[pd.DataFrame, list[str]]:
    """(the columns prompt and target of a file of texts, what was understood of it)."""
    file_path, content = _content(path, f"texts of {name}")
    notes: list[str] = []
    try:
        separator, content = _separator(content, ("prompt", "target"))
        if separator != ",":
            notes.append(f"its cells are separated by {separator!r}")
        table = _table(content, separator)
    except Exception as error:
        raise _no_csv(file_path, error) from error
    named = {column: str(column).strip().casefold() for column in table.columns}
    for wanted in ("prompt", "target"):
        alike = [column for column, plain in named.items() if plain == wanted]
        if wanted not in table.columns and len(alike) == 1:
            table = table.rename(columns={alike[0]: wanted})
            notes.append(f"its column {alike[0]!r} is taken for {wanted!r}")
    missing = {"prompt", "target"} - set(table.columns)
    if missing:
        columns = ", ".join(str(name)[:40] for name in table.columns[:8])
        raise UserError(
            f"{path.name} lacks the column {' and '.join(sorted(missing))}; it has {columns!r}"
        )
    for column, remedy in (("target", "label or remove it"), ("prompt", "fill or remove it")):
        plain = table[column].str.strip()
        # a tool's word for nothing; a text may be that very word
        nothing = plain.str.lower().isin(("", "nan")) if column == "target" else plain == ""
        empty = np.flatnonzero(nothing)
        if len(empty):
            others = f" and {len(empty) - 1} others" if len(empty) > 1 else ""
            raise UserError(f"{path.name} has no {column} in row {empty[0] + 2}{others}: {remedy}")
    spellings = table["target"].map({t: _spelling(t) for t in table["target"].unique()})
    if spellings.nunique() < table["target"].nunique():
        merged = {s: sorted(set(table["target"][spellings == s])) for s in spellings.unique()}
        notes.append(
            "its targets are read as "
            + ", ".join(f"{s!r} ({' '.join(map(repr, of))})" for s, of in sorted(merged.items()))
        )
        table = table.assign(target=spellings)
    return table, notes


def _separator(content: bytes, wanted: tuple[str, ...]) -> tuple[str, bytes]:
    """(what separates the cells, the content without the line that says so): a comma, but for
    files whose first line has all wanted columns only by another.
    """
    first = content.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    said = re.fullmatch(r"\W?sep=(.)\W?", first, re.IGNORECASE)
    if said:
        return said.group(1), content.split(b"\n", 1)[1]
    for separator in (",", ";", "\t"):
        named = {
            name.strip().casefold() for name in next(csv.reader([first], delimiter=separator), [])
        }
        if wanted and set(wanted) <= named:
            return separator, content
    return ",", content


def _spelling(target: str) -> str:
    """One form for the spellings of a number or of true and false.

    >>> _spelling(" 1"), _spelling("1.0"), _spelling("TRUE"), _spelling("yes")
    ('1', '1', 'True', 'yes')
    """
    plain = target.strip()
    if plain.casefold() in ("true", "false"):
        return plain.casefold().title()
    if not re.fullmatch(r"[+-]?\d{1,15}(\.\d{0,15})?", plain):
        return plain
    number = float(plain)
    return str(int(number)) if number == int(number) else str(number)


def _sorted_values(targets: pd.Series) -> list[str]:
    """Distinct targets, as numbers in number order where all are numbers, else as text ("False" <
    "True").
    """
    values = targets.unique().tolist()
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)
