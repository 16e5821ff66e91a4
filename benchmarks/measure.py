"""What the benchmark scripts share: fresh processes, clocks, peak memory, and tables between markers.

Every measurement is a process of its own, so that none finds the memory or the caches of another, and every
ratio comes from measurements of one run of a script, with the sides taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.foundation.files import write_atomically
from twinbench.harness.environment import environment
from twinbench.reports.readme import update_blocks

Document = dict[str, Any]

METHODS = ("barlow_twins", "simclr", "byol", "swav", "simsiam", "moco_v2")
"""All that train without labels, in the order of the tables."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Environment that makes glibc keep freed memory instead of handing it back to the system.

By default every large tensor of a training step on the CPU is new memory that the system clears page by page,
which costs up to a third of the step. Ignored by other allocators, and by CUDA."""


START_METHOD = "forkserver"
"""How the others' data workers are started, since forking a process that has threads might stand still.

Their data sets are part of the scripts, which our own context does not let workers import. They start once, before
the measurement."""


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements with their smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 1) -> str:
        """``median (low to high)``, or the median alone where nothing varied."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def run_fresh(script: str, job: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> Document:
    """``python SCRIPT --job JSON`` in a new process with ``extra`` environment: the JSON it prints last.

    Raises RunFailure with the end of its error output if the process fails.
    """
    command = [sys.executable, script, "--job", json.dumps(job)]
    done = subprocess.run(command, env={**os.environ, **(extra or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunFailure(
            f"a measurement ended with exit code {done.returncode}: {done.stderr.strip()[-2000:]}",
            where=json.dumps(job),
            next_step="run this alone to see more: " + shlex.join(command),
        )
    answer: Document = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def take_turns(
    script: str, jobs: Sequence[tuple[Mapping[str, Any], Mapping[str, str]]], repetitions: int
) -> list[list[Document]]:
    """Measure every (job, environment) ``repetitions`` times, A B C A B C; the answers of each job.

    Taking turns spreads a slow minute of the machine over all sides.
    """
    answers: list[list[Document]] = [[] for _ in jobs]
    started = time.monotonic()
    for repetition in range(repetitions):
        for index, (job, extra) in enumerate(jobs):
            answers[index].append(run_fresh(script, job, extra))
            done = repetition * len(jobs) + index + 1
            print(
                f"\r{done}/{repetitions * len(jobs)} measurements, {time.monotonic() - started:.0f} s",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    return answers


def peak_memory_mb(workers: Iterable[int] = ()) -> float:
    """Peak memory in MiB since the process began.

    With CUDA: what torch held allocated on the device at most. Otherwise: the largest resident set of this
    process (VmHWM) plus what its worker processes, and the server from which they are forked, hold in memory now
    (without files; each page that they share counts once).
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    own = _numbers(Path("/proc/self/status"), ("VmHWM:",))
    family = {process for pid in workers for process in (pid, _parent(pid))}
    theirs = sum(_numbers(Path(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:")) for pid in family)
    return (own + theirs) / 1024


def _parent(pid: int) -> int:
    return _numbers(Path(f"/proc/{pid}/status"), ("PPid:",))


def resident_mb() -> float:
    """The resident set of this process now, in MiB."""
    return _numbers(Path("/proc/self/status"), ("VmRSS:",)) / 1024


def shared_out_mb(pid: int) -> float:
    """What a process holds in memory now, in MiB: a page that n processes share counts an nth in each."""
    return _numbers(Path(f"/proc/{pid}/smaps_rollup"), ("Pss:",)) / 1024


def processor_seconds(pid: int) -> float:
    """Seconds of a processor that a process has had so far, its threads together."""
    # the name of the program, in brackets, may hold anything
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _numbers(path: Path, fields: tuple[str, ...]) -> int:
    return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(fields))


def synchronise() -> None:
    """Wait until the device has done what it was given, so that a clock read now is true."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def flops_of(step: Callable[[], object]) -> int:
    """Floating-point operations (a multiply-add is two) of the products and convolutions in a call of ``step``.

    Counted by torch as the operations happen, so give it a whole training step, forward and backward, as it computes
    without `torch.compile`: a layer that does more products than its formula needs counts with all of them.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matmul_rate(
    where: torch.device, precision: torch.dtype, size: int | None = None, rounds: int = 10
) -> float:
    """FLOP/s of the product of two square matrices on a device: the fastest of ``rounds``.

    ``size`` is a matrix's side, by default 2048 on a CPU and 8192 on a GPU, whose rate smaller ones do not reach. With
    torch's threads and settings of now, so that it is what a step in this process could reach if it were all products.
    """
    gpu = where.type == "cuda"
    size, calls = size or (8192 if gpu else 2048), 20 if gpu else 1
    a, b = (torch.randn(size, size, device=where).to(precision) for _ in range(2))
    product = torch.empty_like(a)
    times = []
    for _ in range(rounds + 1):
        synchronise()
        started = time.perf_counter()
        for _ in range(calls):
            torch.mm(a, b, out=product)
        synchronise()
        times.append(time.perf_counter() - started)
    return calls * 2 * size**3 / min(times[1:])


class _TrafficMode(TorchDispatchMode):
    """Adds up what every operation reads and writes."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in _NO_TRAFFIC:
            read_or_written = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
            self.total += sum(t.nbytes for t in read_or_written.values())
        return out


# these make a tensor without touching its memory
_NO_TRAFFIC = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten._reshape_alias.default,
    torch.ops.aten.detach.default,
}


def bytes_of(step: Callable[[], object]) -> int:
    """Bytes that the operations in a call of ``step`` read and write, each tensor once for each operation.

    As the step computes without `torch.compile`: what stays in a cache moves less, what reads an input twice, as batch
    norm does, moves more.
    """
    with _TrafficMode() as mode:
        step()
    return mode.total


def copy_rate(where: torch.device, megabytes: int | None = None, rounds: int = 10) -> float:
    """Bytes a second that a device moves in a large copy, read and written both counted: the fastest of ``rounds``."""
    size = (megabytes or (4096 if where.type == "cuda" else 256)) * 2**20
    source = torch.randint(256, (size,), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds + 1):
        synchronise()
        started = time.perf_counter()
        target.copy_(source)
        synchronise()
        times.append(time.perf_counter() - started)
    return 2 * size / min(times[1:])


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_description() -> str:
    """The GPU's name, or the processor's with the threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts() -> dict[str, str]:
    """What the numbers were measured on: versions, commit, machine, date and the command."""
    known = dict(environment())
    if has_lightly():
        known["lightly"] = version("lightly")
    known["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    known["command"] = _command(sys.argv)
    return known


_LEFT_OPEN = {
    "--data-root": "DIR",
    "--encoder": "DIR",
    "--folder": "DIR",
    "--keep": "FILE",
    "--official": "DIR",
    "--out": "FILE",
    "--figure": "FILE",
    "--markdown": "README.md",
}


def _command(arguments: Sequence[str]) -> str:
    """The command as another machine would type it: where the data and the results lie is left open."""
    script = Path(arguments[0])
    shown = ["python", f"benchmarks/{script.name}" if script.suffix == ".py" else script.name]
    for before, argument in pairwise(arguments):
        option, equals, _ = argument.partition("=")
        if equals and option in _LEFT_OPEN:
            shown.append(f"{option}={_LEFT_OPEN[option]}")
        else:
            shown.append(_LEFT_OPEN.get(before, argument))
    return without_folders(shlex.join(shown))


# not the stroke of "images/s", "a / b", "3)/s" or a web address
_FOLDERS = re.compile(r"(?<![\w./)\]~])/(?:[\w.@+~-]+/)*(?=[\w.@+~-])")


def without_folders(value: Any) -> Any:
    """A document, or a part of it, in which every absolute path is only its last name.

    What is published is no map of the machine that it was measured on.
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(entry) for entry in value]
    return value


def has_lightly() -> bool:
    """Whether the package `lightly` is installed."""
    try:
        version("lightly")
    except PackageNotFoundError:
        return False
    return True


def require_lightly() -> None:
    """Raises InputError where `lightly` is not installed."""
    if not has_lightly():
        raise InputError(
            "the package 'lightly', which this benchmark compares with, is not installed",
            next_step='pip install "twinbench[bench]" (in a checkout: pip install -e ".[bench]")',
        )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned so that it reads well on a terminal too."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def footnote(document: Document) -> str:
    """One line under a table: what it was measured on, when, and by which command."""
    known = document["facts"]
    packages = [name for name in ("torch", "torchvision", "lightly") if name in known]
    versions = ", ".join(f"{name} {known[name]}" for name in packages)
    return (
        f"{document['device']}; {known['machine']}; Python {known['python']}, {versions}; commit "
        f"{known['commit'] or 'unknown'}; {known['date']}; `{known['command']}`"
    )


def positive(text: str) -> int:
    """The type of an option that counts something: a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def chosen(kind: str, text: str, valid: Sequence[str]) -> list[str]:
    """The names of a comma-separated list; raises InputError with the nearest for one that is not ``valid``."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in valid:
            raise unknown_name(kind, name, valid)
    return names


def run_script(main: Callable[[], None]) -> None:
    """Run ``main``; an error ends with its text and code 2 if it is the user's, 1 if the machine's; Ctrl-C with 130."""
    try:
        main()
    except (InputError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted: what was not written yet is lost", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def check_targets(block: str, out: Path | None, markdown: Path | None) -> None:
    """Raise InputError unless `publish` can write there; asked before anything is measured."""
    for path in (out, markdown):
        if path is not None and path.is_dir():
            raise InputError("this is a folder", where=path, next_step="name a file in it")
    if markdown is not None:
        marker = f"<!-- begin {block} -->"
        if not markdown.is_file() or marker not in markdown.read_text(encoding="utf-8"):
            raise InputError(
                f"no file with the line {marker}", where=markdown, next_step="name benchmarks/README.md"
            )


def publish(document: Document, text: str, block: str, out: Path | None, markdown: Path | None) -> None:
    """Print ``text``; write the document to ``out`` and the text into the block of ``markdown``, if given.

    Both without the folders of this machine.
    """
    text = without_folders(text)
    print(text)
    if out is not None:
        write_atomically(out, (json.dumps(without_folders(document), indent=1) + "\n").encode())
    if markdown is not None:
        update_blocks(markdown, {block: text})
