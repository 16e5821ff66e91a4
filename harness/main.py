"""The console script, also for ``python -m``."""

import os
import signal
import threading
from types import FrameType


def main() -> None:
    """Run the command line; `harness.ending.Commands` says what the exit codes mean."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _stop_at_once)
    # takes seconds, in which a scheduler may already want its machine back
    from twinbench.harness.cli import app

    app(prog_name="twinbench")


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """End with the code of a stopped run where nothing is under way that would have to be saved."""
    name = signal.Signals(number).name
    os.write(2, f"stopped by {name} with nothing under way; run the same command again\n".encode())
    os._exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    main()
