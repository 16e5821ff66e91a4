"""Cores that one process computes with at a time, by threads and processes that want them at once."""

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from twinbench.foundation import claims
from twinbench.foundation.claims import claimed_cores

HOLDS = """
import sys
from twinbench.foundation import claims
claims.core_numbers = lambda: range(4)
with claims.claimed_cores(4, lambda holder: None):
    print("has them", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """One with four cores, on which nothing else runs."""
    monkeypatch.setattr(claims, "core_numbers", lambda: [3, 5, 8, 9])
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.001)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    claims._warn.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """That of the locks, which is there."""
    with claimed_cores(4, unwaited):
        (found,) = tmp_path.iterdir()
    return found


@pytest.fixture
def holder(monkeypatch):
    """A process that has all cores."""
    monkeypatch.setattr(claims, "core_numbers", lambda: range(4))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "has them\n"
    yield process
    process.kill()
    process.communicate()


def unwaited(holder):
    raise AssertionError(f"waits for {holder}")


class Stopped(Exception):
    pass


def has_to_wait(threads):
    """What so many threads wait for, if they do."""
    told = []

    def stop():
        if told:
            raise Stopped

    try:
        with claimed_cores(threads, told.append, stop):
            return None
    except Stopped:
        return told


def test_jobs_at_once_never_have_more_cores_than_there_are():
    taken, most, lock, rng = 0, 0, threading.Lock(), random.Random(0)
    plans = [[rng.randint(2, 6) for _ in range(10)] for _ in range(6)]

    def work(plan):
        nonlocal taken, most
        for threads in plan:
            with claimed_cores(threads, lambda holder: None):
                with lock:
                    taken += min(threads, 4)
                    most = max(most, taken)
                time.sleep(0.0005)
                with lock:
                    taken -= min(threads, 4)

    workers = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (taken, most) == (0, 4)


def test_who_fits_beside_another_does_not_wait():
    with claimed_cores(2, unwaited), claimed_cores(2, unwaited):
        assert has_to_wait(2)
        with claimed_cores(1, unwaited):  # one thread waits for no other
            pass
    assert has_to_wait(4) is None


def test_who_waits_for_all_cores_is_not_overtaken():
    order, waits = [], threading.Event()

    def work(name, threads):
        with claimed_cores(threads, lambda holder: waits.set()):
            order.append(name)

    with claimed_cores(2, unwaited):
        large = threading.Thread(target=work, args=("large", 4))
        large.start()
        assert waits.wait(1800)
        waits.clear()
        small = threading.Thread(target=work, args=("small", 2))  # for which there is room
        small.start()
        assert waits.wait(1800)
        assert order == []
    large.join()
    small.join()
    assert order == ["large", "small"]


def test_who_waits_says_for_which_process_and_is_stopped_without_a_trace(holder):
    (told,) = has_to_wait(2)
    assert f"cores, after process {holder.pid} on " in told
    holder.communicate()
    assert has_to_wait(4) is None


def test_cores_of_a_killed_process_are_free(holder):
    assert has_to_wait(2)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed_cores(4, unwaited):
        pass


def test_a_suspended_process_keeps_no_cores_and_others_keep_them_from_each_other(holder):
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    with claimed_cores(3, unwaited):
        assert has_to_wait(2)
        with claimed_cores(1, unwaited):
            pass
        holder.kill()  # this process computes all the same
        holder.wait()
        assert has_to_wait(2)
    assert has_to_wait(4) is None


def test_a_suspended_process_that_goes_on_has_its_cores(holder):
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    with claimed_cores(4, unwaited):
        pass
    holder.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, holder.pid, os.WCONTINUED)
    assert has_to_wait(2)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not say which files are open")
def test_a_core_is_one_open_file_however_many_processes_were_suspended(holder, tmp_path):
    def opened():
        names = (Path(entry).resolve() for entry in Path("/proc/self/fd").iterdir())
        return sum(name.is_relative_to(tmp_path) for name in names)

    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    for _ in range(3):
        with claimed_cores(3, unwaited):
            assert opened() == 3
    holder.kill()
    holder.wait()
    with claimed_cores(4, unwaited):
        assert opened() == 4
    names = sorted(path.name for path in next(tmp_path.iterdir()).iterdir())
    assert names == ["core-0", "core-0+", "core-1", "core-1+", "core-2", "core-2+", "core-3", "next"]


def test_a_suspended_process_that_looks_for_cores_holds_up_nobody():
    holds = HOLDS.replace("lambda holder: None", "lambda holder: print(holder, flush=True)")
    with claimed_cores(4, unwaited):
        looking = subprocess.Popen(
            [sys.executable, "-c", holds.replace("range(4)", "[3, 5, 8, 9]")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert looking.stdout.readline().startswith(f"cores, after process {os.getpid()} on ")
        looking.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, looking.pid, os.WSTOPPED)
    assert has_to_wait(4) is None
    looking.kill()
    looking.communicate()


def test_what_was_forked_meanwhile_keeps_no_cores():
    with claimed_cores(4, unwaited):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
    assert has_to_wait(4) is None
    os.close(theirs)
    os.waitpid(child, 0)


@pytest.mark.parametrize("kind", ["link", "file", "others"])
def test_a_folder_that_is_not_ours_is_not_written_into(kind, folder, tmp_path, monkeypatch, caplog):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "others":
        uid = os.getuid()
        monkeypatch.setattr(claims.os, "getuid", iter([uid, uid + 1] * 9).__next__)
    else:
        shutil.rmtree(folder)
        folder.symlink_to(elsewhere) if kind == "link" else folder.write_text("")
    for _ in range(3):
        with claimed_cores(4, unwaited):
            pass
    assert len(caplog.records) == 1
    assert "no cores can be claimed" in caplog.text
    assert str(folder) in caplog.text
    assert list(elsewhere.iterdir()) == []


def test_a_temporary_folder_that_is_not_there_is_not_made_up_for(tmp_path, monkeypatch, caplog):
    """As Python's `tempfile` would, in the current folder if need be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with claimed_cores(4, unwaited):
        pass
    assert "gone" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_machines_that_share_a_temporary_folder_have_cores_of_their_own(monkeypatch):
    with claimed_cores(4, unwaited):
        monkeypatch.setattr(claims, "machine_since_boot", lambda: "another")
        with claimed_cores(4, unwaited):
            pass


def test_a_link_in_the_place_of_a_core_is_not_followed(folder, tmp_path, caplog):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (folder / "core-5").unlink()
    (folder / "core-5").symlink_to(precious)
    with claimed_cores(4, unwaited):
        pass
    assert "no cores can be claimed" in caplog.text
    assert precious.read_text() == "precious"
    (folder / "core-5").unlink()
    assert has_to_wait(4) is None  # nothing was kept


def test_where_no_file_can_be_locked_nothing_is_claimed(monkeypatch, caplog):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed_cores(4, unwaited), claimed_cores(4, unwaited):
        pass
    assert "No locks available" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b'{"host": "a", "pid": -1}'])
def test_a_holder_that_cannot_be_read_is_waited_for_all_the_same(content, folder):
    with claimed_cores(4, unwaited):
        for file in folder.iterdir():
            file.write_bytes(content)
        assert has_to_wait(2) == ["cores, after an unknown process"]
