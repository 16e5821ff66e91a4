"""Files of the run store that a disk has altered: named, not trusted, made again with the same bits."""

import json

import pytest

from twinbench.foundation.documents import SEAL
from twinbench.harness.store import read_json


def contents(folder):
    """The results in the store and the tables, as bytes."""
    patterns = ("runs/*/encoder/*", "runs/*/records/*.safetensors", "results/tiny/tables/*")
    return {file: file.read_bytes() for pattern in patterns for file in folder.glob(pattern)}


def times(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/records/*.json")}


def another_digit(file, key):
    """Change one digit of a number, as a bit that turns over may."""
    text = file.read_text()
    start = text.index(f'"{key}": ') + len(f'"{key}": ')
    place = next(i for i in range(start, len(text)) if text[i].isdigit())
    file.write_text(f"{text[:place]}{int(text[place]) ^ 1}{text[place + 1 :]}")
    json.loads(file.read_text())


@pytest.mark.parametrize(("pattern", "key"), [("records/knn*.json", "value"), ("status.json", "seconds")])
def test_a_number_that_is_another_is_not_believed(cli, tiny_study, finished, pattern, key):
    before = contents(finished)
    (file,) = (finished / "runs").glob(f"barlow_twins*/{pattern}")
    another_digit(file, key)
    assert read_json(file) is None
    ended = cli("run", tiny_study)
    assert ended.code == 0, ended.err
    assert "6 jobs, 5 already finished" in ended.err
    assert f"ALTERED {file.relative_to(finished)}: it" in ended.err
    assert read_json(file) is not None
    assert contents(finished) == before


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_an_encoder_that_is_damaged_is_made_again_and_what_was_measured_of_it_stays(
    cli, tiny_study, finished, name
):
    before, (run,) = contents(finished), (finished / "runs").glob("barlow_twins*")
    lost, stays = run / "records" / "linear--cached-v1.json", run / "records" / "knn--cosine-v1.json"
    lost.unlink()
    measured = times(finished)
    file = run / "encoder" / name
    if name == "encoder.json":
        another_digit(file, "width")
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    named = cli("run", tiny_study)
    assert named.code == 1
    assert named.err.count("FAILED ") == 1
    assert str(file.relative_to(finished)) in named.err
    assert "run the same command again: it makes the encoder again" in named.err
    repaired = cli("run", tiny_study)
    assert repaired.code == 0, repaired.err
    assert contents(finished) == before
    assert measured[stays] == times(finished)[stays], "made twice"


def test_outcomes_that_are_altered_are_named_and_evaluated_again(cli, tiny_study, finished):
    before = contents(finished)
    (outcomes,) = (finished / "runs").glob("barlow_twins*/records/knn*.safetensors")
    outcomes.write_bytes(outcomes.read_bytes()[:-1])
    ended = cli("run", tiny_study)
    assert ended.code == 0, ended.err
    assert ended.err.count("ALTERED ") == 1
    assert f"ALTERED {next(outcomes.parent.glob('knn*.json')).relative_to(finished)}: it" in ended.err
    assert contents(finished) == before


def test_nothing_is_called_altered_that_is_missing_or_of_another_encoder(cli, tiny_study, finished):
    (run,) = (finished / "runs").glob("barlow_twins*")
    (run / "records" / "linear--cached-v1.json").unlink()
    (run / "status.json").unlink()
    ended = cli("run", tiny_study)
    assert ended.code == 0, ended.err
    assert "ALTERED" not in ended.err


def test_a_store_of_an_earlier_version_has_no_seals_and_is_believed(cli, tiny_study, finished):
    for file in (finished / "runs").glob("*/**/*.json"):
        document = json.loads(file.read_text())
        assert document.pop(SEAL), file
        file.write_text(json.dumps(document))
    assert "6 already finished" in cli("run", tiny_study).err
