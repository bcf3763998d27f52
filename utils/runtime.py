"""What every stage needs and no domain knows: devices, memory, worker processes, progress, settings files."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from utils.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from utils.files import write_json
from utils.paths import ROOT

T = TypeVar("T")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # a full disk or quota, a file too large, a closed disk
_shown: list[tqdm] = []  # the last progress bar
RECORDED_PACKAGES = ("torch", "numpy", "pandas", "scikit-learn", "sae-lens", "transformers", "xgboost", "xgboost-cpu")


def pick_device(name: str) -> str:
    """``auto`` resolved to cuda, then mps, then cpu; another name checked.

    Raises UserError when the device is not there.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA device that torch can use; try --device auto")
    if name == "mps" and not has_mps:
        raise UserError("--device mps: this machine has no Apple GPU that torch can use; try --device auto")
    try:
        torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is no device; use auto, cuda, cuda:N, mps or cpu") from None
    return name


def available_memory(device: str = "cpu") -> int:
    """Bytes of memory that can be used now on a device, a container's limit included."""
    import psutil

    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in _cgroup_files():
        with suppress(OSError, ValueError):  # no such file, or "max"
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    with suppress(ImportError):  # Windows
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY:
            free = min(free, soft - getattr(psutil.Process().memory_info(), "data", 0))
    return max(free, 0)


def _cgroup_files() -> Iterator[tuple[Path, Path]]:
    """(limit, used) of this process's control groups and all that they are in, in both versions of Linux's interface."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            top, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = Path(place.lstrip("/"))
        for group in (inner, *inner.parents):
            yield top / group / names[0], top / group / names[1]


def return_freed_memory() -> None:
    """Make glibc give every freed array of 1 MiB or more back at once.

    By default it keeps freed blocks of up to 32 MiB for itself, and small arrays that stay (the nonzeros found so far) pin them:
    a thousand products later gigabytes are held that nothing uses. Does nothing on other systems.
    """
    import ctypes

    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h; setting it also ends its growth
            ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 1 << 20)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's getrusage starts from the size of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found.group(1)) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def progress(items: Iterable[T] | None = None, **options: Any) -> Any:
    """tqdm with the project's manners: an estimate on a terminal, a line now and then in a log file."""
    quiet = not sys.stderr.isatty()
    bar = tqdm(items, mininterval=10 if quiet else 0.2, dynamic_ncols=not quiet, ncols=90 if quiet else None, **options)
    _shown[:] = [bar]
    return bar


def where_it_stood() -> str:
    """How far the last progress bar was, for the line of a run that is stopped; "" before any."""
    if not _shown:
        return ""
    (bar,) = _shown
    n, total = (f"{number:.0f}" if number is not None else "?" for number in (bar.n, bar.total))
    return f" ({f'{bar.desc}: ' if bar.desc else ''}{n} of {total} {bar.unit}s)"


@dataclass(frozen=True)
class Workers:
    """Where tasks run: in ``n_jobs`` processes of one thread each on this machine (0: in this very process, with all its cores),
    or on the workers of a Dask ``scheduler``, which share ``folder`` (``gpu``: on those of them that offer the resource GPU)."""

    n_jobs: int
    scheduler: str | None = None
    folder: Path | None = None
    gpu: bool = False


def run_tasks(
    function: Callable[..., list[dict]],
    tasks: Sequence[tuple],
    workers: Workers,
    desc: str,
    prepare: Callable[..., tuple] | None = None,
) -> Iterator[tuple[int, list[dict], str | None]]:
    """Run ``function(*task)`` for each task, with a progress bar (in this process: with the function's own).

    ``prepare(*task)`` can turn a task into larger arguments (arrays); for processes of this machine it is run here, just before a
    task is sent off, on a cluster by the worker, so that only paths travel. Yields (index, rows, error) as tasks are done, on
    this machine in the order of ``tasks``. ``error`` is a line of text where the task failed; the others go on.

    Raises OSError when there is no room to write, UserError when a cluster cannot be used.
    """
    if workers.scheduler:
        from utils.cluster import run_on_cluster

        assert workers.folder is not None
        outcomes = run_on_cluster(workers.scheduler, function, tasks, workers.folder, workers.gpu, prepare)
    elif workers.n_jobs == 0:
        yield from ((index, *attempt(function, task, prepare, n_threads=None)) for index, task in enumerate(tasks))
        return
    else:
        outcomes = _run_in_processes(function, tasks, workers.n_jobs, prepare)
    with progress(total=len(tasks), desc=desc, unit="task") as bar:
        for outcome in outcomes:
            bar.update()
            yield outcome


def _run_in_processes(
    function: Callable[..., list[dict]], tasks: Sequence[tuple], n_jobs: int, prepare: Callable[..., tuple] | None
) -> Iterator[tuple[int, list[dict], str | None]]:
    from joblib import Parallel, delayed, parallel_config

    def calls():
        for task in tasks:
            try:
                yield delayed(attempt)(function, prepare(*task) if prepare else task)
            except UserError as error:
                yield delayed(_failed)(str(error))

    # Never in this process, even for one job: it may have loaded torch, and a worker may run XGBoost, which together crash on
    # arm64 macOS. joblib runs a single job in place, so one job is two workers of which one at a time has a task.
    n_jobs = max(1, min(n_jobs, len(tasks)))
    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = Parallel(max(n_jobs, 2), return_as="generator", pre_dispatch=1 if n_jobs == 1 else 2 * n_jobs)
        with _signals_wait():  # the workers start here
            outcomes = parallel(calls())
        yield from ((index, *outcome) for index, outcome in enumerate(outcomes))


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach this process after the block, and never the processes started in it, which inherit the mask: a
    terminal sends Ctrl-C to all of them, and each would print a traceback before this one ends them."""
    stops = {signal.SIGINT, signal.SIGTERM}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def attempt(
    function: Callable[..., list[dict]], task: tuple, prepare: Callable[..., tuple] | None = None, n_threads: int | None = 1
) -> tuple[list[dict], str | None]:
    """(rows, error) of one task; its error is a line of text, unless there is no room to write, which ends the run."""
    from threadpoolctl import threadpool_limits

    try:
        with threadpool_limits(n_threads):
            return function(*(prepare(*task) if prepare else task)), None
    except UserError as error:
        return [], str(error)
    except Exception as error:  # one task that breaks must not end the run; it is listed at the end
        if is_out_of_memory(error):
            return [], OUT_OF_MEMORY
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        return [], f"{type(error).__name__}: {error}"


def _failed(message: str) -> tuple[list[dict], str]:
    return [], message


def default_n_jobs() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_versions() -> dict[str, str]:
    """Python and the packages on which numbers depend, as they are installed here."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def save_run_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the resolved settings, package versions and commit that made the results beside them."""
    write_json(path, {"settings": settings, "versions": installed_versions(), "commit": _commit()})


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
