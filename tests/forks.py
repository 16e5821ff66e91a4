"""Programs in processes that are forked from one which has imported what they import.

Starting an interpreter that imports torch takes seconds of a processor, a fork milliseconds. In all else the process is
the one that the interpreter would be, with signals, standard streams, a main module and an end of its own: what a test
shows of a command it shows here too, unless it is about the start itself.

``python forks.py ADDRESS`` is the process that is forked. It computes nothing, so it has no threads. It imports when it
is first asked for a program, and ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

_ADDRESS = "TWINBENCH_TEST_FORKS"
_IMPORTED = (
    *(f"twinbench.harness.{name}" for name in ("cli", "commands", "encoder_commands", "workers")),
    *(f"sklearn.{name}" for name in ("linear_model", "model_selection", "svm", "utils.parallel")),
)
"""What commands and their parts import when they run."""
_LONGEST = 2**20  # bytes of a request: most of them are the environment
COMMAND = "from twinbench.harness.main import main; main()"
"""The program that is the command line."""
SLOWLY = """
import time
from twinbench.pretraining import train

update = train.Session.update


def update_slowly(self, progress):
    time.sleep(0.2)
    update(self, progress)


train.Session.update = update_slowly
"""
"""What comes before a program whose training is to be struck: each step waits, so that it is not over by then."""


class Origin:
    """The process that is forked: for all processes of a run of the tests one, which find it by the environment."""

    def __init__(self) -> None:
        # the path of a socket may have a hundred characters, and those of the users' own folders may be longer
        self._folder = tempfile.TemporaryDirectory(prefix="twinbench-forks-", dir="/tmp")
        address = os.environ[_ADDRESS] = str(Path(self._folder.name) / "socket")
        environment = {**os.environ, **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}}
        self._process = subprocess.Popen(
            [sys.executable, __file__, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the process that is forked does not listen"

    def end(self) -> None:
        """Let it end; what was forked goes on."""
        self._process.communicate()
        self._folder.cleanup()


class Fork:
    """A program under way: `subprocess.Popen`, as far as a process has it that is not a child of this one."""

    def __init__(
        self,
        program: str | Path,
        *words: str | Path,
        cwd: Path,
        env: Mapping[str, str] = os.environ,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
    ) -> None:
        """The ``program`` is Python code, or a file of it."""
        request = {
            "program": str(program),
            "file": isinstance(program, Path),
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "environment": dict(env),
        }
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(os.environ[_ADDRESS])
        streams = [
            (stream or usual).fileno()
            for stream, usual in ((stdout, sys.__stdout__), (stderr, sys.__stderr__))
        ]
        socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
        self.pid = int(self._connection.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None as long as it has not ended."""
        return self.wait(0.0)

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end, for so many seconds at most; the exit code."""
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            self.returncode = int(self._connection.recv(100))
            self._connection.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """It is gone if its end was seen."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    program: str | Path, *words: str | Path, cwd: Path, env: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Let a program come to its end, and tell what it wrote."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = Fork(program, *words, cwd=cwd, env=env, stdout=out, stderr=err).wait()
        assert code is not None
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess([str(program), *map(str, words)], code, *texts)


def _serve(address: str) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request; in a forked process returns the request and its streams, in this one None at the end."""
    imported = False
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        selectors.DefaultSelector() as events,
    ):
        listener.bind(address)
        listener.listen()
        print("listens", flush=True)
        events.register(listener, selectors.EVENT_READ)
        events.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is not listener:
                    pid, connection = key.data
                    _tell(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    connection.close()
                    events.unregister(key.fileobj)
                    os.close(key.fd)
                    continue
                if not imported:
                    imported = _import_all()
                connection, _ = listener.accept()
                request, streams, _, _ = socket.recv_fds(connection, _LONGEST, 2)
                pid = os.fork()
                if not pid:
                    for each in events.get_map().values():
                        if each.data:
                            each.data[1].close()
                            os.close(each.fd)
                    connection.close()
                    return json.loads(request), streams
                for stream in streams:
                    os.close(stream)
                _tell(connection, pid)
                events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        connection.send(str(number).encode())


def _import_all() -> bool:
    """All that a command may import, but for plugins, which are those of its own environment."""
    import gc

    from twinbench.harness.plugins import load_plugins

    load_plugins()
    load_plugins.cache_clear()
    for name in _IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()  # so that a search for garbage does not copy the pages of what is shared
    return True


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be as the interpreter would be when it begins with the program, and run it."""
    import torch

    from twinbench.foundation.cores import usable_cores

    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate((nothing, *streams)):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    program = request["program"]
    here = str(Path(program).parent) if request["file"] else ""
    sys.path[:] = [here, *path, *(entry for entry in sys.path[1:] if entry not in path)]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", usable_cores())))
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.argv = [program if request["file"] else "-c", *request["words"]]
    if request["file"]:
        main.__file__ = program
    code = Path(program).read_text() if request["file"] else program
    exec(compile(code, program if request["file"] else "<string>", "exec"), vars(main))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who started this one ends it
    asked = _serve(sys.argv[1])
    if asked is not None:
        _become(*asked)
