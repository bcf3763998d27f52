"""The crash harness: every stage is killed at random points, continued, and must end with what an
undisturbed run makes.

    python tests/faults/crashes.py --kills 200
    python tests/faults/crashes.py --kills 200 --record

--record keeps the counts, and those of the bad files, for docs/reliability.md (`make docs`).
Kills come by SIGKILL, SIGINT and SIGTERM: at a random time, just before or after a rename, or while
a row is being added to a table (a torn line). After each, finished files must be whole; after the
last, all of a stage's outputs must equal those of a run that nobody disturbed: byte for byte,
result tables as sorted rows. Prints what was killed where.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bad_files import corpus  # noqa: E402
from conftest import MODEL, folder_flags, paths_below, write_texts, write_tiny_model  # noqa: E402

from checks.facts import keep  # noqa: E402

NAMES = ["1_first", "2_second", "3_third"]
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
PLACES = ("before a rename", "after a rename", "in a table", "any time")
EXIT_STOPPED = 130
MANY = 200  # kills, of which docs/ may speak


@dataclass(frozen=True)
class Stage:
    """A script with its flags, and the folders below the world's root that it writes to."""

    script: str
    flags: tuple[str, ...]
    writes: tuple[str, ...]


def stages() -> list[Stage]:
    data = ("--datasets", *NAMES)
    probes = (*data, "--n_jobs", "2", "--setting")
    return [
        Stage("published.extract", (), ("data/model_activations_gemma-2-9b",)),
        Stage(
            "generate_model_activations",
            (*data, "--max_rows", "260"),
            ("data/model_activations_*L6-v2*",),
        ),
        Stage(
            "train_saes",
            ("--widths", "64", "--k_active", "8", "--n_samples", "8000", "--trained_on", "tokens"),
            ("data/saes",),
        ),
        Stage(
            "generate_sae_activations_optimized",
            data,
            ("data/sae_activations_*", "results/sae_checks*"),
        ),
        Stage(
            "published.export_splits",
            (*data, "--setting", "scarcity"),
            ("data/sae_activations_*/scarcity_setting",),
        ),
        Stage(
            "train_baselines",
            (*probes, "normal", "--layer", "2", "--method", "logreg,pca,knn"),
            ("results/baseline_*",),
        ),
        Stage(
            "train_sae_probes",
            (*probes, "scarcity", "--conditions", "10", "38"),
            ("results/sae_probes_*",),
        ),
        Stage("train_multi_token_probes", ("--datasets", *NAMES[:2]), ("results/multi_token_*",)),
        Stage("visualize", (), ("figures", "results/comparison_*")),
    ]


def flags_of(stage: Stage, root: Path) -> list[str]:
    model = "gemma-2-9b" if stage.script == "published.extract" else MODEL
    return ["--model_name", model, *folder_flags(paths_below(root)), *stage.flags]


def build_inputs(root: Path) -> None:
    """Texts, a tiny language model and an archive."""
    import tarfile

    paths = paths_below(root)
    write_texts(paths, [*NAMES, "4_corpus"], n_rows=300, ood=(NAMES[0],))
    write_tiny_model(paths)
    folder = root / "model_activations_gemma-2-9b"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.pt").write_bytes(os.urandom(40_000))
    with tarfile.open(paths.data_dir / f"{folder.name}.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)


@dataclass
class Kill:
    """Where a run is to end: at the ``number``-th event of its place, or after ``seconds``. Or what
    it lacks: files of more than ``largest_file`` bytes, the rights of the user who made the
    folders.
    """

    place: str
    signal: str = ""
    number: int = 0
    seconds: float = 0.0
    largest_file: int = 0
    no_rights: bool = False


def child(stage: Stage, root: Path, kill: Kill | None, said: Path, events: Path) -> None:
    """One run of a stage, in a process of its own; ``said`` gets what it prints, ``events`` its
    renames and table writes.
    """
    os.setsid()
    # in the background of a shell it is ignored: a run would go on after its kill
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said.touch()
    said.chmod(0o666)
    out = os.open(said, os.O_WRONLY | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = [f"{stage.script}.py", *flags_of(stage, root)]
    counted: Counter[str] = Counter()
    rename, sync = os.replace, os.fsync

    def die() -> None:
        assert kill is not None
        # the workers too, as Ctrl-C in a terminal and the end of a session do
        os.killpg(0, SIGNALS[kill.signal])
        time.sleep(60 if kill.signal == "SIGKILL" else 0)

    def at(place: str) -> bool:
        counted[place] += 1
        return kill is not None and kill.place == place and counted[place] == kill.number

    def watched_rename(source, target) -> None:
        if at("before a rename"):
            die()
        rename(source, target)
        if at("after a rename"):
            die()

    def watched_sync(descriptor: Any) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().suffix == ".csv" and at("in a table"):
            os.ftruncate(
                descriptor,
                os.fstat(descriptor).st_size - random.Random(counted["in a table"]).randint(1, 40),
            )
            die()
        sync(descriptor)

    os.replace, os.fsync = watched_rename, watched_sync  # type: ignore[assignment]
    if kill and kill.place == "any time":
        timer = threading.Timer(kill.seconds, die)
        timer.daemon = True
        timer.start()
    if kill and kill.largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kill.largest_file, kill.largest_file))
    if kill and kill.no_rights and os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    from utils import cli

    module = importlib.import_module(stage.script)
    if stage.script == "train_saes":
        module.HELD_OUT = 512  # type: ignore[attr-defined]
    status = 1
    try:
        cli.run(module.main)
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        with suppress(OSError):  # a run without rights cannot
            events.write_text(json.dumps(counted))
        os.replace, os.fsync = rename, sync
        sys.stdout.flush()
        sys.stderr.flush()
        # joblib's idle ones; a script's own end ends them
        for worker in psutil.Process().children(recursive=True):
            worker.kill()
        os._exit(status)


class Harness:
    """Runs stages in forks of a process that has the libraries loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o777)  # a run may be made without rights
        self.context = multiprocessing.get_context("forkserver")
        scripts = [stage.script for stage in stages()]
        self.context.set_forkserver_preload(
            ["torch", "sae_lens", "transformers", "sklearn.linear_model", *scripts]
        )

    def run(self, stage: Stage, root: Path, kill: Kill | None = None) -> tuple[int, str, float]:
        """(exit status, what was printed, seconds)."""
        said = self.folder / "said.txt"
        started = time.monotonic()
        process = self.context.Process(
            target=child, args=(stage, root, kill, said, self.folder / "events.json")
        )
        process.start()
        process.join(300)
        if process.exitcode is None:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(
                f"{stage.script} hung after {kill}: {said.read_text(errors='replace')}"
            )
        return process.exitcode, said.read_text(errors="replace"), time.monotonic() - started

    def events(self) -> dict[str, int]:
        return json.loads((self.folder / "events.json").read_text())


def outputs(stage: Stage, root: Path) -> dict[str, bytes]:
    """Content of every finished file that a stage wrote, tables as sorted rows. Times and versions
    are no part of it.
    """
    found = {}
    for pattern in stage.writes:
        for top in root.glob(pattern):
            for path in [top] if top.is_file() else top.rglob("*"):
                name = path.relative_to(root).as_posix()
                hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
                if (
                    hidden
                    or not path.is_file()
                    or name.endswith(("_seconds.csv", "settings.json", ".pdf", "report.html"))
                ):
                    continue
                found[name] = (
                    sorted_rows(path.read_bytes()) if path.suffix == ".csv" else path.read_bytes()
                )
    return found


def sorted_rows(content: bytes) -> bytes:
    header, *rows = content.split(b"\n")
    return b"\n".join([header, *sorted(rows)])


def whole(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names of files that a kill left in a state that no finished file may have."""
    bad = []
    for name, content in found.items():
        if name.endswith(".csv"):
            rows = set(expected[name].split(b"\n"))
            torn = [row for row in content.split(b"\n") if row not in rows]
            if len(torn) > 1:  # the last line may be torn: it is mended by the next start
                bad.append(name)
        elif "sae_checks" not in name and content != expected.get(name):
            bad.append(name)
    return bad


@dataclass
class Tally:
    kills: Counter = field(default_factory=Counter)
    finished: int = 0
    problems: list[str] = field(default_factory=list)


def attack(
    harness: Harness, stage: Stage, root: Path, kills: int, chance: random.Random, tally: Tally
) -> None:
    """Kill a stage ``kills`` times; each chain of kills ends with an undisturbed run, whose outputs
    must be the expected ones.
    """
    started = time.monotonic()
    status, said, seconds = harness.run(stage, root)
    if status:
        raise AssertionError(f"{stage.script} does not run undisturbed: {said}")
    events, expected = harness.events(), outputs(stage, root)
    n_killed = 0
    while n_killed < kills:
        clear(stage, root)
        for _ in range(min(chance.randint(1, 4), kills - n_killed)):
            place = chance.choice(
                [place for place in PLACES if place == "any time" or events.get(place)]
            )
            kill = Kill(
                place,
                chance.choice(list(SIGNALS)),
                chance.randint(1, max(events.get(place, 0), 1)),
                chance.uniform(0.05, max(seconds, 0.2)),
            )
            status, said, _ = harness.run(stage, root, kill)
            if status == 0:  # it was done before
                break
            n_killed += 1
            tally.kills[kill.place, kill.signal] += 1
            tally.problems += [
                f"{stage.script}, {kill}: {name} is not whole"
                for name in whole(outputs(stage, root), expected)
            ]
            if kill.signal != "SIGKILL" and (
                "Traceback" in said or "the same command continues" not in said
            ):
                tally.problems.append(
                    f"{stage.script}, {kill}: exit {status}, said {said[-2000:]!r}"
                )
        status, said, _ = harness.run(stage, root)
        found = outputs(stage, root)
        tally.finished += 1
        if status or found != expected:
            names = [
                name for name in {**found, **expected} if found.get(name) != expected.get(name)
            ]
            tally.problems.append(
                f"{stage.script}: exit {status}, other outputs after the kills: {names[:5]}; said"
                f" {said[-500:]!r}"
            )
        left = [path.name for path in root.rglob(".*.tmp")]
        if left:
            tally.problems.append(f"{stage.script}: unfinished files stay behind: {left[:5]}")
    print(
        f"{stage.script:<36} {n_killed:4d} kills  {time.monotonic() - started:5.0f} s", flush=True
    )


def counts_of_bad_files() -> dict[str, str]:
    """How many files of the corpus are bad, and how many of them would run something."""
    cases = corpus()
    n_hostile = sum(case.hostile for case in cases)
    return {"bad_files": f"{len(cases)} files", "bad_files_hostile": str(n_hostile)}


def clear(stage: Stage, root: Path) -> None:
    for pattern in stage.writes:
        for top in list(root.glob(pattern)):
            shutil.rmtree(top) if top.is_dir() else top.unlink()
    for mark in root.glob("data/.extracted*"):
        mark.unlink()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="over all stages")
    parser.add_argument(
        "--stages", nargs="+", choices=[stage.script for stage in stages()], help="only these"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="keep the counts for docs/")
    args = parser.parse_args(argv)
    if args.record and (args.stages or args.kills < MANY):
        parser.error(f"--record is for all stages and at least {MANY} kills")
    chosen = [stage for stage in stages() if not args.stages or stage.script in args.stages]
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        build_inputs(root)
        harness = Harness(Path(folder))
        chance = random.Random(args.seed)
        for stage in stages():
            share = -(-args.kills // len(chosen)) if stage in chosen else 0
            attack(harness, stage, root, share, chance, tally)
            if stage == chosen[-1]:
                break
    n_kills = sum(tally.kills.values())
    print(f"\n{n_kills} kills over {len(chosen)} stages, {tally.finished} runs finished after them")
    for (place, name), n in sorted(tally.kills.items()):
        print(f"  {name:<8} {place:<16} {n:4d}")
    print(f"{len(tally.problems)} differences from undisturbed runs")
    for line in tally.problems:
        print(f"  - {line}")
    if args.record:
        keep(
            {
                "kills": f"{n_kills} kills over {len(chosen)} stages",
                "kills_differences": f"{len(tally.problems)} differences",
                **counts_of_bad_files(),
            }
        )
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
