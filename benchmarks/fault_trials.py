"""A study of a few seconds in a folder of its own, commands on it that can be struck, and what its store holds.

What a fault needs inside of a command, a job that hangs for instance, comes from a plugin of twinbench, the same in the
driver and in its workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from fault_servers import S3, s3_server
from PIL import Image

# what a command would import
from twinbench.harness import commands as commands
from twinbench.harness.main import main

JOBS = 9
"""Three trainings and two evaluations of each."""
STEPS = 20
"""Of each of the two trainings that have any."""
_HANGS = 600.0  # seconds, on a busy machine
_OUTLIVES = 60.0
_LAST_CHECKPOINTS = "runs/simsiam-*/checkpoints/step-*.pt"
_NAME = "faults"
_STUDY = """
title: Under faults
description: Three methods on a few pictures.
image_set: folder:photos
recipes: digit-scenes
methods: [random_init, barlow_twins, simsiam]
overrides:
  backbone.width: 8
  epochs: 10
  batch_size: 16
  schedule.warmup_epochs: 0
tables:
  - name: main
    title: kNN and linear
    columns:
      - {protocol: knn/cosine-v1, metric: top1, label: kNN top-1}
      - {protocol: linear/cached-v1, metric: top1, label: linear top-1}
"""
_PLUGIN = '''
"""Faults inside of a command, as the environment asks for them."""

import json
import os
import resource
import time
from pathlib import Path

import torch

from twinbench.data import contents
from twinbench.harness import workers
from twinbench.pretraining import train

ASKED = json.loads(os.environ["TWINBENCH_FAULTS"])
update = train.Session.update


def replaced(module, name, value):
    getattr(module, name)  # it must be called so
    setattr(module, name, value)


replaced(train, "_CHECKPOINT_SECONDS", 0.0)  # one after every step
replaced(contents, "WORTH_AN_INDEX", 10)  # where usually a set has a thousand files
replaced(contents, "_SETTLED_NS", 0)


replaced(workers, "_TIMING_SECONDS", 15.0)


def hang():
    while True:
        time.sleep(1)


def run_out_of_memory():
    size = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, before[1]))
    try:
        torch.empty(2**30).fill_(1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def struck(self, progress):
    strike = ASKED.get("strike")
    if strike and self.recipe.method == strike["method"] and progress.step == strike["step"]:
        marks = Path(strike["marks"])
        if len(list(marks.iterdir())) < strike["times"]:
            (marks / str(time.monotonic_ns())).touch()
            {"hang": hang, "memory": run_out_of_memory}[strike["how"]]()
    update(self, progress)


train.Session.update = struck

if ASKED["patience"]:
    from twinbench.foundation import object_store
    from twinbench.harness import mirror

    replaced(object_store, "PATIENCE_SECONDS", ASKED["patience"])
    replaced(mirror, "SEND_SECONDS", 0.2)
    replaced(mirror, "ASK_SECONDS", 0.2)

if ASKED["clock"]:
    clock, now, now_ns, utime = Path(ASKED["clock"]), time.time, time.time_ns, os.utime

    def wrong():
        return float(clock.read_text() or 0)

    def touch(path, times=None, **named):
        if times is None and "ns" not in named:
            times = (time.time(), time.time())
        utime(path, times, **named)

    time.time = lambda: now() + wrong()
    time.time_ns = lambda: now_ns() + int(wrong() * 1e9)
    os.utime = touch
'''


class Offence(Exception):
    """The law is broken."""


class Kept(NamedTuple):
    """A file as it was found: a file that is written anew is another one, though it may say the same."""

    inode: int
    changed_ns: int
    sha256: str


@dataclass
class Ended:
    """How a command ended, and what it said."""

    code: int
    said: str

    def error(self) -> str:
        """The first thing that it named, empty if it named nothing."""
        named = [line for line in self.said.splitlines() if line.startswith(("error: ", "FAILED "))]
        return named[0] if named else ""

    def begun_twice(self) -> list[str]:
        """The jobs that it began once more though it had not said that they were lost."""
        lines = self.said.splitlines()
        begun = Counter(line.partition("] ")[2] for line in lines if re.match(r"\[\d+/\d+\] [^:]*$", line))
        lost = [line.removeprefix("LOST ") for line in lines if line.startswith("LOST ")]
        return [
            label
            for label, times in begun.items()
            if times > 1 + sum(line.startswith(f"{label}: ") for line in lost)
        ]


@dataclass
class Command:
    """A command under way, with a process group of its own."""

    pid: int
    said: Path
    code: int | None = None

    def has_ended(self) -> bool:
        """Whether its driver has."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def strike(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal to one of its processes, the driver unless another is given; it may be gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid if pid is None else pid, number)

    def workers(self) -> list[int]:
        """The processes that do its jobs."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with suppress(OSError):
            return [int(pid) for pid in children.read_text().split() if b"spawn_main" in _command_line(pid)]
        return []

    def wait(self) -> Ended:
        """Its end and that of all of its processes. Raises Offence for a traceback, a hang, a job begun twice."""
        hangs = time.monotonic() + _HANGS
        while not self.has_ended():
            if time.monotonic() > hangs:
                self._end()
                raise Offence(f"the command hangs; it said: {self._text()[-500:]}")
            time.sleep(0.02)
        outlives = time.monotonic() + _OUTLIVES
        while _has_members(self.pid):
            if time.monotonic() > outlives:
                self._end()
                raise Offence(f"a process of the command outlives it by {_OUTLIVES:g} seconds")
            time.sleep(0.05)
        assert self.code is not None
        ended = Ended(self.code, self._text())
        if "Traceback" in ended.said:
            raise Offence(f"a traceback: {ended.said[ended.said.index('Traceback') :][-1500:]}")
        if ended.begun_twice():
            raise Offence(f"begun twice: {', '.join(ended.begun_twice())}; it said: {ended.said[-1500:]}")
        return ended

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _text(self) -> str:
        return self.said.read_text(errors="replace")


def _begin(words: list[str], folder: Path, site: Path, environment: Mapping[str, str], said: Path) -> Command:
    """A command in a process that is forked from this one: this one has imported what takes seconds, and no more.

    It has no threads, as it has computed nothing, and no plugin.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Command(pid, said)
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.path.insert(0, str(site))
        sys.modules["__main__"] = ModuleType("__main__")  # which its workers would import
        sys.argv = ["twinbench", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return Command(0, said)  # nobody comes here


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _has_members(group: int) -> bool:
    """Whether a process of the group is alive; one that has ended and that nobody has asked for is not."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


@dataclass
class Place:
    """A folder in which the study runs, with what was drawn for it.

    ``harmed`` are files that a fault has changed, and those that have to be made again with them; ``environment`` is
    added to that of commands, and the file ``clock`` tells by how many seconds their clock is wrong. Every command gets
    the ``words``; the run store is where ``runs`` matches, and an object store is asked for so many seconds of
    ``patience``.
    """

    folder: Path
    draw: Random
    environment: dict[str, str] = field(default_factory=dict)
    harmed: set[Path] = field(default_factory=set)
    clock: Path | None = None
    words: tuple[str, ...] = ()
    runs: str = "runs"
    patience: float | None = None
    commands: int = 0

    def start(self, workers: int = 2, *words: str, strike: Mapping[str, object] | None = None) -> Command:
        """Begin the study's command; ``strike`` is for the plugin."""
        self.commands += 1
        said = self.folder.with_name(f"{self.folder.name}-said-{self.commands}")  # not on a disk that is full
        study = str(self.folder.parent / f"{_NAME}.yaml")
        command = ["run", study, "--workers", str(workers), *self.words, *words]
        return _begin(command, self.folder, self.folder.parent / "site", self.environment_of(strike), said)

    def environment_of(self, strike: Mapping[str, object] | None = None) -> dict[str, str]:
        """What a command's environment has beside that of this process."""
        site, others = self.folder.parent / "site", os.environ.get("PYTHONPATH")
        asked = {
            "strike": strike,
            "clock": str(self.clock) if self.clock else None,
            "patience": self.patience,
        }
        return {
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(site), others])),
            "TWINBENCH_FAULTS": json.dumps(asked),
            **self.environment,
        }

    def finished(self) -> dict[Path, Kept]:
        """The files of every finished result: encoders with their status, records with their outcomes."""
        found: list[Path] = []
        for status in self.folder.glob(f"{self.runs}/*/status.json"):
            if _document(status).get("status") == "done":
                found += [status, *status.parent.glob("encoder/encoder.*")]
        for record in self.folder.glob(f"{self.runs}/*/records/*.json"):
            if (document := _document(record)).get("status") == "done":
                found += [record, record.with_name(document["outcomes"]["file"])]
        return {file: kept(file) for file in found if file not in self.harmed}

    def results(self) -> int:
        """How many jobs have left a result."""
        return sum(file.suffix == ".json" and file.name != "encoder.json" for file in self.finished())

    def content(self) -> dict[str, str]:
        """What must be the same whatever happened: tables, encoders and what became of every test item."""
        of_runs = [
            file
            for pattern in ("encoder/encoder.*", "records/*.safetensors")
            for file in self.folder.glob(f"{self.runs}/*/{pattern}")
        ]
        found = {"/".join(["runs", *file.parts[-3:]]): kept(file).sha256 for file in of_runs}
        tables = self.folder.glob(f"results/{_NAME}/tables/*")
        return found | {str(file.relative_to(self.folder)): kept(file).sha256 for file in tables}

    def size(self) -> int:
        """Bytes on a disk with pages of 4096."""
        return sum(
            -(-file.stat().st_size // 4096) * 4096 for file in self.folder.rglob("*") if file.is_file()
        )


def kept(file: Path) -> Kept:
    """A file as it is now."""
    status = file.stat()
    return Kept(status.st_ino, status.st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


class World:
    """Where places are: the study, its pictures and its plugin. Raises Offence if the study does not run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _draw_pictures(folder / "photos")
        (folder / f"{_NAME}.yaml").write_text(_STUDY.replace("photos", str(folder / "photos")))
        _install(folder / "site")
        self.seconds = 0.0
        self._servers = ExitStack()
        self._s3: S3 | None = None

    def s3(self) -> S3:
        """The S3 server, which starts when it is first asked for."""
        if self._s3 is None:
            self._s3 = self._servers.enter_context(s3_server())
        return self._s3

    def close(self) -> None:
        """End the servers."""
        self._servers.close()

    @cached_property
    def undisturbed(self) -> Place:
        """What the study leaves if nothing happens to it; ``seconds`` is how long that takes."""
        place, started = self.place("undisturbed", Random(0)), time.monotonic()
        ended = place.start(workers=1).wait()
        self.seconds = time.monotonic() - started
        if ended.code != 0 or place.results() != JOBS:
            raise Offence(f"the study does not run: {ended.said}")
        return place

    @cached_property
    def halfway(self) -> Place:
        """What it leaves if it is killed in its last training, with two checkpoints."""
        place = self.place("halfway", Random(0))
        command = place.start(workers=1)
        while not command.has_ended() and len(list(place.folder.glob(_LAST_CHECKPOINTS))) < 2:
            time.sleep(0.02)
        command.strike(signal.SIGKILL)
        command.wait()
        return place

    def place(self, name: str, draw: Random) -> Place:
        """A new place, empty."""
        folder = self.folder / name
        folder.mkdir()
        return Place(folder, draw)

    def fill(self, place: Place, like: Place) -> None:
        """Let a new place be as another one is."""
        shutil.copytree(like.folder, place.folder, dirs_exist_ok=True)


def _draw_pictures(folder: Path) -> None:
    """Three classes that differ in brightness and overlap, 16 images to train and 20 to test each."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 20)):
        for name, brightness in (("dark", 90), ("grey", 120), ("light", 150)):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.normal(rng.normal(brightness, 20), 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{i}.png")


def _install(site: Path) -> None:
    """Put the plugin where Python finds it as one that was installed."""
    info = site / "twinbench_faults-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "twinbench_faults.py").write_text(_PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twinbench-faults\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[twinbench.plugins]\nfaults = twinbench_faults\n")
