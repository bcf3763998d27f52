"""Bring the paper's published result tables to where our own go, so that checks.status and
visualize.py find them.

    python -m published.fetch_results
    python -m published.fetch_results --from ~/SAE-Probes

Takes results/**/*.csv, data/consolidated_probing_*/*.pkl and data/probing_datasets_MASTER.csv from
the paper's public git repository (MIT licence), or from a folder that holds a copy of it. A file
that is already there with other content stays and is named: our own tables are never written over.
Tables that the authors superseded (*_old.csv) are left out. Nothing fetched is run.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import tempfile
from pathlib import Path

from utils import cli
from utils.paths import Paths
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import atomic_path
from utils.runtime.progress import progress

REPOSITORY = "https://github.com/JoshEngels/SAE-Probes"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="a copy of the repository (default: clone it)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    if args.source:
        return bring(args.source, paths)
    with tempfile.TemporaryDirectory() as folder:
        clone(Path(folder) / "published")
        return bring(Path(folder) / "published", paths)


def clone(folder: Path) -> None:
    print(f"cloning {REPOSITORY} …", flush=True)
    try:
        done = subprocess.run(
            ["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            "git is not installed: install it, or give a copy of the repository with --from DIR"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(
            f"{REPOSITORY} could not be cloned ({reason}): check the network, or give a copy with"
            ' --from DIR (make fetch-published-results ARGS="--from DIR")'
        )


def bring(source: Path, paths: Paths) -> int:
    """Copy the published files of a folder to ours."""
    if not source.is_dir():
        raise UserError(f"no folder {source}: --from needs a copy of {REPOSITORY}")
    wanted = published_files(source, paths)
    if not wanted:
        raise UserError(
            f"no published results in {source}: it needs results/**/*.csv or"
            " data/consolidated_probing_*/*.pkl"
        )
    n_new, kept, failures = 0, [], Failures()
    for file, target in progress(wanted, desc="published results", unit="file"):
        if (
            target.is_symlink()
            or (target.exists() and not target.is_file())
            or leads_out(target, paths)
        ):
            failures.add(f"{target}: a link or folder stands in its place: move it away")
        elif not target.exists():
            try:
                with atomic_path(target) as temporary:
                    shutil.copyfile(file, temporary)
                n_new += 1
            except OSError as error:
                failures.add(f"{target}: {error.strerror or error}")
        elif not filecmp.cmp(file, target, shallow=False):
            kept.append(target)
    n_there = len(wanted) - n_new - len(kept) - len(failures.lines)
    print(f"{n_new} files brought, {n_there} were there, {len(kept)} of yours kept as they are")
    for target in kept:
        print(f"  kept: {target}")
    return cli.report(failures, "published files")


def leads_out(target: Path, paths: Paths) -> bool:
    """Whether a link on the way to ``target`` leads out of the folder of results, data or texts it
    belongs to.
    """
    root = next(
        folder
        for folder in (paths.results_dir, paths.data_dir, paths.text_dir)
        if folder in target.parents
    )
    return root.resolve() not in target.resolve().parents


def published_files(source: Path, paths: Paths) -> list[tuple[Path, Path]]:
    """(published file, its place here)."""
    pairs = []
    for pattern, folder, target in (
        ("**/*.csv", source / "results", paths.results_dir),
        ("consolidated_probing_*/*.pkl", source / "data", paths.data_dir),
    ):
        for file in sorted(folder.glob(pattern)):
            if file.is_symlink() or not file.is_file() or file.stem.endswith("_old"):
                continue
            pairs.append((file, target / file.relative_to(folder)))
    master = source / "data" / "probing_datasets_MASTER.csv"
    if (
        pairs
        and master.is_file()
        and not paths.master_table().with_name(paths.master_table().name + ".zst").exists()
    ):
        pairs.append((master, paths.master_table()))
    return pairs


if __name__ == "__main__":
    cli.run(main)
