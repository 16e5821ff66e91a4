"""The benchmark of faults: which strike when, what is an offence, and a few real ones."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


@pytest.fixture
def place(faults, tmp_path):
    (tmp_path / "runs" / "a" / "records").mkdir(parents=True)
    return faults.Place(tmp_path, Random(0))


def test_every_kind_strikes_before_any_strikes_again(faults):
    kinds = ["a", "b", "c", "d"]
    drawn = [faults.kind_of(7, index, kinds) for index in range(12)]
    for turn in range(3):
        assert Counter(drawn[4 * turn : 4 * turn + 4]) == Counter(kinds)
    assert drawn == [faults.kind_of(7, index, kinds) for index in range(12)]
    assert drawn != [faults.kind_of(8, index, kinds) for index in range(12)]


def a_record(place, name):
    file = place.folder / "runs" / "a" / "records" / f"{name}.json"
    file.write_text(json.dumps({"status": "done", "outcomes": {"file": f"{name}.safetensors"}}))
    file.with_suffix(".safetensors").write_bytes(b"")
    return file


def test_a_result_that_is_written_again_with_the_same_content_is_an_offence(faults, place):
    file = a_record(place, "knn")
    before = place.finished()
    assert set(before) == {file, file.with_suffix(".safetensors")}
    a_record(place, "linear")
    faults._require_same(before, place)
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)
    with pytest.raises(faults.Offence, match=r"records/knn\.json"):
        faults._require_same(before, place)


def test_a_job_that_begins_again_without_a_word_is_an_offence(faults):
    lines = ["[1/2] pretrain simclr (seed 0)", "[1/2] pretrain simclr (seed 0): 40%, ETA 3 s  epoch 2"]
    assert faults.Ended(0, "\n".join(lines)).begun_twice() == []
    again = [*lines, lines[0]]
    assert faults.Ended(0, "\n".join(again)).begun_twice() == ["pretrain simclr (seed 0)"]
    told = [*lines, "LOST pretrain simclr (seed 0): its worker process died; it is tried once more", lines[0]]
    assert faults.Ended(0, "\n".join(told)).begun_twice() == []


@pytest.mark.parametrize("said", ["error: no space\n  where: x", "[1/2] x\nFAILED x: no space"])
def test_a_command_that_fails_names_something(faults, said):
    faults._require_named(faults.Ended(1, said))
    with pytest.raises(faults.Offence, match="names nothing"):
        faults._require_named(faults.Ended(1, "[1/2] x"))


@pytest.mark.programs
def test_a_few_real_ones(tmp_path):
    """A driver that is killed at its work, and a bit of a record that turns over."""
    kinds = ["kill -9 of the driver", "record: one bit turned over"]
    # of this seed no command has workers, which take seconds to start
    command = [sys.executable, str(BENCHMARKS / "faults.py"), "--faults", "2", "--seed", "52"]
    command += [word for kind in kinds for word in ("--kind", kind)]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "report.md")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = (tmp_path / "report.md").read_text()
    assert "| all " in report
    assert "There was none." in report
    for kind in kinds:
        assert f"| {kind} " in report
    assert ended.stdout.count(" repaired ") >= 2
