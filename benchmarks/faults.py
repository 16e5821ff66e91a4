"""Does harm to a small study, one fault after another, and holds what is left of it to one law.

Each fault begins with a study of three methods on a few pictures, empty, halfway or finished, and strikes at a moment
that is drawn from the seed and the fault's number. After it

- the next command repairs the damage, or names it, and then the one after it repairs it (an encoder that no command has
  to read is named by the one that reads it);
- no finished result is lost or made twice: its files are the same files at the end, and no command begins a job twice
  unless it says that the first try was lost;
- no half-written or altered file is trusted: tables, encoders and what became of every test item are byte for byte
  those of a run that nothing happened to;
- no command ends in a traceback, hangs, or leaves a process behind.

Anything else is an offence, which is reported with what repeats it. The study is real: commands are processes, signals
are signals, and the full and the read-only disk are file systems in memory, which it takes root to mount.

    python benchmarks/faults.py --faults 120 --out benchmarks/faults.md
    python benchmarks/faults.py --seed 0 --index 17 --kind SIGTERM --keep DIR        # one of them again
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from fault_servers import missing, ray_cluster
from fault_trials import JOBS, STEPS, Command, Ended, Offence, Place, World
from measure import facts, markdown_table, positive, run_script

from twinbench.encoders.encoder import DamagedEncoder, Encoder
from twinbench.foundation.files import write_atomically
from twinbench.pretraining.interrupt import Interrupted

Strike = Callable[[World, Place], str]
"""Does harm in a place; returns what and when in words. Raises Offence if what was struck breaks the law at once."""

_MOST_COMMANDS = 3
_MOSTLY_ONE = (1, 1, 1, 1, 1, 2)  # workers; processes cost seconds to start
_TIMED_STEPS = 4  # of a method, before the study begins
_MOST_SECONDS_TO_STOP = 100.0  # on a busy machine; a training saves within a second
_KINDS: dict[str, Strike] = {}


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: what was done, what the commands after it named, and how the law was broken, if it was."""

    index: int
    kind: str
    told: str
    named: tuple[str, ...]
    offence: str
    seconds: float

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.offence:
            return "OFFENCE"
        return "named, then repaired" if self.named else "repaired"


def _kind(name: str) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        _KINDS[name] = strike
        return strike

    return register


def _moment(place: Place, command: Command) -> str:
    """Wait until so many results are there, drawn, and then a while, drawn as well."""
    results = place.draw.randrange(JOBS)
    more = place.draw.uniform(0, 1 if results else 6)
    while not command.has_ended() and place.results() < results:
        time.sleep(0.02)
    time.sleep(more)
    return "after its end" if command.has_ended() else f"{more:.1f} s after {results} of {JOBS} results"


def _unharmed(place: Place, command: Command, strike: Callable[[], None]) -> Ended:
    """Strike a command, wait for its end, and see that what was finished is still there."""
    before = place.finished()
    strike()
    ended = command.wait()
    _require_same(before, place)
    return ended


def _require_same(before: Mapping[Path, object], place: Place) -> None:
    after = place.finished()
    changed = [str(file.relative_to(place.folder)) for file, was in before.items() if after.get(file) != was]
    if changed:
        raise Offence(f"finished, and lost or made again: {', '.join(changed)}")


def _require_code(ended: Ended, *codes: int) -> None:
    if ended.code not in codes:
        raise Offence(
            f"exit code {ended.code} instead of {' or '.join(map(str, codes))}: {ended.said[-1500:]}"
        )


def _require_named(ended: Ended) -> None:
    error = ended.error()
    if ended.code != 0 and (not error or error.startswith("error: unexpected")):
        raise Offence(f"it ends with code {ended.code} and names {error or 'nothing'}: {ended.said[-500:]}")


@_kind("kill -9 of a worker")
def _kill_worker(world: World, place: Place) -> str:
    command = place.start()
    moment = _moment(place, command)
    workers = command.workers()
    worker = place.draw.choice(workers) if workers else None
    ended = _unharmed(place, command, lambda: command.strike(signal.SIGKILL, worker) if worker else None)
    _require_code(ended, 0)
    return f"{moment}; {'it began one job once more' if 'LOST ' in ended.said else 'it had nothing to do'}"


@_kind("kill -9 of the driver")
def _kill_driver(world: World, place: Place) -> str:
    command = place.start(workers=place.draw.choice((1, 2)))
    moment = _moment(place, command)
    _unharmed(place, command, lambda: command.strike(signal.SIGKILL))
    return moment


@_kind("kill -9 of one of two commands")
def _kill_one_of_two(world: World, place: Place) -> str:
    command, other = place.start(workers=2), place.start(workers=1)
    moment = _moment(place, command)
    _unharmed(place, command, lambda: command.strike(signal.SIGKILL))
    _require_code(other.wait(), 0)
    return f"{moment}; the other went on to the end"


@_kind("SIGTERM")
def _terminate(world: World, place: Place) -> str:
    command = place.start(workers=place.draw.choice((1, 2)))
    moment = _moment(place, command)
    to_all = place.draw.random() < 0.5

    def strike() -> None:
        everyone = [*command.workers(), command.pid] if to_all else [command.pid]
        for pid in everyone:
            command.strike(signal.SIGTERM, pid)

    told = time.monotonic()
    ended = _unharmed(place, command, strike)
    if (took := time.monotonic() - told) > _MOST_SECONDS_TO_STOP:
        raise Offence(f"it takes {took:.0f} s to stop")
    # before the command listens the system ends it
    _require_code(ended, 0, Interrupted.exit_code, -signal.SIGTERM)
    return f"{moment}, to {'all its processes' if to_all else 'the driver'}"


_MOUNTED = ("a full disk", "a read-only store")


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount("-t", "tmpfs", "tmpfs", folder)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


_LARGE = 2**28
_READ_ONLY, _REMOUNT = 1, 32  # flags of mount(2)


def _remounted_read_only(folder: Path) -> bool:
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mount(b"none", os.fsencode(folder), b"tmpfs", _READ_ONLY | _REMOUNT, None) == 0)


@_kind("a full disk")
def _full_disk(world: World, place: Place) -> str:
    share = place.draw.uniform(0.1, 1)
    size = int(share * world.undisturbed.size())
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place.folder))
    ended = place.start(workers=place.draw.choice((1, 2))).wait()
    _require_named(ended)
    _mount("-o", f"remount,size={_LARGE}", str(place.folder))
    return f"{size // 1024} KiB, {share:.0%} of what the study leaves: {ended.error() or 'enough'}"


@_kind("a read-only store")
def _read_only(world: World, place: Place) -> str:
    _mount("-t", "tmpfs", "-o", f"size={_LARGE}", "tmpfs", str(place.folder))
    command = place.start(workers=place.draw.choice((1, 2)))
    moment = _moment(place, command)
    # the system refuses while a file is open for writing, which is nearly always; mount(8) would be too slow
    while not _remounted_read_only(place.folder) and not command.has_ended():
        pass
    ended = _unharmed(place, command, lambda: None)
    _require_named(ended)
    _mount("-o", "remount,rw", str(place.folder))
    return f"{moment}: {ended.error() or 'it was ready'}"


def _damage(how: str, what: str, world: World, place: Place) -> str:
    """Cut a file of the store short, or turn over a bit in it; its time stays."""
    is_halfway = what not in _AT_THE_END and (what in _ON_THE_WAY or place.draw.random() < 0.5)
    world.fill(place, world.halfway if is_halfway else world.undisturbed)
    file = place.draw.choice(sorted(place.folder.glob(_DAMAGED[what])))
    status, content = file.stat(), bytearray(file.read_bytes())
    if how == "cut short":
        size = place.draw.randrange(len(content))
        told, content = f"to {size} of {len(content)} bytes", content[:size]
    else:
        bit = place.draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        told = f"bit {bit} of {8 * len(content)}"
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    place.harmed = _made_together(file)
    return f"{file.relative_to(place.folder)}, {told}"


_DAMAGED = {
    "checkpoint": "runs/*/checkpoints/step-*.pt",
    "record": "runs/*/records/*.json",
    "outcomes": "runs/*/records/*.safetensors",
    "encoder": "runs/*/encoder/encoder.safetensors",
    "description of an encoder": "runs/*/encoder/encoder.json",
    "status": "runs/*/status.json",
    "features": "runs/*/features/*.safetensors",
    "index of contents": "cache/twinbench/contents/*",
    "table": "results/*/tables/*",
}
_ON_THE_WAY, _AT_THE_END = ("checkpoint",), ("table",)


def _made_together(file: Path) -> set[Path]:
    """The files of the result that a file is a part of."""
    if file.parent.name == "records":
        return {file.with_suffix(".json"), file.with_suffix(".safetensors")}
    run = file.parent.parent if file.parent.name == "encoder" else file.parent
    if file.parent.name == "encoder" or file.name == "status.json":
        return {run / "status.json", *(run / "encoder").glob("encoder.*")}
    return set()


for _how in ("cut short", "one bit turned over"):
    for _what in _DAMAGED:
        _kind(f"{_what}: {_how}")(partial(_damage, _how, _what))


def _struck_inside(how: str, world: World, place: Place) -> str:
    """A training that hangs, or runs out of memory, once or twice: at its tries, or as its first steps are timed."""
    marks = world.folder / f"{place.folder.name}-marks"
    marks.mkdir()
    times, step = place.draw.choice((1, 2)), place.draw.randrange(STEPS)
    strike = {
        "how": how,
        "method": place.draw.choice(("barlow_twins", "simsiam")),
        "step": step,
        "times": times,
    }
    words = ("--time-limit", "0.25") if how == "hang" else ()
    ended = place.start(2, *words, strike={**strike, "marks": str(marks)}).wait()
    is_timed = step < _TIMED_STEPS  # in which case there may be no second try to fail
    _require_code(ended, 0, *([1] if is_timed or times == 2 else []))
    _require_named(ended)
    if len(list(marks.iterdir())) != times or not ("LOST pretrain" in ended.said or is_timed):
        raise Offence(f"it was not tried once more: {ended.said[-1500:]}")
    when = "as steps are timed" if is_timed else "at the first try" if times == 1 else "at both tries"
    return f"{strike['method']} at step {step}, {when}"


@_kind("a clock that jumps")
def _jump(world: World, place: Place) -> str:
    """The wall clock of every process and the times of files, as if it was set; the steady clock goes on."""
    seconds = place.draw.choice((-1, 1)) * 10 ** place.draw.uniform(1, 8)
    clock = world.folder / f"{place.folder.name}-clock"
    clock.write_text("0")
    place.clock = clock
    command = place.start(workers=place.draw.choice((1, 2)))
    moment = _moment(place, command)
    clock.write_text(str(seconds))
    for file in place.folder.rglob(
        "*"
    ):  # those that are there are now from another time than those that come
        with suppress(FileNotFoundError):
            status = file.stat()
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))
    ended = _unharmed(place, command, lambda: None)
    _require_code(ended, 0)
    clock.write_text(str(place.draw.choice((-1, 1)) * seconds))
    return f"{moment}, {'ahead' if seconds > 0 else 'back'} by {abs(seconds):.0f} s"


_kind("a job that hangs")(partial(_struck_inside, "hang"))
_kind("a job that runs out of memory")(partial(_struck_inside, "memory"))


@_kind("kill -9 of a Ray node")
def _kill_node(world: World, place: Place) -> str:
    with ray_cluster(place.environment_of()) as cluster:
        command = place.start(2, "--executor", "ray", "--address", cluster.address)
        moment = _moment(place, command)
        node = place.draw.choice(cluster.nodes)
        ended = _unharmed(place, command, lambda: command.strike(signal.SIGKILL, node))
    _require_code(ended, 0)
    return f"{moment}; {'its job was begun again' if 'LOST ' in ended.said else 'it had nothing to do'}"


@_kind("a lost connection to the object store")
def _cut_off(world: World, place: Place) -> str:
    """For longer than a command waits, or for a moment; then another host sees what the first has."""
    server = world.s3()
    bucket = f"bucket-{place.folder.name}"
    server.make_bucket(bucket)
    place.environment = server.environment()
    place.words = ("--runs", f"s3://{bucket}/runs")
    place.runs = "cache/twinbench/stores/*/runs"
    is_short = place.draw.random() < 0.5
    place.patience = 60.0 if is_short else 1.0
    command = place.start(workers=place.draw.choice((1, 2)))
    moment = _moment(place, command)
    server.tell("stop")
    try:
        if is_short:
            time.sleep(place.draw.uniform(0, 5))
        else:
            ended = _unharmed(place, command, lambda: None)
            _require_named(ended)
    finally:
        server.tell("start")
    if is_short:
        _require_code(_unharmed(place, command, lambda: None), 0)
        return f"{moment}, for a moment"
    return f"{moment}, for good: {ended.error() or 'it was ready'}"


_SERVERS = {"kill -9 of a Ray node": "ray", "a lost connection to the object store": "s3"}


def _may_strike(kind: str) -> bool:
    """Whether this machine and this account have what a kind takes."""
    if kind in _MOUNTED:
        return _may_mount()
    return kind not in _SERVERS or not missing(_SERVERS[kind])


def kind_of(seed: int, index: int, kinds: Sequence[str]) -> str:
    """Each kind once, in an order that is drawn, then each once more, and so on."""
    turn, place = divmod(index, len(kinds))
    return Random(f"{seed} {turn}").sample(list(kinds), len(kinds))[place]


def trial(world: World, index: int, kind: str, seed: int, keep: Path | None) -> Outcome:
    """Strike once, run the command until the study is whole, and hold it to the law."""
    started = time.monotonic()
    place = world.place(f"{index:04d}", Random(f"{seed} {index} {kind}"))
    told, offence, named = "", "", list[str]()
    try:
        told = _KINDS[kind](world, place)
        named = _repaired(world, place)
    except Offence as error:
        offence = str(error)
    except (
        Exception
    ) as error:  # a fault of this program or of the machine; the others are struck all the same
        offence = f"unexpected {type(error).__name__}: {error}"
    if offence and keep is not None:
        shutil.copytree(place.folder, keep / place.folder.name, dirs_exist_ok=True)
    _remove(world, place)
    return Outcome(index, kind, told, tuple(named), offence, time.monotonic() - started)


def _repaired(world: World, place: Place) -> list[str]:
    """What the commands after a fault name until one ends well. Raises Offence if the law is broken."""
    before, named = place.finished(), list[str]()
    for _ in range(_MOST_COMMANDS):
        ended = place.start(workers=place.draw.choice(_MOSTLY_ONE)).wait()
        _require_named(ended)
        if ended.code == 0:
            break
        named.append(ended.error())
    else:
        raise Offence(f"not whole after {_MOST_COMMANDS} commands: {'; '.join(named)}")
    other = _differing(world, place)
    if other and {place.folder / name for name in other} <= place.harmed:
        # the evaluations of an encoder are finished, so no command has read it: who does so is told what to do
        named.append(_named_encoder((place.folder / other[0]).parent))
        _require_code(place.start(workers=1).wait(), 0)
        other = _differing(world, place)
    _require_same(before, place)
    if other:
        raise Offence(f"not as without the fault: {', '.join(other)}")
    if place.words:
        _require_shared(world, place)
    return named


def _require_shared(world: World, place: Place) -> None:
    """Another host, which is another cache folder, finds all finished in the object store, and the same."""
    place.environment["XDG_CACHE_HOME"] = str(place.folder / "other-cache")
    place.runs = f"other-{place.runs}"
    ended = place.start(workers=1).wait()
    _require_code(ended, 0)
    expected, found = world.undisturbed.content(), place.content()
    if f"{JOBS} already finished" not in ended.said or not found.items() <= expected.items():
        raise Offence(f"another host does not find what the first one has: {ended.said[-1500:]}")


def _differing(world: World, place: Place) -> list[str]:
    expected, found = world.undisturbed.content(), place.content()
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _named_encoder(folder: Path) -> str:
    """What is said of a damaged encoder by who reads it; then what that tells to do is done."""
    try:
        Encoder.load(folder)
    except DamagedEncoder as error:
        shutil.rmtree(folder)
        return f"by who reads it: {error.what}"
    raise Offence(f"an encoder that is not as it was written is read: {folder}")


def _remove(world: World, place: Place) -> None:
    if os.path.ismount(place.folder):
        subprocess.run(["umount", "-l", str(place.folder)], check=True)
    for path in world.folder.glob(f"{place.folder.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def line(outcome: Outcome) -> str:
    """An outcome in a line."""
    words = [outcome.told, *outcome.named, outcome.offence]
    what = "; ".join(word for word in words if word).replace("\n", " | ")
    return f"{outcome.index:4d} {outcome.seconds:5.0f} s  {outcome.kind:42s} {outcome.verdict:21s} {what}"


def page(
    outcomes: Sequence[Outcome], kinds: Sequence[str], seed: int, seconds: float, undisturbed: float
) -> str:
    """The report."""
    known = facts()
    rows = []
    for kind in kinds:
        of_it = [outcome for outcome in outcomes if outcome.kind == kind]
        counts = [sum(o.verdict == v for o in of_it) for v in ("repaired", "named, then repaired", "OFFENCE")]
        rows.append((kind, str(len(of_it)), *map(str, counts)))
    counts = [sum(int(row[i]) for row in rows) for i in range(1, 5)]
    table = markdown_table(
        (
            "fault",
            "times",
            "repaired by the next command",
            "named by it, repaired by the one after",
            "offences",
        ),
        [*rows, ("all", *map(str, counts))],
    )
    offences = "\n".join(
        f"- `--seed {seed} --index {o.index} --kind {o.kind!r}`: {o.told} {o.offence}"
        for o in outcomes
        if o.offence
    )
    not_struck = [kind for kind in _KINDS if not _may_strike(kind)]
    left_out = f"Left out: {', '.join(not_struck)}." if not_struck else "No kind of fault was left out."
    versions = ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "numpy") if name in known)
    return f"""# Faults

Generated by `{known["command"]}`, whose head explains the study and the law.
Seed {seed}; {len(outcomes)} faults in {seconds / 60:.0f} minutes. Undisturbed, the study takes {undisturbed:.0f} s.
{left_out}

{table}

Offences:

{offences or "There was none."}

{known.get("machine", "")}; {versions}; {known["date"]}; commit {known.get("commit", "unknown")}.

Every fault, its seconds with the commands after it, and what came of it:

```
{chr(10).join(line(outcome)[:240] for outcome in outcomes)}
```
"""


def main() -> None:
    """Strike, print an outcome a line and the report, and end with code 1 if there was an offence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="begin no fault after so many")
    parser.add_argument("--kind", choices=list(_KINDS), action="append", help="only this one (repeatable)")
    parser.add_argument("--index", type=int, help="only the fault of this number")
    parser.add_argument("--keep", type=Path, help="folder for what is left where the law was broken")
    parser.add_argument("--out", type=Path, help="write the report to this file")
    arguments = parser.parse_args()
    kinds = arguments.kind or [kind for kind in _KINDS if _may_strike(kind)]
    os.sched_setaffinity(
        0, sorted(os.sched_getaffinity(0))[:2]
    )  # one thread a worker, and the same bits with one
    indices = range(arguments.faults) if arguments.index is None else [arguments.index]
    started, outcomes = time.monotonic(), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, closing(World(Path(folder))) as world:
        for index in indices:
            if arguments.minutes is not None and time.monotonic() - started > 60 * arguments.minutes:
                break
            kind = kind_of(arguments.seed, index, kinds)
            outcomes.append(trial(world, index, kind, arguments.seed, arguments.keep))
            print(line(outcomes[-1]), flush=True)
    text = page(outcomes, kinds, arguments.seed, time.monotonic() - started, world.seconds)
    if arguments.out is not None:
        write_atomically(arguments.out, text.encode())
    print(text.partition("\nEvery fault")[0])
    sys.exit(any(outcome.offence for outcome in outcomes))


if __name__ == "__main__":
    run_script(main)
