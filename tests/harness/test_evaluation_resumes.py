"""An evaluation that was stopped goes on from its checkpoint, which is in the run until the record is."""

import json
import math
import shutil

import pytest

from twinbench.downstream import checkpoints

PROTOCOL = "linear/places205-v2"


@pytest.fixture
def encoder(cli, photos):
    """A run with random weights; its evaluation takes 14 steps."""
    words = ["--set", "backbone.width=4", "--recipe", "digit-scenes"]
    outcome = cli("pretrain", "random_init", "--image-set", f"folder:{photos}", *words)
    assert outcome.code == 0, outcome.err
    (run,) = photos.parent.glob("runs/random_init-*")
    return run


@pytest.fixture
def stopped(monkeypatch):
    """Let evaluations write a checkpoint after every step, and stop in the middle."""
    write = checkpoints.save_checkpoint

    def write_and_stop(folder, step, state):
        write(folder, step, state)
        if step % 5 == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_SECONDS", 0.0)
        patched.setattr(checkpoints, "_SHARE", math.inf)
        patched.setattr(checkpoints, "save_checkpoint", write_and_stop)
        yield patched


def evaluation(encoder, photos, *more):
    return ["evaluate", encoder, "--protocol", PROTOCOL, "--image-set", f"folder:{photos}", *more]


def test_the_same_command_goes_on_and_leaves_the_record_alone(cli, encoder, photos, tmp_path, stopped):
    assert cli(*evaluation(encoder, photos)).code == 75
    shutil.copytree(encoder, tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "unfinished")
    assert next(path.name for path in encoder.glob("unfinished/*")).startswith("linear-places205-v2-")
    stopped.undo()
    steps = []
    read = checkpoints.load_latest
    stopped.setattr(checkpoints, "load_latest", lambda folder: steps.append(read(folder)) or steps[-1])
    records = []
    for run in (encoder, tmp_path / "whole"):
        outcome = cli(*evaluation(run, photos))
        assert outcome.code == 0, outcome.err
        records.append(json.loads((run / "records" / "linear--places205-v2.json").read_text()))
        assert not (run / "unfinished").exists()
        # each file of a lease has the next number: pretraining, the evaluation that was stopped, and this one
        assert [path.name for path in run.glob(".lease/*")] == ["000000003.free"]
    assert [state and state["step"] for state in steps] == [5, None]
    for key in ("measurements", "outcomes", "details", "remarks"):
        assert records[0][key] == records[1][key]


def test_each_evaluation_has_a_checkpoint_of_its_own(cli, encoder, photos, tmp_path, stopped):
    """It lies where the record will be: in the run, or beside the file that is asked for."""
    for seed in ("0", "1", "1", "2"):
        assert cli(*evaluation(encoder, photos, "--seed", seed, "--out", "record.json")).code == 75
    assert len(list(encoder.glob("unfinished/*"))) == 1
    assert len(list(tmp_path.glob("record.json.unfinished/*"))) == 2


def test_an_encoder_in_no_run_has_its_checkpoint_beside_its_record(cli, encoder, photos, tmp_path, stopped):
    shutil.copytree(encoder / "encoder", tmp_path / "elsewhere" / "encoder")
    words = evaluation(tmp_path / "elsewhere" / "encoder", photos)
    assert cli(*words, "--out", "record.json").code == 75
    assert list(tmp_path.glob("record.json.unfinished/*/training/step-*.pt"))
    assert cli(*words).code == 0, "without a place for it none is written"
