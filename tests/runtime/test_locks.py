"""One run at a time writes to a place, on disks with locks and on those that have none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from utils.runtime import files
from utils.runtime.errors import UserError
from utils.runtime.files import HOST, locked


@pytest.fixture(params=["locks", "ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def disk(request, monkeypatch, tmp_path):
    """A folder on a disk of each kind."""

    def refuse(path: str, timeout: float):
        if request.param == "ENOSYS":
            raise NotImplementedError("FileSystem does not appear to support flock")
        raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

    if request.param != "locks":
        monkeypatch.setattr(files, "FileLock", refuse)
    return tmp_path


def test_a_second_run_is_told_whose_the_place_is(disk):
    with locked(disk, "a.csv"):
        ours = f"is being written by process {os.getpid()} on"
        with pytest.raises(UserError, match=ours), locked(disk, "a.csv"):
            pass
        with locked(disk, "b.csv"):
            pass
    with locked(disk, "a.csv"):
        pass
    assert not list(disk.rglob("*.exclusive"))


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_the_place_of_a_run_that_was_killed_is_taken_over(disk):
    owner = disk / ".locks" / "a.csv.exclusive"
    owner.parent.mkdir()
    said = {"process": ended_process(), "host": HOST, "since": "then", "command": "c"}
    owner.write_text(json.dumps(said))
    with locked(disk, "a.csv"):
        pass


def test_a_run_stopped_while_it_removes_leaves_the_rest_to_the_next(monkeypatch, tmp_path):
    """A kill leaves a file; the next run is stopped before it has removed it; the third does."""
    unfinished = tmp_path / f".a.pt.{HOST}.{ended_process()}.tmp"
    unfinished.touch()
    owner = tmp_path / ".locks" / "a.csv.owner"
    owner.parent.mkdir()
    owner.touch()

    def stop(found: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "remove_unfinished", stop)
        with pytest.raises(KeyboardInterrupt), locked(tmp_path, "a.csv"):
            pass
    assert unfinished.exists()
    with locked(tmp_path, "a.csv"):
        assert not unfinished.exists()
    assert not owner.exists()


def test_a_file_left_by_another_machine_says_what_to_do(monkeypatch, tmp_path):
    """Copied with its folder, or of a run that may still go on: it is not for us to judge."""

    def refuse(path: str, timeout: float):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "FileLock", refuse)
    owner = tmp_path / ".locks" / "a.csv.exclusive"
    owner.parent.mkdir()
    said = {"process": 1, "host": "elsewhere", "since": "2026-01-01", "command": "c"}
    owner.write_text(json.dumps(said))
    message = r"on elsewhere since 2026-01-01.*delete .*\.exclusive"
    with pytest.raises(UserError, match=message), locked(tmp_path, "a.csv"):
        pass
    owner.unlink()
    (tmp_path / ".locks" / "a.csv.owner.lock").write_text("")  # left by a good run, and copied
    with locked(tmp_path, "a.csv"):
        pass


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_disk_that_can_only_be_read_is_no_error_before_something_is_written(
    monkeypatch, tmp_path, code
):
    def refuse(path: str, timeout: float):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "FileLock", refuse)
    with locked(tmp_path, "a.csv", lazily=True) as place:
        assert place.refused is not None
    with pytest.raises(UserError, match="cannot be written"):
        place.require()
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path, "a.csv"):
        pass
