"""Object stores by fsspec, here in the memory of this process: asked patiently, and leases in them."""

import itertools
import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from twinbench.foundation import object_store
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.lease import Lease, LostLease
from twinbench.foundation.object_store import LeaseObjects, ObjectStore

LONG = 1000.0  # seconds that no test waits


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(object_store.time, "sleep", lambda seconds: None)
    yield ObjectStore(f"memory://{tmp_path.name}/runs", tmp_path / "mirror")
    MemoryFileSystem.store.clear()


def lease(store, clock=None, seconds=LONG):
    return Lease(LeaseObjects(store, "run"), seconds, clock or Clock())


def failing(monkeypatch, method, errors):
    """Let a method of the library raise these errors, one a call, before it works."""
    works = getattr(MemoryFileSystem, method)
    left = iter(errors)

    def call(self, *arguments, **named):
        if (error := next(left, None)) is not None:
            raise error
        return works(self, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, method, call)


def test_objects_are_listed_written_and_created_once(store, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    sent = store.send(file, "run/a b/file")
    assert sent.size == 5
    assert store.objects() == store.objects("run") == {"run/a b/file": sent}
    assert store.objects("ru") == {}
    assert store.send(file, "run/a b/file").sign != sent.sign
    assert store.create("run/x", b"first")
    assert not store.create("run/x", b"second")
    assert store.read("run/x") == b"first"
    store.fetch("run/a b/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"12345"
    store.remove("run/x")
    store.remove("run/x")
    assert list(store.objects()) == ["run/a b/file"]


def test_what_a_library_raises_is_an_answer_that_does_not_come(store, monkeypatch):
    class Unheard(Exception):
        pass

    store.write("a", b"x")
    failing(monkeypatch, "cat_file", [Unheard("no route")])
    with pytest.raises(ConnectionError, match="Unheard: no route"):
        store.read("a")
    with pytest.raises(FileNotFoundError):
        store.read("b")


def test_a_store_is_asked_again_and_says_so(store, monkeypatch, caplog):
    store.write("a", b"x")
    failing(monkeypatch, "cat_file", [TimeoutError("slow"), ConnectionError("cut")])
    assert store.patiently(lambda: store.read("a")) == b"x"
    assert [record.getMessage() for record in caplog.records] == [
        f"{store} does not answer, and is asked again in 1 s: slow",
        f"{store} does not answer, and is asked again in 2 s: cut",
    ]


@pytest.mark.parametrize(
    ("errors", "answered", "says"),
    [
        (
            itertools.repeat(ConnectionError("cut")),
            True,
            r"does not answer any more: cut(.|\n)*kept in .*mirror",
        ),
        (itertools.repeat(ConnectionError("cut")), False, r"cannot be used: cut(.|\n)*AWS_ENDPOINT_URL"),
        ([PermissionError("expired")], True, r"refuses access: expired"),
    ],
)
def test_a_store_that_does_not_answer_is_a_failure_that_says_what_is_kept(
    store, monkeypatch, errors, answered, says
):
    now = itertools.count()
    monkeypatch.setattr(object_store.time, "monotonic", lambda: next(now))
    if answered:
        store.patiently(store.objects)
    failing(monkeypatch, "cat_file", errors)
    with pytest.raises(RunFailure, match=says):
        store.patiently(lambda: store.read("a"))


def test_a_full_disk_here_is_not_taken_for_a_lost_connection(store, monkeypatch):
    failing(monkeypatch, "get_file", [OSError(28, "No space left on device")])
    with pytest.raises(OSError, match="No space left"):
        store.patiently(lambda: store.fetch("a", store))


def test_a_store_that_lets_a_name_be_given_twice_is_refused(store, monkeypatch):
    store.prove()
    assert store.objects() == {}
    pipe = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda self, path, value, mode="": pipe(self, path, value)
    )
    with pytest.raises(InputError, match="lets two processes create the same object"):
        store.prove()


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    def url_to_fs(*arguments, **named):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    with pytest.raises(InputError, match=r"Install s3fs(.|\n)*twinbench\[objects\]"):
        ObjectStore("s3://bucket/runs", tmp_path).objects()


def test_one_at_a_time_and_the_next_when_it_is_released(store):
    first, second = lease(store), lease(store)
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    first.release()
    assert not lease(store).take()
    second.release()
    assert list(store.objects()) == ["run/.lease/000000002.free"]


def elsewhere(store, seconds=10.0):
    """Change what the lease says of its holder, as if that were on another machine."""
    (name,) = store.objects("run/.lease")
    content, _, sign = store.read(name).partition(b"\n")
    said = json.loads(content) | {"host": "elsewhere", "machine": "another", "seconds": seconds}
    store.write(name, json.dumps(said).encode() + b"\n" + sign)
    return name


def test_a_silent_holder_is_taken_over_and_writes_nothing_more(store, monkeypatch):
    clock, silent = Clock(), lease(store)
    assert silent.take()
    elsewhere(store)
    waiting = lease(store, clock)
    assert waiting.holder().host == "elsewhere"
    clock.now = 9.9
    assert not waiting.take()
    clock.now = 10.0
    assert waiting.take()
    monkeypatch.setattr("twinbench.foundation.lease._since_boot", lambda: 1e12)
    with pytest.raises(LostLease, match=f"taken over by process(.|\n)*where: +{store}/run"):
        silent.check()
    silent.release()
    assert lease(store).holder() is not None, "who has lost it does not release another's"
    waiting.check()
    waiting.release()


@pytest.mark.parametrize("place", ["folder", "objects"])
def test_a_holder_that_wakes_while_it_is_taken_over_is_seen(store, tmp_path, place):
    """It shows life after the other has looked and before that has created the next number."""
    files = tmp_path if place == "folder" else LeaseObjects(store, "run")
    clock, slow = Clock(), Lease(files, 10.0)
    assert slow.take()
    waiting = Lease(tmp_path if place == "folder" else LeaseObjects(store, "run"), 10.0, clock)
    assert waiting.holder() is not None
    create = waiting._files.create

    def wake_and_create(*arguments):
        slow._files.touch("000000001.held")
        return create(*arguments)

    waiting._files.create = wake_and_create
    clock.now = 10.0
    assert not waiting.take()
    assert slow._names() == ["000000001.held"]
    slow.release()


def test_a_holder_is_not_silent_while_nobody_could_hear_it(store, monkeypatch):
    clock, holding = Clock(), lease(store)
    assert holding.take()
    elsewhere(store)
    waiting = lease(store, clock)
    assert waiting.holder() is not None
    clock.now = 9.0
    failing(monkeypatch, "cat_file", [ConnectionError("cut")])
    with pytest.raises(ConnectionError):
        waiting.take()
    clock.now = 20.0
    assert not waiting.take(), "it counts from when the store answers again"
    clock.now = 30.0
    assert waiting.take()
    waiting.release()
    holding.release()


def test_a_lease_that_was_created_though_the_answer_was_lost_is_ours(store, monkeypatch):
    create = store.create
    monkeypatch.setattr(store, "create", lambda *arguments: create(*arguments) and create(*arguments))
    ours = lease(store)
    assert ours.take()
    ours.release()


def test_a_lease_whose_creation_cannot_be_proved_is_left(store, monkeypatch):
    ours = lease(store)
    names = ours._files.names
    answers = iter([names, lambda: (_ for _ in ()).throw(ConnectionError("cut")), names, names])
    monkeypatch.setattr(ours._files, "names", lambda: next(answers)())
    with pytest.raises(ConnectionError):
        ours.take()
    assert ours.take()
    ours.release()
