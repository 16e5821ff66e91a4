"""Worker processes that die alone: what they did is known, the others go on, and another takes the place."""

import multiprocessing
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from twinbench.harness.crew import Crew


class Worker:
    """What a worker keeps."""


def become(name, messages):
    Worker.name, Worker.tell = name, messages.put
    messages.put(f"{name} is here")


def name():
    return Worker.name


def number():
    return os.getpid()


def say(text):
    Worker.tell(text)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_telling():
    """In the middle of a message: the pipe holds less than the message."""
    Worker.tell("x" * 2**22)
    time.sleep(1)
    die()


def save(file):
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    Worker.tell("may be stopped")
    while not stopped:
        time.sleep(0.01)
    time.sleep(0.5)
    file.write_text("all of it")


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Worker.tell("hangs")
    while True:
        time.sleep(1)


def nobody_is_left():
    """A moment after a process has ended the system still knows it."""
    while multiprocessing.active_children():
        time.sleep(0.01)


def heard(crew, text):
    while crew.messages.get(timeout=1800) != text:
        pass


def test_one_dies_and_the_other_goes_on_and_the_place_is_taken():
    with Crew(become, [("one",), ("two",)]).at_work() as crew:
        first = crew.submit(number).result()
        dead, other = crew.submit(die), crew.submit(number)
        begun = crew.beginning(dead)
        with pytest.raises(BrokenProcessPool):
            dead.result()
        assert begun()
        assert other.result() != first
        assert len({crew.submit(number).result(), other.result(), first}) == 3
        assert {crew.submit(name).result() for _ in range(2)} <= {"one", "two"}


def test_what_is_told_arrives_also_after_one_died_in_the_middle_of_a_message():
    with Crew(become, [("one",), ("two",)]).at_work() as crew:
        silent = crew.submit(die_while_telling)
        crew.submit(say, "well").result()
        heard(crew, "well")
        with pytest.raises(BrokenProcessPool):
            silent.result()
        crew.submit(say, "again").result()
        heard(crew, "again")


def test_one_that_hangs_is_ended():
    with Crew(become, [("one",)]).at_work() as crew:
        crew.submit(number).result()
        hung = crew.submit(hang)
        assert not crew.has_free()
        crew.kill(hung)
        with pytest.raises(BrokenProcessPool):
            hung.result(timeout=1800)
        assert crew.has_free()


def test_one_that_dies_without_work_is_replaced_and_one_at_rest_starts_anew():
    with Crew(become, [("one",)]).at_work() as crew:
        before = multiprocessing.active_children()  # of other tests
        first = crew.submit(number).result()
        (process,) = [each for each in multiprocessing.active_children() if each not in before]
        os.kill(first, signal.SIGKILL)
        process.join()
        while True:  # the pool notices a moment later, and until then takes work that then is lost
            try:
                second = crew.submit(number).result()
                break
            except BrokenProcessPool:
                pass
        crew.rest()
        assert set(multiprocessing.active_children()) <= set(before)
        assert len({first, second, crew.submit(number).result()}) == 3


def test_one_that_saves_when_it_is_told_to_stop_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("twinbench.harness.crew._PATIENCE", 900.0)

    def fails():
        with Crew(become, [("one",)]).at_work() as crew:
            crew.submit(save, tmp_path / "saved")
            heard(crew, "may be stopped")
            raise ZeroDivisionError

    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert (tmp_path / "saved").read_text() == "all of it"
    nobody_is_left()
    assert time.monotonic() - started < 900, "it was killed, though it could end"


def test_an_error_ends_all_also_one_that_hears_no_signal(monkeypatch):
    def fails():
        with Crew(become, [("one",), ("two",)]).at_work() as crew:
            crew.submit(hang)
            crew.submit(number).result()
            heard(crew, "hangs")
            raise ZeroDivisionError

    monkeypatch.setattr("twinbench.harness.crew._PATIENCE", 0.1)
    with pytest.raises(ZeroDivisionError):
        fails()
    nobody_is_left()
