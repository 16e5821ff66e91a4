"""Two commits are compared by their own command lines, and by the ratio of medians."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinbench.foundation.errors import InputError, RunFailure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OLD = {"pyproject.toml": '[project]\nscripts = {twinbench = "harness.main:main"}\n[tool.setuptools]\n'}
NEW = {
    "pyproject.toml": '[project]\nscripts = {twinbench = "twinbench.harness.main:main"}\n'
    '[tool.setuptools]\npackage-dir = {"twinbench.harness" = "harness"}\n'
}
MAIN = """
import json, os, pathlib, sys
def main():
    arguments = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    assert sys.argv[1:3] == ["pretrain", "simclr"] and os.environ["OMP_NUM_THREADS"] == "1"
    rate = float(pathlib.Path(arguments["--recipe"], "simclr.yaml").read_text()) * {factor}
    run = pathlib.Path(arguments["--runs"], "run")
    run.mkdir()
    (run / "status.json").write_text(json.dumps({{"images_per_second": rate}}))
"""


@pytest.fixture
def compare_commits(monkeypatch, tmp_path):
    """The program in a repository of its own: two commits that lie about their speed, in the old layout and the new."""
    tools = tmp_path / "repository" / "benchmarks"
    tools.mkdir(parents=True)

    def commit(files, factor, tag):
        (tools.parent / "harness").mkdir(exist_ok=True)
        (tools.parent / "recipes" / "toy").mkdir(parents=True, exist_ok=True)
        for method in ("simclr", "byol"):
            (tools.parent / "recipes" / "toy" / f"{method}.yaml").write_text("100" if tag == "old" else "7")
        (tools.parent / "harness" / "main.py").write_text(MAIN.format(factor=factor))
        for name, text in files.items():
            (tools.parent / name).write_text(text)
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        for command in (["add", "-A"], [*identity, "commit", "-qm", tag], ["tag", tag]):
            subprocess.run(["git", *command], cwd=tools.parent, check=True)

    subprocess.run(["git", "init", "-q", tools.parent], check=True)
    commit({"pyproject.toml": "[project]\n"}, 1, "empty")
    commit(OLD, 1, "old")
    commit(NEW, 3, "new")
    for name in ("compare_commits.py", "measure.py"):
        shutil.copy(BENCHMARKS / name, tools)
    for name in ("compare_commits", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tools))
    import compare_commits

    yield compare_commits
    for name in ("compare_commits", "measure"):
        sys.modules.pop(name, None)


def test_each_commit_trains_by_its_own_code_and_the_recipes_of_the_first(compare_commits, tmp_path):
    sides = [compare_commits.check_out(name, tmp_path / name) for name in ("old", "new")]
    document = compare_commits.compare(sides, ["simclr"], "toy", epochs=1, turns=2)
    assert document["rates"] == {"simclr": {"base": [100.0, 100.0], "head": [300.0, 300.0]}}
    with pytest.raises(RunFailure, match=f"byol at {sides[0].commit} ended with exit code 1"):
        compare_commits.compare(sides, ["byol"], "toy", epochs=1, turns=1)


def test_what_a_commit_has_not_is_refused_before_anything_is_trained(compare_commits, tmp_path, monkeypatch):
    side = compare_commits.check_out("old", tmp_path / "old")
    monkeypatch.setattr(compare_commits.Side, "images_per_second", lambda *_: pytest.fail("trained"))
    for methods, image_set, known in (["simsiam"], "toy", "byol, simclr"), (["simclr"], "toys", "toy"):
        with pytest.raises(InputError, match=known):
            compare_commits.compare([side, side], methods, image_set, epochs=1, turns=1)
    with pytest.raises(InputError, match="'no-such-commit'") as missing:
        compare_commits.check_out("no-such-commit", tmp_path / "none")
    assert missing.value.next_step == "name a commit of this repository; git log lists them"
    with pytest.raises(InputError, match="no command twinbench"):
        compare_commits.check_out("empty", tmp_path / "empty")


def test_the_ratio_is_of_medians_and_its_range_that_of_turns(compare_commits):
    known = {"machine": "m", "python": "3", "torch": "2", "date": "today", "command": "python x"}
    document = {"base": "aaa", "head": "bbb", "image_set": "toy", "epochs": 1, "turns": 3, "device": "CPU"}
    rates = {"simclr": {"base": [100.0, 200.0, 110.0], "head": [200.0, 220.0, 330.0]}}
    text = compare_commits.render({**document, "facts": known, "rates": rates})
    assert "| simclr | 110 (100 to 200) | 220 (200 to 330) | 2.00 (1.10 to 3.00) |" in text
