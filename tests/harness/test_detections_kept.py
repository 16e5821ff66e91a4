"""Detections in a set that was cut: computed again, and evaluated by other tools from what is exported."""

import hashlib
import json
import shutil

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.detection import small_mask_rcnn
from twinbench.downstream.detection.coco_eval import Detections, run_lengths
from twinbench.foundation.documents import unsealed
from twinbench.foundation.outcomes import Outcomes, read_outcomes, write_outcomes
from twinbench.reports.records import read_records

LIMIT = {"train": 48, "val": 16, "test": 12}
STUDY = f"""
title: Detection
description: One untrained network.
image_set: digit-scenes
recipes: digit-scenes
methods: [random_init]
limit: {json.dumps(LIMIT)}
overrides: {{backbone.width: 8}}
tables:
  - name: main
    columns:
      - {{protocol: detection/small-mask-rcnn-torchvision-v2, metric: box_ap, label: Box AP}}
      - {{protocol: knn/cosine-v1, metric: top1, label: kNN}}
"""


def near_misses(detector, images, device):
    """Instead of what a detector finds: the objects themselves, some of them moved, mistaken or missed."""
    truth = load_image_set("digit-scenes", limit=LIMIT).detection("test")
    generator = torch.Generator().manual_seed(0)
    found = []
    for boxes, labels, masks in zip(truth.boxes, truth.labels, truth.masks, strict=True):
        kept = torch.rand(len(boxes), generator=generator) < 0.9
        moved = boxes[kept] + 3 * torch.randn(int(kept.sum()), 1, generator=generator)
        scores = torch.rand(len(moved), generator=generator)
        guessed = torch.where(scores < 0.9, labels[kept], 0)
        found.append(Detections(moved, scores, guessed, run_lengths(masks[kept])))
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where `done` keeps what the first test has made."""
    return tmp_path_factory.mktemp("kept") / "found"


@pytest.fixture
def done(cli, tmp_path, monkeypatch, kept):
    """The current folder with the finished study, a copy."""
    monkeypatch.setattr(small_mask_rcnn, "STEPS", 2)
    monkeypatch.setattr(small_mask_rcnn, "detect", near_misses)
    if not kept.exists():
        (tmp_path / "found.yaml").write_text(STUDY)
        outcome = cli("run", "found.yaml")
        assert outcome.code == 0, outcome.err
        shutil.copytree(tmp_path, kept)
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def the_file(folder):
    (file,) = (folder / "runs").glob("*/records/detection*.json")
    return file


def told(folder, **changes):
    """Let the outcomes of the detection tell something else, or, with None, nothing of what they are of."""
    file = the_file(folder)
    record, path = unsealed(file.read_text()), file.with_suffix(".safetensors")
    kept = read_outcomes(path, record["outcomes"]["sha256"])
    about = {name: value for name, value in {**kept.about, **changes}.items() if value is not None}
    record["outcomes"]["sha256"] = write_outcomes(path, Outcomes(kept.arrays, kept.detections), about)
    file.write_text(json.dumps(record))


def test_a_cut_set_is_read_again_as_it_was(cli, done):
    outcome = cli("verify", "results/found")
    assert outcome.code == 0, outcome.err
    records = read_records(done / "results/found/records.csv")
    assert f"{len(records)} numbers follow from the outcomes" in outcome.out
    assert "not computed again" not in outcome.out
    assert 10 < next(r.value for r in records if r.metric == "box_ap") < 90


def test_detections_that_are_changed_do_not_follow(cli, done):
    (file,) = (done / "results/found/outcomes").glob("*.coco.json.gz")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    outcome = cli("verify", "results/found")
    assert outcome.code == 2
    assert (
        "box_ap of detection/small-mask-rcnn-torchvision-v2 on digit-scenes: the outcomes are not"
        in outcome.err
    )


def test_lost_detections_are_found_again(cli, done):
    (file,) = (done / "runs").rglob("*.coco.json.gz")
    before = file.read_bytes()
    file.unlink()
    assert cli("run", "found.yaml").code == 0
    assert file.read_bytes() == before


def test_sets_that_are_not_here_or_are_others_are_no_wrong_numbers(cli, done):
    told(done, image_set="coco")
    assert cli("report", "runs", "--out", "results/all").code == 0
    outcome = cli("verify", "results/all")
    assert outcome.code == 0, outcome.err
    assert (
        "not computed again: 6 numbers, since the scenes of digit-scenes are not here: coco is" in outcome.out
    )
    told(done, image_set=None, reading=None)  # as earlier versions
    assert cli("report", "runs", "--out", "results/all").code == 0
    outcome = cli("verify", "results/all")
    assert outcome.code == 0, outcome.err
    assert (
        "digit-scenes is not what was measured on: its fingerprint is another (or it was cut" in outcome.out
    )


def exported(done):
    (results,) = (done / "exported").rglob("*.results.json")
    return results, results.with_name(results.name.replace(".results.", ".ground-truth."))


def test_pycocotools_evaluates_what_is_exported(cli, done, capsys):
    outcome = cli("export-results", "runs", "--out", "exported")
    assert outcome.code == 0, outcome.err
    records = {r.metric: r for r in read_records(done / "results/found/records.csv")}
    results, truth = exported(done)
    expected = COCO(str(truth))
    for kind, metric in (("bbox", "box_ap"), ("segm", "mask_ap")):
        evaluation = COCOeval(expected, expected.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert 100 * evaluation.stats[0] == pytest.approx(records[metric].value)
    info = json.loads(truth.read_text())["info"]
    assert info["results_sha256"] == hashlib.sha256(results.read_bytes()).hexdigest()
    assert info["encoder_checksum"] == records["box_ap"].encoder_checksum
    assert info["image_set_fingerprint"] == records["box_ap"].image_set_fingerprint


def test_what_cannot_be_exported_is_named_and_keeps_nothing_else_back(cli, done):
    told(done, image_set="coco")
    outcome = cli("export-results", "runs", "--out", "exported")
    assert outcome.code == 2
    assert "1 evaluations\n" in outcome.out
    assert f"left out: {the_file(done).relative_to(done)}: coco is not embedded" in outcome.out
    assert "1 of 2 evaluations were left out" in outcome.err
    assert "--data-root" in outcome.err
    assert [path.name.partition("--on-")[0] for path in (done / "exported").rglob("*.*")] == [
        "knn--cosine-v1"
    ]


def test_damaged_outcomes_are_left_out_of_an_export(cli, done):
    (file,) = (done / "runs").rglob("records/knn*.safetensors")
    file.write_bytes(b"")
    outcome = cli("export-results", "runs", "--out", "exported")
    assert outcome.code == 2
    assert "its outcomes are lost, damaged" in outcome.out
    assert len(list((done / "exported").rglob("*.json"))) == 2
