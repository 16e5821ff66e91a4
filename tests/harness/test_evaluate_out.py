"""The record that `twinbench evaluate` writes where it is told to, and what it leaves alone there."""

import json

import pytest

from twinbench.foundation.outcomes import read_outcomes


@pytest.fixture
def evaluate(cli, finished, photos):
    (run,) = (finished / "runs").glob("random_init*")

    def call(out, protocol="knn/cosine-v1"):
        return cli("evaluate", run, "--protocol", protocol, "--image-set", f"folder:{photos}", "--out", out)

    return call


def test_the_outcomes_of_a_record_lie_beside_it_under_a_name_of_their_own(evaluate, tmp_path):
    (tmp_path / "resnet50.safetensors").write_bytes(b"weights")
    for out, protocol in (
        ("resnet50.json", "knn/cosine-v1"),
        ("a.knn", "knn/cosine-v1"),
        ("a.few", "few-shot/1-v1"),
    ):
        outcome = evaluate(out, protocol)
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "resnet50.safetensors").read_bytes() == b"weights"
    for out in ("resnet50.json", "a.knn", "a.few"):
        kept = json.loads((tmp_path / out).read_text())["outcomes"]
        assert kept["file"] == f"{out}.outcomes.safetensors"
        about = read_outcomes(tmp_path / kept["file"], kept["sha256"]).about
        assert about["protocol"] == json.loads((tmp_path / out).read_text())["protocol"]


def test_a_record_may_take_the_place_of_a_record(evaluate, tmp_path):
    for _ in range(2):
        assert evaluate("again.json").code == 0
    assert json.loads((tmp_path / "again.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("out", "there", "message"),
    [
        ("mine.safetensors", None, "what files of weights and of outcomes are called"),
        ("encoder.json", "encoder.json", "a file is here already that no evaluation has made"),
        ("new.json", "new.json.outcomes.safetensors", "a file is here already that no evaluation has made"),
        ("new.json", "new.json.outcomes.coco.json.gz", "a file is here already that no evaluation has made"),
    ],
)
def test_what_no_evaluation_has_made_is_left_alone(evaluate, tmp_path, out, there, message):
    if there:
        (tmp_path / there).write_text('{"architecture": "resnet50"}')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("records/*")}
    outcome = evaluate(out)
    assert outcome.code == 2
    assert message in outcome.err
    assert "--out" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("records/*")} == before, (
        "no work"
    )
    if there:
        assert (tmp_path / there).read_text() == '{"architecture": "resnet50"}'
        assert there == out or not (tmp_path / out).exists()


def test_a_record_in_a_run_that_names_its_outcomes_otherwise_is_found_with_them(
    cli, finished, tmp_path, photos
):
    (run,) = (finished / "runs").glob("random_init*")
    out = run / "records" / "mine.json"
    assert (
        cli(
            "evaluate", run, "--protocol", "knn/cosine-v1", "--image-set", f"folder:{photos}", "--out", out
        ).code
        == 0
    )
    assert cli("export-results", "runs", "--out", "exported").code == 0
    kept = json.loads(out.read_text())["outcomes"]["file"]
    assert (run / "records" / kept).is_file()


def the_record_of(run):
    (record,) = (run / "records").glob("knn*--on-*.json")
    return record


def names_in(run):
    """Of all that a run holds but its lease, whose number grows."""
    return {path.name for path in run.rglob("*") if path.parent.name != ".lease"}


def test_a_runs_own_record_may_be_asked_for(evaluate, finished):
    """However its folder is written, it is one record, and its outcomes have the name that the store gives them."""
    (run,) = (finished / "runs").glob("random_init*")
    assert evaluate(finished / "new.json").code == 0
    record, before = the_record_of(run), names_in(run)
    (finished / "link").symlink_to(run)
    for out in (record, record.relative_to(finished), finished / "link" / "records" / record.name):
        outcome = evaluate(out)
        assert outcome.code == 0, outcome.err
        assert names_in(run) == before
        assert json.loads(record.read_text())["outcomes"]["file"] == f"{record.stem}.safetensors"


def test_a_record_of_another_run_that_is_replaced_takes_its_outcomes_with_it(evaluate, cli, finished, photos):
    (other,) = (finished / "runs").glob("barlow*")
    measure = ("evaluate", other, "--protocol", "knn/cosine-v1", "--image-set", f"folder:{photos}")
    assert cli(*measure).code == 0
    record = the_record_of(other)
    before = names_in(other)
    first = json.loads(record.read_text())
    assert evaluate(record).code == 0
    second = json.loads(record.read_text())
    assert second["encoder_checksum"] != first["encoder_checksum"]
    renamed = {first["outcomes"]["file"], second["outcomes"]["file"]}
    assert names_in(other) ^ before == renamed, "the one instead of the other"
    assert cli(*measure).code == 0
    assert names_in(other) == before
    assert json.loads(record.read_text())["outcomes"] == first["outcomes"]


def test_a_record_of_another_protocol_replaces_detections_too(evaluate, cli, finished, monkeypatch):
    """The names that outcomes of FILE may have are FILE's alone, so that none of them stays behind."""
    for protocol in ("knn/cosine-v1", "few-shot/1-v1", "few-shot/1-v1", "knn/cosine-v1"):
        assert evaluate("a.json", protocol).code == 0
        kept = json.loads((finished / "a.json").read_text())["outcomes"]
        assert sorted(path.name for path in finished.glob("a.json*")) == ["a.json", kept["file"]]
        about = read_outcomes(finished / kept["file"], kept["sha256"]).about
        assert about["protocol"] == protocol
