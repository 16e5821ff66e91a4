"""What `twinbench export-results` does: what became of every test item, in forms that other tools read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.detection.coco_eval import coco_ground_truth
from twinbench.downstream.outcomes import Outcomes, read_outcomes
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_atomically
from twinbench.harness.store import Run, holds_run, outcomes_of, read_run, stored_runs


def export_results(source: Path, out: Path, data_root: Path | None) -> None:
    """Write the outcomes of a run, or of every run in a store, below ``out``, a folder a run; print what was written.

    A classification becomes a CSV with a line a test image, support vector machines one with their scores, few-shot one
    with how many draws had the image right, detections COCO's results JSON with the ground truth of the same numbers
    beside it. Raises InputError if there is nothing.
    """
    runs = [read_run(source)] if holds_run(source) else stored_runs(source)
    count, without = 0, 0
    for run in runs:
        for record, outcomes in _evaluations(run):
            if outcomes is None:
                without += 1
                continue
            stem = out / run.folder.name / record["protocol"].replace("/", "--")
            for path, text in _files(stem, record, outcomes, data_root):
                write_atomically(path, text.encode("utf-8"))
                print(path)
            count += 1
    if not count:
        raise InputError(
            "there are no outcomes of test items here",
            where=source,
            next_step="name a run or a run store whose encoders were evaluated",
        )
    print(f"{count} evaluations" + (f"; {without} have no record of their test items" if without else ""))


def _evaluations(run: Run) -> Iterator[tuple[dict[str, Any], Outcomes | None]]:
    for file in sorted((run.folder / "records").glob("*.json")):
        record = run.record(file)
        if record is not None:
            kept = record.get("outcomes")
            yield record, read_outcomes(outcomes_of(file), kept["sha256"]) if kept else None


def _files(
    stem: Path, record: dict[str, Any], outcomes: Outcomes, data_root: Path | None
) -> Iterator[tuple[Path, str]]:
    name = f"{stem.name}--on-{record['image_set_fingerprint'][:8]}"
    if outcomes.detections is not None:
        yield stem.with_name(f"{name}.results.json"), json.dumps(outcomes.detections)
        yield stem.with_name(f"{name}.ground-truth.json"), json.dumps(_ground_truth(record, data_root))
    elif "predicted" in outcomes.arrays:
        yield stem.with_name(f"{name}.csv"), _classification(outcomes)
    elif "scores" in outcomes.arrays:
        yield stem.with_name(f"{name}.csv"), _scores(outcomes)
    else:
        yield stem.with_name(f"{name}.csv"), _draws(outcomes)


def _ground_truth(record: dict[str, Any], data_root: Path | None) -> dict[str, Any]:
    image_set = load_image_set(record["image_set"], data_root)
    if image_set.fingerprint != record["image_set_fingerprint"]:
        raise InputError(
            f"{record['image_set']} is not what was measured on: its fingerprint is another",
            where=record["protocol"],
            next_step="name the folder of the image sets that the record was made with",
            option="data-root",
        )
    return coco_ground_truth(image_set.detection("test"), image_set.detection_classes)


def _classification(outcomes: Outcomes) -> str:
    """``row, true, predicted_1 ...``: the place of the image in the test split, and class numbers, best first."""
    predicted = outcomes.arrays["predicted"]
    heads = ["row", "true", *(f"predicted_{place + 1}" for place in range(predicted.shape[1]))]
    table = zip(
        outcomes.arrays["rows"].tolist(), outcomes.arrays["true"].tolist(), predicted.tolist(), strict=True
    )
    return _csv(heads, ([row, true, *classes] for row, true, classes in table))


def _scores(outcomes: Outcomes) -> str:
    """``row, truth_0 ..., score_0 ...``: truth is 1 present, -1 absent, 0 present in difficult objects alone."""
    truth, scores = outcomes.arrays["truth"], outcomes.arrays["scores"]
    classes = range(truth.shape[1])
    heads = ["row", *(f"truth_{c}" for c in classes), *(f"score_{c}" for c in classes)]
    lines = zip(truth.tolist(), scores.tolist(), strict=True)
    return _csv(heads, ([row, *present, *scored] for row, (present, scored) in enumerate(lines)))


def _draws(outcomes: Outcomes) -> str:
    """``row, draws, right_top1 ...``: in how many draws of the labelled images the test image was right."""
    metrics = [name.removeprefix("right/") for name in outcomes.arrays if name.startswith("right/")]
    draws = int(outcomes.arrays["draws"][0])
    counts = zip(*(outcomes.arrays[f"right/{metric}"].tolist() for metric in metrics), strict=True)
    lines = zip(outcomes.arrays["rows"].tolist(), counts, strict=True)
    heads = ["row", "draws", *(f"right_{metric}" for metric in metrics)]
    return _csv(heads, ([row, draws, *right] for row, right in lines))


def _csv(heads: list[str], lines: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return out.getvalue()
