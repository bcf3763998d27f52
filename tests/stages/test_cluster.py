"""A real Dask scheduler and two real workers on this machine: a local run's tables, deaths on the
way, folders not shared.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    MODEL,
    ROOT,
    clear_caches,
    folder_flags,
    paths_below,
    write_texts,
    write_tiny_model,
)
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

import generate_model_activations
import generate_sae_activations_optimized
import train_baselines
import train_sae_probes
from utils.paths import Paths
from utils.runtime.cluster import _ask
from utils.runtime.errors import UserError
from utils.runtime.tasks import Tasks

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
NAMES = ["1_first", "2_second", "3_third"]


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen] = []
        self.scheduler = self.start(
            "scheduler", "--port", "0", "--scheduler-file", str(folder / "scheduler.json")
        )

    @property
    def address(self) -> str:
        import json

        return json.loads((self.folder / "scheduler.json").read_text())["address"]

    def start(self, what: str, *flags: str) -> subprocess.Popen:
        log = open(self.folder / f"{what}{len(self.workers)}.log", "w")  # noqa: SIM115
        command = [
            str(Path(sys.executable).with_name("dask")),
            what,
            *flags,
            "--no-dashboard",
            "--host",
            "127.0.0.1",
        ]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)

    def add_worker(self) -> subprocess.Popen:
        file = self.folder / "scheduler.json"
        self.wait_for(file.exists)
        worker = self.start(
            "worker",
            "--scheduler-file",
            str(file),
            "--nthreads",
            "1",
            "--no-nanny",
            "--memory-limit",
            "0",
        )
        self.workers.append(worker)
        log = self.folder / f"worker{len(self.workers) - 1}.log"
        self.wait_for(lambda: "Registered to" in log.read_text())
        return worker

    def wait_for(self, condition) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, "the cluster does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    made.add_worker()
    made.add_worker()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Paths:
    """Texts, a tiny language model, and an SAE."""
    root = tmp_path_factory.mktemp("inputs")
    paths = paths_below(root)
    clear_caches()
    write_texts(paths, NAMES, n_rows=300, ood=(NAMES[0],))
    write_tiny_model(paths)
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=384, d_sae=64, k=8))
    sae.save_model(paths.saes(MODEL) / "layer_2" / "s")
    return paths


def moved(paths: Paths, root: Path) -> Paths:
    """The same inputs with folders of their own for what is made."""
    (root / "data").mkdir(parents=True)
    for name in ("models", "saes"):
        (root / "data" / name).symlink_to(paths.data_dir / name)
    return Paths(paths.text_dir, root / "data", root / "results", root / "figures")


def run_all(paths: Paths, *flags: str) -> None:
    common = ["--model_name", MODEL, *folder_flags(paths), *flags]
    assert generate_model_activations.main([*common, "--layers", "2"]) == 0
    assert generate_sae_activations_optimized.main(common) == 0
    probing = [*common, "--n_jobs", "1"]
    controls = ["--controls", "random"]
    assert train_baselines.main([*probing, "--layer", "2", "--method", "logreg,knn"]) == 0
    assert (
        train_sae_probes.main([*probing, "--setting", "scarcity", "--conditions", "10", *controls])
        == 0
    )
    assert train_sae_probes.main([*probing, "--setting", "OOD", *controls]) == 0


def made(paths: Paths) -> dict[str, bytes]:
    tops = (paths.data_dir, paths.results_dir)
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for top in tops
        for path in sorted(top.rglob("*"))
        if path.is_file()
        and ".locks" not in path.parts
        and path.suffix in (".csv", ".pt")
        and "_seconds" not in path.name
    }


def test_a_cluster_makes_what_one_machine_makes(inputs, cluster, tmp_path):
    here, there = moved(inputs, tmp_path / "here"), moved(inputs, tmp_path / "there")
    run_all(here)
    run_all(there, "--scheduler", cluster.address)
    assert list(made(there)) == list(made(here))
    tables = [name for name in made(here) if name.endswith(".csv")]
    assert len(tables) == 3
    for name in tables:
        assert made(there)[name] == made(here)[name], name
    for name in made(here):
        if name.endswith(".pt") and "sae" not in name:
            one, other = (
                torch.load(paths.data_dir / name, weights_only=True) for paths in (here, there)
            )
            assert torch.allclose(one, other, atol=1e-5)
    assert not list(there.data_dir.glob(".shared-*"))
    # what is done is not done again, wherever it was done
    assert (
        train_baselines.main(
            ["--model_name", MODEL, *folder_flags(there), "--layer", "2", "--method", "logreg,knn"]
        )
        == 0
    )
    assert made(there)[tables[0]] == made(here)[tables[0]]


def scarcity(paths: Paths) -> list[str]:
    which = [
        "--layer",
        "2",
        "--setting",
        "scarcity",
        "--method",
        "pca,knn",
        "--conditions",
        "20",
        "53",
        "103",
        "198",
    ]
    return ["--model_name", MODEL, *folder_flags(paths), *which]


def start_probes(paths: Paths, address: str) -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "train_baselines.py"),
        *scarcity(paths),
        "--scheduler",
        address,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.fixture
def activations(inputs, tmp_path) -> Paths:
    paths = moved(inputs, tmp_path / "world")
    assert (
        generate_model_activations.main(
            ["--model_name", MODEL, *folder_flags(paths), "--layers", "2"]
        )
        == 0
    )
    return paths


def test_workers_that_die_while_all_are_asked_stop_nothing():
    """The scheduler then answers for all of them that a connection was reset."""
    deaths = [ConnectionResetError("peer")] * 3

    def question():
        if deaths:
            raise deaths.pop()

    _ask(question, "tcp://here")
    assert not deaths

    def nobody():
        raise ConnectionResetError("peer")

    with pytest.raises(UserError, match="the Dask scheduler at tcp://here went away"):
        _ask(nobody, "tcp://here")

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="a worker of tcp://here cannot take our code"):
        _ask(full, "tcp://here")


def test_what_a_killed_worker_had_is_done_by_another(activations, cluster):
    run = start_probes(activations, cluster.address)
    time.sleep(6)
    cluster.workers[0].send_signal(signal.SIGKILL)
    _, said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    table = activations.baseline_table(MODEL, "scarcity", 2)
    content = table.read_bytes()
    table.unlink()
    assert train_baselines.main(scarcity(activations)) == 0
    assert table.read_text() == content.decode()  # no row twice, none lost


def test_a_scheduler_that_goes_away_is_one_line_and_rows_stay(activations, cluster):
    run = start_probes(activations, cluster.address)
    table = activations.baseline_table(MODEL, "scarcity", 2)
    cluster.wait_for(lambda: table.exists() or run.poll() is not None)
    cluster.scheduler.kill()
    _, said = run.communicate(timeout=120)
    assert run.returncode == 2, said
    assert "went away: finished rows are kept" in said
    assert "Traceback" not in said
    n_rows = len(table.read_text().splitlines()) - 1
    assert n_rows > 0
    assert train_baselines.main([*scarcity(activations), "--n_jobs", "2"]) == 0
    rows = table.read_text().splitlines()
    assert len(rows) - 1 == 3 * 4 * 2 > n_rows - 1
    assert len(set(rows)) == len(rows)


def test_nobody_answers(activations, monkeypatch):
    from utils.runtime import cluster as module

    monkeypatch.setattr(module, "PATIENCE", 1)
    with pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        train_baselines.main(
            [
                "--model_name",
                MODEL,
                *folder_flags(activations),
                "--layer",
                "2",
                "--scheduler",
                "tcp://127.0.0.1:1",
            ]
        )


def numbers(paths: Paths, low: int, high: int) -> list[dict]:
    """A task of a test: which process did it."""
    if low == 5:
        raise UserError("five is not for us")
    return [
        {"n": number, "process": os.getpid(), "sum": float(np.arange(number).sum())}
        for number in range(low, high)
    ]


def test_workers_that_do_not_see_the_folder_get_no_tasks(cluster, tmp_path, monkeypatch, capsys):
    from utils.runtime import cluster as module

    paths = Paths(data_dir=tmp_path / "data")
    blind = cluster.workers[0].pid
    real = module._attempt_function()

    def attempt(task: bytes, token: str):
        import os

        return real(task, "/nowhere" if os.getpid() == blind else token)

    monkeypatch.setattr(module, "_attempt_function", lambda: attempt)
    tasks = [(paths, n, n + 1) for n in range(6)]
    found = list(
        module.run_on_cluster(cluster.address, Tasks(numbers, tasks), paths.data_dir, False)
    )
    said = capsys.readouterr().err
    assert sorted(outcome.index for outcome in found) == list(range(6))
    assert {row["process"] for outcome in found for row in outcome.value or []} == {
        cluster.workers[1].pid
    }
    assert [outcome.error for outcome in found if outcome.error] == ["five is not for us"]
    assert said.count("does not see") == 1
    cluster.workers[1].kill()
    cluster.workers[1].wait()
    with pytest.raises(UserError, match=r"no worker of .* sees"):
        list(
            module.run_on_cluster(cluster.address, Tasks(numbers, tasks[:1]), paths.data_dir, False)
        )


def test_tasks_for_a_gpu_go_to_workers_that_offer_one(cluster, tmp_path):
    from utils.runtime.cluster import run_on_cluster

    file = cluster.folder / "scheduler.json"
    with_gpu = cluster.start(
        "worker",
        "--scheduler-file",
        str(file),
        "--nthreads",
        "1",
        "--no-nanny",
        "--resources",
        "GPU=1",
    )
    cluster.workers.append(with_gpu)
    paths = Paths(data_dir=tmp_path / "data")
    tasks = Tasks(numbers, [(paths, n, n + 1) for n in range(4)])
    found = list(run_on_cluster(cluster.address, tasks, paths.data_dir, True))
    assert {row["process"] for outcome in found for row in outcome.value or []} == {with_gpu.pid}
