"""A Dask cluster as the place where tasks run: our code goes to its workers, small values come
back.

Data travels by path: the folders must be shared by this machine and the workers. A task whose
worker dies is done by another (Dask sees to that). One whose worker does not see the folders is
given to another. A failed task is retried once on another worker.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from utils.runtime.errors import UserError
from utils.runtime.files import ROOT
from utils.runtime.provenance import installed_versions
from utils.runtime.tasks import Outcome, Tasks

T = TypeVar("T")
PATIENCE = 10  # seconds for a scheduler to answer
ASKED = 5  # times at most; each but the last fails by a worker that dies
TRIES = 2  # of a task that fails, where there are that many workers


@dataclass(frozen=True)
class _Reply:
    """What a worker at ``address`` sends back; ``sees``: whether it sees the shared folder."""

    address: str
    sees: bool
    value: Any
    error: str | None


def run_on_cluster(address: str, job: Tasks[T], folder: Path, gpu: bool) -> Iterator[Outcome[T]]:
    """A job's tasks on the workers of the scheduler at ``address``, as they are done.

    ``folder`` must be seen by the workers; ``gpu``: only by workers started with
    ``--resources GPU=1``.

    Raises UserError when no scheduler answers, when it goes away, or when no worker sees
    ``folder``.
    """
    import cloudpickle
    from distributed import as_completed

    with _client(address) as client, _token(folder) as token:
        blind: set[str] = set()
        tries: dict[str, tuple[int, int]] = {}
        attempt_here = _attempt_function()

        def submit(index: int, n_tries: int, workers: list[str] | None = None) -> Any:
            # as bytes: the scheduler reads tasks, and has not our code
            task = cloudpickle.dumps((job.function, job.prepare, job.tasks[index]))
            key = f"probing-{index}-{uuid.uuid4().hex}"
            resources = {"GPU": 1} if gpu else None
            future = client.submit(
                attempt_here, task, str(token),
                pure=False, workers=workers, resources=resources, key=key,
            )  # fmt: skip
            tries[key] = (index, n_tries)
            return future

        functions = [function for function in (job.function, job.prepare) if function is not None]
        scripts = [sys.modules[function.__module__] for function in functions]
        scripts = [module for module in scripts if not module.__name__.startswith("utils.")]
        with _sent_by_value(scripts):
            first = [submit(index, 1) for index in range(len(job.tasks))]
            waiting = as_completed(first, loop=client.loop)
            for future in waiting:
                index, n_tries = tries.pop(future.key)
                reply = _reply(future, address)
                future.release()
                if not reply.sees and reply.address not in blind:
                    blind.add(reply.address)
                    print(
                        f"the worker at {reply.address} does not see {folder}: it gets no more"
                        " tasks",
                        file=sys.stderr,
                    )
                retry = reply.error is not None and reply.address and n_tries < TRIES
                if not reply.sees or retry:
                    others = [w for w in _workers(client) if w not in {*blind, reply.address}]
                    if others:
                        waiting.add(submit(index, n_tries + reply.sees, others))
                        continue
                    if not reply.sees:
                        raise UserError(
                            f"no worker of {address} sees {folder}: it must be the same folder on"
                            " all machines"
                        )
                yield Outcome(index, reply.value, reply.error)


def _attempt_function() -> Callable[[bytes, str], tuple[str, bool, Any, str | None]]:
    """What a worker is sent: a function of a pickled task that gives the fields of ``_Reply``.

    Made here, so that it travels whole: the scheduler reads it and has none of our code.
    """

    def attempt_here(pickled: bytes, token: str) -> tuple[str, bool, Any, str | None]:
        import importlib
        import os
        import pickle

        from distributed import get_worker

        worker = get_worker().address
        if not os.path.exists(token):  # noqa: PTH110
            return worker, False, None, None
        run = importlib.import_module("utils.runtime.tasks").attempt
        try:
            function, prepare, task = pickle.loads(pickled)
            return (worker, True, *run(function, task, prepare))
        except OSError as error:  # no room to write
            return worker, True, None, f"{error.strerror or error} ({error.filename})"

    return attempt_here


def _reply(future: Any, address: str) -> _Reply:
    from distributed import KilledWorker

    try:
        return _Reply(*future.result())
    except KilledWorker as error:  # it has been tried on several
        last = error.last_worker.address
        return _Reply("", True, None, f"its workers died, the last at {last}: out of memory?")
    except (CancelledError, OSError) as error:
        raise _gone(address) from error
    except Exception as error:  # what a worker could not even begin: other versions, mostly
        return _Reply("", True, None, f"{type(error).__name__}: {error}")


def _workers(client: Any) -> list[str]:
    return list(client.scheduler_info(n_workers=-1)["workers"])


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A connection whose workers have this project's code."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "--scheduler needs Dask: pip install -r requirements-cluster.txt -c constraints.txt"
        ) from None
    import dask

    # what a scheduler's end means is said in one line of ours
    for name in ("asyncio", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("asyncio", "distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    dask.config.set({"distributed.comm.timeouts.connect": PATIENCE})
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"no Dask scheduler answers at {address}: start one, or leave --scheduler out"
        ) from error
    try:
        _ask(lambda: client.register_plugin(_code_plugin(), name="probing-code"), address)
        _ask(lambda: _note_versions(client), address)
        yield client
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=PATIENCE)


def _ask(question: Callable[[], Any], address: str) -> None:
    """Ask all workers something. One that dies meanwhile fails the question for all: then those
    that are left are asked again.

    Raises UserError when the scheduler went away, or a worker cannot take our code.
    """
    from distributed.comm import CommClosedError

    for n_left in reversed(range(ASKED)):
        try:
            question()
        except (CommClosedError, ConnectionError) as error:
            if not n_left:
                raise _gone(address) from error
            time.sleep(0.2)  # the scheduler has yet to notice
        except OSError as error:  # a worker's own: no room, no right to write
            raise UserError(f"a worker of {address} cannot take our code: {error}") from error
        else:
            return


def _gone(address: str) -> UserError:
    return UserError(
        f"the Dask scheduler at {address} went away: finished rows are kept; start it and run again"
    )


COMPILED = "utils/probes/compiled.py"


def packed_code() -> bytes:
    """A zip of all of utils/, its rooms included; the same bytes for the same code."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted((ROOT / "utils").rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return packed.getvalue()


def compiled_here() -> tuple[dict[str, bytes], int]:
    """(what numba has compiled of utils/ on this machine, {path in the checkout: content}; the time
    of its source, in nanoseconds, by which numba knows it again).

    A worker of the same kind need not compile it, which takes half a minute; another compiles its
    own.
    """
    folder = ROOT / "utils" / "probes" / "__pycache__"
    files = {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in folder.glob("compiled.*.nb?")}
    return files, (ROOT / COMPILED).stat().st_mtime_ns


def _code_plugin() -> Any:
    """What puts utils/ on a worker: on those that are there, and on each that comes later."""
    from distributed.diagnostics.plugin import WorkerPlugin

    content, (compiled, changed) = packed_code(), compiled_here()
    source = COMPILED  # a plugin travels with what it names, not with this module
    digest = hashlib.sha256(content).hexdigest()[:16]

    class Code(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            import io
            import os
            import shutil
            import sys
            import zipfile
            from pathlib import Path

            # beside all workers' own folders: what numba compiles there serves all of them
            place = Path(worker.local_directory).parent / f"probing-code-{digest}"
            if str(place) in sys.path:
                return
            if not place.is_dir():
                unpacked = place.with_name(f".{place.name}.{os.getpid()}")
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    archive.extractall(unpacked)
                for name, made in compiled.items():
                    (unpacked / name).parent.mkdir(exist_ok=True)
                    (unpacked / name).write_bytes(made)
                os.utime(unpacked / source, ns=(changed, changed))
                try:
                    unpacked.rename(place)
                except OSError:  # another worker was first
                    shutil.rmtree(unpacked)
            for name in list(sys.modules):
                if name == "utils" or name.startswith("utils."):
                    del sys.modules[name]  # an earlier version's
            sys.path.insert(0, str(place))

    return Code()


def _note_versions(client: Any) -> None:
    """One line for each package that a worker has in another version.

    Results may then differ in their last digits.
    """
    here = installed_versions()
    for worker, versions in client.run(installed_versions).items():
        other = [
            f"{name} {versions.get(name)} (here {version})"
            for name, version in here.items()
            if versions.get(name) != version
        ]
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
