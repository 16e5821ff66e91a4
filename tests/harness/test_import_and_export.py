"""Encoders from elsewhere: imported, exported, and evaluated in a study beside what is trained here."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from twinbench.data.catalogue import load_image_set
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.documents import unsealed
from twinbench.harness.execute import execute
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.plan import Job
from twinbench.harness.published import imported_runs
from twinbench.harness.store import stored_runs
from twinbench.harness.watch import PlainLines

IMAGES = "image_set: digit-scenes"
STUDY = """
title: Imported
description: Two checkpoints from elsewhere.
image_set: digit-scenes
encoders: encoders
limit: {train: 64, val: 32, test: 32}
tables:
  - name: main
    title: kNN
    columns: [{protocol: knn/cosine-v1, metric: top1, label: kNN top-1}]
"""


def backbone_state(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone("resnet10", 8).state_dict()


def write_moco(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"module.encoder_q.{name}": tensor for name, tensor in backbone_state(seed).items()}
    torch.save({"state_dict": {**state, "module.queue": torch.zeros(2, 2)}}, path)
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "imported.yaml"
    path.write_text(STUDY)
    return path


def test_import_prints_the_account_and_every_protocol_takes_the_encoder(cli, tmp_path):
    file = write_moco(tmp_path / "moco.pth.tar")
    outcome = cli("import", file, "--out", "mine")
    assert outcome.code == 0, outcome.err
    for text in ("format:     moco_v2", "matched:    60 of 60", "missing:    0", "queue: 1", "sha256:"):
        assert text in outcome.out
    assert json.loads((tmp_path / "mine" / "encoder.json").read_text())["origin"] == "imported"
    exported = cli("export", "mine", "--format", "torchvision", "--out", "net.pth")
    assert exported.code == 0, exported.err
    assert "model.load_state_dict" in exported.out
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone_state(0).items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nothing.pth", "--out", "x"], "no such file"),
        (["import", "moco.pth", "--out", "x", "--format", "mocov2"], "moco_v2"),
        (["import", "moco.pth", "--out", "x", "--format", "simsiam"], "nearest: moco_v2"),
        (["export", "nowhere", "--format", "timm", "--out", "x.safetensors"], "encoder.json is missing"),
        (["export", "nowhere", "--format", "tensorflow", "--out", "x"], "tensorflow"),
    ],
)
def test_wrong_use_ends_with_code_2_and_a_next_step(cli, tmp_path, arguments, said):
    write_moco(tmp_path / "moco.pth")
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [("file", 2, "not a folder"), ("file/below", 1, "cannot write"), ("mine", 2, "already")],
)
def test_an_encoder_goes_into_a_folder_of_its_own(cli, tmp_path, out, code, said):
    write_moco(tmp_path / "moco.pth")
    (tmp_path / "file").write_text("mine")
    assert cli("import", "moco.pth", "--out", "mine").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = cli("import", "moco.pth", "--out", out, "--method", "other")
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_names_that_speak_of_no_project_are_imported_with_a_caution(cli, tmp_path):
    torch.save(backbone_state(0), tmp_path / "resnet50.pth")
    outcome = cli("import", "resnet50.pth", "--out", "mine")
    assert outcome.code == 0, outcome.err
    assert "format:     plain" in outcome.out
    assert "method:     resnet50.pth" in outcome.out
    assert "(another method: --method NAME)" in outcome.out
    write_moco(tmp_path / "moco.pth")
    assert "(another method: --method NAME)" in cli("import", "moco.pth", "--out", "moco").out
    said = cli("import", "resnet50.pth", "--out", "said", "--format", "barlow_twins")
    assert "method:     barlow_twins" in said.out
    assert "--method" not in said.out
    renamed = cli("import", "resnet50.pth", "--out", "other", "--method", "vicreg")
    assert "method:     vicreg" in renamed.out


def test_a_format_against_the_keys_is_taken_with_a_caution(cli, tmp_path):
    state = {**backbone_state(0), "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "net.pth")
    plain = cli("import", "net.pth", "--out", "plain")
    assert "as asked" not in plain.out
    outcome = cli("import", "net.pth", "--out", "asked", "--format", "simclr")
    caution = "the keys are those of torchvision, yet it is read and fed as simclr, as asked"
    assert (outcome.code, caution in outcome.out) == (0, True), outcome.err
    assert json.loads((tmp_path / "asked" / "encoder.json").read_text())["source_note"] == caution


def test_an_encoder_goes_to_detectron2_and_comes_back(cli, tmp_path):
    write_moco(tmp_path / "moco.pth")
    assert cli("import", "moco.pth", "--out", "first", "--format", "moco_v2").code == 0
    assert cli("export", "first", "--format", "detectron2", "--out", "net.pkl").code == 0
    outcome = cli("import", "net.pkl", "--out", "second")
    assert outcome.code == 0, outcome.err
    assert "format:     detectron2, recognised from the keys" in outcome.out
    assert "method:     moco_v2" in outcome.out
    first, second = (load_file(tmp_path / name / "encoder.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_open_stem_is_asked_for_and_taken(cli, tmp_path):
    state = build_backbone("resnet10", 8, "stride2").state_dict()
    named = {f"module.encoder_q.{k}": t for k, t in state.items()}
    torch.save({"state_dict": {**named, "module.queue": torch.zeros(2, 2)}}, tmp_path / "moco.pth")
    asked = cli("import", "moco.pth", "--out", "mine")
    assert asked.code == 2
    assert "the first convolution is 3x3" in asked.err
    assert "(--stem)" in asked.err
    assert not (tmp_path / "mine").exists()
    taken = cli("import", "moco.pth", "--out", "mine", "--stem", "stride2")
    assert taken.code == 0, taken.err
    assert "stride2 stem" in taken.out
    assert Encoder.load(tmp_path / "mine").backbone.conv1.stride == (2, 2)


def test_formats_are_listed(cli):
    projects = (
        "barlow_twins vicreg dino moco_v2 moco_v3 swav simsiam byol simclr vissl mmselfsup solo_learn lightly "
        "torchvision timm detectron2 plain"
    )
    assert set(json.loads(cli("ls", "formats", "--json").out)) == set(projects.split())


def test_a_study_of_checkpoints_measures_each_once_and_calls_them_imported(cli, study, tmp_path, monkeypatch):
    write_moco(tmp_path / "encoders" / "first.pth.tar", seed=0)
    write_moco(tmp_path / "encoders" / "second.pth.tar", seed=1)
    (tmp_path / "encoders" / "README.md").write_text("where they are from")
    torch.save(backbone_state(2), tmp_path / "barlow.pth")
    assert cli("import", "barlow.pth", "--out", "encoders/barlow", "--format", "barlow_twins").code == 0
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results" / "imported" / "records.csv", keep_default_na=False)
    assert set(records.origin) == {"imported"}
    assert set(records.status) == {"done"}
    assert set(records.method) == {"first.pth.tar", "second.pth.tar", "barlow_twins"}
    assert records.encoder_checksum.nunique() == 3
    assert set(records.epochs) == {""}
    table = (tmp_path / "results" / "imported" / "tables" / "main.md").read_text()
    assert "Barlow Twins (imported)" in table
    assert "Network (apart from random init): resnet10" in table
    assert table.count("pth.tar (imported) |") == 2
    assert len(list((tmp_path / "runs").glob("imported-*"))) == 3

    def refuse(*args, **kwargs):
        raise AssertionError("a finished job was done again")

    monkeypatch.setattr("twinbench.harness.execute.run_job", refuse)
    assert cli("run", study, "--data-root", ".").code == 0
    reported = cli("report", "runs", "--out", "results/all")
    assert reported.code == 0, reported.err
    assert set(pd.read_csv(tmp_path / "results/all/records.csv").origin) == {"imported"}


def test_the_table_names_every_file_and_what_its_import_noted(cli, study, tmp_path):
    first = write_moco(tmp_path / "encoders" / "first.pth.tar")
    second = write_moco(tmp_path / "encoders" / "copy.pth.tar")
    torch.save(backbone_state(1), tmp_path / "encoders" / "plain.pth")
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 0, outcome.err
    assert "plain.pth: " in outcome.err + outcome.out
    assert "name it as you import it" in outcome.err + outcome.out
    table = (tmp_path / "results" / "imported" / "tables" / "main.md").read_text().replace("\\", "")
    assert table.count("pth.tar (imported) |") == 2, "equal weights in two files are two rows"
    for file in (first, second, tmp_path / "encoders" / "plain.pth"):
        assert f"{file.name} (SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}), mean (0.485" in table
    records = pd.read_csv(tmp_path / "results" / "imported" / "records.csv")
    assert set(records.source_name) == {"first.pth.tar", "copy.pth.tar", "plain.pth"}
    assert "speak of no project" in table, "the caution stands below the table"
    assert "the names of MoCo's code, which others use as well (PCL)" in table


def test_a_published_number_stands_beside_no_method_that_was_guessed_from_a_files_name(cli, study, tmp_path):
    """A backbone that anybody may have trained is no Barlow Twins for being called so, nor for MoCo's keys a MoCo."""
    quoted = "    quoted: {file: table1_imagenet_linear.csv, columns: {top1: published}}\n"
    study.write_text(STUDY + quoted)
    write_moco(tmp_path / "encoders" / "moco_v2.pth.tar")
    write_moco(tmp_path / "said.pth.tar", seed=7)
    assert cli("import", "said.pth.tar", "--out", "encoders/moco", "--format", "moco_v2").code == 0
    for i, name in enumerate(("barlow_twins.pth", "SimSiam.pth", "supervised.pt")):
        torch.save(backbone_state(i + 1), tmp_path / "encoders" / name)
    torch.save(backbone_state(5), tmp_path / "mine.pth")
    assert cli("import", "mine.pth", "--out", "encoders/said", "--method", "barlow_twins").code == 0
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 0, outcome.err
    table = (tmp_path / "results" / "imported" / "tables" / "main.md").read_text().replace("\\", "")
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("|")}
    assert "71.1" in rows["MoCo v2 (imported)"]
    assert "73.2" in rows["Barlow Twins (imported)"], "the user said so"
    for name in ("barlow_twins.pth", "SimSiam.pth", "supervised.pt", "moco_v2.pth.tar"):
        row = rows[f"{name} (imported)"]
        assert not any(number in row for number in ("73.2", "71.3", "76.5", "71.1")), row


def test_one_of_several_networks_is_asked_for_and_taken(cli, tmp_path):
    document = {"state_dict": backbone_state(0), "state_dict_ema": backbone_state(1), "epoch": 3}
    torch.save(document, tmp_path / "last.pth.tar")
    asked = cli("import", "last.pth.tar", "--out", "mine")
    assert asked.code == 2
    assert "state_dict, state_dict_ema" in asked.err
    assert "(--network NAME)" in asked.err
    assert not (tmp_path / "mine").exists()
    taken = cli("import", "last.pth.tar", "--out", "mine", "--network", "state_dict_ema")
    assert taken.code == 0, taken.err
    weights = load_file(tmp_path / "mine" / "encoder.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone_state(1).items())
    note = json.loads((tmp_path / "mine" / "encoder.json").read_text())["source_note"]
    assert "the network state_dict_ema of this file is taken, as asked" in note


def test_one_file_imported_in_two_ways_is_two_rows(cli, study, tmp_path):
    write_moco(tmp_path / "moco.pth")
    for name in ("encoders/a", "encoders/b"):
        assert cli("import", "moco.pth", "--out", name, "--method", "moco_v2").code == 0
    file = tmp_path / "encoders" / "b" / "encoder.json"
    file.write_text(json.dumps({**unsealed(file.read_text()), "mean": [0.5, 0.5, 0.5]}))
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 0, outcome.err
    table = (tmp_path / "results" / "imported" / "tables" / "main.md").read_text()
    assert "| MoCo v2 (imported, a) |" in table
    assert "| MoCo v2 (imported, b) |" in table
    assert "mean (0.5, 0.5, 0.5)" in table


def test_seeds_are_those_of_the_evaluations(cli, study, tmp_path):
    write_moco(tmp_path / "encoders" / "first.pth.tar")
    outcome = cli("run", study, "--data-root", ".", "--seeds", "2")
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results" / "imported" / "records.csv")
    assert sorted(records.seed.unique()) == [0, 1]
    assert records.encoder_checksum.nunique() == 1


def test_another_normalisation_is_another_run(tmp_path):
    encoder = read_foreign(write_moco(tmp_path / "moco.pth")).save(tmp_path / "encoders" / "mine")
    image_set = load_image_set("digit-scenes", limit={"train": 64, "val": 32, "test": 32})
    (before,) = imported_runs(tmp_path / "encoders", image_set, tmp_path / "runs", seeds=1)
    file = tmp_path / "encoders" / "mine" / "encoder.json"
    file.write_text(json.dumps({**unsealed(file.read_text()), "mean": [0.5, 0.5, 0.5]}))
    assert Encoder.load(file.parent).checksum == encoder.checksum
    (after,) = imported_runs(tmp_path / "encoders", image_set, tmp_path / "runs", seeds=1)
    assert before.folder != after.folder


def test_an_imported_run_is_stored_as_what_it_is(cli, study, tmp_path):
    file = write_moco(tmp_path / "encoders" / "moco.pth")
    assert cli("run", study, "--data-root", ".").code == 0
    (run,) = stored_runs(tmp_path / "runs")
    assert not (run.folder / "recipe.yaml").exists()
    source = yaml.safe_load((run.folder / "source.yaml").read_text())
    assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (source["name"], source["file"], source["format"]) == ("moco.pth", "moco.pth", "moco_v2")
    assert source["backbone"]["name"] == "resnet10"
    assert "epochs" not in source
    image_set = load_image_set("digit-scenes", limit={"train": 64, "val": 32, "test": 32})
    (planned,) = imported_runs(file.parent, image_set, tmp_path / "runs", seeds=1)
    assert replace(planned, checkpoint=None) == run
    assert run.folder.name.endswith(run.hash)


def test_a_worker_process_is_told_which_file_to_import(tmp_path):
    file = write_moco(tmp_path / "encoders" / "moco.pth")
    image_set = load_image_set("digit-scenes", limit={"train": 64, "val": 32, "test": 32})
    (run,) = imported_runs(file.parent, image_set, tmp_path / "runs", seeds=1)
    choice = ImageChoice("digit-scenes")
    job = pickle.loads(pickle.dumps(Job(run, choice, "import")))
    assert (job.run.checkpoint, job.run.origin, job.is_finished()) == (file, "imported", False)
    images = Images(None)
    assert execute([job], images, PlainLines({job.label}), print) == 0
    assert job.is_finished()
    write_moco(file, seed=1)
    import_again = Job(replace(run, folder=tmp_path / "runs" / "again"), choice, "again")
    assert execute([import_again], images, PlainLines({job.label}), print) == 1
    assert "the checkpoint changed" in (import_again.run.status() or {})["reason"]


def test_imported_and_trained_rows_stand_in_one_table(cli, study, tmp_path):
    write_moco(tmp_path / "encoders" / "moco.pth")
    mixed = STUDY + "methods: [random_init]\nrecipes: digit-scenes\noverrides: {backbone.width: 8}\n"
    study.write_text(mixed)
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 0, outcome.err
    table = (tmp_path / "results" / "imported" / "tables" / "main.md").read_text()
    assert "Random init" in table
    assert "moco.pth (imported)" in table


def test_one_incomplete_checkpoint_ends_the_study_before_any_work(cli, study, tmp_path):
    write_moco(tmp_path / "encoders" / "a.pth")
    state = backbone_state(0)
    del state["layer3.0.bn2.weight"]
    torch.save(state, tmp_path / "encoders" / "b.pth")
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 2
    assert "missing 1 (layer3.0.bn2.weight)" in outcome.err
    assert "b.pth" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_study_of_checkpoints_says_where_it_looks_for_them(cli, study, tmp_path):
    outcome = cli("run", study)
    assert outcome.code == 2
    assert "DIR/encoders" in outcome.err
    outcome = cli("run", study, "--data-root", ".")
    assert outcome.code == 2
    assert "no checkpoint here" in outcome.err


def test_a_dry_run_names_the_files(cli, study, tmp_path):
    write_moco(tmp_path / "encoders" / "moco.pth")
    outcome = cli("run", study, "--data-root", ".", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "import moco.pth (seed 0) from moco.pth" in outcome.out
    assert "knn/cosine-v1 moco.pth (seed 0) from moco.pth" in outcome.out


def test_a_study_needs_methods_or_encoders(cli, study):
    study.write_text(STUDY.replace("encoders: encoders\n", ""))
    outcome = cli("run", study)
    assert outcome.code == 2
    assert "neither methods nor encoders" in outcome.err


def test_a_study_runs_on_other_images(cli, study, tmp_path):
    write_moco(tmp_path / "encoders" / "moco.pth")
    study.write_text(STUDY.replace(IMAGES, "image_set: cifar10"))
    outcome = cli("run", study, "--data-root", ".", "--image-set", "digit-scenes")
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results" / "imported" / "records.csv")
    assert set(records.image_set) == {"digit-scenes"}
