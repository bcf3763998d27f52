"""The crash harness in short (`make test-faults`: in full), full disks, folders that cannot be
written, two runs at once.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crashes import (
    Harness,
    Kill,
    Tally,
    attack,
    build_inputs,
    child,
    clear,
    flags_of,
    outputs,
    stages,
    whole,
)

import train_baselines
from utils.runtime.errors import UserError
from utils.runtime.files import locked

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="kills at exact points as Linux lets one make them"
)
STAGES = {stage.script: stage for stage in stages()}
FIRST = ("generate_model_activations", "train_saes", "generate_sae_activations_optimized")


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def world(harness) -> Path:
    """Inputs, and the outputs of the first stages."""
    root = harness.folder / "world"
    build_inputs(root)
    for name in FIRST:
        assert harness.run(STAGES[name], root)[0] == 0
    return root


@pytest.mark.parametrize("name", ["generate_sae_activations_optimized", "published.extract"])
def test_killed_runs_end_as_undisturbed_ones_do(harness, world, name):
    tally = Tally()
    attack(harness, STAGES[name], world, 4, random.Random(1), tally)
    assert sum(tally.kills.values()) == 4
    assert not tally.problems


def test_a_killed_table_is_continued_to_the_same_rows(harness, world):
    tally = Tally()
    attack(harness, STAGES["train_baselines"], world, 1, random.Random(4), tally)
    assert not tally.problems


@pytest.mark.parametrize(
    "name", ["published.extract", "generate_sae_activations_optimized", "visualize"]
)
@pytest.mark.parametrize("how", ["file size limit", "full disk"])
def test_a_run_without_room_says_so_and_continues_once_there_is(
    harness, world, tmp_path, name, how
):
    stage = STAGES[name]
    if name == "visualize":
        assert harness.run(STAGES["train_baselines"], world)[0] == 0
    assert harness.run(stage, world)[0] == 0
    expected = outputs(stage, world)
    clear(stage, world)
    if how == "full disk":
        root = tmp_path / "disk"
        root.mkdir()
        size = sum(path.stat().st_size for path in world.rglob("*") if path.is_file())
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={2 * size + (128 << 20)}", "tmpfs", root],
            check=False,
        ).returncode:
            pytest.skip("only an administrator can make a small disk")
    else:
        root = tmp_path / "world"
    try:
        shutil.copytree(world, root, dirs_exist_ok=True)
        filler = root / "filler"
        if how == "full disk":
            with open(filler, "wb") as file:
                free = shutil.disk_usage(root).free
                file.write(bytes(max(free - 96 * 1024, 0)))
        limit = (
            None
            if how == "full disk"
            else Kill("", largest_file=max(map(len, expected.values())) // 2)
        )
        status, said, _ = harness.run(stage, root, limit)
        assert status not in (0, 130)
        assert "Traceback" not in said
        assert (
            len([line for line in said.splitlines() if line.startswith(("error: ", "  - "))]) == 1
        ), said
        assert not whole(outputs(stage, root), expected)
        assert not list(root.rglob(".*.tmp"))
        filler.unlink(missing_ok=True)
        assert harness.run(stage, root)[0] == 0
        assert outputs(stage, root) == expected
    finally:
        if how == "full disk":
            subprocess.run(["umount", root], check=False)


@pytest.mark.parametrize(
    "name",
    ["published.extract", "generate_sae_activations_optimized", "train_baselines", "visualize"],
)
def test_a_folder_that_cannot_be_written_is_named(harness, world, tmp_path, name):
    stage = STAGES[name]
    root = harness.folder / f"closed_{name}"
    shutil.copytree(world, root)
    clear(stage, root)
    for folder in (path for path in (root, *root.rglob("*")) if path.is_dir()):
        folder.chmod(0o555)
    try:
        status, said, _ = harness.run(stage, root, Kill("", no_rights=True))
    finally:
        for folder in (path for path in (root, *root.rglob("*")) if path.is_dir()):
            folder.chmod(0o755)
    assert status not in (0, 130)
    assert len([line for line in said.splitlines() if line.startswith(("error: ", "  - "))]) == 1, (
        said
    )
    assert "cannot be written" in said or "Permission denied" in said
    assert "Traceback" not in said
    assert outputs(stage, root) == {}


def test_of_two_runs_at_once_one_works_and_one_says_who_does(harness, world, tmp_path):
    stage = STAGES["train_baselines"]
    assert harness.run(stage, world)[0] == 0
    expected = outputs(stage, world)
    clear(stage, world)
    said = [tmp_path / "0.txt", tmp_path / "1.txt"]
    pair = [
        harness.context.Process(target=child, args=(stage, world, None, path, tmp_path / "events"))
        for path in said
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    codes = [process.exitcode for process in pair]
    # one may have been done before the other began
    assert sorted(map(str, codes)) in (["0", "2"], ["0", "0"])
    if 2 in codes:
        line = said[codes.index(2)].read_text()
        assert f"process {pair[codes.index(0)].pid} on {socket.gethostname()[:10]}" in line
        assert "wait for it, or stop it" in line
    assert outputs(stage, world) == expected


def test_a_lock_is_let_go_when_its_owner_is_killed(tmp_path):
    def hold(folder: Path) -> None:
        with locked(folder, "table"):
            (folder / "began").touch()
            time.sleep(60)

    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path,))
    holder.start()
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    with (
        pytest.raises(UserError, match=f"is being written by process {holder.pid} on "),
        locked(tmp_path, "table"),
    ):
        pass
    unfinished = tmp_path / f".a.pt.{socket.gethostname()}.{holder.pid}.tmp"
    unfinished.touch()
    other = tmp_path / f".b.pt.{socket.gethostname()}.{os.getpid()}.tmp"
    other.touch()
    holder.kill()
    holder.join()
    with locked(tmp_path, "table"):
        assert not unfinished.exists()
        assert other.exists()  # of a run that goes on


def test_the_lock_is_for_one_table_only(world):
    stage = STAGES["train_baselines"]
    folder = world / "results" / "baseline_probes_all-MiniLM-L6-v2" / "normal_settings"
    with locked(folder, "layer5_results.csv"):
        assert train_baselines.main(flags_of(stage, world)) == 0
    with (
        locked(folder, "layer2_results.csv"),
        pytest.raises(UserError, match=r"layer2_results\.csv is being written by process"),
    ):
        train_baselines.main(flags_of(stage, world))
