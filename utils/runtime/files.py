"""Files written whole or not at all, and places that only one run writes to at a time."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from utils.runtime.errors import UserError
from utils.runtime.units import show_bytes

ROOT = Path(__file__).resolve().parents[2]  # of this checkout
HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"
# what a disk without locks answers
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
# of this host; those of others cannot be judged from here
TEMPORARY = re.compile(rf"\..+\.{HOST}\.(\d+)\.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to.

    Renamed to ``path`` when the block ends well, removed otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    together: list[tuple[Path, Path]] | None = getattr(_waiting, "files", None)
    try:
        yield temporary
        if together is None:
            _flush([temporary])
            os.replace(temporary, path)
        else:
            together.append((temporary, path))
    except OSError as error:
        if error.filename is None:  # a full disk does not say where
            error.filename = str(path)
        raise
    finally:
        if together is None or (temporary, path) not in together:
            temporary.unlink(missing_ok=True)


_waiting = threading.local()  # .files: those of ``written_together``


@contextmanager
def written_together() -> Iterator[None]:
    """What ``atomic_path`` writes in the block, in this thread, is flushed to the disk by one flush
    at its end. The files then get their names in the order in which they were written; none does
    where the block ends ill.
    """
    files: list[tuple[Path, Path]] = []
    _waiting.files = files
    try:
        yield
        _flush([temporary for temporary, _ in files])
        for temporary, path in files:
            os.replace(temporary, path)
    finally:
        _waiting.files = None
        for temporary, _ in files:
            temporary.unlink(missing_ok=True)


def _flush(files: list[Path]) -> None:
    """Put files of one folder on the disk: several by one flush of its file system, where the
    system has that.
    """
    if len(files) > 1 and sys.platform == "linux":
        with open(files[0], "rb") as any_of_them, suppress(OSError, AttributeError):
            if ctypes.CDLL(None).syncfs(any_of_them.fileno()) == 0:
                return
    for file in files:
        with open(file, "rb") as written:
            os.fsync(written.fileno())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As ``atomic_path`` for a folder; one that was there goes when the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Hidden, beside ``path``, and of this process alone on all machines that share the folder."""
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden; links to folders are followed, once each."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = sorted(n for n in folders if not n.startswith(".")) if real not in seen else []
        seen.add(real)
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, sort_keys=True, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")


def require_disk(folder: Path, n_bytes: int) -> None:
    """Raise UserError when the disk of ``folder`` has not room for ``n_bytes`` more."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise UserError(
            f"{show_bytes(n_bytes)} are to be written to {folder} and {show_bytes(free)} are free:"
            " make room first"
        )


@dataclass(frozen=True)
class Place:
    """Where a run may write; or, on a disk that can only be read, the reason why it may not."""

    refused: UserError | None = None

    def require(self) -> None:
        """Raise UserError unless it may be written to."""
        if self.refused is not None:
            raise self.refused


@contextmanager
def locked(
    folder: Path, *names: str, wait: float = 0.0, also: Path | None = None, lazily: bool = False
) -> Iterator[Place]:
    """Only this run writes these names in ``folder`` until the block ends.

    Others get one line that says whose it is. The operating system lets go of the lock of a run
    that was killed. That it was is seen by what it left, its unfinished files, which are removed.
    ``wait``: seconds to wait for another run, for short work. ``also``: another folder that runs
    with this lock write to. ``lazily``: a folder that can only be read is no error until
    ``Place.require`` is called, for runs that may have nothing to do.

    Raises UserError when another run holds it, or the folder cannot be written to.
    """
    refused: UserError | None = None
    with ExitStack() as held:
        of_killed = []
        for name in sorted(names):
            owner = folder / ".locks" / f"{name.replace('/', '_')}.owner"
            try:
                owner.parent.mkdir(parents=True, exist_ok=True)
                _lock(held, owner, wait)
                if owner.exists():
                    of_killed.append(owner)
                else:
                    held.callback(owner.unlink, missing_ok=True)
                _write_owner(owner)
            except Timeout:
                raise UserError(
                    f"{folder / name} is being written by {_read_owner(owner)}: wait for it, or"
                    " stop it"
                ) from None
            except OSError as error:
                refused = UserError(
                    f"{folder} cannot be written ({error.strerror}): it must be a folder that you"
                    " may write to"
                )
                if lazily and error.errno in READ_ONLY:
                    break
                raise refused from error
        if of_killed:
            remove_unfinished(folder.rglob(".*.tmp"))
            remove_unfinished(also.glob(".*.tmp") if also else ())
            for owner in of_killed:  # not before: a run stopped while it removes leaves the sign
                held.callback(owner.unlink, missing_ok=True)
        yield Place(refused)


def _lock(held: ExitStack, owner: Path, wait: float) -> None:
    """Hold the system's lock; on a disk that has none (NFS without its lock service, SMB), a file
    that only one run can create.

    Raises Timeout when another run holds it.
    """
    try:
        held.enter_context(FileLock(f"{owner}.lock", timeout=wait))
    except (NotImplementedError, OSError) as error:  # the first is filelock's word for ENOSYS
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:  # Timeout among them
            raise
        held.enter_context(_exclusive(owner.with_suffix(".exclusive"), wait))


@contextmanager
def _exclusive(path: Path, wait: float) -> Iterator[None]:
    """A lock by creating a file, which says whose it is; that of a run of this machine that is no
    more is taken over.

    Raises UserError when another run has created it.
    """
    until = time.monotonic() + wait
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            owner = _owner(path)
            if owner.get("host") == HOST and not psutil.pid_exists(owner["process"]):
                _take_away(path, owner)
                continue
            if time.monotonic() >= until:
                raise UserError(
                    f"{path.parent.parent} is being written by {_read_owner(path)}: wait for it,"
                    f" or, where that run is no more, delete {path}"
                ) from None
            time.sleep(0.2)
    try:
        _write_owner(path)
        yield
    finally:
        owner = _owner(path)
        if (owner.get("host"), owner.get("process")) == (HOST, os.getpid()):
            path.unlink(missing_ok=True)


def _take_away(path: Path, owner: dict) -> None:
    """Remove the lock of a run that is no more, and not the one that another run has put there
    since: only one run can move a file away, and it looks at what it has moved.
    """
    moved = path.with_name(f"{path.name}.{HOST}.{os.getpid()}.stale")
    with suppress(FileNotFoundError):
        path.rename(moved)
        if _owner(moved) != owner:
            moved.rename(path)
        moved.unlink(missing_ok=True)


def remove_unfinished(temporary: Iterable[Path]) -> None:
    """Remove those of the temporary files and folders that are of runs of this machine that are no
    more.
    """
    for path in list(temporary):
        name = TEMPORARY.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name.group(1))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _write_owner(path: Path) -> None:
    """Not through ``atomic_path``: it is read only to tell people."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"process": os.getpid(), "host": HOST, "since": since, "command": shlex.join(sys.argv)}
    path.write_text(json.dumps(owner), encoding="utf-8")


def _owner(path: Path) -> dict:
    """What ``_write_owner`` wrote; {} where it cannot be read, as while it is being written."""
    with suppress(OSError, ValueError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(owner, dict) and isinstance(owner.get("process"), int):
            return owner
    return {}


def _read_owner(path: Path) -> str:
    with suppress(KeyError):
        return "process {process} on {host} since {since} ({command})".format(**_owner(path))
    return "another run"
