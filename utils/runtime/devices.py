"""Devices and memory of this machine."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from utils.runtime.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def pick_device(name: str) -> str:
    """``auto`` resolved to cuda, then mps, then cpu; another name checked.

    Raises UserError when the device is not there.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: this machine has no CUDA device that torch can use; try --device"
            " auto"
        )
    if name == "mps" and not has_mps:
        raise UserError(
            "--device mps: this machine has no Apple GPU that torch can use; try --device auto"
        )
    try:
        torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name!r} is no device; use auto, cuda, cuda:N, mps or cpu"
        ) from None
    return name


def default_n_jobs() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(device: str = "cpu") -> int:
    """Bytes of memory that can be used now on a device, a container's limit included."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    for limit, used in cgroup_files():
        with suppress(OSError, ValueError):  # no such file, or "max"
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY:
            free = min(free, soft - getattr(psutil.Process().memory_info(), "data", 0))
    return max(free, 0)


def cgroup_files(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[tuple[Path, Path]]:
    """(limit, used) of this process's control groups and of all groups that they are in.

    ``groups`` is Linux's list of them, ``mounted`` where their files are; both versions of the
    interface are understood. Nothing on other systems.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            top, names = mounted, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = Path(place.lstrip("/"))
        for group in (inner, *inner.parents):
            yield top / group / names[0], top / group / names[1]


def return_freed_memory() -> None:
    """Make glibc give every freed array of 1 MiB or more back at once.

    By default it keeps freed blocks of up to 32 MiB for itself, and small arrays that stay (the
    nonzeros so far) pin them: a thousand products later gigabytes are held that nothing uses. Does
    nothing on other systems.
    """
    _mallopt(M_MMAP_THRESHOLD, 1 << 20)


@cache
def keep_freed_memory() -> None:
    """Make glibc keep what is freed, for processes that only fit probes.

    Their arrays come and go by the thousand. By default, and more so in a worker of Dask, glibc
    gives those of 128 KiB and more back at once and takes them anew: a sixth to a half of a fit's
    time. Arrays below 32 MiB stay now, up to 256 MiB in all.
    """
    _mallopt(M_MMAP_THRESHOLD, 32 << 20)
    _mallopt(M_TRIM_THRESHOLD, 256 << 20)


M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h; setting one also ends its growth


def _mallopt(option: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            ctypes.CDLL("libc.so.6").mallopt(option, value)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's getrusage starts from the size of the process that started it
        line = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if line:
            return int(line.group(1)) * 1024
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
