"""Leases of folders, between real processes: one holder at a time, whoever dies, stops, or sets its clock."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from twinbench.foundation import lease as leases
from twinbench.foundation.files import fenced, write_atomically
from twinbench.foundation.lease import Lease, LostLease

LAST_RESORT = 1800  # seconds, for a process that hangs
LONG = 1000.0  # seconds that no test waits
HOLDER = """
import sys
from pathlib import Path
from twinbench.foundation.files import fenced, write_atomically
from twinbench.foundation.lease import Lease, LostLease

folder = Path(sys.argv[1])
lease = Lease(folder, seconds=float(sys.argv[2]))
assert lease.take()
print("held", flush=True)
with fenced(folder, lease.check):
    for line in sys.stdin:
        try:
            write_atomically(folder / "result", line.encode())
            print("written", flush=True)
        except LostLease as error:
            print("lost:", error.what, flush=True)
lease.release()
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lease of the folder and writes into it, a line of its input each time."""
    started = []

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


def taken(lease):
    """Try until it is taken, as the lease of a process that shows no life."""
    hung = time.monotonic() + LAST_RESORT
    while not lease.take():
        assert time.monotonic() < hung
        time.sleep(0.02)
    return lease


def test_one_at_a_time_and_the_next_when_it_is_released(tmp_path):
    first, second = Lease(tmp_path), Lease(tmp_path)
    assert first.holder() is None
    assert first.take()
    assert not second.take()
    assert second.holder().pid == os.getpid()
    assert str(second.holder()).startswith(f"process {os.getpid()} on ")
    first.release()
    assert second.take()
    assert not first.take()
    second.release()
    assert [file.name for file in (tmp_path / ".lease").iterdir()] == ["000000002.free"]


def test_of_many_that_want_it_one_has_it(tmp_path):
    """Threads in place of processes: what they share are the files."""
    inside, most, turns = 0, 0, 0
    counting = threading.Lock()

    def work():
        nonlocal inside, most, turns
        lease = Lease(tmp_path, LONG)
        for _ in range(5):
            taken(lease)
            with counting:
                inside, turns = inside + 1, turns + 1
                most = max(most, inside)
            time.sleep(0.001)
            with counting:
                inside -= 1
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 20)


def test_of_many_that_take_over_one_has_it(tmp_path, hold):
    process = hold(LONG)
    process.kill()
    process.wait()
    rivals = [Lease(tmp_path, LONG) for _ in range(8)]
    won = []
    begin = threading.Barrier(len(rivals))

    def rush(lease):
        begin.wait()
        if lease.take():
            won.append(lease)

    threads = [threading.Thread(target=rush, args=(lease,)) for lease in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(list((tmp_path / ".lease").glob("*.held"))) == 1
    for lease in rivals:
        lease.release()


def test_a_killed_holder_of_this_machine_is_not_waited_for(tmp_path, hold):
    process = hold(LONG)
    waiting = Lease(tmp_path, LONG)
    assert waiting.holder().pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, though nobody has asked for it
    assert waiting.take()
    waiting.release()


def test_a_later_process_with_its_number_is_not_taken_for_it(tmp_path, hold):
    process = hold(LONG)
    (file,) = (tmp_path / ".lease").iterdir()
    said = json.loads(file.read_text())
    assert Lease(tmp_path).holder().pid == process.pid
    file.write_text(json.dumps({**said, "started": ""}))
    assert Lease(tmp_path).holder().pid == process.pid, "a system that does not say when it started"
    file.write_text(json.dumps({**said, "started": "1"}))
    assert Lease(tmp_path).holder() is None


def of_another_machine(folder):
    """Change what the lease says of its holder, as if that were elsewhere and had shown life again."""
    (file,) = (folder / ".lease").iterdir()
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "host": "elsewhere", "machine": "another", "seconds": 10.0}))


def test_a_dead_holder_of_another_machine_is_taken_over_after_its_time_by_the_clock_of_who_waits(
    tmp_path, hold
):
    process = hold(LONG)
    process.kill()
    process.wait()
    of_another_machine(tmp_path)
    clock = Clock()
    waiting = Lease(tmp_path, LONG, clock)
    assert waiting.holder().host == "elsewhere"
    clock.now = 9.9
    assert not waiting.take()
    clock.now = 10.0
    assert waiting.take()
    waiting.release()


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_clocks_that_jump_change_nothing(tmp_path, hold, jump, monkeypatch):
    """The times of files come from clocks that may be set: those of the holder's machine, ours and the disk's."""
    hold(LONG).kill()
    of_another_machine(tmp_path)
    clock = Clock()
    waiting = Lease(tmp_path, 5.0, clock)
    assert waiting.holder() is not None
    clock.now = 9.0
    monkeypatch.setattr(time, "time", lambda: jump)
    (file,) = (tmp_path / ".lease").iterdir()
    os.utime(file, (time.time() + 2e6,) * 2)  # a sign of life, at a time that makes no sense
    assert not waiting.take()
    clock.now = 18.9
    assert not waiting.take(), "it counts from when the sign was seen"
    clock.now = 19.0
    assert waiting.take()
    waiting.release()


def test_a_slow_holder_that_shows_life_keeps_it(tmp_path, hold):
    process = hold(0.5)
    of_another_machine(tmp_path)
    clock = Clock()
    watching = Lease(tmp_path, 5.0, clock)
    (file,) = (tmp_path / ".lease").iterdir()
    hung = time.monotonic() + LAST_RESORT
    for _ in range(5):
        sign = file.stat().st_mtime_ns
        assert watching.holder() is not None
        while file.stat().st_mtime_ns == sign:
            assert time.monotonic() < hung
            time.sleep(0.01)
        clock.now += 9.9  # almost the whole lease, from one sign to the next
    assert watching.holder() is not None
    process.stdin.write("slow but alive\n")
    process.stdin.flush()
    assert process.stdout.readline() == "written\n"


def test_what_one_process_saw_counts_for_another(tmp_path, hold):
    hold(LONG).kill()
    of_another_machine(tmp_path)
    clock = Clock()
    parent = Lease(tmp_path, 5.0, clock)
    assert parent.holder() is not None
    clock.now = 10.0
    assert not Lease(tmp_path, 5.0, clock).take()
    worker = Lease(tmp_path, 5.0, clock, parent.seen)
    assert worker.take()
    worker.release()


def test_a_holder_that_slept_too_long_writes_nothing_more(tmp_path, hold):
    process = hold(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    ours = taken(Lease(tmp_path, LONG))
    with fenced(tmp_path, ours.check):
        write_atomically(tmp_path / "result", b"ours")
    process.stdin.write("theirs\n")
    process.stdin.flush()
    os.kill(process.pid, signal.SIGCONT)
    said = process.stdout.readline()
    assert said.startswith("lost: this process showed no life for over 0.2 s")
    assert f"taken over by process {os.getpid()} on " in said
    process.communicate()
    assert (tmp_path / "result").read_bytes() == b"ours"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lease", "result"]
    ours.check()
    assert Lease(tmp_path).holder().pid == os.getpid(), "who has lost it does not release another's"
    ours.release()


def test_a_holder_that_slept_and_was_not_missed_goes_on(tmp_path, hold):
    process = hold(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(0.5)
    process.stdin.write("theirs\n")
    process.stdin.flush()
    os.kill(process.pid, signal.SIGCONT)
    assert process.stdout.readline() == "written\n"


def test_who_wakes_late_with_an_old_number_holds_nothing(tmp_path, monkeypatch):
    """It looked before others came and went, and their files are gone: the number is free, but not the newest."""
    late = Lease(tmp_path)
    monkeypatch.setattr(late, "_look", lambda: (0, None))
    for _ in range(3):
        lease = Lease(tmp_path)
        assert lease.take()
        lease.release()
    now = Lease(tmp_path)
    assert now.take()
    assert not late.take()
    assert [file.name for file in (tmp_path / ".lease").iterdir()] == ["000000004.held"]
    now.check()
    now.release()
    assert not late.take()
    assert [file.name for file in (tmp_path / ".lease").iterdir()] == ["000000004.free"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[1]", b'{"host": 3, "pid": "x"}', b'{"host": "a", "pid": -1}']
)
def test_a_file_that_cannot_be_read_is_named_and_taken_over_after_its_time(tmp_path, content, caplog):
    file = tmp_path / ".lease" / "000000007.held"
    file.parent.mkdir()
    file.write_bytes(content)
    clock = Clock()
    waiting = Lease(tmp_path, 5.0, clock)
    assert str(waiting.holder()) == "an unknown process"
    assert str(file) in caplog.text
    clock.now = 4.9
    assert not waiting.take()
    assert caplog.text.count(str(file)) == 1
    clock.now = 5.0
    assert waiting.take()
    waiting.release()


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    lease = Lease(tmp_path)
    with monkeypatch.context() as on_a_full_disk:
        on_a_full_disk.setattr(leases.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            lease.take()
    assert not list((tmp_path / ".lease").iterdir())
    assert lease.take()
    lease.release()


def test_a_lease_that_is_removed_ends_the_hold(tmp_path, monkeypatch):
    lease = Lease(tmp_path, LONG)
    assert lease.take()
    slept = leases._since_boot() + LONG
    monkeypatch.setattr(leases, "_since_boot", lambda: slept)
    lease.check()
    slept += LONG
    (tmp_path / ".lease" / "000000001.held").unlink()
    with pytest.raises(LostLease, match="taken over by an unknown process"):
        lease.check()
    lease.release()


def test_on_a_disk_that_has_become_read_only_a_process_does_not_wait_for_itself(tmp_path, monkeypatch):
    lease, other = Lease(tmp_path), Lease(tmp_path)
    assert lease.take()

    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        lease.release()
    assert other.holder() is None
    assert other.take()
    assert lease.holder() is not None, "what it has taken since is another lease"
    other.release()
