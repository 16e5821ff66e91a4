"""The times of the protocols: every part is counted, in a process of its own, and the parts are what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def protocols(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import protocols

    return protocols


@pytest.mark.programs
def test_a_small_run_measures_each_protocol_in_a_fresh_process(tmp_path):
    names = ("knn/cosine-v1", "linear/cached-v1")
    out = tmp_path / "times.json"
    command = [sys.executable, str(BENCHMARKS / "protocols.py"), "--protocols", ",".join(names)]
    options = ["--limit", "40", "--repetitions", "1", "--out", str(out)]
    printed = subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout
    rows = json.loads(out.read_text())["rows"]
    assert [row["protocol"] for row in rows] == list(names)
    for row in rows:
        (answer,) = row["answers"]
        assert 0 < answer["features"] < answer["evaluation"]
        assert answer["processor_seconds"] > 0
        assert 0 <= answer["measurements"]["top1"] <= 100
        assert row["protocol"] in printed


def test_the_last_row_is_the_sum_of_the_medians(protocols):
    def answers(*seconds):
        parts = ("evaluation", "processor_seconds", "features", "reading")
        return [dict.fromkeys(parts, value) for value in seconds]

    document = {
        "rows": [
            {"protocol": "knn/cosine-v1", "answers": answers(1.0, 2.0, 9.0)},
            {"protocol": "linear/cached-v1", "answers": answers(3.0, 4.0, 5.0)},
        ],
        "repetitions": 3,
        "limit": {"train": 20000},
        "encoder": "untrained",
        "device": "a processor",
        "facts": {
            "machine": "a machine",
            "python": "3",
            "torch": "2",
            "commit": "",
            "date": "",
            "command": "",
        },
    }
    text = protocols.render(document)
    assert "at most 20,000 images of train" in text
    last = next(line for line in text.splitlines() if line.startswith("| sum"))
    assert [cell.strip() for cell in last.split("|")[2:6]] == ["6.0"] * 4


def test_the_untrained_encoder_is_that_of_the_recipe(protocols):
    image_set = protocols.load_image_set("digit-scenes", limit={"train": 4, "val": 4, "test": 4})
    first, second = (protocols.untrained_encoder("digit-scenes", image_set) for _ in range(2))
    assert (first.info.architecture, first.info.width, first.info.stem) == ("resnet10", 16, "stride2")
    assert not first.backbone.training
    assert all(
        (a == b).all()
        for a, b in zip(
            first.backbone.state_dict().values(), second.backbone.state_dict().values(), strict=True
        )
    )


def test_as_many_images_are_read_as_the_study_reads(protocols):
    def limits(study, most=None):
        jobs = protocols.jobs_of(protocols.load_study(study), ["knn/cosine-v1"], most, {})
        return [job.limit for job in jobs]

    assert limits("cifar10-cpu") == [{"train": 20000}]
    assert limits("cifar10-cpu", 5) == [dict.fromkeys(("train", "val", "test"), 5)]
    assert limits("quick") == [{}]
    jobs = protocols.jobs_of(protocols.load_study("table3", "cifar10"), ["linear/cached-v1"], None, {})
    assert [(job.image_set, job.limit) for job in jobs] == [("texture-scenes", {}), ("letter-scenes", {})]
