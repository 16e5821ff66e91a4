"""How worker processes are started, the same for everything here that uses them.

They are never forked from the process that wants them: by then it has threads (of OpenMP, gloo, autograd), and a lock
that such a thread holds at that moment stays locked in the child for ever. They are forked from a server instead, a
process without threads that has only imported what workers need (`data.fork_server`), so that a worker is there after
some milliseconds. Python's default differs between its versions, so every loader names this context.

A worker has nothing but what is sent to it. So what is sent must be importable, registries are not to be relied on,
and large arrays belong in tensors, which lie in shared memory once for all workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import popen_forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import ModuleType
from typing import Any

from twinbench.foundation.errors import InputError


def worker_context() -> ForkServerContext:
    """What starts workers: the ``multiprocessing_context`` of a DataLoader, whose workers begin with `worker_setup`."""
    context = _WorkerContext()
    # without effect where the server runs already
    context.set_forkserver_preload([f"{__package__}.fork_server"])
    return context


def worker_setup() -> Callable[[int], None]:
    """The ``worker_init_fn`` of every DataLoader whose workers `worker_context` starts."""
    # the server may have been started in another folder, where relative paths would lead nowhere
    return partial(_set_up, os.getcwd())


def _set_up(folder: str, worker: int) -> None:
    os.chdir(folder)
    # a launcher signals whole process groups; the parent saves first and then ends its workers
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this worker as soon as the process that started it is gone, killed perhaps.

    The parent by its process id may be the server, which lives as long as its workers.
    """
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a worker process"
    parent.join()
    os._exit(1)


class _Popen(popen_forkserver.Popen):
    """A started worker, which has not imported the main script again and which its parent can end.

    Workers need nothing of the main script, and one without ``if __name__ == "__main__"`` would run once more in each.
    They ignore SIGTERM, so a program that ends in an error, with a loader still open, would wait for them for ever.
    """

    def _launch(self, process_obj: Any) -> None:
        try:
            with _without_main():
                super()._launch(process_obj)  # type: ignore[misc]
        except OSError as error:
            if "path too long" not in str(error):
                raise
            raise InputError(
                "the path of the folder for temporary files is too long for the sockets of worker processes",
                where=tempfile.gettempdir(),
                next_step="set TMPDIR to a folder whose path has 70 characters at most",
            ) from error

    def terminate(self) -> None:
        self.kill()


class _WorkerProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Popen(process_obj)


class _WorkerContext(ForkServerContext):
    Process = _WorkerProcess


@contextmanager
def _without_main() -> Iterator[None]:
    """Nothing in the place of the main module, from which multiprocessing learns what to import."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
