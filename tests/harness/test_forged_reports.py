"""Reports that somebody changed with care, lists of hashes and tables included, and files that nobody can read."""

import csv
import gzip
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from twinbench.foundation.documents import unsealed
from twinbench.foundation.outcomes import Outcomes, read_outcomes, write_outcomes
from twinbench.reports import unchanged
from twinbench.reports.build import build_report
from twinbench.reports.digests import digest_of
from twinbench.reports.records import read_records
from twinbench.reports.source import read_source

LINEAR, KNN = "linear/cached-v1", "knn/cosine-v1"


@pytest.fixture
def done(finished):
    return finished / "results/tiny"


@pytest.fixture
def forge(done):
    """Make the report again of changed records or runs: its hashes and tables are then as they should be."""

    def make(records=lambda r: r, runs=lambda r: r):
        source = read_source(done)
        changed, made = records(list(source.records)), runs(list(source.runs))
        assert changed != source.records or made != source.runs
        build_report(source.study, changed, made, done, source.command, draw=False)

    return make


def is_of(record, method, protocol):
    return (record.method, record.protocol) == (method, protocol)


def refused(cli, *words, results="results/tiny"):
    outcome = cli("verify", results)
    assert outcome.code == 2, outcome.out
    for word in words:
        assert word in outcome.err
    return outcome


def rehash(done):
    (done / unchanged.MADE_OF).unlink()
    unchanged.note(done, "", "")


def test_a_report_that_is_made_again_of_the_same_follows(cli, done):
    source = read_source(done)
    build_report(source.study, source.records, source.runs, done, "another command", draw=False)
    assert cli("verify", "results/tiny").code == 0


def test_numbers_copied_from_another_method_do_not_follow(cli, forge):
    def copied(records):
        good = next(r for r in records if is_of(r, "barlow_twins", KNN))
        taken = {"value": good.value, "stderr": good.stderr, "outcomes": good.outcomes}
        return [replace(r, **taken) if is_of(r, "random_init", KNN) else r for r in records]

    forge(copied)
    refused(
        cli,
        f"random_init, seed 0, top1 of {KNN} on digit-scenes: its outcomes are of another encoder checksum",
        "random_init, seed 0 of table main: no record is of its outcomes",
        "are not of this run",
    )


def test_numbers_and_checksums_copied_from_another_method_do_not_follow(cli, forge):
    def copied(records):
        good = next(r for r in records if is_of(r, "barlow_twins", KNN))
        taken = {name: getattr(good, name) for name in ("value", "stderr", "outcomes", "encoder_checksum")}
        return [replace(r, **taken) if is_of(r, "random_init", KNN) else r for r in records]

    forge(copied)
    refused(cli, "random_init, seed 0 of table main: the outcomes", "are not of this run")


@pytest.fixture
def two_seeds(cli, tiny_study):
    outcome = cli("run", tiny_study, "--methods", "random_init", "--seeds", "2", "--out", "results/tiny")
    assert outcome.code == 0, outcome.err


@pytest.fixture
def forge_seeds(two_seeds, tmp_path):
    def make(change):
        source = read_source(tmp_path / "results/tiny")
        records = change(list(source.records))
        build_report(source.study, records, source.runs, tmp_path / "results/tiny", "", draw=False)

    return make


def test_a_seed_that_is_a_copy_of_another_does_not_follow(cli, forge_seeds):
    def copied(records):
        first = {(r.protocol, r.metric): r for r in records if r.seed == 0}
        return [replace(first[r.protocol, r.metric], seed=r.seed, recipe_hash=r.recipe_hash) for r in records]

    forge_seeds(copied)
    outcome = refused(cli, "random_init, seed 1, top1", "its outcomes are of another seed")
    assert "random_init, seed 0, top1" not in outcome.err


def test_a_seed_that_was_left_out_is_missed(cli, forge_seeds):
    forge_seeds(lambda records: [r for r in records if r.seed == 0])
    refused(
        cli,
        f"random_init, seed 1 of table main: there is no record of {KNN}",
        f"random_init, seed 1 of table main: there is no record of {LINEAR}",
        "random_init, seed 1 of table main: no record is of its outcomes",
    )


def test_a_seed_that_was_left_out_of_the_runs_too_leaves_its_outcomes(cli, done, forge):
    kept = {path.name: path.read_bytes() for path in (done / "outcomes").iterdir()}
    forge(
        lambda records: [r for r in records if r.method != "random_init"],
        lambda runs: [r for r in runs if r.method != "random_init"],
    )
    assert cli("verify", "results/tiny").code == 0, "of what is nowhere told nobody can know"
    for name, content in kept.items():
        (done / "outcomes" / name).write_bytes(content)
    refused(cli, "it is of no run of the study")


def test_one_number_of_an_evaluation_that_was_left_out_is_missed(cli, forge):
    forge(lambda records: [r for r in records if not (is_of(r, "barlow_twins", KNN) and r.metric == "top5")])
    refused(cli, "there is no record of top5")


def test_a_row_of_no_run_is_named(cli, forge):
    forge(
        lambda records: [*records, *(replace(r, method="byol") for r in records if r.method == "random_init")]
    )
    refused(cli, "byol, seed 0 of table main: the study has no such run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 99.5}, "value 99.5 is recorded, its outcomes give"),
        ({"value": None}, "value None is recorded, its outcomes give"),
        ({"stderr": 0.01}, "stderr 0.01 is recorded, its outcomes give"),
        ({"stderr": None}, "stderr None is recorded, its outcomes give"),
        ({"n": 12800}, "n 12800 is recorded, its outcomes give 64"),
        ({"image_set_fingerprint": "0" * 64}, "its outcomes are of another image set"),
        ({"metric": "top3"}, "its outcomes have no top3"),
    ],
)
def test_whatever_is_changed_of_a_number_is_named(cli, forge, change, message):
    forge(
        lambda rs: [
            replace(r, **change) if is_of(r, "barlow_twins", LINEAR) and r.metric == "top1" else r for r in rs
        ]
    )
    refused(cli, f"barlow_twins, seed 0, {change.get('metric', 'top1')} of {LINEAR}", message)


def test_the_last_bits_of_numbers_may_differ(cli, done, forge):
    forge(lambda rs: [replace(r, value=r.value * (1 + 1e-13)) if r.metric == "top1" else r for r in rs])
    assert cli("verify", "results/tiny").code == 0
    table = done / "tables" / "main.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    low = next(row["interval_low"] for row in rows if row["interval_low"])
    table.write_text(table.read_text().replace(low, repr(float(low) * (1 + 1e-12))))
    rehash(done)
    assert cli("verify", "results/tiny").code == 0
    table.write_text(table.read_text().replace(repr(float(low) * (1 + 1e-12)), repr(float(low) + 0.1)))
    rehash(done)
    refused(cli, "tables/main.csv: the records give another table")


def test_texts_of_another_version_are_told_apart_from_changed_ones(cli, done):
    table = done / "tables" / "main.md"
    table.write_text(table.read_text().replace("linear", "Linear"))
    rehash(done)
    refused(cli, "tables/main.md: the records give another table")
    document = json.loads((done / "study.json").read_text())
    assert document["version"] == unchanged.reports_version()
    (done / "study.json").write_text(json.dumps({**document, "version": "0.0.1 (abc)"}))
    rehash(done)
    outcome = cli("verify", "results/tiny")
    assert outcome.code == 0, outcome.err
    assert "1 texts of tables are not as" in outcome.out
    assert "they were written by 0.0.1 (abc)" in outcome.out
    numbers = done / "tables" / "main.csv"
    numbers.write_text(numbers.read_text().replace("linear", "Linear"))
    rehash(done)
    refused(cli, "tables/main.csv: the records give another table")


def test_an_environment_that_was_changed_with_its_digest_is_named(cli, done):
    before = (done / "environments.json").read_bytes()
    digest, facts = other_environment(done, lambda digest: "sha256:")
    new = digest_of(json.dumps(facts))
    for file in (done / "environments.json", done / "records.csv"):
        file.write_text(file.read_text().replace(digest, new).replace('"sha256:"', f'"{new}"'))
    assert (done / "environments.json").read_bytes() != before
    outcome = refused(
        cli,
        "records.csv: not as the report was written",
        "environments.json: not as the report was written",
    )
    assert "unexpected" not in outcome.err


def test_a_report_of_an_earlier_version_has_the_facts_in_each_row(cli, done):
    kept = json.loads((done / "environments.json").read_text())
    texts = {digest: json.dumps(facts, sort_keys=True) for digest, facts in kept.items()}
    table = pd.read_csv(done / "records.csv").replace({"environment": texts, "trained_in": texts})
    table.to_csv(done / "records.csv", index=False)
    (done / "environments.json").unlink()
    rehash(done)
    outcome = cli("verify", "results/tiny")
    assert outcome.code == 0, outcome.err


def test_what_is_only_hashed_is_said(cli, done):
    count = 1 + len(list((done / "figures").iterdir()))
    assert (
        f"{count} files, the page and the figures, are as they were written"
        in cli("verify", "results/tiny").out
    )


def test_records_of_an_earlier_version_are_counted_beside_new_ones(cli, forge):
    def earlier(records):
        taken = {"outcomes": "", "image_set_fingerprint": "", "trained_in": ""}
        return [replace(r, **taken) if r.method == "random_init" else r for r in records]

    forge(earlier, lambda runs: [replace(r, outcomes={}) if r.method == "random_init" else r for r in runs])
    outcome = cli("verify", "results/tiny")
    assert outcome.code == 0, outcome.err
    assert "4 numbers follow from the outcomes" in outcome.out
    assert "not computed again: 4 numbers, of which no test items are recorded" in outcome.out


def test_reports_on_a_store_and_comparisons_follow(cli, finished):
    assert cli("report", "runs", "--out", "results/all").code == 0
    runs = sorted((finished / "runs").iterdir())
    measured = ("--protocol", KNN, "--image-set", "digit-scenes", "--out", "results/side", "--workers", "1")
    compared = cli("compare", *runs, *measured)
    assert compared.code == 0, compared.err
    for name in ("all", "side"):
        outcome = cli("verify", f"results/{name}")
        assert outcome.code == 0, outcome.err
        assert "numbers follow from the outcomes" in outcome.out


def rewritten(done, change):
    """The outcomes of a record, changed, with the checksum that goes with them everywhere."""
    source = read_source(done)
    record = next(r for r in source.records if is_of(r, "barlow_twins", KNN))
    run = next(r for r in source.runs if record.outcomes in r.outcomes)
    path = run.outcomes[record.outcomes]
    outcomes = read_outcomes(path, record.outcomes)
    new = write_outcomes(path, Outcomes(change(dict(outcomes.arrays)), outcomes.detections), outcomes.about)
    path.rename(path.with_name(f"{new}.safetensors"))
    for file in (done / "records.csv", done / "study.json"):
        file.write_text(file.read_text().replace(record.outcomes, new))


def without(*names):
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


def crafted_study(done, change):
    document = json.loads((done / "study.json").read_text())
    change(document)
    (done / "study.json").write_text(json.dumps(document))


def quote(document):
    document["study"]["tables"][0]["quoted"] = {"file": "../../secrets", "columns": {"top1": "Linear top-1"}}


def append(done, text):
    with (done / "records.csv").open("ab") as file:
        file.write(text)


def other_environment(done, rename):
    """Another version of torch in an environment, under a name that is made of its own."""
    file = done / "environments.json"
    kept = json.loads(file.read_text())
    digest, facts = kept.popitem()
    other = {**facts, "torch": "1.0"}
    file.write_text(json.dumps({**kept, rename(digest): other}))
    return digest, other


def environment(done, text):
    pd.read_csv(done / "records.csv").assign(environment=text).to_csv(done / "records.csv", index=False)


NO_ENVIRONMENT = "that environments.json does not have"
DAMAGES = {
    "environments that are gone": (lambda d: (d / "environments.json").unlink(), NO_ENVIRONMENT),
    "environments that are no JSON": (
        lambda d: (d / "environments.json").write_text("{"),
        "the environments cannot be read",
    ),
    "an environment of another torch": (
        lambda d: other_environment(d, lambda digest: digest),
        "are not those that it is the digest of",
    ),
    "records that are no text": (lambda d: append(d, b"\xff\xfe"), "the records cannot be read"),
    "a field that is too long": (lambda d: append(d, b"x" * 200_000), "the records cannot be read"),
    "too many fields": (lambda d: append(d, b"," * 200 + b"\n"), "more fields than columns"),
    "an environment that is no JSON": (lambda d: environment(d, "torch"), NO_ENVIRONMENT),
    "an environment that is a list": (lambda d: environment(d, "[]"), NO_ENVIRONMENT),
    "a study that is no JSON": (lambda d: (d / "study.json").write_text("{"), "this file cannot be read"),
    "a study that is a list": (lambda d: (d / "study.json").write_text("[]"), "this file cannot be read"),
    "a run that is no run": (
        lambda d: crafted_study(d, lambda document: document["runs"][0].update(seed=[])),
        "seed of a run is []",
    ),
    "outcomes with a path for a name": (
        lambda d: crafted_study(d, lambda document: document["runs"][0].update(outcomes=["../../runs/x"])),
        "'../../runs/x' is no SHA-256",
    ),
    "a quotation of no file": (lambda d: crafted_study(d, quote), "unknown file of published numbers"),
    "outcomes without predictions": (
        lambda d: rewritten(d, without("predicted")),
        "its outcomes cannot be used: KeyError",
    ),
    "outcomes without the number of classes": (
        lambda d: rewritten(d, without("classes")),
        "its outcomes have no top5",
    ),
    "predictions of fewer items": (
        lambda d: rewritten(d, lambda arrays: {**arrays, "true": arrays["true"][:5]}),
        "its outcomes cannot be used",
    ),
    "outcomes of no item": (
        lambda d: rewritten(d, lambda arrays: {**arrays, "true": np.array(3), "predicted": np.zeros((0, 1))}),
        "its outcomes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_explained(cli, done, damage):
    harm, message = DAMAGES[damage]
    harm(done)
    outcome = refused(cli, message)
    assert "unexpected" not in outcome.err
    assert "next:" in outcome.err


@pytest.mark.parametrize("name", ["/dev/zero", "../../tiny.yaml", "figures"])
def test_a_list_of_files_reaches_no_farther_than_the_report(done, finished, name):
    made = json.loads((done / unchanged.MADE_OF).read_text())
    digest = unchanged.hashlib.sha256((finished / "tiny.yaml").read_bytes()).hexdigest()
    (done / unchanged.MADE_OF).write_text(json.dumps({**made, "files": {**made["files"], name: digest}}))
    assert unchanged.changed_files(done) == [name]


def test_a_store_on_another_disk_is_copied(cli, done, monkeypatch, tmp_path):
    def refuse(path, other):
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refuse)
    assert cli("report", "runs", "--out", "results/all").code == 0
    assert cli("verify", "results/all").code == 0
    stored = {path.read_bytes() for path in (tmp_path / "runs").rglob("records/*.safetensors")}
    kept = list((tmp_path / "results/all/outcomes").iterdir())
    assert {path.read_bytes() for path in kept} == stored
    assert len(kept) == 4
    assert all(path.stat().st_nlink == 1 for path in kept)


def test_only_outcomes_are_kept(cli, finished):
    for record in (finished / "runs").rglob("records/*.json"):
        record.with_suffix(".json.bak").write_text("an editor's")
        record.with_name(f"{record.stem}.notes").write_text("mine")
    assert cli("report", "runs", "--out", "results/all").code == 0
    kept = list((finished / "results/all/outcomes").iterdir())
    assert {path.suffix for path in kept} == {".safetensors"}
    assert all(path.stat().st_nlink == 2 for path in kept), "a second name of the file in the store"


def test_records_say_which_image_set_by_its_fingerprint(done, finished):
    kept = [json.loads(file.read_text()) for file in (finished / "runs").rglob("records/*.json")]
    assert {r.image_set_fingerprint for r in read_records(done / "records.csv")} == {
        document["image_set_fingerprint"] for document in kept
    }


def damaged(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [damaged, emptied])
def test_a_study_makes_damaged_outcomes_again(cli, tiny_study, done, tmp_path, harm):
    (lost, *_) = sorted((tmp_path / "runs").glob("barlow*/records/*.safetensors"))
    before = lost.read_bytes()
    harm(lost)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    assert lost.read_bytes() == before
    assert cli("verify", "results/tiny").code == 0


def test_a_report_names_no_outcomes_of_an_encoder_that_is_gone(cli, tiny_study, done, tmp_path):
    (record, *_) = sorted((tmp_path / "runs").glob("barlow*/records/linear*.json"))
    document = unsealed(record.read_text())
    record.write_text(json.dumps({**document, "encoder_checksum": "of another"}))
    assert cli("report", "runs", "--out", "results/all").code == 0
    named = (tmp_path / "results/all/study.json").read_text()
    assert document["outcomes"]["sha256"] not in named
    assert cli("verify", "results/all").code == 0
