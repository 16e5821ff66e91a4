"""Signals that ask a run to save and leave: SIGTERM, Ctrl-C, and SIGUSR1 (`sbatch --signal=USR1@120`)."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from twinbench.foundation.errors import RunFailure

_LOOK_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(RunFailure):
    """The run was asked to stop; it has saved and the same command goes on from there (exit code 75)."""

    exit_code = os.EX_TEMPFAIL


@contextmanager
def ended_by_signals(parent: int | None = None) -> Iterator[None]:
    """While entered, a signal to stop ends this process, also where it is in a library that waits for other ranks.

    No handler of Python's runs there before the library returns, which may take half an hour. So does the end
    of its ``parent``, if that is to be watched, also before now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs)
    threading.Thread(target=_end_at_signal, args=(ours, parent), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)  # which ends the thread


def _end_at_signal(ours: int, parent: int | None) -> None:
    while True:
        if not select.select([ours], [], [], _LOOK_SECONDS)[0]:
            if parent is not None and os.getppid() != parent:
                os._exit(os.EX_TEMPFAIL)
            continue
        if not (number := os.read(ours, 1)):
            break
        if number[0] in _SIGNALS:
            name = signal.Signals(number[0]).name
            os.write(
                2, f"stopped by {name} before all ranks were there; run the same command again\n".encode()
            )
            os._exit(128 + signal.SIGINT if number[0] == signal.SIGINT else os.EX_TEMPFAIL)
    os.close(ours)


class StopRequest:
    """While entered, a signal sets ``name`` instead of ending the process; only the main thread can listen."""

    name: str | None = None

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)  # a second Ctrl-C does not wait


@contextmanager
def raised_signals() -> Iterator[None]:
    """While entered, a signal that no `StopRequest` inside listens to raises Interrupted when it leaves the block.

    Until then it is a KeyboardInterrupt, whichever signal it is: no handler of errors on the way takes it for one.
    """
    names: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        names.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    listens = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in _SIGNALS} if listens else {}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped by {names[0] if names else signal.SIGINT.name}; what was under way goes on from its last "
            "checkpoint, or is begun anew",
            next_step="run the same command again: finished jobs are kept",
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
