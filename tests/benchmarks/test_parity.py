"""Parity with the authors' code: what is compared is complete, and what differs is found.

The comparisons themselves run where TWINBENCH_OFFICIAL names a folder of clones (see `benchmarks/parity.py`).
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twinbench.foundation.errors import InputError, RunFailure
from twinbench.pretraining.build import build_method
from twinbench.pretraining.recipe import Recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHODS = ("barlow_twins", "simclr", "byol", "swav", "simsiam", "moco_v2")
IN_TORCH = ("barlow_twins", "swav", "simsiam", "moco_v2")


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import parity

    return parity


@pytest.fixture
def parity_ours(parity):
    import parity_ours

    return parity_ours


@pytest.fixture
def small(parity):
    """A subject of its own size, for trainings of a second: Barlow Twins with a narrow network of ten layers."""
    subject = replace(parity.SUBJECTS["barlow_twins"], sizes=(16, 16))
    recipe = subject.recipe(12)
    recipe["backbone"] |= {"name": "resnet10", "width": 8}
    return subject, Recipe.model_validate(recipe)


def theirs_of(subject, method):
    """Names and shapes as in the authors' code, made from ours by hand for the methods in torch."""
    state = {name: tuple(value.shape) for name, value in method.state_dict().items()}
    rename = {
        "Barlow Twins": lambda name: name,
        "SimSiam": lambda name: name.replace("projector.", "encoder.fc.").replace("backbone.", "encoder."),
        "MoCo v2": lambda name: (
            name.replace("key_projector.", "encoder_k.fc.")
            .replace("key_backbone.", "encoder_k.")
            .replace("projector.", "encoder_q.fc.")
            .replace("backbone.", "encoder_q.")
            .replace("queue_pointer", "queue_ptr")
        ),
        "SwAV": lambda name: name.replace("projector.", "projection_head.").removeprefix("backbone."),
    }[subject.title]
    shapes = {rename(name): shape for name, shape in state.items()}
    if subject.title == "MoCo v2":
        shapes |= {"queue": shapes["queue"][::-1], "queue_ptr": (1,)}
    if subject.title == "SwAV":
        del shapes["queue"]
    if subject.title == "Barlow Twins":
        shapes |= {"bn.running_mean": (64,), "bn.running_var": (64,)}
    if subject.title == "SimSiam":
        shapes |= {"encoder.fc.6.bias": (64,)}
    return {name: np.random.default_rng(len(name)).random(shape) for name, shape in shapes.items()}, state


@pytest.mark.parametrize("method", IN_TORCH)
def test_every_weight_has_its_counterpart_and_keeps_its_values(parity, method):
    subject = parity.SUBJECTS[method]
    built = build_method(Recipe.model_validate(subject.recipe(12)))
    theirs, shapes = theirs_of(subject, built)
    ours = parity.translated(subject, theirs, shapes)
    trained = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert trained <= ours.keys()
    assert all(ours[name].shape == shapes[name] for name in ours)
    missing = next(name for name in theirs if name.endswith("bn1.weight"))
    with pytest.raises(RunFailure, match=r"no weights of the authors' for .*bn1\.weight"):
        parity.translated(subject, {k: v for k, v in theirs.items() if k != missing}, shapes)
    with pytest.raises(RunFailure, match="nothing is known of the authors' weight head"):
        parity.translated(replace(subject, names=subject.names[:1]), {"head": np.zeros(1)}, shapes)


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_the_other_frameworks_names_reach_every_trained_weight_once(parity, method):
    subject = parity.SUBJECTS[method]
    built = build_method(Recipe.model_validate(subject.recipe(12)))
    reached = [new for _, new in subject.names if new]
    assert len(reached) == len(set(reached))
    assert {name for name, parameter in built.named_parameters() if parameter.requires_grad} <= {*reached}


def test_a_kernel_and_a_matrix_of_another_framework_are_turned(parity):
    subject = parity.SUBJECTS["byol"]
    kernel, matrix = np.arange(7 * 7 * 3 * 64.0).reshape(7, 7, 3, 64), np.arange(512 * 64.0).reshape(512, 64)
    names = {"online/encoder/~/initial_conv/w": kernel, "online/projector/linear/w": matrix}
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), "projector.0.weight": (64, 512)}
    ours = parity.translated(subject, names, shapes)
    assert ours["backbone.conv1.weight"][5, 1, 2, 4] == kernel[2, 4, 1, 5]
    assert ours["projector.0.weight"][3, 9] == matrix[9, 3]


def test_the_same_training_agrees_and_a_changed_constant_does_not(parity, parity_ours, small):
    subject, recipe = small
    first = parity_ours.train(subject, recipe, 12)
    again = parity_ours.train(subject, recipe, 12, first.initial)
    assert parity.differences(first, again) == parity.Differences(0.0, 0.0, 0.0)
    assert parity.differences(first, again).agree
    changes = {
        "weight decay": {"optimizer": recipe.optimizer.model_copy(update={"weight_decay": 1.5e-6})},
        "momentum": {"optimizer": recipe.optimizer.model_copy(update={"momentum": 0.9001})},
        "end of the cosine": {"schedule": recipe.schedule.model_copy(update={"final_factor": 0.002})},
        "lambda": {"options": recipe.options | {"lambd": 0.005}},
        "another step of warm-up": {"schedule": recipe.schedule.model_copy(update={"warmup_epochs": 11})},
    }
    for name, change in changes.items():
        other = parity_ours.train(subject, recipe.model_copy(update=change), 12, first.initial)
        found = parity.differences(first, other)
        assert not found.agree, name
        assert found.weights > 10 * parity.BAR, name


def test_a_trajectory_is_kept_and_what_is_not_a_number_disagrees(parity, parity_ours, small, tmp_path):
    subject, recipe = small
    made = parity_ours.train(subject, recipe, 2)
    made.save(tmp_path / "kept.npz")
    kept = parity_ours.Trajectory.load(tmp_path / "kept.npz")
    assert parity.differences(made, kept) == parity.Differences(0.0, 0.0, 0.0)
    broken = replace(kept, losses=np.array([1.0, np.nan]))
    assert not parity.differences(broken, made).agree
    moved = {**kept.final, "queue_pointer": np.array(16)}
    start = {**kept.initial, "queue_pointer": np.array(0)}
    pointing = replace(kept, final=moved, initial=start)
    assert parity.differences(pointing, pointing).weights == 0
    elsewhere = replace(pointing, final={**moved, "queue_pointer": np.array(17)})
    assert parity.differences(pointing, elsewhere).weights == np.inf


def test_views_are_a_function_of_the_step_and_share_their_image(parity):
    import parity_views

    first, small = parity_views.prepared_views(3, 4, (32, 24))
    assert first.shape == (4, 3, 32, 32)
    assert small.shape == (4, 3, 24, 24)
    assert 0 <= first.min() < first.max() <= 1
    assert np.array_equal(parity_views.prepared_views(3, 4, (32,))[0], first)
    assert not np.array_equal(parity_views.prepared_views(4, 4, (32,))[0], first)
    means = [view[:, :, :6, :6].mean((2, 3)).ravel() for view in (first, small)]
    assert np.corrcoef(*means)[0, 1] > 0.9


def clone(folder, files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("pass\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", folder, *identity, *command], check=True)


def test_a_missing_clone_is_named_with_the_command_that_makes_it(parity, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        parity.check_clones(tmp_path / "none", ["simsiam"])
    (tmp_path / "SimSiam-main").mkdir()
    with pytest.raises(InputError, match="SimSiam needs a clone in a folder named simsiam") as missing:
        parity.check_clones(tmp_path, ["simsiam"])
    assert missing.value.nearest == "SimSiam-main"
    assert missing.value.next_step.endswith(f"facebookresearch/simsiam {tmp_path}/simsiam")
    clone(tmp_path / "moco", ["README.md"])
    with pytest.raises(InputError, match=r"this clone has no main_moco\.py, moco/builder\.py") as emptied:
        parity.check_clones(tmp_path, ["moco_v2"])
    assert "checkout 7397dfe" in emptied.value.next_step


def test_the_commit_of_a_clone_says_when_its_files_were_changed(parity, tmp_path):
    clone(tmp_path / "simsiam", ["main_simsiam.py", "simsiam/builder.py", "README.md"])
    files = parity.SUBJECTS["simsiam"].clones[0].files
    commit = parity.commit_of(tmp_path / "simsiam", files)
    assert len(commit) == 12
    (tmp_path / "simsiam" / "README.md").write_text("another\n")
    assert parity.commit_of(tmp_path / "simsiam", files) == commit
    (tmp_path / "simsiam" / "simsiam" / "builder.py").write_text("another\n")
    assert parity.commit_of(tmp_path / "simsiam", files) == f"{commit}+changes"


def row(parity, method="simsiam", **changes):
    values = {"processes": 1, "steps": 30, "commits": {"simsiam": "a7bc1772896d"}, "ours": "abc"}
    values |= {"first_loss": -0.025, "last_loss": -0.5, "loss": 1e-14, "weights": 2e-13, "rate": 0.0}
    return parity.Row(method, **values | changes)


def document():
    names = ("machine", "python", "commit", "date", "command")
    return {"device": "a processor", "facts": dict.fromkeys(names, "")}


def test_the_page_has_a_row_for_each_comparison_and_notes_on_its_methods(parity):
    rows = [
        row(parity),
        row(parity, processes=2, weights=1e-6),
        row(parity, method="byol", versions={"jax": "1"}),
    ]
    text = parity.page(rows, ["simclr"], document())
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    measured = ["-0.025, -0.5", "1.0e-14"]
    assert lines[2][:2] + lines[2][4:] == ["BYOL", "1", *measured, "2.0e-13", "0", "agrees"]
    assert lines[3] == ["SimSiam", "1", "simsiam a7bc1772896d", "30", *measured, "2.0e-13", "0", "agrees"]
    assert lines[4][6:] == ["1.0e-06", "0", "**does not agree**"]
    assert lines[5] == ["SimCLR", *[""] * 7, "not compared: no interpreter given"]
    assert "in the authors' interpreters jax 1" in text
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["What is set for all", "SimCLR", "BYOL", "SimSiam"]


def test_every_method_has_notes_of_both_kinds(parity):
    text = parity.page([row(parity, method=method) for method in METHODS], [], document())
    sections = text.split("## ")[2:]
    assert [section.partition("\n")[0] for section in sections] == [parity.SUBJECTS[m].title for m in METHODS]
    for section in sections:
        assert section.count("What had to be set so that they match:\n\n- ") == 1
        assert section.count("Where our recipe differs on purpose:\n\n- ") == 1


def run(parity, monkeypatch, *options):
    """The program in this process; only what it starts is in others."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/parity.py", *map(str, options)])
    parity.main()


def test_what_cannot_be_done_is_refused_before_anything_runs(parity, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parity, "compare", lambda *_: pytest.fail("ran"))
    for options, said in (
        (["--methods", "simsiams"], "nearest: simsiam"),
        (["--interpreter", "swav=python"], "unknown method with an interpreter of its own 'swav'"),
        (["--interpreter", f"byol={tmp_path}/python"], "no interpreter at"),
        (["--methods", "swav"], "SwAV needs a clone in a folder named swav"),
        (["--out", tmp_path], "this is a folder"),
    ):
        with pytest.raises(InputError) as refused:
            run(parity, monkeypatch, "--official", tmp_path, *options)
        assert said in str(refused.value)
    with pytest.raises(SystemExit):
        run(parity, monkeypatch, "--official", tmp_path, "--steps", 13)
    assert "must be even and 12 or more, not 13" in capsys.readouterr().err


@pytest.fixture
def moco(tmp_path):
    """A clone that has the files but does nothing."""
    clone(tmp_path / "moco", ["main_moco.py", "moco/builder.py"])
    return ["--official", tmp_path, "--methods", "moco_v2", "--steps", 12, "--out", tmp_path / "parity.md"]


def test_a_kept_comparison_is_not_made_again_and_decides_on_the_exit_code(
    parity, monkeypatch, tmp_path, moco
):
    asked = [parity._question(tmp_path, "moco_v2", processes, 12) for processes in (1, 2)]
    monkeypatch.setattr(parity, "compare", lambda *_: pytest.fail("ran"))
    monkeypatch.setattr(parity, "_is_unchanged", lambda commit: commit == asked[0].ours)
    kept, page = tmp_path / "kept.jsonl", tmp_path / "parity.md"

    def keep(difference):
        found = {"first_loss": 1.0, "last_loss": 1.0, "loss": difference, "weights": 0.0, "rate": 0.0}
        kept.write_text("".join(json.dumps(vars(replace(each, **found))) + "\n" for each in asked))

    keep(1e-12)
    run(parity, monkeypatch, *moco, "--keep", kept)
    assert "does not agree" not in page.read_text()
    assert str(tmp_path) not in page.read_text()
    keep(1e-3)
    with pytest.raises(SystemExit) as ended:
        run(parity, monkeypatch, *moco, "--keep", kept)
    assert ended.value.code == 1
    assert page.read_text().count("does not agree") == 2
    with pytest.raises(SystemExit):
        run(parity, monkeypatch, *moco, "--keep", kept, "--processes", 2)
    assert page.read_text().count("does not agree") == 1
    # made by other code of ours
    monkeypatch.setattr(parity, "_is_unchanged", lambda commit: False)
    with pytest.raises(pytest.fail.Exception, match="ran"):
        run(parity, monkeypatch, *moco, "--keep", kept)


def test_what_was_kept_holds_while_the_code_that_computes_is_the_same(parity):
    here = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=BENCHMARKS, capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run(["git", "diff", "--quiet", here, "--", *parity._COMPUTES], cwd=BENCHMARKS.parent)
    assert parity._is_unchanged(here) == (changed.returncode == 0)
    assert not parity._is_unchanged("")
    assert not parity._is_unchanged(f"{here}+changes")
    assert not parity._is_unchanged("0" * 12)


@pytest.mark.programs
def test_a_clone_that_does_not_run_is_a_failure_that_says_so(parity, monkeypatch, tmp_path, moco):
    with pytest.raises(RunFailure, match=r"parity_theirs\.py ended with exit code 1") as failed:
        run(parity, monkeypatch, *moco)
    assert "module 'main_moco' has no attribute 'parser'" in str(failed.value)
    assert not (tmp_path / "parity.md").exists()


official = pytest.mark.skipif(
    "TWINBENCH_OFFICIAL" not in os.environ,
    reason="runs the authors' code: set TWINBENCH_OFFICIAL to a folder of clones (benchmarks/parity.py)",
)


@official
@pytest.mark.programs
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", IN_TORCH)
def test_our_method_trains_as_the_authors_code_does(parity, method, processes):
    folder = Path(os.environ["TWINBENCH_OFFICIAL"])
    parity.check_clones(folder, [method])
    found = parity.compare(folder, method, processes, 12)
    assert found.differences.agree, found


@official
@pytest.mark.programs
def test_a_change_in_the_authors_code_is_found(parity, tmp_path):
    clones = Path(os.environ["TWINBENCH_OFFICIAL"])
    shutil.copytree(clones / "simsiam", tmp_path / "simsiam")
    builder = tmp_path / "simsiam" / "simsiam" / "builder.py"
    builder.write_text(builder.read_text().replace("z1.detach()", "z2.detach()"))
    found = parity.compare(tmp_path, "simsiam", 1, 12)
    assert found.commits["simsiam"].endswith("+changes")
    assert not found.differences.agree
