"""Benchmark of the generator on files of real shape: our order of work against the original's, and
a 1M-latent SAE in 2 GiB.

    python -m benchmarks.generate
    python -m benchmarks.generate --quick

Makes, below --work_dir, texts, model activations and Gemma-Scope-like params.npz files (random
numbers; the decoder is a hole in a sparse file), runs the generator on them as a user would, each
run a process of its own, and removes everything. Prints ratios, the share of the machine's own
matrix-product rate, bytes read against the least possible, and peak memory. Writes no results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measurements import hand_on
from utils import cli
from utils.activations import write_activations
from utils.datasets import load_dataset, load_ood
from utils.paths import Paths
from utils.runtime.files import ROOT, require_disk
from utils.runtime.units import show_bytes
from utils.saes.encode import product_rate

MODEL, D_MODEL, LAYER = "gemma-2-9b", 3584, 20
PREACTIVATION_STD = 1.0  # of random activations through random weights, by construction
THRESHOLD = 3.0  # of these: 0.13 % of latents active, as in wide Gemma Scope SAEs


@dataclass(frozen=True)
class Size:
    """How much is measured: datasets and rows; the original order is measured on a part of the
    datasets and scaled.
    """

    n_datasets: int
    n_rows: int
    widths: dict[str, int]
    original_datasets: int
    million_width: int
    million_datasets: int
    million_memory: str


FULL = Size(20, 1200, {"16k": 16_384, "131k": 131_072}, 1, 1 << 20, 2, "2GiB")
QUICK = Size(4, 1200, {"16k": 16_384}, 1, 1 << 17, 1, "700MiB")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small size: 4 datasets, 16k, and 131k in place of 1M",
    )
    parser.add_argument(
        "--work_dir", type=Path, help="where the files are made (default: a temporary folder)"
    )
    parser.add_argument("--only", choices=("order", "million"), help="one of the two parts")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    size = QUICK if args.quick else FULL
    encoder_bytes = 4 * D_MODEL * (size.million_width + sum(size.widths.values()))
    folder = Path(tempfile.mkdtemp(prefix="benchmark-generate-", dir=args.work_dir))
    try:
        require_disk(folder, int(1.3 * encoder_bytes) + 8 * size.n_datasets * size.n_rows * D_MODEL)
        paths = Paths(folder / "texts", folder / "data", folder / "results", folder / "figures")
        names = write_inputs(paths, size)
        if args.only != "million":
            compare_orders(paths, names, size)
        if args.only != "order":
            million(paths, names[: size.million_datasets], size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def write_inputs(paths: Paths, size: Size) -> list[str]:
    """Texts and activations of the datasets; two of them have an OOD partner."""
    import pandas as pd
    import torch

    rng = np.random.default_rng(0)
    names = [f"{i}_benchmark" for i in range(size.n_datasets)]
    for folder in (
        paths.master_table().parent,
        paths.texts("x").parent,
        paths.ood_texts("x").parent,
    ):
        folder.mkdir(parents=True, exist_ok=True)
    table = {
        "Data type": "Binary Classification",
        "Dataset save name": [f"cleaned_data/{name}.csv" for name in names],
    }
    pd.DataFrame(table).to_csv(paths.master_table(), index=False)
    for i, name in enumerate(names):
        files = [(paths.texts(name), size.n_rows, False)] + (
            [(paths.ood_texts(name), 300, True)] if i < 2 else []
        )
        for path, n_rows, ood in files:
            frame = pd.DataFrame(
                {
                    "prompt": [f"{name} {j}" for j in range(n_rows)],
                    "target": rng.permutation(np.arange(n_rows) % 2),
                }
            )
            frame.to_csv(path, index=False)
            dataset = load_ood(paths, name) if ood else load_dataset(paths, name)
            activations = torch.from_numpy(rng.standard_normal((n_rows, D_MODEL), dtype=np.float32))
            path = paths.model_activations(MODEL, name, f"blocks.{LAYER}.hook_resid_post", ood)
            write_activations(path, activations, dataset.texts, {"model_name": MODEL})
    return names


def write_sae(paths: Paths, width: str, d_sae: int) -> str:
    """A params.npz of Gemma Scope's layout, written block by block; W_dec is a hole that takes no
    disk.
    """
    sae_id = f"layer_{LAYER}/width_{width}/average_l0_{round(d_sae * 0.00135)}"
    path = paths.saes(MODEL) / sae_id / "params.npz"
    path.parent.mkdir(parents=True)
    shapes = {
        "W_enc": (D_MODEL, d_sae),
        "b_enc": (d_sae,),
        "threshold": (d_sae,),
        "b_dec": (D_MODEL,),
        "W_dec": (d_sae, D_MODEL),
    }
    rng = np.random.default_rng(1)
    # a few thousand random columns, repeated: what the encoder's values are does not change the
    # work
    tile = rng.standard_normal((D_MODEL, min(d_sae, 8192)), dtype=np.float32) * np.float32(
        PREACTIVATION_STD / D_MODEL**0.5
    )
    places = []
    with open(path, "wb") as file:
        for name, shape in shapes.items():
            header = npy_header(shape)
            member = zipfile.ZipInfo(f"{name}.npy")
            n_bytes = len(header) + 4 * int(np.prod(shape))
            places.append((member, file.tell(), n_bytes))
            file.write(local_header(member, n_bytes))
            file.write(header)
            if name == "W_enc":
                for row in tile:
                    file.write(np.tile(row, d_sae // len(row)).tobytes())
            elif name == "W_dec":
                file.seek(4 * int(np.prod(shape)), os.SEEK_CUR)
            else:
                file.write(
                    np.full(
                        shape, THRESHOLD if name == "threshold" else 0.0, dtype=np.float32
                    ).tobytes()
                )
        file.write(central_directory(places, file.tell()))
    return sae_id


def npy_header(shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def local_header(member: zipfile.ZipInfo, n_bytes: int) -> bytes:
    member.file_size = member.compress_size = n_bytes
    member.CRC = 0  # the block reader checks shapes and sizes, not sums
    return member.FileHeader(zip64=True)


def central_directory(places: list[tuple[zipfile.ZipInfo, int, int]], offset: int) -> bytes:
    """The end of a zip file; sizes and offsets always in their 64-bit form (zip specification,
    4.5.3).
    """
    entries = b""
    for member, start, n_bytes in places:
        name = member.filename.encode()
        extra = (
            b"\x01\x00"
            + (24).to_bytes(2, "little")
            + b"".join(n.to_bytes(8, "little") for n in (n_bytes, n_bytes, start))
        )
        most = b"\xff\xff\xff\xff"
        entries += b"PK\x01\x02" + bytes([45, 3, 45, 0]) + bytes(12) + most + most
        entries += (
            len(name).to_bytes(2, "little")
            + len(extra).to_bytes(2, "little")
            + bytes(10)
            + most
            + name
            + extra
        )
    n = len(places)
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes([45, 3, 45, 0]) + bytes(8)
    record += (
        2 * n.to_bytes(8, "little")
        + len(entries).to_bytes(8, "little")
        + offset.to_bytes(8, "little")
    )
    locator = (
        b"PK\x06\x07"
        + bytes(4)
        + (offset + len(entries)).to_bytes(8, "little")
        + (1).to_bytes(4, "little")
    )
    end = (
        b"PK\x05\x06"
        + bytes(4)
        + 2 * n.to_bytes(2, "little")
        + b"\xff\xff\xff\xff\xff\xff\xff\xff"
        + bytes(2)
    )
    return entries + record + locator + end


@dataclass
class Measured:
    """One run of the generator: wall seconds, bytes read from files, peak memory, and its share of
    the product rate.
    """

    seconds: float
    bytes_read: int
    peak: int
    share: float


MEASURE = """
import atexit, json, runpy, sys
from utils.runtime.devices import peak_memory
def report():
    lines = open("/proc/self/io") if sys.platform == "linux" else ["rchar: 0"]
    read = int(next(line.split()[1] for line in lines if line.startswith("rchar")))
    print("MEASURED", json.dumps({"read": read, "peak": peak_memory()}))
atexit.register(report)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def generate(paths: Paths, names: list[str], *flags: str) -> Measured:
    """Run the generator as a process of its own on the CPU."""
    shutil.rmtree(paths.data_dir / f"sae_activations_{MODEL}", ignore_errors=True)
    folders = ["--text_dir", paths.text_dir, "--data_dir", paths.data_dir]
    script = ROOT / "generate_sae_activations_optimized.py"
    command = [
        sys.executable,
        "-c",
        MEASURE,
        script,
        "--model_name",
        MODEL,
        *folders,
        "--device",
        "cpu",
    ]
    command += ["--controls", "none", "--datasets", *names, *flags]
    import torch

    ceiling = product_rate(D_MODEL, torch.device("cpu"))
    started = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"the generator failed: {done.stderr[-2000:]}")
    measured = json.loads(
        next(
            line.removeprefix("MEASURED")
            for line in done.stdout.splitlines()
            if line.startswith("MEASURED")
        )
    )
    rates = [float(rate) for rate in re.findall(r"^layer_\S+ .* ([\d.]+)$", done.stdout, re.M)]
    # the ceiling before and after: other work on the machine can only lower a measurement
    share = (
        (float(np.mean(rates)) if rates else float("nan"))
        * 1e9
        / max(ceiling, product_rate(D_MODEL, torch.device("cpu")))
    )
    return Measured(seconds, measured["read"], measured["peak"], share)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.pt")) if folder.is_dir() else 0


def compare_orders(paths: Paths, names: list[str], size: Size) -> None:
    import torch

    least_rows = sum(p.stat().st_size for p in paths.data_dir.glob("model_activations_*/*.pt"))
    out = paths.data_dir / f"sae_activations_{MODEL}"
    few = names[-size.original_datasets :]
    for width, d_sae in size.widths.items():
        sae_id = write_sae(paths, width, d_sae)
        flags = ["--target_sae_id", sae_id]
        print(
            f"\n{width} x {D_MODEL}, {size.n_datasets} datasets of {size.n_rows} rows", flush=True
        )
        nothing = generate(
            paths, names, "--setting", "all", "--dry_run", *flags
        ).bytes_read  # of Python's modules, mostly
        every = generate(paths, names, "--setting", "all", *flags)
        say("all settings", every, nothing, least_rows + 4 * D_MODEL * d_sae)
        ours = {
            setting: generate(paths, few, "--setting", setting, *flags).seconds
            for setting in ("normal", "all")
        }
        disk = folder_bytes(out)
        theirs, original_disk = {}, 0
        # label noise reads the files of normal
        for setting in ("normal", "scarcity", "class_imbalance"):
            theirs[setting] = generate(
                paths, few, "--setting", setting, "--no-batch_mode", *flags
            ).seconds
            original_disk += folder_bytes(out)
        total = sum(theirs.values())
        print(
            f"  {len(few)} dataset, original order: normal {theirs['normal']:.0f} s, all"
            f" {total:.0f} s"
        )
        print(f"  {len(few)} dataset, ours: normal {ours['normal']:.0f} s, all {ours['all']:.0f} s")
        print(
            "  ratio, start-up and loading included: "
            f"normal {theirs['normal'] / ours['normal']:.1f}, all {total / ours['all']:.1f}"
        )
        shared = every.seconds * len(few) / size.n_datasets
        print(
            f"  ratio, all, ours with its start-up shared by {size.n_datasets} datasets:"
            f" {total / shared:.1f}"
        )
        print(
            f"  disk: {show_bytes(disk)} against {show_bytes(original_disk)},"
            f" 1/{original_disk / disk:.0f}",
            flush=True,
        )
        if d_sae == min(size.widths.values()):
            hand_on(
                generate_ratio_all=total / shared,
                generate_ratio_normal=theirs["normal"] / ours["normal"],
                generate_share=every.share,
                storage_ratio=original_disk / disk,
                product_rate=product_rate(D_MODEL, torch.device("cpu")),
            )
        shutil.rmtree(paths.saes(MODEL))


def million(paths: Paths, names: list[str], size: Size) -> None:
    sae_id = write_sae(paths, "1m", size.million_width)
    limits = ["--max_memory", size.million_memory]
    print(
        f"\n{size.million_width} x {D_MODEL}, {' '.join(limits)}, {len(names)} datasets of"
        f" {size.n_rows} rows",
        flush=True,
    )
    flags = ["--setting", "normal", "--target_sae_id", sae_id, *limits]
    nothing = generate(paths, names, "--dry_run", *flags).bytes_read
    result = generate(paths, names, *flags)
    rows = [
        paths.model_activations(MODEL, n, f"blocks.{LAYER}.hook_resid_post").stat().st_size
        for n in names
    ]
    say("normal", result, nothing, sum(rows) + 4 * D_MODEL * size.million_width)


def say(what: str, measured: Measured, nothing: int, least: int) -> None:
    """``nothing``: bytes that a run without any encoding reads; ``least``: bytes of the weights and
    rows, each once.
    """
    read = measured.bytes_read - nothing
    times = read / least
    print(
        f"  {what}: {measured.seconds:.0f} s, {measured.share:.0%} of the product rate measured"
        " beside it"
    )
    print(
        f"  read {show_bytes(read)}, {times:.2f} times each input once; peak memory"
        f" {show_bytes(measured.peak)}"
    )


if __name__ == "__main__":
    cli.run(main)
