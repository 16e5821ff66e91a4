"""Records with their outcomes are replaced together: by whatever record, and wherever a process is killed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from twinbench.foundation.outcomes import Outcomes, detections_file, is_whole, pack, read_outcomes
from twinbench.harness.record_files import outcomes_beside, replace_record
from twinbench.harness.store import outcomes_of

ABOUT = {"encoder_checksum": "abc", "protocol": "p"}
FOUND = [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]
CONTENTS = {
    "nothing": None,
    "numbers": pack(Outcomes({"n": np.arange(3)}), ABOUT),
    "other numbers": pack(Outcomes({"n": np.arange(5)}), ABOUT),
    "detections": pack(Outcomes({"n": np.arange(3)}, FOUND), ABOUT),
    "other detections": pack(Outcomes({"n": np.arange(3)}, FOUND * 2), ABOUT),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Thousands of files are written here, and a busy disk takes its time to sync each."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["in a run", "elsewhere"])
def path(request, tmp_path):
    """Where a record is, among files that are not its own."""
    folder = tmp_path / "run" / "records"
    folder.mkdir(parents=True)
    (folder / "another.safetensors").write_bytes(CONTENTS["numbers"].content)
    if request.param == "in a run":
        (tmp_path / "run" / "recipe.yaml").write_text("")
    else:
        (folder / "knn.safetensors").write_bytes(b"weights")
        (folder / "knn.coco.json.gz").write_bytes(b"mine")
    return folder / "knn.json"


def files(path):
    """The files there, apart from temporary ones, which a killed process leaves."""
    return {file.name for file in path.parent.iterdir() if not file.name.startswith(".")}


def of_the_record(path):
    """The record there with what it names; it must have that."""
    if not path.exists():
        return set()
    content = json.loads(path.read_text())
    if "outcomes" not in content:
        return {path.name}
    file = outcomes_of(path, content)
    assert is_whole(file, content["outcomes"]["sha256"]), "a record without its outcomes"
    more = detections_file(file)
    found = read_outcomes(file, content["outcomes"]["sha256"]).detections
    return {path.name, file.name, *([more.name] if found is not None else [])}


def write(path, content):
    replace_record(path, {"protocol": "p", "content": content}, CONTENTS[content])


@pytest.mark.parametrize("before", CONTENTS)
@pytest.mark.parametrize("after", CONTENTS)
def test_a_record_that_is_replaced_takes_its_outcomes_with_it(path, before, after):
    foreign = {file: (path.parent / file).read_bytes() for file in files(path)}
    for content in (before, after, after, before):
        write(path, content)
        assert json.loads(path.read_text())["content"] == content
        assert files(path) == of_the_record(path) | foreign.keys()
    assert {file: (path.parent / file).read_bytes() for file in foreign} == foreign


class Killed(BaseException):
    pass


@pytest.fixture
def killed_after(monkeypatch):
    """Run something and end it before a step on the disk; whether it was ended."""

    def run(steps, task):
        left = [steps]

        def counted(step):
            def do(*arguments, **named):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return step(*arguments, **named)

            return do

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", counted(os.replace))
            patched.setattr(Path, "unlink", counted(Path.unlink))
            try:
                task()
            except Killed:
                return True
        return False

    return run


@pytest.mark.parametrize("before", CONTENTS)
@pytest.mark.parametrize("after", CONTENTS)
def test_wherever_it_is_killed_the_record_has_its_outcomes_and_the_next_leaves_none_behind(
    path, before, after, killed_after
):
    foreign = files(path)
    kept = path.parent.parent / "kept"
    write(path, before)
    shutil.copytree(path.parent, kept)
    steps = 0
    while True:
        shutil.rmtree(path.parent)
        shutil.copytree(kept, path.parent)
        ended = killed_after(steps, lambda: write(path, after))
        of_the_record(path)
        if not ended:
            break
        assert json.loads(path.read_text())["content"] in (before, after)
        for content in (after, before):
            write(path, content)
            assert files(path) == of_the_record(path) | foreign
        steps += 1
    assert steps >= 1


def test_outcomes_that_a_copy_of_a_record_names_stay(tmp_path):
    write(tmp_path / "a.json", "numbers")
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    write(tmp_path / "b.json", "other numbers")
    assert of_the_record(tmp_path / "a.json") | of_the_record(tmp_path / "b.json") == files(
        tmp_path / "a.json"
    )
    assert len(files(tmp_path / "a.json")) == 4


def test_outcomes_that_were_copied_out_of_a_store_go_with_their_record(tmp_path):
    (tmp_path / "run" / "records").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("")
    write(tmp_path / "run" / "records" / "knn.json", "detections")
    copy = shutil.copytree(tmp_path / "run" / "records", tmp_path / "mine") / "knn.json"
    assert files(copy) == {"knn.json", "knn.safetensors", "knn.coco.json.gz"}
    write(copy, "numbers")
    assert files(copy) == {"knn.json", outcomes_beside(copy)[0].name}


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b'{"outcomes": 7}', b'{"outcomes": {"file": 7, "sha256": 7}}']
)
def test_a_damaged_record_is_replaced(path, damage):
    foreign = files(path)
    write(path, "numbers")
    path.write_bytes(damage)
    write(path, "detections")
    assert files(path) == of_the_record(path) | foreign


def test_damaged_outcomes_go_too(path):
    foreign = files(path)
    for content in ("numbers", "other numbers", "numbers"):
        write(path, content)
        outcomes_of(path, json.loads(path.read_text())).write_bytes(b"")
        write(path, "nothing")
        assert files(path) == {path.name} | foreign
