"""Fuzzes every reader of files from outside for a long time, and writes down what came of it.

An input is a good file with changes drawn from the seed, the reader's name and the input's number
(``tests/fuzzing/mutations.py``). Reading it must end with a value or an explained error, in bounded time and memory,
without a program started, a socket opened or a file written elsewhere (``tests/fuzzing/law.py``); whatever else happens
is an offence, and its input is kept in a folder. The readers take turns: next is the one that has had the least time,
so that a quick one reads more inputs.

They run in a child process, which is started again when it dies.

    python benchmarks/fuzz.py --inputs 100000 --out benchmarks/fuzzing.md
    python benchmarks/fuzz.py --reader "COCO" --index 4711       # one input again, with its traceback
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import torch
from measure import facts, markdown_table, positive, run_script

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzzing.law import MEMORY, SECONDS, read_files, write_files
from tests.fuzzing.readers import READERS
from twinbench.foundation.files import slug, write_atomically
from twinbench.harness.plugins import load_plugins

_SILENCE = 180.0
"""After so many seconds without a word the child hangs where no alarm reaches it, on a busy machine too."""
_MOST_KEPT = 20


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    inputs: int = 0
    values: int = 0
    errors: int = 0
    offences: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0


def bad_files(seed: int, name: str, index: int) -> dict[str, bytes]:
    """The input of that number for a reader."""
    return READERS[name].bad(Random(f"{seed} {name} {index}"))


def work(names: Sequence[str], seed: int, tallies: Mapping[str, Tally], pipe: Connection) -> None:
    """The child: read inputs until the parent ends it, saying before each which, and after it what came of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff speaks for itself
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spent = {name: tallies[name].seconds for name in names}
    done = {name: tallies[name].inputs for name in names}
    while True:
        name = min(names, key=lambda each: (spent[each], done[each]))
        pipe.send((name, done[name], None, 0.0))
        started = time.process_time()
        try:
            ended = read_files(READERS[name].read, bad_files(seed, name, done[name]))
        except BaseException as error:
            ended = _offence(error)
        took = time.process_time() - started
        pipe.send((name, done[name], ended, took))
        spent[name] += took
        done[name] += 1


def _offence(error: BaseException) -> str:
    """What went wrong in a line: the error, and where in twinbench it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "twinbench/" in f.filename]
    place = f" in {frames[-1].filename.rpartition('twinbench/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {error}".partition("\n")[0][:160]


def fuzz(
    names: Sequence[str], inputs: int, seed: int, minutes: float | None, keep: Path
) -> tuple[dict[str, Tally], float]:
    """Read so many inputs, or for so long; the tallies by reader, and how many seconds it took."""
    tallies = {name: Tally() for name in names}
    started, left = time.monotonic(), inputs
    until = None if minutes is None else started + 60 * minutes
    spoken = started
    while left > 0 and (until is None or time.monotonic() < until):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=work, args=(names, seed, tallies, theirs))
        child.start()
        theirs.close()
        reading: tuple[str, int] | None = None
        while left > 0 and (until is None or time.monotonic() < until):
            try:
                name, index, ended, took = ours.recv() if ours.poll(_SILENCE) else (None, 0, None, 0.0)
            except EOFError:  # it died
                name, index, ended, took = None, 0, None, 0.0
            if name is None:
                child.kill()
                child.join()
                if reading is None:
                    raise RuntimeError("the child dies before it reads anything")
                dead = "hangs" if child.exitcode == -signal.SIGKILL else f"dies (exit code {child.exitcode})"
                name, index = reading
                _count(tallies[name], dead, 0.0)
                _keep(keep, seed, name, index, dead)
                left -= 1
                break
            if ended is None:
                reading = (name, index)
                continue
            _count(tallies[name], ended, took)
            left -= 1
            if ended not in ("value", "error"):
                _keep(keep, seed, name, index, ended)
            if time.monotonic() - spoken > 60:
                spoken = time.monotonic()
                offences = sum(sum(tally.offences.values()) for tally in tallies.values())
                print(f"{inputs - left} inputs, {offences} offences", file=sys.stderr, flush=True)
        child.kill()
        child.join()
        ours.close()
    return tallies, time.monotonic() - started


def _count(tally: Tally, ended: str, took: float) -> None:
    tally.inputs += 1
    tally.seconds += took
    tally.slowest = max(tally.slowest, took)
    if ended == "value":
        tally.values += 1
    elif ended == "error":
        tally.errors += 1
    else:
        tally.offences[ended] += 1


def _keep(keep: Path, seed: int, name: str, index: int, ended: str) -> None:
    """Keep an input that broke the law, with what happened."""
    print(f"{name} {index}: {ended}", file=sys.stderr, flush=True)
    if keep.is_dir() and len(list(keep.iterdir())) >= _MOST_KEPT:
        return
    folder = keep / f"{slug(name)}-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    write_files(folder, {**bad_files(seed, name, index), "what-happened": ended.encode("utf-8", "replace")})


def page(tallies: Mapping[str, Tally], seed: int, seconds: float) -> str:
    """The report."""
    known = facts()
    total, offences = sum(t.inputs for t in tallies.values()), Counter[str]()
    for name, tally in tallies.items():
        offences.update({f"{name}: {what}": count for what, count in tally.offences.items()})
    rows = [
        (
            name,
            f"{t.inputs:,}",
            f"{t.values:,}",
            f"{t.errors:,}",
            str(sum(t.offences.values())),
            f"{1000 * t.seconds / max(1, t.inputs):.0f} ms",
            f"{t.slowest:.1f} s",
        )
        for name, t in tallies.items()
    ]
    table = markdown_table(
        ("reader", "bad inputs", "good values", "explained errors", "offences", "mean", "slowest"), rows
    )
    listed = "\n".join(f"- {count} x {what}" for what, count in offences.most_common()) or "There was none."
    versions = ", ".join(
        f"{name} {known[name]}" for name in ("python", "torch", "numpy", "pillow") if name in known
    )
    computed = sum(tally.seconds for tally in tallies.values()) / 60
    return f"""# Fuzzing of the readers

Generated by `{known["command"]}`, whose head explains the inputs and the law.
Seed {seed}; {total:,} bad inputs in {seconds / 60:.0f} minutes, with {computed:.0f} minutes of computing. A reader has
{SECONDS:g} seconds of computing and {MEMORY // 2**20} MiB beyond what the process has at its start. A changed file may
still be a good one.

{table}

Offences, which are anything but a value and an explained error (a crash, a hang, another exception, memory, a file
written elsewhere, a message that a terminal would obey):

{listed}

{known.get("machine", "")}; {versions}; {known["date"]}; commit {known.get("commit", "unknown")}.
"""


def again(seed: int, name: str, index: int) -> None:
    """Read one input again, here, and show what happens."""
    files = bad_files(seed, name, index)
    for file, content in files.items():
        if content != READERS[name].good().get(file):
            print(f"{file}: {content[:2000]!r}")
    print(read_files(READERS[name].read, files))


def main() -> None:
    """Fuzz, print the report, and end with code 1 if there was an offence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=positive, default=100_000, help="bad inputs of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--reader", choices=list(READERS), action="append", help="only this one (repeatable)")
    parser.add_argument("--index", type=int, help="read the input of this number of one reader again")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-offences"), help="folder for inputs that offend"
    )
    parser.add_argument("--out", type=Path, help="write the report to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_plugins()
    names = arguments.reader or list(READERS)
    if arguments.index is not None:
        again(arguments.seed, names[0], arguments.index)
        return
    for name in names:  # made here once, and not in every child
        READERS[name].good()
    tallies, seconds = fuzz(names, arguments.inputs, arguments.seed, arguments.minutes, arguments.keep)
    text = page(tallies, arguments.seed, seconds)
    print(text)
    if arguments.out is not None:
        write_atomically(arguments.out, text.encode())
    sys.exit(any(tally.offences for tally in tallies.values()))


if __name__ == "__main__":
    run_script(main)
