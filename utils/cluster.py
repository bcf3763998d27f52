"""A Dask cluster as the place where tasks run: this project's code goes to its workers, small rows come back.

Data travels by path: the folders must be shared by this machine and the workers. A task whose worker dies is done by another
(Dask sees to that); one whose worker does not see the folders is given to another; one that fails is tried once more elsewhere
where there is an elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.errors import UserError
from utils.paths import ROOT

PATIENCE = 10  # seconds for a scheduler to answer
TRIES = 2  # of a task that fails, where there are that many workers


def run_on_cluster(
    address: str, function: Callable[..., list[dict]], tasks: Sequence[tuple], folder: Path, gpu: bool, prepare: Callable | None
) -> Iterator[tuple[int, list[dict], str | None]]:
    """``function(*task)`` on the workers of the scheduler at ``address``; yields (index, rows, error) as tasks are done.

    ``folder`` must be seen by the workers; ``gpu``: only by workers started with ``--resources GPU=1``. ``prepare(*task)`` turns
    a task into the function's arguments, on the worker.

    Raises UserError when no scheduler answers, when it goes away, or when no worker sees ``folder``.
    """
    import cloudpickle
    from distributed import as_completed

    with _client(address) as client, _token(folder) as token:
        blind: set[str] = set()
        tries: dict[str, tuple[int, int]] = {}
        attempt_here = _attempt_function()

        def submit(index: int, n_tries: int, workers: list[str] | None = None) -> Any:
            # as bytes: the scheduler reads tasks, and has not our code
            task = cloudpickle.dumps((function, prepare, tasks[index]))
            future = client.submit(
                attempt_here, task, str(token), pure=False, workers=workers,
                resources={"GPU": 1} if gpu else None, key=f"probing-{index}-{uuid.uuid4().hex}",
            )  # fmt: skip
            tries[future.key] = (index, n_tries)
            return future

        scripts = [sys.modules[f.__module__] for f in (function, prepare) if f is not None]
        scripts = [module for module in scripts if not module.__name__.startswith("utils.")]
        with _sent_by_value(scripts):
            waiting = as_completed([submit(index, 1) for index in range(len(tasks))], loop=client.loop)
            for future in waiting:
                index, n_tries = tries.pop(future.key)
                worker, sees, rows, error = _outcome(future, address)
                future.release()
                if not sees and worker not in blind:
                    blind.add(worker)
                    print(f"the worker at {worker} does not see {folder}: it gets no more tasks", file=sys.stderr)
                if not sees or (error is not None and worker and n_tries < TRIES):
                    others = [name for name in _workers(client) if name not in {*blind, worker}]
                    if others:
                        waiting.add(submit(index, n_tries + sees, others))
                        continue
                    if not sees:
                        raise UserError(f"no worker of {address} sees {folder}: it must be the same folder on all machines")
                yield index, rows, error


def _attempt_function() -> Callable[[bytes, str], tuple[str, bool, list[dict], str | None]]:
    """What a worker is sent: a function of a pickled task that gives (its address, whether it sees the shared folder, rows,
    error). Made here, so that it travels whole: the scheduler reads it and has none of our code."""

    def attempt_here(pickled: bytes, token: str) -> tuple[str, bool, list[dict], str | None]:
        import os
        import pickle

        from distributed import get_worker

        worker = get_worker().address
        if not os.path.exists(token):  # noqa: PTH110
            return worker, False, [], None
        from utils.runtime import attempt

        try:
            function, prepare, task = pickle.loads(pickled)
            return (worker, True, *attempt(function, task, prepare))
        except OSError as error:  # no room to write
            return worker, True, [], f"{error.strerror or error} ({error.filename})"

    return attempt_here


def _outcome(future: Any, address: str) -> tuple[str, bool, list[dict], str | None]:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:  # it has been tried on several
        return "", True, [], f"its workers died, the last at {error.last_worker.address}: out of memory?"
    except (CancelledError, OSError) as error:
        raise UserError(f"the Dask scheduler at {address} went away: finished rows are kept; start it and run again") from error
    except Exception as error:  # what a worker could not even begin: other versions of packages, mostly
        return "", True, [], f"{type(error).__name__}: {error}"


def _workers(client: Any) -> list[str]:
    return list(client.scheduler_info(n_workers=-1)["workers"])


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A connection whose workers have this project's code."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--scheduler needs Dask: pip install -r requirements-cluster.txt -c constraints.txt") from None
    import dask

    for name in ("asyncio", *logging.root.manager.loggerDict):  # what a scheduler's end means is said in one line of ours
        if name.split(".")[0] in ("asyncio", "distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    dask.config.set({"distributed.comm.timeouts.connect": PATIENCE})
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"no Dask scheduler answers at {address}: start one, or leave --scheduler out") from error
    try:
        client.register_plugin(_code_plugin(), name="probing-code")
        _note_versions(client)
        yield client
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=PATIENCE)


def _code_plugin() -> Any:
    """What puts utils/ on a worker: on those that are there, and on each that comes later."""
    from distributed.diagnostics.plugin import WorkerPlugin

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted((ROOT / "utils").glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"utils/{path.name}"), path.read_bytes())
    content = packed.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:16]

    class Code(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            import ctypes
            import sys
            from contextlib import suppress
            from pathlib import Path

            # Dask makes glibc give every array of 128 KiB back at once and take it anew for the next: that doubled the time of
            # our fits. By malloc.h's numbers: arrays below 32 MiB stay (M_MMAP_THRESHOLD), up to 256 MiB (M_TRIM_THRESHOLD).
            with suppress(OSError, AttributeError):  # other systems
                libc = ctypes.CDLL("libc.so.6")
                libc.mallopt(-3, 32 << 20)
                libc.mallopt(-1, 256 << 20)
            place = Path(worker.local_directory) / f"probing-code-{digest}.zip"
            if str(place) in sys.path:
                return
            place.write_bytes(content)
            for name in [name for name in sys.modules if name == "utils" or name.startswith("utils.")]:
                del sys.modules[name]  # an earlier version's
            sys.path.insert(0, str(place))

    return Code()


def _note_versions(client: Any) -> None:
    """One line for each package that a worker has in another version: results may then differ in their last digits."""
    from utils.runtime import installed_versions

    here = installed_versions()
    for worker, there in client.run(installed_versions).items():
        other = [f"{name} {there.get(name)} (here {version})" for name, version in here.items() if there.get(name) != version]
        if other:
            print(f"note: the worker at {worker} has {', '.join(other)}", file=sys.stderr)


@contextmanager
def _sent_by_value(modules: list[ModuleType]) -> Iterator[None]:
    """Functions of these modules, which the workers cannot import, travel whole."""
    import cloudpickle

    modules = [module for module in dict.fromkeys(modules) if module.__name__ != "__main__"]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file in the shared folder that only those who share it see."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".shared-{uuid.uuid4().hex}"
    token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)
