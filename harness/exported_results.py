"""What `twinbench export-results` does: what became of every test item, in forms that other tools read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinbench.downstream.detection.coco_eval import coco_ground_truth
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import slug, write_atomically
from twinbench.foundation.outcomes import Outcomes, read_outcomes
from twinbench.harness.images import MeasuredImages
from twinbench.harness.mirror import url_of
from twinbench.harness.store import Run, holds_run, outcomes_of, read_json, read_run, stored_runs

OF = ("protocol", "image_set", "image_set_fingerprint", "encoder_checksum", "seed")
"""What a file says that it is of, in the last columns of a CSV and in the ``info`` of a ground truth."""


@dataclass
class _Account:
    """How many evaluations were exported and how many have nothing to export; what was left out, and why."""

    count: int = 0
    without: int = 0
    left_out: dict[Path, InputError] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """How it went, for people."""
        without = f"; {self.without} have no record of their test items" if self.without else ""
        return [
            f"{self.count} evaluations{without}",
            *(f"left out: {file}: {error.what}" for file, error in self.left_out.items()),
        ]


def export_results(source: Path, out: Path, data_root: Path | None) -> None:
    """Write the outcomes of a run, or of every run in a store, below ``out``, a folder a run; print what was written.

    A classification becomes a CSV with a line a test image, support vector machines one with their scores, few-shot one
    with how many draws had the image right, detections COCO's results JSON with the ground truth of the same numbers
    beside it. An evaluation that cannot be exported is left out and the others are not. Raises InputError if one was,
    and if there is nothing.
    """
    runs = [read_run(source)] if holds_run(source) else stored_runs(source)
    images, account = MeasuredImages(data_root), _Account()
    for run in runs:
        for file in sorted((run.folder / "records").glob("*.json")):
            try:
                _export(run, file, out, images, account)
            except InputError as error:
                account.left_out[file] = error
    if not account.count and not account.left_out:
        raise InputError(
            "there are no outcomes of test items here",
            where=url_of(source),
            next_step="name a run or a run store whose encoders were evaluated",
        )
    print("\n".join(account.lines()))
    if account.left_out:
        steps = dict.fromkeys(error.next_step for error in account.left_out.values() if error.next_step)
        raise InputError(
            f"{len(account.left_out)} of {len(account.left_out) + account.count} evaluations were left out",
            where=next(iter(account.left_out)),
            next_step="; or ".join(steps),
            option=next((error.option for error in account.left_out.values() if error.option), None),
        )


def _export(run: Run, file: Path, out: Path, images: MeasuredImages, account: _Account) -> None:
    """Write what an evaluation of a run leaves. Raises InputError, before anything is written, if it cannot be."""
    record = run.record(file)
    if record is None:
        if "outcomes" in (read_json(file) or {}):
            raise InputError(
                "its outcomes are lost, damaged, or of another encoder than the run has now",
                where=file,
                next_step="run the command again that made them",
            )
        return  # a failure
    if "outcomes" not in record:
        account.without += 1
        return
    outcomes = read_outcomes(outcomes_of(file, record), record["outcomes"]["sha256"])
    stem = f"{record['protocol'].replace('/', '--')}--on-{slug(record['image_set_fingerprint'][:8])}"
    try:
        texts = _texts(record, outcomes, images)
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
    ) as error:  # arrays that are missing or do not fit each other
        raise InputError(
            f"its outcomes cannot be used: {type(error).__name__}: {error}",
            where=file,
            next_step="run the command again that made them",
        ) from error
    for suffix, text in texts.items():
        path = out / run.folder.name / f"{stem}{suffix}"
        write_atomically(path, text.encode("utf-8"))
        print(path)
    account.count += 1


def _texts(record: Mapping[str, Any], outcomes: Outcomes, images: MeasuredImages) -> dict[str, str]:
    """The contents of the files of an evaluation by the ends of their names."""
    of = {name: record[name] for name in OF}
    if outcomes.detections is not None:
        image_set = images.of(outcomes, record["image_set"])
        results = json.dumps(outcomes.detections)
        truth = coco_ground_truth(image_set.detection("test"), image_set.detection_classes)
        info = {**of, "results_sha256": hashlib.sha256(results.encode("utf-8")).hexdigest()}
        return {".results.json": results, ".ground-truth.json": json.dumps({"info": info, **truth})}
    if "predicted" in outcomes.arrays:
        return {".csv": _csv(*_classification(outcomes), of)}
    if "scores" in outcomes.arrays:
        return {".csv": _csv(*_scores(outcomes), of)}
    return {".csv": _csv(*_draws(outcomes), of)}


_Lines = tuple[list[str], Iterable[list[Any]]]
"""The heads of a table and its lines."""


def _classification(outcomes: Outcomes) -> _Lines:
    """``row, true, predicted_1 ...``: the place of the image in the test split, and class numbers, best first."""
    predicted = outcomes.arrays["predicted"]
    heads = ["row", "true", *(f"predicted_{place + 1}" for place in range(predicted.shape[1]))]
    table = zip(
        outcomes.arrays["rows"].tolist(), outcomes.arrays["true"].tolist(), predicted.tolist(), strict=True
    )
    return heads, ([row, true, *classes] for row, true, classes in table)


def _scores(outcomes: Outcomes) -> _Lines:
    """``row, truth_0 ..., score_0 ...``: truth is 1 present, -1 absent, 0 present in difficult objects alone."""
    truth, scores = outcomes.arrays["truth"], outcomes.arrays["scores"]
    classes = range(truth.shape[1])
    heads = ["row", *(f"truth_{c}" for c in classes), *(f"score_{c}" for c in classes)]
    lines = zip(truth.tolist(), scores.tolist(), strict=True)
    return heads, ([row, *present, *scored] for row, (present, scored) in enumerate(lines))


def _draws(outcomes: Outcomes) -> _Lines:
    """``row, draws, right_top1 ...``: in how many draws of the labelled images the test image was right."""
    metrics = [name.removeprefix("right/") for name in outcomes.arrays if name.startswith("right/")]
    draws = int(outcomes.arrays["draws"][0])
    counts = zip(*(outcomes.arrays[f"right/{metric}"].tolist() for metric in metrics), strict=True)
    lines = zip(outcomes.arrays["rows"].tolist(), counts, strict=True)
    heads = ["row", "draws", *(f"right_{metric}" for metric in metrics)]
    return heads, ([row, draws, *right] for row, right in lines)


def _csv(heads: list[str], lines: Iterable[list[Any]], of: Mapping[str, Any]) -> str:
    """A table whose last columns say, in every line, what it is ``of``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*heads, *of])
    writer.writerows([*line, *of.values()] for line in lines)
    return out.getvalue()
