"""Every mistake ends in a message naming the place, the nearest valid name and one next step."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from twinbench.foundation.errors import RunFailure
from twinbench.harness import store


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "quik"], ["unknown study 'quik'", "nearest: quick"]),
        (
            ["run", "quick", "--methods", "simclr,barlow"],
            ["unknown method 'barlow'", "nearest: barlow_twins"],
        ),
        (["run", "quick", "--set", "epoch=3"], ["unknown key 'epoch'", "nearest: epochs"]),
        (["run", "quick", "--set", "optimizer.base_rl=3"], ["'optimizer.base_rl'", "nearest: base_lr"]),
        (["run", "quick", "--set", "epochs"], ["cannot read --set 'epochs'"]),
        (["run", "quick", "--set", "epochs=many"], ["bad value for 'epochs'"]),
        (
            ["pretrain", "simsam", "--image-set", "digit-scenes"],
            ["unknown method 'simsam'", "nearest: simsiam"],
        ),
        (
            ["pretrain", "simclr", "--image-set", "digit-scenes", "--set", "options.temprature=1"],
            ["'temprature'", "nearest: temperature"],
        ),
        (
            ["pretrain", "simclr", "--image-set", "digit-scenes", "--set", "views.blurr=1"],
            ["unknown view key 'blurr'", "nearest: blur"],
        ),
        (
            ["pretrain", "simclr", "--image-set", "digit-scene"],
            ["unknown image set", "nearest: digit-scenes"],
        ),
        (["pretrain", "simclr", "--image-set", "folder:nowhere"], ["nowhere"]),
        (
            ["pretrain", "simclr", "--image-set", "digit-scenes", "--set", "batch_size=100000"],
            ["batch_size 100000 is larger", "--set batch_size="],
        ),
        (["evaluate", "nowhere", "--protocol", "knn", "--image-set", "digit-scenes"], ["no encoder here"]),
        (
            [
                "evaluate",
                "x",
                "--protocol",
                "knn",
                "--image-set",
                "digit-scenes",
                "--label-list",
                "1percent.txt",
            ],
            ["takes no list", "semi-1pct/paper-v3"],
        ),
        (
            ["evaluate", "x", "--protocol", "linear", "--image-set", "digit-scenes"],
            ["more than one variant", "linear/cached-v1", "linear/sgd-v2", "linear/moco-v1"],
        ),
        (
            ["evaluate", "nowhere", "--protocol", "linnear", "--image-set", "digit-scenes"],
            ["unknown protocol 'linnear'", "nearest: linear"],
        ),
        (
            ["pretrain", "moco_v2", "--image-set", "digit-scenes", "--set", "options.queue_length=100"],
            ["queue_length=100", "256"],
        ),
        (
            ["pretrain", "simclr", "--image-set", "digit-scenes", "--set", "views=[{}, {}, {}]"],
            ["takes 2 views", "gives 3"],
        ),
        (["run", "quick", "--set", "epochs=["], ["cannot read the value"]),
        (["run", "quick", "--set", "seed=3"], ["'seed' is not a recipe key", "--seeds"]),
        (["run", "fig5", "--set", "options.lambd=0.1"], ["would overwrite", "options.lambd"]),
        (
            ["run", "quick", "--set", "options.lambd=0.1"],
            ["have no option 'lambd'", "simclr", "--methods barlow_twins"],
        ),
        (
            ["run", "table1", "--scale", "imagenet", "--set", "options.lambd=1", "--dry-run"],
            ["--methods barlow_twins"],
        ),
        (["run", "quick", "--set", "options.lamd=1"], ["unknown key 'lamd'"]),
        (["run", "quick", "--out", "."], ["next:"]),
        (["report", "nowhere", "--out", "x"], ["no runs here", "twinbench run quick"]),
        (["run", "cifar10-cpu", "--data-root", "nowhere"], ["nowhere"]),
    ],
)
def test_wrong_use_ends_with_code_2_and_leaves_nothing(cli, tmp_path, arguments, expected):
    outcome = cli(*arguments)
    assert outcome.code == 2
    for words in expected:
        assert words in outcome.err
    assert "next:" in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_in_a_study_is_named(cli, tiny_study):
    tiny_study.write_text(tiny_study.read_text().replace("recipes:", "recipse:"))
    outcome = cli("run", tiny_study)
    assert outcome.code == 2
    assert "unknown key 'recipse'" in outcome.err
    assert "nearest: recipes" in outcome.err


def test_a_table_over_a_protocol_that_is_not_run_is_refused(cli, tiny_study):
    tiny_study.write_text(
        tiny_study.read_text().replace("protocol: knn/cosine-v1", "protocol: knn/cosine-v9")
    )
    outcome = cli("run", tiny_study)
    assert outcome.code == 2
    assert "nearest: knn/cosine-v1" in outcome.err


def test_a_metric_that_a_protocol_does_not_measure_is_refused_before_any_work(cli, tiny_study, tmp_path):
    tiny_study.write_text(tiny_study.read_text().replace("metric: top1", "metric: top_1", 1))
    outcome = cli("run", tiny_study)
    assert outcome.code == 2
    assert "nearest: top1" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_broken_yaml_is_named(cli, tiny_study):
    tiny_study.write_text("title: [unclosed")
    outcome = cli("run", tiny_study)
    assert outcome.code == 2
    assert "not valid YAML" in outcome.err
    assert str(tiny_study) in outcome.err


def test_an_image_that_cannot_be_read_is_named(cli, tmp_path):
    folder = tmp_path / "photos" / "train" / "cats"
    folder.mkdir(parents=True)
    (folder / "broken.jpg").write_bytes(b"not an image")
    outcome = cli("pretrain", "simclr", "--image-set", f"folder:{tmp_path / 'photos'}")
    assert outcome.code == 2
    assert "broken.jpg" in outcome.err


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_truncated_image_ends_the_command_before_any_work(cli, tiny_study, tmp_path, split):
    for name in ("train", "val", "test"):
        folder = tmp_path / "photos" / name / "cats"
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40), (9 * i, 0, 0)).save(folder / f"{i}.png")
    broken = tmp_path / "photos" / split / "cats" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    photos = f"image_set: folder:{tmp_path / 'photos'}"
    tiny_study.write_text(tiny_study.read_text().replace("image_set: digit-scenes", photos))
    outcome = cli("run", tiny_study)
    assert outcome.code == 2
    assert str(broken) in outcome.err
    assert not (tmp_path / "runs").exists()


def test_an_empty_class_folder_is_named(cli, tmp_path):
    folder = tmp_path / "photos" / "train"
    (folder / "dogs").mkdir(parents=True)
    (folder / "cats").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "cats" / "0.png")
    outcome = cli("pretrain", "simclr", "--image-set", f"folder:{tmp_path / 'photos'}")
    assert outcome.code == 2
    assert "dogs" in outcome.err


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_description_of_an_encoder_is_named(cli, tmp_path, content):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "encoder.json").write_text(content)
    (tmp_path / "encoder" / "encoder.safetensors").write_bytes(b"")
    outcome = cli("evaluate", "encoder", "--protocol", "knn", "--image-set", "digit-scenes")
    assert outcome.code == 2
    assert "encoder.json" in outcome.err


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"recipe.yaml": "colour: blue\n"}, "'colour'"),
        ({"recipe.yaml": "1: 2\n"}, "recipe.yaml"),
        ({"source.yaml": "colour: blue\n"}, "'colour'"),
        ({"notes.txt": "mine\n"}, "no recipe.yaml or source.yaml"),
        (
            {"recipe.yaml": "{method: moco_v2, image_set: a, epochs: 0, options: {imported: {name: a.pth}}}"},
            "an earlier version of twinbench imported",
        ),
    ],
)
def test_what_is_no_run_in_the_run_store_is_left_out_by_name(cli, tmp_path, caplog, files, said):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "runs" / "mine" / name).write_text(text)
    outcome = cli("ls", "runs", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == "[]"
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "mine is left out: " in warning
    assert said in warning


def test_a_read_only_run_folder_marks_nothing_and_ends_with_code_1(cli, tiny_study, monkeypatch):
    """Root may write anywhere, so the refusal is staged where the operating system would give it."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("twinbench.foundation.files.tempfile.mkstemp", refuse)
    outcome = cli("run", tiny_study)
    assert outcome.code == 1
    assert "Permission denied" in outcome.err
    assert "writable folder" in outcome.err


def test_a_failed_write_ends_with_code_1_before_any_work(cli, tiny_study, monkeypatch):
    """A full disk cannot be staged without privileges, so the failing call is the operating system's own."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = cli("run", tiny_study)
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "free some space" in outcome.err


def test_a_runs_folder_that_is_a_file_ends_with_code_1(cli, tiny_study, tmp_path):
    (tmp_path / "taken").write_text("a file")
    outcome = cli("run", tiny_study, "--runs", "taken")
    assert outcome.code == 1
    assert "taken" in outcome.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_runs_folder_ends_with_code_1(cli, tiny_study, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    outcome = cli("run", tiny_study, "--runs", "locked/runs")
    assert outcome.code == 1
    assert "Permission denied" in outcome.err


def test_a_finished_study_needs_no_store_that_can_be_written(cli, finished, monkeypatch):
    def times():
        return {path: path.stat().st_mtime_ns for path in sorted((finished / "runs").rglob("*"))}

    def refuse(folder):
        raise RunFailure("cannot write: Read-only file system", where=folder)

    monkeypatch.setattr(store, "check_writable", refuse)
    before = times()
    outcome = cli("run", "tiny.yaml", "--out", "elsewhere")
    assert outcome.code == 0, outcome.err
    assert times() == before
    table = "tables/main.csv"
    assert (finished / "elsewhere" / table).read_bytes() == (finished / "results/tiny" / table).read_bytes()
    outcome = cli("run", "tiny.yaml", "--seeds", "2", "--out", "elsewhere")
    assert outcome.code == 1
    assert "Read-only file system" in outcome.err


def test_a_non_finite_loss_marks_its_cells_and_the_others_go_on(cli, tiny_study, tmp_path):
    text = tiny_study.read_text().replace("epochs: 2", "epochs: 2\n  optimizer.base_lr: 1.0e+30")
    tiny_study.write_text(text)
    outcome = cli("run", tiny_study)
    assert outcome.code == 1
    assert "the loss became" in outcome.err
    assert "step" in outcome.err
    table = (tmp_path / "results/tiny/tables/main.md").read_text()
    assert "failed" in next(line for line in table.splitlines() if "Barlow Twins" in line)
    assert "failed" not in next(line for line in table.splitlines() if "Random init" in line)
    assert not list(tmp_path.glob("runs/barlow_twins*/encoder"))


TINY_TRAINING = ("--image-set", "digit-scenes", "--set", "backbone.width=8", "--set", "epochs=1")


def test_an_error_of_a_training_comes_out_as_it_is_and_the_run_is_marked(cli, tmp_path):
    outcome = cli("pretrain", "barlow_twins", *TINY_TRAINING, "--set", "optimizer.base_lr=1e30")
    assert outcome.code == 1
    said = outcome.err[outcome.err.index("error: ") :].splitlines()
    assert said[0].startswith("error: the loss became")
    assert sum("next:" in line for line in said) == 1
    (file,) = tmp_path.glob("runs/barlow_twins-*/status.json")
    status = json.loads(file.read_text())
    assert status["status"] == "failed"
    assert said[0] == f"error: {status['error']['what']}"
    assert said[-1] == f"  next:    {status['error']['next']}"
    assert status["error"]["next"] not in status["reason"]


def test_wrong_input_that_only_a_training_finds_keeps_its_code(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = cli("pretrain", "barlow_twins", *TINY_TRAINING, "--tensorboard")
    assert outcome.code == 2
    assert "error: TensorBoard is not installed" in outcome.err
    assert outcome.err.count("next:") == 1
    (file,) = tmp_path.glob("runs/barlow_twins-*/status.json")
    assert json.loads(file.read_text())["status"] == "failed"


def test_a_collapsed_method_shows_no_number(cli, tiny_study, tmp_path, monkeypatch):
    """With the threshold out of reach every trained run counts as collapsed; the measurement has its own tests."""
    monkeypatch.setattr("twinbench.pretraining.diagnostics.MIN_SPREAD", 10.0)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    table = (tmp_path / "results/tiny/tables/main.md").read_text()
    row = next(line for line in table.splitlines() if "Barlow Twins" in line)
    assert "collapsed" in row
    assert "1/sqrt(d)" in table


def test_an_error_inside_an_evaluation_marks_that_cell_only(cli, tiny_study, tmp_path, monkeypatch):
    def break_down(self, encoder, context):
        raise RunFailure("the solver diverged", where="step 3", next_step="lower the rate")

    monkeypatch.setattr("twinbench.downstream.linear.CachedLinear.evaluate", break_down)
    outcome = cli("run", tiny_study)
    assert outcome.code == 1
    table = (tmp_path / "results/tiny/tables/main.md").read_text()
    assert "the solver diverged (step 3)" in table
    assert "lower the rate" not in table
    assert "next:    lower the rate" in outcome.err
    row = next(line for line in table.splitlines() if "Random init" in line)
    assert "failed" in row
    assert any(character.isdigit() for character in row)
    monkeypatch.undo()


def test_an_altered_encoder_is_not_trusted(cli, tiny_study, tmp_path):
    cli("run", tiny_study, "--methods", "random_init")
    weights = next(Path(tmp_path).glob("runs/*/encoder/encoder.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    outcome = cli("evaluate", weights.parent, "--protocol", "knn", "--image-set", "digit-scenes")
    assert outcome.code == 2
    assert "do not match their checksum" in outcome.err


def test_a_record_that_would_take_a_folders_place_is_refused_before_any_work(cli, tiny_study, tmp_path):
    assert (
        cli("pretrain", "random_init", "--image-set", "digit-scenes", "--set", "backbone.width=8").code == 0
    )
    (encoder,) = (tmp_path / "runs").glob("*/encoder")
    outcome = cli("evaluate", encoder, "--protocol", "knn", "--image-set", "digit-scenes", "--out", tmp_path)
    assert outcome.code == 2
    assert "this is a folder" in outcome.err
    assert not list((tmp_path / "runs").glob("*/records/*"))
