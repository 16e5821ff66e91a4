"""Ray does the jobs of a study: the bits of local workers, whatever becomes of nodes, memory, time and the command."""

import csv
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import RunFailure
from twinbench.harness.ray_options import RayOptions, prepare_for_ray

prepare_for_ray(RayOptions())
ray = pytest.importorskip("ray", reason="Ray is not installed: python -m pip install -e '.[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from twinbench.harness import ray_executor  # noqa: E402

pytestmark = pytest.mark.ray

MAIN = "from twinbench.harness.main import main; main()"
HERE = ["--executor", "ray"]
TROUBLE = """
import time
from pathlib import Path
from twinbench.downstream.protocol import Measurement, Protocol, register_protocol


class Trouble(Protocol):
    needs = "images"
    metrics = ("tries",)

    def evaluate(self, encoder, context):
        file = Path(f"{self.name.partition('/')[0]}-tries")
        tries = int(file.read_text()) + 1 if file.exists() else 1
        file.write_text(str(tries))
        self.happens(tries)
        return [Measurement("tries", float(tries), 1, None)]

    def happens(self, tries):
        raise NotImplementedError

    def forward_passes(self, image_set):
        return 1.0


@register_protocol
class Hungry(Trouble):
    name = "hungry/once-v1"

    def happens(self, tries):
        if tries == 1:
            raise MemoryError("no room for 7 things")


@register_protocol
class Greedy(Trouble):
    name = "greedy/always-v1"

    def happens(self, tries):
        raise MemoryError("no room for anything")


@register_protocol
class Idle(Trouble):
    name = "idle/for-ever-v1"

    def happens(self, tries):
        while True:
            time.sleep(1)
"""


@pytest.fixture
def study(tiny_study, photos):
    """The tiny study on a few photos; the training has so many epochs of two steps."""

    def of(epochs: int = 2) -> Path:
        text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
        text = text.replace("limit: {train: 192, val: 32, test: 64}\n", "").replace("size: 96", "size: 16")
        tiny_study.write_text(text.replace("epochs: 2", f"epochs: {epochs}"))
        return tiny_study

    return of


def tables(folder: Path) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in (folder / "tables").iterdir()}
    assert len(found) >= 3
    return found


def numbers(folder: Path) -> list[list[str]]:
    columns = ("method", "protocol", "metric", "value", "encoder_checksum", "status")
    with (folder / "records.csv").open(newline="") as handle:
        return [[row[column] for column in columns] for row in csv.DictReader(handle)]


def began(text: str) -> list[str]:
    """The labels of the jobs that began, by the lines of the command."""
    lines = [line for line in text.splitlines() if line.startswith("[") and ", ETA " not in line]
    return [line.partition("] ")[2] for line in lines]


def assert_as_local(cli, study: Path, tmp_path: Path) -> None:
    """The results in results/tiny are to the bit those of local workers."""
    local = cli("run", study, "--runs", "local", "--out", "results-local/tiny", "--workers", "2")
    assert local.code == 0, local.err
    assert numbers(tmp_path / "results/tiny") == numbers(tmp_path / "results-local/tiny")
    assert tables(tmp_path / "results/tiny") == tables(tmp_path / "results-local/tiny")


@pytest.fixture
def cluster():
    """A cluster of Ray's on this machine: a head without CPUs, and two nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_study_has_the_bits_of_local_workers_and_is_not_done_again(cli, study, tmp_path):
    words = ["run", study(), *HERE, "--workers", "2"]
    ended = cli(*words)
    assert ended.code == 0, ended.err
    jobs = began(ended.err)
    assert len(jobs) == len(set(jobs)) == 6, ended.err
    assert not list((tmp_path / "runs").glob(".seen*"))
    assert_as_local(cli, study(), tmp_path)
    again = cli(*words)
    assert again.code == 0
    assert "6 already finished" in again.err
    assert began(again.err) == []


def family() -> list[int]:
    """This process and its descendants."""
    pids = [os.getpid()]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    return pids


def listening(pids: list[int]) -> list[str]:
    """The addresses on which processes listen."""
    sockets = set()
    for descriptor in (file for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # it was that of the listing itself
            sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                words = re.findall("........", fields[1].partition(":")[0])
                found.append(str(ipaddress.ip_address(b"".join(bytes.fromhex(w)[::-1] for w in words))))
    return found


def in_short(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; one of IPv4 that is written in the form of IPv6 as what it is."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def test_ray_here_listens_on_the_loopback_interface_alone_and_tells_nobody():
    with ray_executor._connected(None):
        ray.get(ray_executor._remote(ray_executor._free_port).remote())  # so that there is a worker
        _, *started = family()
        found = [in_short(address) for address in listening([os.getpid(), *started])]
        # what would tell of it
        heads = [pid for pid in started if b"dashboard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        silent = [b"RAY_USAGE_STATS_ENABLED=0" in Path(f"/proc/{pid}/environ").read_bytes() for pid in heads]
    assert len(found) >= 4
    assert {str(address) for address in found if not address.is_loopback} == set()
    assert silent
    assert all(silent)


def test_a_lost_node_costs_its_job_one_try_and_nothing_else(cli, study, cluster, tmp_path):
    def kill_the_node_that_trains() -> None:
        while (
            not (logs := list((tmp_path / "runs").glob("barlow*/metrics.jsonl")))
            or logs[0].stat().st_size < 300
        ):
            if gone.wait(0.05):
                return
        (held,) = logs[0].parent.glob(".lease/*.held")
        parent = int(Path(f"/proc/{json.loads(held.read_text())['pid']}/stat").read_text().split()[3])
        (node,) = (
            node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == parent
        )
        cluster.remove_node(node, allow_graceful=False)

    gone = threading.Event()
    killer = threading.Thread(target=kill_the_node_that_trains)
    killer.start()
    ended = cli("run", study(epochs=60), *HERE, "--address", cluster.address, "--workers", "2")
    gone.set()
    killer.join()
    assert ended.code == 0, ended.err
    assert len(cluster.worker_nodes) == 1
    assert "LOST pretrain barlow_twins (seed 0): " in ended.err
    assert "try 2 of 4" in ended.err
    again = [label for label in set(began(ended.err)) if began(ended.err).count(label) > 1]
    assert again == ["pretrain barlow_twins (seed 0)"], ended.err
    assert_as_local(cli, study(), tmp_path)


def test_a_job_that_is_lost_again_and_again_has_failed(cli, study, tmp_path, monkeypatch):
    """Its process dies at once, whatever is tried, and leaves a lease as the process of another machine does."""
    held = {"host": "elsewhere", "pid": 7, "machine": "another", "since": "just now", "seconds": 3.0}

    def die(site, job, *rest):
        if job.evaluation is not None:  # for which there is no encoder
            return ray_executor._Ended(False)
        place = job.run.folder / ".lease"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{len(list(place.iterdir())) + 1:09d}.held").write_text(json.dumps(held))
        os._exit(7)

    monkeypatch.setattr(ray_executor, "_do", die)
    monkeypatch.setattr(ray_executor, "LOST_TRIES", 1)
    ended = cli("run", study(), "--methods", "random_init", *HERE)
    assert ended.code == 1
    assert ended.err.count("LOST pretrain random_init (seed 0): WorkerCrashedError") == 1, ended.err
    assert ended.err.count("pretrain random_init (seed 0) waits for process 7 on elsewhere") >= 1, ended.err
    assert "FAILED pretrain random_init (seed 0): lost 2 times" in ended.err
    assert "lost 2 times" in (tmp_path / "results/tiny/tables/main.md").read_text()


def test_a_run_left_by_another_machine_is_taken_over_after_its_time(cli, study, tmp_path):
    """What this process saw of the lease goes along: a worker that counted anew would find it held for ever."""
    words = ["run", study(), "--methods", "random_init"]
    assert cli(*words).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    for record in (folder / "records").glob("*.json"):
        record.unlink()
    held = {"host": "elsewhere", "pid": 7, "machine": "another", "since": "just now", "seconds": 3.0}
    (folder / ".lease" / "000000099.held").write_text(json.dumps(held))
    ended = cli(*words, *HERE)
    assert ended.code == 0, ended.err
    assert "waits for process 7 on elsewhere" in ended.err
    assert len(list((folder / "records").glob("*.json"))) == 2


@pytest.fixture
def trouble(tmp_path, monkeypatch):
    """A plugin with protocols that run out of memory, or never end; it is on the path of processes that are started."""
    site = tmp_path / "site"
    described = site / "trouble-1.0.dist-info"
    described.mkdir(parents=True)
    (site / "trouble.py").write_text(TROUBLE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[twinbench.plugins]\ntrouble = trouble\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))

    def columns(*names: str) -> str:
        row = "      - {{protocol: {0}, metric: tries, label: {0}}}\n"
        return "".join(row.format(name) for name in names)

    return columns


def twinbench(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )


def test_a_job_without_memory_gets_more_once_and_one_without_end_is_stopped(study, trouble, tmp_path):
    text = study().read_text().partition("    columns:\n")[0] + "    columns:\n"
    (tmp_path / "tiny.yaml").write_text(
        text + trouble("hungry/once-v1", "greedy/always-v1", "idle/for-ever-v1")
    )
    words = ["run", "tiny.yaml", "--methods", "random_init", *HERE, "--time-limit", "0.25"]
    ended = twinbench(tmp_path, *words)
    assert ended.returncode == 1, ended.stderr
    said = ended.stderr
    assert "OUT OF MEMORY hungry/once-v1 random_init (seed 0), which asked for " in said
    assert "no room for 7 things; it is tried once more with " in said
    assert re.search(r"FAILED greedy/always-v1 .*: out of memory, also with \d+\.\d GiB: MemoryError", said)
    assert "FAILED idle/for-ever-v1 random_init (seed 0): it did not end within 15 s and was stopped" in said
    assert "give it more time (--time-limit)" in said
    tries = {file.name: file.read_text() for file in tmp_path.glob("*-tries")}
    assert tries == {"hungry-tries": "2", "greedy-tries": "2", "idle-tries": "1"}
    statuses = {row[1]: row[5] for row in numbers(tmp_path / "results/tiny")}
    assert statuses == {
        "hungry/once-v1": "done",
        "greedy/always-v1": "failed",
        "idle/for-ever-v1": "failed",
    }


def test_signals_let_jobs_save_and_the_local_executor_goes_on_to_the_same_bits(
    cli, study, tmp_path, wait_for
):
    path = study(epochs=60)
    words = ["run", path, "--methods", "barlow_twins", "--workers", "2"]
    for number in (signal.SIGTERM, signal.SIGINT):
        text = stopped_by(number, [*words, *HERE], tmp_path, wait_for)
        assert f"stopped by {number.name}; every training has saved" in text
        assert list(tmp_path.glob("runs/*/checkpoints/step-*.pt")), text
        assert not list(tmp_path.glob("runs/*/encoder"))
        (status,) = tmp_path.glob("runs/*/status.json")
        assert json.loads(status.read_text())["status"] == "interrupted"
    for runs in ("runs", "whole"):
        ended = cli(*words, "--runs", runs, "--out", f"results-{runs}/tiny")
        assert ended.code == 0, ended.err
    assert numbers(tmp_path / "results-runs/tiny") == numbers(tmp_path / "results-whole/tiny")


def stopped_by(number: signal.Signals, words: list[object], tmp_path: Path, wait_for) -> str:
    """Begin or go on, and send the signal in the middle of the training; returns what the command said."""

    def rows() -> int:
        return sum(log.read_text().count("\n") for log in tmp_path.glob("runs/*/metrics.jsonl"))

    before = rows()
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, words)],
            cwd=tmp_path,
            stderr=said,
            start_new_session=True,
        )
    wait_for(lambda: rows() >= before + 5, process)
    # Ctrl-C reaches every process of the terminal's group
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    code, text = process.wait(), (tmp_path / "said").read_text()
    assert code == 75, text
    return text


def test_a_training_on_two_devices_is_that_of_one_up_to_rounding(cli, study, tmp_path):
    path = study(epochs=1)
    # small steps in full precision, for large ones amplify rounding
    sets = ["precision=fp32", "optimizer={name: sgd, base_lr: 0.1}", "options.loss_scale=0.001"]
    words = ["run", path, "--methods", "barlow_twins", *(word for key in sets for word in ("--set", key))]
    many = cli(*words, *HERE, "--devices", "2", "--workers", "2")
    one = cli(*words, "--runs", "one", "--out", "results-one/tiny")
    assert many.code == one.code == 0, many.err + one.err
    (status,), (other,) = tmp_path.glob("runs/*/status.json"), tmp_path.glob("one/*/status.json")
    assert json.loads(status.read_text())["ranks"] == 2
    assert json.loads(other.read_text())["ranks"] == 1
    ours, theirs = (
        Encoder.load(status.parent / "encoder").backbone.state_dict() for status in (status, other)
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_what_no_node_has_is_refused_before_any_work(cli, study, tmp_path):
    refused = cli("run", study(), *HERE, "--devices", "16", "--workers", "1")
    assert refused.code == 1
    assert "a job needs 1 node with" in refused.err
    assert "127.0.0.1 with" in refused.err
    assert not list(tmp_path.glob("runs/*"))


def test_a_node_that_does_not_see_the_store_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "_SEEN_SECONDS", 0.0)
    runs = tmp_path / "runs"
    site = ray_executor._Site(tmp_path, runs, runs / ".seen", None, 1)
    with pytest.raises(RunFailure, match=f"does not see the run store: {tmp_path}/runs") as raised:
        ray_executor._settle(site)
    assert "node " in str(raised.value.where)


def test_no_cluster_at_an_address(cli, study):
    refused = cli("run", study(), *HERE, "--address", "127.0.0.1:1")
    assert refused.code == 2
    assert "no Ray cluster can be used" in refused.err
