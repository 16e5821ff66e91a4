"""The run store in an object store, and its mirrors here: what is sent and fetched, and when which side is right."""

import json
import threading
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from twinbench.encoders.encoder import Encoder
from twinbench.foundation import object_store
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import fenced, write_atomically
from twinbench.foundation.lease import LostLease
from twinbench.foundation.object_store import ObjectStore
from twinbench.harness import doctor, execute, mirror
from twinbench.harness.mirror import called, inside_store, mirrored, store_at, store_or_run_at, url_of
from twinbench.harness.store import Run, prepare_store
from twinbench.pretraining.interrupt import Interrupted

RECORD = "records/knn--v1.json"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A store may be in memory; one that does not answer is asked once, and who works in a run at any time."""
    monkeypatch.setattr(mirror, "KINDS", (*mirror.KINDS, "memory"))
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(object_store, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "ASK_SECONDS", 0.0)


class There:
    """The store, as somebody sees it who knows nothing of mirrors."""

    def __init__(self, name):
        self.url, self._path = f"memory://{name}/runs", f"/{name}/runs"
        self.files = MemoryFileSystem()

    def put(self, name, content):
        self.files.pipe_file(f"{self._path}/{name}", content)

    def get(self, name):
        return self.files.cat_file(f"{self._path}/{name}")

    def remove(self, name):
        self.files.rm_file(f"{self._path}/{name}")

    def names(self):
        found = (name.removeprefix(f"{self._path}/") for name in self.files.find(self._path))
        return sorted(name for name in found if "/.lease/" not in name and name != ".store")


@pytest.fixture
def there(tmp_path):
    yield There(tmp_path.name)
    MemoryFileSystem.store.clear()


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Be another host, which has a cache folder of its own."""

    def become(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    become("one")
    return become


def write(folder, name, content):
    write_atomically(folder / name, content)


def work(root, run, **files):
    """Work in a run: write these files, whose names have two underscores for a slash, and send them."""
    lease = mirrored(root).lease(root / run)
    assert lease.take()
    for name, content in files.items():
        write(root / run, name.replace("__", "/").replace("_json", ".json").replace("_pt", ".pt"), content)
    lease.release()


@pytest.fixture
def sent(monkeypatch):
    """The names of what is sent; ``sent.fails`` is the name at which the connection is lost."""

    class Sent(list):
        fails = None

    names, send = Sent(), ObjectStore.send

    def watched(self, file, name):
        if names.fails is not None and name.endswith(names.fails):
            raise ConnectionError("cut")
        names.append(name)
        return send(self, file, name)

    monkeypatch.setattr(ObjectStore, "send", watched)
    return names


def test_commands_say_of_a_url_what_they_say_of_a_folder(finished, cli, there, host, sent, photos):
    for file in (finished / "runs").rglob("*"):
        if file.is_file() and "features" not in file.parts:
            there.put(file.relative_to(finished / "runs"), file.read_bytes())
    (lost,) = (
        name for name in there.names() if "random_init" in name and name.endswith("knn--cosine-v1.json")
    )
    there.remove(lost)
    ended = cli("run", finished / "tiny.yaml", "--runs", there.url, "--out", "results/url")
    assert ended.code == 0, ended.err
    assert "6 jobs, 5 already finished" in ended.err
    assert sent == [
        lost.replace("records", "pictures").replace("json", "png"),
        lost.replace(".json", ".safetensors"),
        lost,
    ]
    for runs, out in ((there.url, "url-all"), ("runs", "folder-all")):
        assert cli("report", runs, "--out", f"results/{out}").code == 0
        assert cli("export-results", runs, "--out", f"exported/{out}").code == 0
    for one, other in (
        ("results/url/tables", "results/tiny/tables"),
        ("results/url-all/tables", "results/folder-all/tables"),
        ("exported/url-all", "exported/folder-all"),
    ):
        files = [file.relative_to(finished / one) for file in (finished / one).rglob("*") if file.is_file()]
        assert len(files) >= 3
        assert {file: (finished / one / file).read_bytes() for file in files} == {
            file.relative_to(finished / other): file.read_bytes()
            for file in (finished / other).rglob("*")
            if file.is_file()
        }
    host("two")
    assert cli("ls", "runs", "--runs", there.url).out == cli("ls", "runs").out
    run = lost.partition("/")[0]
    assert cli("export-results", f"{there.url}/{run}", "--out", "exported/one").code == 0
    assert [folder.name for folder in (finished / "exported/one").iterdir()] == [run]
    encoder = inside_store(f"{there.url}/{run}/encoder")
    assert Encoder.load(encoder).checksum == Encoder.load(finished / "runs" / run / "encoder").checksum
    assert url_of(encoder) == f"{there.url}/{run}/encoder"
    sent.clear()
    words = ["--protocol", "knn/cosine-v1", "--image-set", f"folder:{photos}"]
    assert cli("evaluate", f"{there.url}/{run}", *words).code == 0
    assert len(sent) == 2, "a record and its outcomes"
    assert sent[1].startswith(f"{run}/records/knn--cosine-v1--on-folder-photos-")


def test_what_a_record_speaks_of_is_sent_before_it_and_what_it_replaced_goes_after(there, host, sent):
    root = store_at(there.url)
    lease = mirrored(root).lease(root / "run")
    assert lease.take()
    for name in (
        RECORD,
        "records/a.safetensors",
        "status.json",
        "encoder/encoder.json",
        "encoder/encoder.safetensors",
    ):
        write(root / "run", name, b"1")
    write(root / "run", "features/cached.safetensors", b"1")
    lease.release()
    order = [
        f"run/{name}"
        for name in (RECORD, "status.json", "encoder/encoder.json", "encoder/encoder.safetensors")
    ]
    assert [name for name in sent if name in order] == order[::-1]
    assert sent.index("run/records/a.safetensors") < sent.index(f"run/{RECORD}")
    assert there.names() == sorted(sent), "features are not kept there"

    assert lease.take()
    write(root / "run", "records/b.safetensors", b"2")
    write(root / "run", RECORD, b"2")
    (root / "run/records/a.safetensors").unlink()
    (root / "run/status.json").unlink()
    sent.clear()
    lease.release()
    assert sent == ["run/records/b.safetensors", f"run/{RECORD}"]
    assert "run/records/a.safetensors" not in there.names()
    assert "run/status.json" in there.names(), "no result is removed because a file has gone here"


def test_what_could_not_be_sent_is_kept_and_sent_by_the_next_command(there, host, sent):
    root = store_at(there.url)
    sent.fails = RECORD
    with pytest.raises(RunFailure, match=rf"does not answer any more: cut(.|\n)*kept in {root}"):
        work(
            root,
            "run",
            records__a=b"outcomes",
            records__knn__v1=b"",
            **{RECORD.replace("/", "__"): b"record"},
        )
    assert f"run/{RECORD}" not in there.names()
    assert "run/records/a" in there.names()
    assert (store_at(there.url) / "run" / RECORD).read_bytes() == b"record", (
        "nor does looking at the store remove it"
    )
    sent.fails = None
    mirrored(root).prepare()
    assert there.get(f"run/{RECORD}") == b"record"
    sent.clear()
    mirrored(root).prepare()
    assert sent == []


def test_a_kill_in_the_middle_of_work_leaves_what_was_done_to_be_sent(there, host, sent):
    there.put("run/checkpoints/step-1.pt", b"1")
    root = store_at(there.url)
    killed = mirrored(root).lease(root / "run")
    assert killed.take()
    write(root / "run", "checkpoints/step-2.pt", b"2")
    (root / "run/checkpoints/step-1.pt").unlink()
    killed._let_go()  # all that a killed process does not do is to send
    work(root, "run", status_json=b"done")
    assert there.names() == ["run/checkpoints/step-2.pt", "run/status.json"]


def test_where_both_sides_have_changed_the_store_is_right(there, host):
    root = store_at(there.url)
    work(root, "run", status_json=b"begun", metrics=b"1")
    killed = mirrored(root).lease(root / "run")
    assert killed.take()
    write(root / "run", "status.json", b"ours")
    write(root / "run", "diagnostics.json", b"ours")
    write(root / "run", "checkpoints/step-9.pt", b"ours")
    killed._let_go()
    host("two")
    other = store_at(there.url)
    work(other, "run", status_json=b"theirs", checkpoints__step_1_pt=b"theirs")
    host("one")
    mirrored(root).prepare()
    assert (root / "run/status.json").read_bytes() == there.get("run/status.json") == b"theirs"
    assert there.get("run/diagnostics.json") == b"ours", "they have none"
    assert "run/checkpoints/step-9.pt" not in there.names(), "they went on from elsewhere"


@pytest.mark.parametrize("harm", ["cut", "removed", "index"])
def test_a_damaged_mirror_is_fetched_again_and_never_sent(there, host, sent, harm):
    there.put(f"run/{RECORD}", b"record")
    there.put("run/recipe.yaml", b"recipe")
    root = store_at(there.url)
    file = root / "run" / RECORD
    if harm == "cut":
        file.write_bytes(b"rec")
    elif harm == "removed":
        file.unlink()
    else:
        (root / "run" / mirror._INDEX).write_bytes(b"{")
    work(store_at(there.url), "run")
    assert file.read_bytes() == there.get(f"run/{RECORD}") == b"record"
    assert sent == []


def test_readers_fetch_what_has_changed_and_no_weights(there, host):
    there.put("run/encoder/encoder.safetensors", b"large")
    there.put("run/checkpoints/step-1.pt", b"large")
    there.put("run/recipe.yaml", b"old")
    there.put("gone/recipe.yaml", b"old")
    root = store_at(there.url)
    assert sorted(folder.name for folder in root.iterdir()) == ["gone", "run"]
    there.put("run/recipe.yaml", b"new")
    there.remove("gone/recipe.yaml")
    assert store_at(there.url) == root
    assert [folder.name for folder in root.iterdir()] == ["run"]
    assert (root / "run/recipe.yaml").read_bytes() == b"new"
    assert not (root / "run/encoder").exists()
    assert (inside_store(f"{there.url}/run") / "encoder/encoder.safetensors").read_bytes() == b"large"
    assert store_or_run_at(f"{there.url}/run") == root / "run"
    assert store_or_run_at(there.url) == root


def test_a_run_in_which_this_host_works_is_not_fetched_over(there, host):
    there.put("run/status.json", b"old")
    root = store_at(there.url)
    lease = mirrored(root).lease(root / "run")
    assert lease.take()
    write(root / "run", "status.json", b"new")
    store_at(there.url)
    assert (root / "run/status.json").read_bytes() == b"new"
    lease.release()
    assert there.get("run/status.json") == b"new"


def test_one_host_works_in_a_run_and_the_next_has_all_of_it(there, host):
    root = store_at(there.url)
    first = mirrored(root).lease(root / "run")
    assert first.take()
    host("two")
    other = store_at(there.url)
    second = mirrored(other).lease(other / "run")
    assert not second.take()
    assert second.holder() is not None
    write(root / "run", "checkpoints/step-1.pt", b"1")
    first.release()
    assert second.take()
    assert (other / "run/checkpoints/step-1.pt").read_bytes() == b"1"
    second.release()


def lose(there, run="run"):
    """Let another host have taken the run over."""
    (name,) = (name for name in there.files.find(there._path) if f"{run}/.lease/" in name)
    there.files.pipe_file(name.replace("000000001", "000000002"), there.files.cat_file(name))
    there.files.rm_file(name)


def test_who_has_lost_a_run_sends_nothing(there, host, sent, monkeypatch):
    root = store_at(there.url)
    lease = mirrored(root).lease(root / "run")
    assert lease.take()
    write(root / "run", "status.json", b"ours")
    lose(there)
    monkeypatch.setattr("twinbench.foundation.lease._since_boot", lambda: 1e12)
    with pytest.raises(LostLease, match="its work was taken over"):
        lease.release()
    assert sent == []


def test_a_job_whose_run_is_lost_at_its_end_waits_again(there, host, sent, monkeypatch):
    """Its results are here, and it is only when they are sent that the process finds out."""
    run = Run(store_at(there.url) / "run", None, "")

    def run_job(*arguments):
        write(run.folder, "status.json", b"ours")
        lose(there)
        monkeypatch.setattr("twinbench.foundation.lease._since_boot", lambda: 1e12)

    monkeypatch.setattr(execute, "run_job", run_job)
    job = SimpleNamespace(run=run, label="train", evaluation=None, record=None, is_finished=lambda: False)
    told = []
    watch = SimpleNamespace(
        start=lambda label: None,
        end=lambda label, why: told.append("end"),
        waits=lambda label, holder: told.append(holder),
    )
    assert execute.attempt(job, None, watch, told.append, run.lease()) is None
    assert told[0].startswith("LOST train: this process showed no life")
    assert told[1:] == ["the process that took it over"]
    assert sent == []


def test_what_ended_the_work_is_said_though_nothing_could_be_sent(there, host, sent, caplog):
    run = Run(store_at(there.url) / "run", None, "")
    sent.fails = "status.json"

    def stopped():
        with run.working(run.lease()) as ours:
            assert ours
            run.write_status({"status": "interrupted"})
            raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        stopped()
    assert (
        "the next command sends what was done: the object store does not answer any more: cut" in caplog.text
    )
    sent.fails = None
    prepare_store(run.folder.parent)
    assert sent == ["run/status.json"]


def test_checkpoints_are_sent_while_work_goes_on_and_a_lost_run_ends_it(there, host, monkeypatch, sent):
    monkeypatch.setattr(mirror, "SEND_SECONDS", 12345.0)
    go, waits, wait = threading.Semaphore(0), threading.Semaphore(0), threading.Event.wait

    def gated(self, timeout=None):
        if timeout != mirror.SEND_SECONDS:
            return wait(self, timeout)
        waits.release()
        while not (self.is_set() or go.acquire(timeout=0.01)):
            pass
        return self.is_set()

    monkeypatch.setattr(threading.Event, "wait", gated)

    def minute():
        """Let the next checkpoints be sent, and wait until they are."""
        assert waits.acquire(timeout=600)
        go.release()
        assert waits.acquire(timeout=600)
        waits.release()

    root = store_at(there.url)
    lease = mirrored(root).lease(root / "run")
    assert lease.take()
    with fenced(root / "run", lease.check):
        for name in ("checkpoints/step-1.pt", "metrics.jsonl", RECORD, "status.json"):
            write(root / "run", name, b"1")
        minute()
        assert there.names() == ["run/checkpoints/step-1.pt", "run/metrics.jsonl"], (
            "the others when the work is done"
        )
        assert sent == ["run/metrics.jsonl", "run/checkpoints/step-1.pt"]
        sent.fails = ".pt"
        write(root / "run", "checkpoints/step-2.pt", b"2")
        minute()
        write(root / "run", "metrics.jsonl", b"12")  # a lost connection does not end it
        sent.fails = None
        minute()
        assert "run/checkpoints/step-2.pt" in there.names()
        (root / "run/checkpoints/step-1.pt").unlink()
        minute()
        assert "run/checkpoints/step-1.pt" not in there.names()
        (root / "run/checkpoints/step-2.pt").unlink()
        minute()
        assert "run/checkpoints/step-2.pt" in there.names(), "until there is an encoder in its place"
        lose(there)
        monkeypatch.setattr("twinbench.foundation.lease._since_boot", lambda: 1e12)
        write(root / "run", "checkpoints/step-3.pt", b"3")
        go.release()
        lease._sender.join(600)
        with pytest.raises(LostLease):
            write(root / "run", "checkpoints/step-4.pt", b"4")
    with pytest.raises(LostLease):
        lease.release()


@pytest.mark.parametrize(
    "name", ["run/../../../evil", "../evil", "run/a/../../../evil", "run/.hidden/x", "run/a\\b", "run/\x1b"]
)
def test_names_that_lead_out_of_a_run_are_left_out(there, host, name, tmp_path):
    there.put("run/recipe.yaml", b"recipe")
    MemoryFileSystem.store[f"{there._path}/{name}"] = MemoryFileSystem.store[f"{there._path}/run/recipe.yaml"]
    root = store_at(there.url)
    work(root, "run")
    found = [
        file.relative_to(tmp_path)
        for file in tmp_path.rglob("*")
        if file.is_file() and ".lease" not in file.parts
    ]
    assert sorted(file.name for file in found) == [".mirror.json", "recipe.yaml", "url"]


def test_an_object_that_changes_while_it_is_fetched_is_left_for_the_next_time(there, host, monkeypatch):
    there.put("run/recipe.yaml", b"old")
    fetch = ObjectStore.fetch

    def late(self, name, file):
        there.put("run/recipe.yaml", b"newer")
        fetch(self, name, file)

    monkeypatch.setattr(ObjectStore, "fetch", late)
    file = store_at(there.url) / "run/recipe.yaml"
    assert not file.exists()
    store_at(there.url)
    assert file.read_bytes() == b"newer"


def test_the_doctor_asks_the_store(there, host, monkeypatch):
    root = store_at(there.url)
    assert doctor.check_store(root) == f"{there.url}: writable"
    monkeypatch.setattr(ObjectStore, "create", lambda self, name, content: True)
    with pytest.raises(InputError, match="lets two processes create the same object"):
        doctor.check_store(root)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s4://bucket/runs", r"unknown kind of object store 's4'(.|\n)*nearest: +s3"),
        ("s3://key:secret@bucket/runs", "without credentials"),
        ("s3://bucket//runs", "names no place"),
        ("s3://bucket/../runs", "names no place"),
        ("s3://", "names no place"),
    ],
)
def test_what_is_no_url_of_a_store_is_said(host, url, says, cli):
    ended = cli("ls", "runs", "--runs", url)
    assert ended.code == 2
    with pytest.raises(InputError, match=says):
        store_at(url)


def test_a_run_that_is_not_there_is_said(there, host):
    with pytest.raises(InputError, match=f"no such run(.|\n)*ls runs --runs {there.url}"):
        inside_store(f"{there.url}/run/encoder")
    with pytest.raises(InputError, match="names no run"):
        inside_store("memory://run")


@pytest.mark.parametrize("how", ["another", "emptied"])
def test_another_store_at_the_same_url_is_not_taken_for_the_one_that_is_mirrored(there, host, sent, how):
    root = store_at(there.url)
    mirrored(root).prepare()
    host("two")
    mirrored(store_at(there.url)).prepare()
    host("one")
    sent.fails = "status.json"
    with pytest.raises(RunFailure):
        work(root, "run", status_json=b"ours")
    sent.fails = None
    word = there.get(".store")
    there.remove(".store")
    if how == "another":
        there.put(".store", b"another")
    with pytest.raises(
        InputError,
        match=rf"another object store answers(.|\n)*delete the mirror of the former: {root.parent}",
    ):
        store_at(there.url)
    with pytest.raises(InputError, match="another object store answers"):
        mirrored(root).prepare()
    assert (root / "run/status.json").read_bytes() == b"ours"
    assert there.names() == []
    there.put(".store", word)
    mirrored(store_at(there.url)).prepare()
    assert there.get("run/status.json") == b"ours"


def test_a_mirror_of_which_nothing_says_what_it_mirrors_is_not_taken_for_a_store(there, host):
    root = store_at(there.url)
    (root.parent / "url").unlink()
    mirror._store_of.cache_clear()
    with pytest.raises(InputError, match="nothing says which object store"):
        mirrored(root)


def test_a_folder_is_no_mirror_because_it_says_so(there, host, tmp_path):
    """Nor does a run store that somebody sends say where results go."""
    root = tmp_path / "sent" / "stores-bucket" / "runs"
    root.mkdir(parents=True)
    (root.parent / "url").write_text(there.url)
    assert mirrored(root) is None
    assert (called(root), url_of(root / "run")) == ("runs", str(root / "run"))
    assert store_at(f"file://{root}") == root


def test_a_mirror_of_an_index_with_foreign_names_touches_none_of_them(there, host, tmp_path):
    root = store_at(there.url)
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    status = victim.stat()
    work(root, "run", status_json=b"1")
    same = {"../../../../../victim": ["sign", [status.st_size, status.st_mtime_ns, status.st_ino]]}
    (root / "run" / mirror._INDEX).write_text(json.dumps({"unsent": False, "same": same}))
    store_at(there.url)
    assert victim.read_bytes() == b"kept"


@pytest.mark.parametrize("text", ["s3:/bucket/runs", "gs:/bucket"])
def test_a_url_with_one_slash_is_no_folder(text):
    with pytest.raises(InputError, match="two slashes") as caught:
        store_at(text)
    assert caught.value.nearest == text.replace(":/", "://")
