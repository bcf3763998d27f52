"""A made-up release on a Dask cluster whose parts are killed: ends with the tables of a quiet run.

    python -m benchmarks.reach --workers 4 --kills 20

Makes the made-up release of benchmarks.release, fills its tables once in processes of this machine,
and once on a cluster of its own, of workers of one thread. Meanwhile a worker, the scheduler or the
run itself is killed at random moments; what was killed is started again, and the run goes on. At
the end the rows of both tables must be the same, byte for byte. Writes nothing but temporary files.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.measurements import hand_on
from benchmarks.release import STAGES, command_of, made_up, run, size
from utils import cli
from utils.paths import Paths
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT

VICTIMS = ("worker", "scheduler", "run")
STARTED = "tcp://"
MOST_WAIT = 8.0  # seconds until a kill
FILLED = [stage for stage in STAGES if stage.table]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--size", type=size, default=size("9x28"), metavar="SAESxDATASETS")
    parser.add_argument("--workers", type=cli.positive, default=4, help="of one thread each")
    parser.add_argument("--kills", type=cli.positive, default=20, help="in all")
    cli.add_seed(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        quiet = made_up(cli.paths_of(args), Path(folder), args.size)
        disturbed = replace(quiet, results_dir=Path(folder) / "disturbed")
        run(quiet, STAGES[0])
        for stage in FILLED:
            run(quiet, stage)
        cluster = Cluster(Path(folder), args.workers)
        try:
            killed = disturb(disturbed, cluster, args.kills, chance)
        finally:
            cluster.stop()
        n_rows = compare(quiet.results_dir, disturbed.results_dir)
    said = ", ".join(f"{name} {killed.count(name)}" for name in VICTIMS)
    print(f"{len(killed)} kills ({said}): {n_rows} rows, the same as of a quiet run")
    hand_on(reach_kills=len(killed), reach_rows=n_rows)
    return 0


@dataclass
class Cluster:
    """A scheduler and its workers on this machine, which can be killed one by one."""

    folder: Path
    n_workers: int
    scheduler: subprocess.Popen | None = None
    workers: list[subprocess.Popen] = field(default_factory=list)
    address: str = ""

    def ensure(self) -> None:
        """Start what is not running."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.stop()
            self.scheduler = self._start("scheduler", "--port", "0", "--no-dashboard")
            assert self.scheduler.stderr is not None
            for line in self.scheduler.stderr:
                if "Scheduler at:" in line:
                    self.address = STARTED + line.split(STARTED)[1].strip()
                    break
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < self.n_workers:
            flags = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
            self.workers.append(self._start("worker", self.address, *flags))

    def _start(self, *flags: str) -> subprocess.Popen:
        dask = str(Path(sys.executable).with_name("dask"))
        # what nobody reads would fill a pipe
        stderr = subprocess.PIPE if flags[0] == "scheduler" else subprocess.DEVNULL
        return subprocess.Popen(
            [dask, *flags, "--host", "127.0.0.1"],
            stdout=subprocess.DEVNULL, stderr=stderr, text=True, cwd=self.folder,
        )  # fmt: skip

    def kill(self, victim: str, chance: random.Random) -> None:
        process = chance.choice(self.workers) if victim == "worker" else self.scheduler
        assert process is not None
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in (*self.workers, *([self.scheduler] if self.scheduler else [])):
            process.kill()
            process.wait()
        self.workers, self.scheduler = [], None


def disturb(paths: Paths, cluster: Cluster, n_kills: int, chance: random.Random) -> list[str]:
    """Fill all tables on the cluster; what was killed meanwhile, one after the other.

    Raises UserError where a run ends ill though nothing was killed.
    """
    killed: list[str] = []
    for number, stage in enumerate(FILLED, start=1):
        wanted = n_kills * number // len(FILLED)
        while True:
            cluster.ensure()
            process = subprocess.Popen(
                [*command_of(paths, stage), "--scheduler", cluster.address],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            )  # fmt: skip
            touched = False
            while len(killed) < wanted and _runs_for(process, chance.uniform(2.0, MOST_WAIT)):
                victim = VICTIMS[len(killed) % len(VICTIMS)]
                killed.append(victim)
                touched = True
                if victim == "run":
                    process.kill()
                    break
                cluster.kill(victim, chance)
                if victim == "worker":
                    cluster.ensure()
                else:
                    break
            output, _ = process.communicate()
            print(f"{stage.name}: {len(killed)} kills, ended with {process.returncode}", flush=True)
            if process.returncode and not touched:
                raise UserError(f"{stage.name} failed though nothing was killed: {output[-1500:]}")
            if not process.returncode:
                break
    return killed


def _runs_for(process: subprocess.Popen, seconds: float) -> bool:
    """Wait; whether the process still runs then."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    return process.poll() is None


def compare(quiet: Path, disturbed: Path) -> int:
    """Rows of all tables. Raises UserError where they are not the same."""
    n_rows = 0
    tables = [path for path in quiet.rglob("*.csv") if "seconds" not in path.name]
    for table in tables:
        expected = sorted(table.read_bytes().splitlines())
        found = sorted((disturbed / table.relative_to(quiet)).read_bytes().splitlines())
        if found != expected:
            raise UserError(
                f"{table.name}: {len(set(found) ^ set(expected))} lines of {len(expected)} differ"
            )
        n_rows += len(expected) - 1
    return n_rows


if __name__ == "__main__":
    cli.run(main)
