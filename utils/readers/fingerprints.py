"""What files are, without reading them whole: a SHA-256 that changes when they do."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from functools import lru_cache
from pathlib import Path

from utils.readers.weight_files import stored_arrays
from utils.runtime.errors import UserError

HASHED = (".json", ".npz", ".safetensors", ".pt", ".pth", ".yaml", ".txt", ".model")
# bytes of an array that a fingerprint reads whole: biases and thresholds of a million latents
WHOLE = 4 << 20


def digest(value: object) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data, as a column of a table holds them.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the files of an SAE or a language model.

    Settings, biases and thresholds count whole, and 64 samples of 4 kB of each matrix.
    """
    files = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if name.endswith(HASHED) and name != "training.json"
    )
    return _fingerprint(folder, _stats(files))


def file_fingerprint(path: Path) -> str:
    """SHA-256 over one file, sampled as those of a folder are."""
    return _fingerprint(path.parent, _stats([path]))


def files_fingerprint(files: list[Path]) -> str:
    """SHA-256 over a few files, sampled as those of a folder are; only their names count."""
    return digest([[path.name, file_fingerprint(path)] for path in files])


def _stats(files: list[Path]) -> tuple[tuple[Path, int, int], ...]:
    stats = [path.stat() for path in files]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(files, stats))


@lru_cache(maxsize=4096)
def _fingerprint(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """``files``: (path, bytes, time of change) of each; the last only so that a changed file is
    read again.
    """
    hashed = hashlib.sha256()
    for path, size, _ in files:
        hashed.update(f"{path.relative_to(folder)} {size}".encode())
        with open(path, "rb") as file:
            for start, n_bytes in [(0, size), *_arrays_in(path)]:
                step = 4096 if n_bytes <= WHOLE else n_bytes // 64
                for place in range(start, start + n_bytes, step):
                    file.seek(place)
                    hashed.update(file.read(min(4096, start + n_bytes - place)))
    return hashed.hexdigest()


def _arrays_in(path: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of each array in a weight file, small ones and matrices alike; [] where it
    cannot be read.
    """
    try:
        if path.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(path) as archive:
                # and its header
                return [(m.header_offset, m.file_size + 512) for m in archive.infolist()]
        if path.suffix in (".npz", ".safetensors"):
            return [(array.offset, array.n_bytes) for array in stored_arrays(path).values()]
    except (UserError, zipfile.BadZipFile):  # opening it says what is wrong
        pass
    return []
