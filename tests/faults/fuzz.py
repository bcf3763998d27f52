"""Fuzz the readers of untrusted bytes that are our own: the .npz and .safetensors block reader, the
restricted unpickler, and the .pt reader that stands on it.

    python tests/faults/fuzz.py npz --minutes 10
    python tests/faults/fuzz.py pt --minutes 10
    python tests/faults/fuzz.py pickle --minutes 10 --keep found/

Coverage-guided by Atheris (`pip install atheris`), from valid files on. A finding is any error but
UserError, more memory than the file could justify, or anything done besides reading: an audit hook
sees every import, open, exec and process start. The first finding ends the run with a traceback,
its input is kept in --keep.
"""

from __future__ import annotations

import argparse
import codecs
import io
import pickle
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

import atheris  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import save  # noqa: E402

READERS = [
    "utils.readers.weight_files",
    "utils.readers.pickles",
    "utils.readers.pt_files",
    "zipfile",
    "pickle",
    "json.decoder",
]
with atheris.instrument_imports(include=READERS):
    import torch

    from utils.readers.pickles import Sparse, Strided, read_pickle
    from utils.readers.pt_files import load_tensor, read_pt, state_dict
    from utils.readers.weight_files import stored_arrays
    from utils.runtime.errors import UserError

FORBIDDEN = (
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "import",
    "marshal.",
    "open",
)
MOST_READ = 1 << 20  # bytes of an array that a target reads
watching: list[str] = []  # the one file that may be opened, while a target runs
done: list[str] = []  # what was done besides


def audit(event: str, arguments: tuple) -> None:
    if not watching or not event.startswith(FORBIDDEN):
        return
    if event == "open" and str(arguments[0]) == watching[0]:
        return
    # literal_eval parses (never runs) a header; zipfile asks for codecs by import, which are loaded
    # once
    if (event == "compile" and arguments[1] in ("<unknown>", "<string>")) or (
        event == "import" and arguments[0].startswith("encodings")
    ):
        return
    done.append(f"{event} {arguments!r}"[:200])


def read_arrays(path: Path) -> None:
    for array in stored_arrays(path).values():
        if array.n_bytes <= MOST_READ:
            assert array.read().nbytes <= 2 * MOST_READ
            if len(array.shape) == 2 and all(array.shape):
                array.rows(0, 1)
                array.columns(0, 1)


def unpickle(path: Path) -> None:
    for value in read_pickle(path).values():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            assert value.numel() * value.element_size() <= value.untyped_storage().nbytes()
            value.float().sum()


def read_pt_file(path: Path) -> None:
    found = read_pt(path, "fetch it again")
    if isinstance(found, Sparse | Strided):
        load_tensor(path, "fetch it again")
    elif isinstance(found, dict):
        for array in state_dict(path, "fetch it again")[1].values():
            if array.n_bytes <= MOST_READ:
                assert array.read().nbytes <= 8 * MOST_READ


def npz_seeds() -> list[bytes]:
    seeds = []
    arrays: dict[str, np.ndarray] = {
        "W_enc": np.ones((3, 4), np.float32),
        "b_enc": np.zeros(4, np.float16),
        "threshold": np.zeros((), np.float64),
    }
    sets: list[dict[str, np.ndarray]] = [arrays, {"x": np.zeros((0, 3), np.float32)}]
    for of in sets:
        file = io.BytesIO()
        np.savez(file, **of)  # type: ignore[arg-type]
        seeds.append(b"n" + file.getvalue())
        seeds.append(b"s" + save(of))
    return seeds


def pickle_seeds() -> list[bytes]:
    values = [
        {"test_auc": np.float64(0.5), "k": np.int64(3), "dataset": "a", "ok": np.bool_(True)},
        {"w": torch.arange(6.0).reshape(2, 3).T, "h": torch.ones(2, dtype=torch.float16)},
        OrderedDict(a=1, b=[1.5, None, "x"], c=(1, {2: 3})),
    ]
    seeds = [b"p" + pickle.dumps(value, protocol) for value in values for protocol in (2, 4, 5)]
    storage = io.BytesIO()
    torch.save(torch.arange(6.0).storage(), storage, _use_new_zipfile_serialization=False)
    return [*seeds, b"t" + storage.getvalue()]


def pt_seeds() -> list[bytes]:
    """Archives whose pickles are small enough for a fuzzer to change; "z" has only the pickle, to
    which the storages are added.
    """
    values = [
        torch.ones(3),
        {"W": torch.arange(6.0).reshape(2, 3).T, "k": torch.tensor(3), "n": "x"},
        torch.nn.Linear(2, 2).state_dict(),
        torch.eye(3).to_sparse(),
        {"w": torch.ones(2, dtype=torch.bfloat16), "f": torch.ones(2).to(torch.float8_e5m2)},
    ]
    seeds = []
    for value in values:
        file = io.BytesIO()
        torch.save(value, file)
        seeds.append(b"a" + file.getvalue())
        with zipfile.ZipFile(file) as archive:
            seeds.append(b"z" + archive.read("archive/data.pkl"))
    return seeds


def as_archive(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for key in range(3):
            archive.writestr(f"x/data/{key}", bytes(24))
    return file.getvalue()


class Inside:
    """Pickled as published files pickle a tensor's storage: a file of torch inside the pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=("npz", "pickle", "pt"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--keep", type=Path, default=Path("found"), help="folder for an input that is a finding"
    )
    args = parser.parse_args()
    # torch's are shown with their source line, which is read for that
    warnings.simplefilter("ignore")
    args.keep.mkdir(parents=True, exist_ok=True)
    seeds = {"npz": npz_seeds, "pickle": pickle_seeds, "pt": pt_seeds}[args.target]()
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)

        def one(data: bytes) -> None:
            if args.target == "npz":
                path = Path(folder) / ("x.npz" if data[:1] == b"n" else "x.safetensors")
                data, target = data[1:], read_arrays
            elif args.target == "pt":
                path, target = Path(folder) / "x.pt", read_pt_file
                data = as_archive(data[1:]) if data[:1] == b"z" else data[1:]
            else:
                path, target = Path(folder) / "x.pkl", unpickle
                data = pickle.dumps({"w": Inside(data[1:])}, 4) if data[:1] == b"t" else data[1:]
            path.write_bytes(data)
            watching[:] = [str(path)]
            try:
                target(path)
            except UserError:
                pass
            finally:
                watching.clear()
            if done:
                raise AssertionError(f"done besides reading: {done}")

        for codec in (
            "raw_unicode_escape",
            "unicode_escape",
            "utf_16",
            "utf_32",
            "latin1",
            "ascii",
            "cp437",
        ):
            codecs.lookup(codec)  # the standard readers' own, loaded when first met
        for seed in seeds:  # lazy imports happen now
            one(seed)
            done.clear()
        sys.addaudithook(audit)
        limits = [
            f"-max_total_time={args.minutes * 60:.0f}",
            "-max_len=4096",
            "-rss_limit_mb=3000",
            "-timeout=20",
        ]
        atheris.Setup(
            [
                sys.argv[0],
                *limits,
                f"-artifact_prefix={args.keep}/",
                "-print_final_stats=1",
                str(corpus),
            ],
            one,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
