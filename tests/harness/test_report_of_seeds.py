"""A report of a run store: what one seed of a row has and another lacks is lost, and never averaged away."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from twinbench.encoders.encoder import INFO_FILE
from twinbench.harness.recipes import load_recipe, recipe_hash
from twinbench.harness.records import collect_stored
from twinbench.harness.store import Run, write_json
from twinbench.harness.variants import told_apart
from twinbench.pretraining.build import resolve
from twinbench.reports.study import StudySpec
from twinbench.reports.tables import build_tables

KNN = "knn/cosine-v1"
RECORD = "knn--cosine-v1.json"
TRAINED = {"status": "done", "reason": ""}
COMMAND = "twinbench report runs --out DIR"


@dataclass
class Store:
    """Runs that nobody trained, in a folder."""

    folder: Path

    def run(self, seed, status=TRAINED, **overrides):
        recipe = resolve(load_recipe("digit-scenes", "byol", "digit-scenes", overrides, seed), 32, "print")
        run = Run(self.folder / f"byol-{seed}-{recipe_hash(recipe)}", recipe, recipe_hash(recipe))
        write_json(run.folder / "status.json", status)
        if status["status"] == "done":
            write_json(run.encoder_folder / INFO_FILE, {"sha256": f"sum-{seed}"})
        return run

    def measured(self, seed, value, **overrides):
        run = self.run(seed, **overrides)
        write_json(run.folder / "records" / RECORD, self.document(seed, value))
        return run

    @staticmethod
    def document(seed, value):
        return {
            "protocol": KNN,
            "status": "done",
            "reason": "",
            "image_set": "digit-scenes",
            "image_set_fingerprint": "print",
            "encoder_checksum": f"sum-{seed}",
            "seed": seed,
            "peak_memory_mb": 1.0,
            "seconds": 1.0,
            "device": "cpu",
            "measurements": [{"metric": "top1", "value": value, "stderr": 0.5, "n": 100}],
        }


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def tables_of(runs):
    names = ("knn/cosine-v1", "top1"), ("cost/training-v1", "images_per_second")
    tables = [{"name": str(i), "columns": [{"protocol": p, "metric": m}]} for i, (p, m) in enumerate(names)]
    study = StudySpec.model_validate({"title": "A report", "description": "", "tables": tables})
    return build_tables(study, *collect_stored(runs, told_apart(runs).names), COMMAND)


def shown(table):
    (row,) = table.rows
    (entry,) = row.entries
    return entry.text, "; ".join(dict(table.footnotes)[mark] for mark in entry.marks)


FAILED = {"status": "failed", "reason": "out of memory", "protocol": KNN, "encoder_checksum": ""}


@pytest.mark.parametrize(
    ("status", "record", "told"),
    [
        (TRAINED, FAILED, "failed (seed 2: out of memory)"),
        (TRAINED, None, "not run (seed 2: twinbench evaluate runs/FOLDER/encoder --protocol knn/cosine-v1"),
        (TRAINED, {}, "not run (seed 2: twinbench evaluate runs/FOLDER/encoder --protocol knn/cosine-v1"),
        (
            TRAINED,
            {**Store.document(2, 90.0), "outcomes": {"file": "gone.safetensors", "sha256": "0"}},
            "not run (seed 2: twinbench evaluate",
        ),
        (TRAINED, {**Store.document(2, 90.0), "outcomes": {}}, "not run (seed 2: twinbench evaluate"),
        ({"status": "running", "reason": ""}, None, "not run (seed 2: its training has not ended)"),
        ({"status": "interrupted", "reason": "SIGTERM"}, None, "not run (seed 2: SIGTERM)"),
        ({"status": "failed", "reason": "loss is NaN"}, None, "failed (seed 2: loss is NaN)"),
    ],
    ids=[
        "failed",
        "never",
        "damaged",
        "lost outcomes",
        "unnamed outcomes",
        "training",
        "interrupted",
        "diverged",
    ],
)
def test_a_seed_that_lacks_what_others_have_is_told_of(store, status, record, told):
    runs = [store.measured(0, 50.0), store.measured(1, 52.0), store.run(2, status)]
    if record is not None:
        write_json(runs[2].folder / "records" / RECORD, record)
    table, _ = tables_of(runs)
    text, footnote = shown(table)
    assert text == "51.0 ± 1.4 (2 of 3 seeds)"
    assert f"1 of 3 seeds {told.replace('FOLDER', runs[2].folder.name)}" in footnote
    assert not any("They are filled by" in note for note in table.notes), "a report measures nothing"


def test_the_facts_of_a_training_that_has_not_ended_are_lost_too(store):
    speeds = [{**TRAINED, "images_per_second": speed} for speed in (900.0, 910.0)]
    runs = [store.run(seed, status) for seed, status in enumerate(speeds)]
    runs.append(store.run(2, {"status": "interrupted", "reason": "SIGTERM"}))
    _, table = tables_of(runs)
    assert shown(table)[0] == "905 ± 7 (2 of 3 seeds)"


def test_a_run_that_differs_in_more_than_its_seed_lacks_nothing(store):
    runs = [store.measured(0, 50.0), store.measured(1, 52.0), store.run(2, **{"optimizer.base_lr": 0.123})]
    records, _ = collect_stored(runs, told_apart(runs).names)
    assert {record.status for record in records if record.protocol == KNN} == {"done"}


def test_what_no_seed_has_is_no_loss(store):
    runs = [store.run(seed) for seed in range(2)]
    records, _ = collect_stored(runs, told_apart(runs).names)
    assert KNN not in {record.protocol for record in records}
