"""What the benchmark scripts measured: handed on by a line of output, kept in docs/benchmarks.json,
read by benchmarks.plan.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from utils import cli
from utils.runtime.devices import default_n_jobs
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT
from utils.runtime.units import show_bytes

MARK = "RESULT "
KEPT = ROOT / "docs" / "benchmarks.json"


def add_reading(parser: argparse.ArgumentParser, n_texts: int) -> None:
    """The flags of benchmarks that read texts in turns."""
    parser.add_argument(
        "--n_texts", type=cli.positive, default=n_texts, help="texts, evenly from all datasets"
    )
    parser.add_argument(
        "--n_turns", type=cli.positive, default=3, help="runs of each; the best counts"
    )


def hand_on(**values: Any) -> None:
    """Print measured values as the line that ``taken_from`` looks for."""
    print(MARK + json.dumps(values), flush=True)


def taken_from(output: str) -> dict[str, Any]:
    """All values that a script handed on."""
    values: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            values.update(json.loads(line.removeprefix(MARK)))
    return values


def read_measurements(path: Path = KEPT) -> dict[str, Any]:
    """The kept measurements.

    Raises UserError when there are none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no measurements in {path} ({error}): run `make benchmark` after `make demo`"
        ) from error


def machine() -> str:
    """This machine in words: processor, cores that may be used, memory, GPU."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text())
        name = match.group(1).strip() if match else name
    gpu = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "Apple GPU"
        if torch.backends.mps.is_available()
        else "no GPU"
    )
    memory = show_bytes(psutil.virtual_memory().total)
    return (
        f"{name}, {default_n_jobs()} of {os.cpu_count()} cores, {memory}, {gpu},"
        f" {platform.system()}"
    )


def run(
    command: list[str],
    folder: Path,
    stop_after: float = float("inf"),
    environment: dict[str, str] | None = None,
) -> tuple[float, int, int | None]:
    """(wall seconds, peak bytes of all its processes, exit status) of a command in a folder; status
    None where it was killed after ``stop_after`` seconds.
    """
    print(f"\n$ {' '.join(command)}", flush=True)
    started, peak = time.monotonic(), 0
    process = psutil.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        while True:
            seconds = time.monotonic() - started
            if seconds > stop_after:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return seconds, peak, None
            peak = max(peak, memory_of(process))
            with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
                return time.monotonic() - started, peak, process.wait(timeout=1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def cpu_seconds() -> float:
    """CPU seconds of all ended child processes and their own: what a run took of a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(process: psutil.Process) -> int:
    """Bytes of memory of a process and its children, pages that they share counted once (Linux;
    elsewhere resident sizes).
    """
    total = 0
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                info = one.memory_full_info()
                total += getattr(info, "pss", info.rss)
    return total
