"""Worker processes of which each may die alone.

Each is a pool of its own with a single process and a pipe of its own. So of a process that dies, killed by the system
for its memory perhaps, it is known what it did, and the others go on: in a shared pool all would end with it, and a
lock of a shared queue that it held at that moment would stay locked.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

_PATIENCE = 120.0  # seconds
_T = TypeVar("_T")


class Crew:
    """A worker for each of the ``arguments``, started when there is work for it, and the ``messages`` of all of them.

    Each begins with ``become(*arguments, messages)``: what it puts into its ``messages`` comes out of those here.
    """

    def __init__(self, become: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._hands = [_Hand(become, each, self.messages) for each in arguments]

    def has_free(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(hand.is_free() for hand in self._hands)

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Let a worker that has nothing to do call a function; there must be one.

        What comes of it is BrokenProcessPool if the worker dies.
        """
        return next(hand for hand in self._hands if hand.is_free()).submit(function, *arguments)

    def beginning(self, work: Future[Any]) -> Callable[[], bool]:
        """Tells whether the worker that is to do this, which was given nothing since, came so far as to begin."""
        return next(hand.started for hand in self._hands if hand.work is work)

    def kill(self, work: Future[Any]) -> None:
        """End the worker that does this, as one that hangs: no signal that it could answer would do."""
        for hand in self._hands:
            if hand.work is work:
                hand.kill()

    def rest(self) -> None:
        """End the workers that have nothing to do, with the memory that they hold; they start again for new work."""
        for hand in self._hands:
            if hand.is_free():
                hand.end()

    @contextmanager
    def at_work(self) -> Iterator[Crew]:
        """While entered, there are workers. When anything is raised they are told to stop: a training saves first.

        One that does not within two minutes is killed.
        """
        try:
            yield self
        except BaseException:
            for hand in self._hands:
                hand.cancel()
            _stop(multiprocessing.active_children())
            raise
        finally:
            for hand in self._hands:
                hand.end()


class _Hand:
    """One worker. ``work`` is what it does, or did last."""

    def __init__(
        self, become: Callable[..., None], arguments: tuple[Any, ...], messages: queue.SimpleQueue[Any]
    ) -> None:
        self._become, self._arguments, self._messages = become, arguments, messages
        self._pool: ProcessPoolExecutor | None = None
        self._number: Future[int] | None = None
        self.work: Future[Any] | None = None

    def is_free(self) -> bool:
        return self.work is None or self.work.done()

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        try:
            work = self._started().submit(function, *arguments)
        except BrokenProcessPool:  # by its last work, or while it had nothing to do
            self.end()
            work = self._started().submit(function, *arguments)
        self.work = work
        return work

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # not the context of loaders: these have threads of their own, and signals that make them save
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe(duplex=False)
            arguments = (self._become, self._arguments, theirs)
            self._pool = ProcessPoolExecutor(1, context, _begin, arguments)
            self._number = self._pool.submit(os.getpid)  # which starts the process
            theirs.close()  # so that ours ends when the process does
            threading.Thread(target=_forward, args=(ours, self._messages), daemon=True).start()
        return self._pool

    @property
    def started(self) -> Callable[[], bool]:
        """Tells of the process that there is now whether it has started."""
        number = self._number
        return lambda: number is not None and number.done() and not number.exception()

    def kill(self) -> None:
        if self._number is not None and self.started() and not self.is_free():
            with suppress(ProcessLookupError):
                os.kill(self._number.result(), signal.SIGKILL)

    def cancel(self) -> None:
        """Let it end after what it does."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def end(self) -> None:
        """Wait until it has ended."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = self._number = None


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    until, left = time.monotonic() + _PATIENCE, {process.sentinel: process for process in processes}
    while left and (seconds := until - time.monotonic()) > 0:
        for ended in wait(list(left), seconds):
            del left[ended]  # type: ignore[arg-type]
    for process in left.values():
        process.kill()


def _forward(ours: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Pass on what a worker tells, until it ends, perhaps in the middle of a message."""
    with ours, suppress(EOFError, OSError):
        while True:
            messages.put(ours.recv())


def _begin(become: Callable[..., None], arguments: tuple[Any, ...], theirs: Connection) -> None:
    """In the worker: whoever tells something there does not wait until the parent has read what was told before."""
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send() -> None:
        with suppress(OSError):  # the parent has gone
            while True:
                theirs.send(told.get())

    threading.Thread(target=send, daemon=True).start()
    become(*arguments, told)
