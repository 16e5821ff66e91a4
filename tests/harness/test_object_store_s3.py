"""The run store on a real S3 server in a process of its own: shared by commands, killed in an upload, out of reach."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from twinbench.foundation.lease import Lease
from twinbench.foundation.object_store import LeaseObjects, ObjectStore
from twinbench.harness.mirror import store_at
from twinbench.harness.store import stored_runs

MISSING = [name for name in ("s3fs", "moto") if find_spec(name) is None]
pytestmark = [
    pytest.mark.s3,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: make test-s3"),
]
SERVER = Path(__file__).with_name("s3_server.py")
# A command that gives up on the store after so many seconds and sends checkpoints all the time.
COMMAND = """
import sys
from twinbench.foundation import object_store
from twinbench.harness import mirror
from twinbench.harness.main import main
from twinbench.pretraining import train

object_store.PATIENCE_SECONDS = float(sys.argv.pop(1))
mirror.SEND_SECONDS = mirror.ASK_SECONDS = 0.2
train._CHECKPOINT_SECONDS = 0.0
main()
"""
URL = "s3://bucket/runs"


class Server:
    """The S3 server."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.port = int(self._process.stdout.readline())

    def tell(self, word):
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{word}\n"

    def end(self):
        self._process.kill()
        self._process.communicate()


class Wire:
    """A way to the server on which the request that sends an object stops half-way through its content."""

    def __init__(self, port, name):
        self._port, self._name = port, name.encode()
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self._threads = []
        self.port = self._sockets[0].getsockname()[1]
        self.halfway, self._cut = threading.Event(), threading.Event()
        self._start(self._accept)

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with suppress(OSError):  # that it is cut
            while True:
                client, _ = self._sockets[0].accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                self._start(self._pass_on, client, server, True)
                self._start(self._pass_on, server, client, False)

    def cut(self):
        self._cut.set()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()

    def _pass_on(self, source, target, is_request):
        received = b""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                received += data
                head, _, content = received.partition(b"\r\n\r\n")
                if is_request and head.startswith(b"PUT ") and self._name in head.splitlines()[0] and content:
                    body = data[-len(content) :]
                    target.sendall(data[: len(data) - len(body)] + body[: len(body) // 2])
                    self.halfway.set()
                    self._cut.wait()
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def running():
    server = Server()
    yield server
    server.end()


@pytest.fixture
def server(running, monkeypatch):
    """The server, with an empty bucket."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
    for name, value in (
        ("ACCESS_KEY_ID", "anyone"),
        ("SECRET_ACCESS_KEY", "any"),
        ("DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if files.exists("bucket"):
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    running.files = files
    return running


@pytest.fixture
def study(tiny_study, photos):
    text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
    text = text.replace("limit: {train: 192, val: 32, test: 64}\n", "").replace("size: 96", "size: 16")
    tiny_study.write_text(text)
    return tiny_study


@pytest.fixture
def command(tmp_path):
    """Start a command on a host of its own, which is a cache folder; what it says goes to a file of its name."""
    started = []

    def start(host, *words, patience=60.0, **environment):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "XDG_CACHE_HOME": str(tmp_path / host),
            **environment,
        }
        with (tmp_path / f"{host}.said").open("a") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(patience), *words],
                cwd=tmp_path,
                env=environment,
                stdout=said,
                stderr=said,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def words(study, out, *more):
    return ["run", str(study), "--runs", URL, "--out", f"results/{out}", "--workers", "1", *more]


def began(text):
    """The labels of the jobs that a command began, by its lines."""
    lines = [line for line in text.splitlines() if line.startswith("[") and ", ETA " not in line]
    return [line.partition("] ")[2] for line in lines]


def tables(folder):
    found = {file.name: file.read_bytes() for file in sorted((folder / "tables").iterdir())}
    assert len(found) >= 3
    return found


@pytest.fixture
def alone(cli, study, tmp_path):
    """The tables of the study with a run store on disk."""

    def run():
        ended = cli("run", study, "--runs", "alone", "--out", "results/alone")
        assert ended.code == 0, ended.err
        return tables(tmp_path / "results/alone")

    return run


def records_without_outcomes(files):
    """Records in the store that name outcomes which are not there."""
    names = set(files.find("bucket/runs"))
    records = [name for name in names if "/records/" in name and name.endswith(".json")]
    told = {name: json.loads(files.cat_file(name)).get("outcomes") for name in records}
    return [
        name for name, of in told.items() if of and f"{name.rpartition('/')[0]}/{of['file']}" not in names
    ]


def test_two_hosts_share_a_store_and_do_each_job_once(
    command, server, study, alone, tmp_path, cli, monkeypatch
):
    first = command("one", *words(study, "one"))
    second = command("two", *words(study, "two")[:-2], "--workers", "2")
    assert (first.wait(), second.wait()) == (0, 0), (tmp_path / "one.said").read_text()
    said = [(tmp_path / f"{host}.said").read_text() for host in ("one", "two")]
    jobs = began(said[0]) + began(said[1])
    assert len(jobs) == len(set(jobs)) == 6, said
    expected = alone()
    assert tables(tmp_path / "results/one") == tables(tmp_path / "results/two") == expected
    # a third, which reads: the same report, and every record with its outcomes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    listed = cli("ls", "runs", "--runs", URL)
    assert listed.out.split() == [run.folder.name for run in stored_runs(tmp_path / "alone")]
    again = cli("run", study, "--runs", URL, "--out", "results/three")
    assert "6 already finished" in again.err, again.err
    assert tables(tmp_path / "results/three") == expected
    assert not records_without_outcomes(server.files)
    assert not server.files.glob("bucket/runs/*/checkpoints/*"), "a finished run needs none"

    def fetch(*arguments):
        raise AssertionError("what was sent is the same here and there, and is not fetched")

    monkeypatch.setattr(ObjectStore, "fetch", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    store_at(URL)


def test_killed_in_the_middle_of_an_upload(command, server, study, alone, tmp_path):
    record = "/records/knn--cosine-v1.json"
    wire = Wire(server.port, record)
    process = command("one", *words(study, "one"), AWS_ENDPOINT_URL=f"http://127.0.0.1:{wire.port}")
    assert wire.halfway.wait(1800)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wire.cut()
    assert not server.files.glob(f"bucket/runs/*{record}"), "what is half sent is not there"
    assert server.files.glob("bucket/runs/*/records/knn--cosine-v1.safetensors"), "its outcomes went before"
    # the same host sends what it has, and does nothing twice; another has to do no more than that
    assert command("one", *words(study, "one")).wait() == 0
    said = (tmp_path / "one.said").read_text()
    jobs = began(said)
    assert len(jobs) == len(set(jobs)) == 6, said
    assert "sends what an earlier command could not" in said
    assert command("two", *words(study, "two")).wait() == 0
    assert not began((tmp_path / "two.said").read_text())
    assert tables(tmp_path / "results/one") == tables(tmp_path / "results/two") == alone()
    assert not records_without_outcomes(server.files)


def test_another_host_goes_on_from_the_checkpoints_of_one_that_is_lost(
    command, server, study, alone, tmp_path, wait_for
):
    text = study.read_text()
    study.write_text(text.replace("epochs: 2", "epochs: 40"))
    process = command("one", *words(study, "one"))
    wait_for(lambda: server.files.glob("bucket/runs/barlow*/checkpoints/step-*"), process)
    process.kill()
    process.wait()
    sent = server.files.glob("bucket/runs/barlow*/checkpoints/step-*")
    assert sent, "whole, under its name"
    # the machine is another one; its process is not known to be gone, and its lease has to run out
    (lease,) = server.files.glob("bucket/runs/barlow*/.lease/*.held")
    content = server.files.cat_file(lease).replace(b'"seconds": 60.0', b'"seconds": 1.0')
    server.files.pipe_file(lease, content.replace(b'"machine": "', b'"machine": "another '))
    assert command("two", *words(study, "two")).wait() == 0
    said = (tmp_path / "two.said").read_text()
    assert re.search(r"80 steps from [1-9]", said), said
    assert tables(tmp_path / "results/two") == alone()
    (weights,) = (tmp_path / "alone").glob("barlow*/encoder/encoder.safetensors")
    assert (
        server.files.cat_file(f"bucket/runs/{weights.relative_to(tmp_path / 'alone')}")
        == weights.read_bytes()
    )


def test_a_server_that_stops_and_starts_again_is_waited_for(
    command, server, study, alone, tmp_path, wait_for
):
    process = command("one", *words(study, "one"))
    said = tmp_path / "one.said"
    wait_for(lambda: "[2/6]" in said.read_text(), process)
    server.tell("stop")
    wait_for(lambda: "does not answer, and is asked again" in said.read_text(), process)
    server.tell("start")
    assert process.wait() == 0, said.read_text()
    assert len(began(said.read_text())) == 6
    assert tables(tmp_path / "results/one") == alone()


def test_a_lost_connection_ends_the_command_and_the_next_one_goes_on(
    command, server, study, alone, tmp_path, wait_for
):
    process = command("one", *words(study, "one"), patience=1.0)
    said = tmp_path / "one.said"
    wait_for(lambda: "[2/6]" in said.read_text(), process)
    server.tell("stop")
    try:
        assert process.wait() == 1, said.read_text()
        first = said.read_text()
        assert "error: the object store does not answer any more" in first
        assert "run the same command again, which sends it" in first
        unreachable = command("one", *words(study, "one"))
        assert unreachable.wait() == 1
        assert "AWS_ENDPOINT_URL" in said.read_text().removeprefix(first)
    finally:
        server.tell("start")
    assert command("one", *words(study, "one")).wait() == 0
    jobs = began(said.read_text())
    assert len(jobs) == len(set(jobs)) == 6, "a finished job was done twice"
    assert tables(tmp_path / "results/one") == alone()


def test_of_many_that_create_an_object_one_has_the_lease(server, tmp_path):
    """Threads in place of hosts: what they share is the server."""
    inside, most, turns = 0, 0, 0
    counting = threading.Lock()

    def work():
        nonlocal inside, most, turns
        lease = Lease(LeaseObjects(ObjectStore(URL, tmp_path), "run"), 1000.0)
        for _ in range(3):
            while not lease.take():
                pass
            with counting:
                inside, turns = inside + 1, turns + 1
                most = max(most, inside)
            with counting:
                inside -= 1
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 9)
    assert [name.rpartition("/")[2] for name in server.files.find("bucket/runs/run")] == ["000000009.free"]
