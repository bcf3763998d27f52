"""Memory of this machine, with control groups made by hand."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from utils.runtime import devices
from utils.runtime.errors import UserError

VERSIONS = {
    "version 2": ("0::/jobs/mine\n", "{}", ("memory.max", "memory.current")),
    "version 1": (
        "5:cpu,cpuacct:/other\n4:memory:/jobs/mine\n",
        "memory/{}",
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tightest_of_all_groups_around_a_process_counts(version, tmp_path, monkeypatch):
    listed, place, names = VERSIONS[version]
    (tmp_path / "groups").write_text(listed)
    for group, limit, used in (
        ("jobs/mine", "max", 10),
        ("jobs", "5000", 1200),
        (".", "9000", 100),
    ):
        folder = tmp_path / place.format(group)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
    files = list(devices.cgroup_files(tmp_path / "groups", tmp_path))
    assert [limit.read_text().strip() for limit, _ in files] == ["max", "5000", "9000"]
    monkeypatch.setattr(devices, "cgroup_files", lambda: iter(files))
    assert devices.available_memory() == 5000 - 1200


def test_a_machine_without_control_groups_has_its_free_memory(tmp_path, monkeypatch):
    assert list(devices.cgroup_files(tmp_path / "nothing")) == []
    monkeypatch.setattr(devices, "cgroup_files", lambda: iter(()))
    assert 0 < devices.available_memory() <= psutil.virtual_memory().total


def test_peak_memory_sees_an_array():
    before = devices.peak_memory()
    array = np.ones(32 << 20)
    assert devices.peak_memory() >= min(before, array.nbytes)
    assert devices.peak_memory() >= array.nbytes


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(name, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {name}"):
        devices.pick_device(name)
    assert devices.pick_device("auto") == "cpu"
