"""What the whole paper would take on ImageNet, told at once and without any image."""

import json
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

from twinbench.data import catalogue, scenes, textures
from twinbench.foundation.errors import InputError
from twinbench.harness.outline import outline_lines
from twinbench.harness.recipes import load_recipe, recipe_hash
from twinbench.harness.store import Run
from twinbench.harness.studies import load_study, narrowed
from twinbench.pretraining.build import resolve

NO_STORE = Path("there is no store")


def lines(study, scale="imagenet", runs=NO_STORE, **overrides):
    found = {}
    for line in outline_lines(load_study(study, scale), overrides, runs):
        if match := re.match(r"(\S+): (\d+) trainings, (\d+) evaluations: ([\d,]+) GPU-hours(.*)", line):
            name, trainings, evaluations, hours, rest = match.groups()
            found[name] = SimpleNamespace(
                trainings=int(trainings),
                evaluations=int(evaluations),
                hours=int(hours.replace(",", "")),
                rest=rest,
            )
    return found


def test_hours_are_the_published_ones_times_epochs_and_seeds():
    """Table 1: three seeds of each method, 100 epochs of forward passes for the linear evaluation, and one for kNN."""
    published = 3 * (124 * 32 + 113 * 32 + 53 * 8 + 2.56 * 1000 + 4.0 * 800 + 3.2 * 100 + 1.78 * 90)
    found = lines("table1")["table1"]
    assert (found.trainings, found.evaluations) == (21, 48), "random initialisation is not trained"
    assert published < found.hours < 1.06 * published
    assert lines("table1", epochs=1)["table1"].hours < found.hours / 10


def test_what_several_tables_need_counts_once():
    whole = lines("paper")
    assert whole["table2"].trainings == whole["table3"].trainings == whole["table4-voc"].trainings == 0
    alone = {name: lines(name)[name] for name in ("table1", "fig5")}
    assert whole["table1"].hours == alone["table1"].hours
    assert whole["fig5"].trainings <= alone["fig5"].trainings
    assert whole["together"].trainings == sum(t.trainings for name, t in whole.items() if name != "together")


@pytest.mark.parametrize(("method", "hours", "views"), [("barlow_twins", 3.968, 2), ("supervised", 1.78, 1)])
def test_an_evaluation_costs_what_the_networks_forward_passes_cost(method, hours, views):
    """An epoch is three passes of each view of each image; fine-tuning sees a share of the images 20 times."""
    study = narrowed(load_study("table2", "imagenet"), None, (method,), None)
    (line,) = (line for line in outline_lines(study, {"epochs": 1}, NO_STORE) if line.startswith("table2"))
    images = 1_281_167
    passes = sum(3 * 20 * share * images + 50_000 for share in (0.01, 0.1))
    expected = 3 * hours + 3 * hours * passes / (3 * views * images)
    assert f"3 trainings, 6 evaluations: {expected:,.0f} GPU-hours" in line


def test_the_disk_is_that_of_encoders_and_of_kept_features():
    """kNN keeps 2048 numbers for each image of ImageNet; a ResNet-50 without its head has 23.5 million."""
    found = lines("table1")["table1"]
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    parameters = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in network.fc.parameters()
    )
    gib = 24 * 4 * (parameters + 2048 * (1_281_167 + 50_000)) / 2**30
    assert f"{gib:,.1f} GiB of disk" in found.rest
    assert "GPU memory" not in found.rest, "what nobody knows is said once, below the tables"


def told(study, scale, runs=NO_STORE):
    return list(outline_lines(load_study(study, scale), {}, runs))


def test_what_is_known_of_a_gpus_memory_stands_in_one_line_with_how_to_find_out():
    """Published are those of moco v2, SimCLR and SwAV; random initialisation takes none."""
    (line,) = (line for line in told("paper", "imagenet") if "GPU memory" in line)
    assert line.startswith("GPU memory of barlow_twins")
    assert "random_init" not in line
    assert "moco_v2 5.0 GB with 32 images" in line
    assert "twinbench pretrain METHOD --image-set imagenet" in line


def test_where_no_gpu_hours_are_known_it_is_said_why_and_what_gives_them():
    text = told("table1", "cifar10")
    assert not any(line.startswith("GPU-hours are") for line in text), "an empty list"
    (line,) = (line for line in text if line.startswith("jobs of unknown length"))
    assert "no publication" in line
    assert "--data-root DIR" in line
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in line
    assert not any(line.startswith("jobs of unknown") for line in told("table1", "imagenet"))


def test_what_the_store_holds_is_finished_and_its_speed_is_used(tmp_path):
    """Made by hand: no ImageNet training can be run here."""
    images = 1_281_167
    for seed, status in ((0, "done"), (1, "running")):
        recipe = resolve(load_recipe("imagenet", "simsiam", "imagenet", {}, seed), 224, "of these images")
        run = Run(tmp_path / f"simsiam-{seed}", recipe, recipe_hash(recipe))
        run.begin()
        measured = {
            "device_type": "cuda",
            "device": "NVIDIA X",
            "ranks": 2,
            "images_per_second": images / 1800,
        }
        run.write_status({"status": status, "reason": "", "peak_memory_mb": 12345.0, **measured})
        if status == "done":
            run.encoder_folder.mkdir()
            (run.encoder_folder / "encoder.json").write_text(json.dumps({"sha256": "0"}))
    assert run.encoder_folder.name == "encoder"
    whole, left = lines("table1"), lines("table1", runs=tmp_path)
    assert left["table1"].trainings == whole["table1"].trainings - 1
    assert left["table1"].evaluations == whole["table1"].evaluations
    assert "1 jobs finished" in left["table1"].rest
    assert "12,345 MiB of GPU memory" in left["table1"].rest
    published, here = 3 * 320, 2 * 100  # three trainings of 3.2 h an epoch; two of 2 GPUs x half an hour
    assert whole["table1"].hours - left["table1"].hours == pytest.approx(published - here, abs=2)
    text = "\n".join(outline_lines(load_study("table1", "imagenet"), {}, tmp_path))
    assert "simsiam: NVIDIA X, measured here" in text


def test_a_wrong_study_is_refused_as_by_a_plan():
    with pytest.raises(InputError, match="would overwrite a key that this study varies"):
        lines("fig2", batch_size=64)
    study = load_study("table1", "imagenet")
    (table,) = study.tables
    wrong = table.columns[0].model_copy(update={"metric": "top2"})
    study = study.model_copy(update={"tables": (table.model_copy(update={"columns": (wrong,)}),)})
    with pytest.raises(InputError, match="unknown metric"):
        list(outline_lines(study, {}, NO_STORE))


def test_a_time_that_nobody_published_is_not_guessed():
    assert "of unknown length" in lines("table1", "cifar10")["table1"].rest


@pytest.mark.parametrize(
    ("name", "scale"),
    [*product(load_study("paper").include, ["cifar10", "imagenet"]), ("paper", "imagenet")],
)
def test_every_study_of_the_paper_has_an_outline_and_draws_no_image(name, scale, monkeypatch):
    def draw(*arguments):
        raise AssertionError("images are drawn")

    for module, generator in ((scenes, "classification"), (textures, "textures")):
        monkeypatch.setattr(module, generator, draw)
    tables = load_study(name, scale).tables
    assert set(lines(name, scale)) == {table.name for table in tables} | {"together"}


def test_a_dry_run_without_the_images_is_an_outline_and_with_them_a_plan(cli, monkeypatch, tmp_path):
    ended = cli("run", "table1", "--scale", "cifar10", "--dry-run")
    assert ended.code == 0, ended.err
    assert "an outline, as not all of its images are here" in ended.out
    (tmp_path / "data" / "cifar10-jpeg").mkdir(parents=True)
    planned = cli("run", "table1", "--scale", "cifar10", "--dry-run", "--data-root", "data")
    assert planned.code == 2, "the folder is there, and empty"
    assert "outline" not in planned.out


@pytest.mark.parametrize("name", catalogue.KNOWN_SETS)
def test_a_known_set_that_is_missing_says_where_to_get_it(name, tmp_path):
    assert not catalogue.is_here(name, None)
    with pytest.raises(catalogue.InputError, match="not embedded"):
        catalogue.load_image_set(name)
    with pytest.raises(catalogue.InputError, match="is not here") as caught:
        catalogue.load_image_set(name, tmp_path)
    assert catalogue.KNOWN_SETS[name].source in str(caught.value.next_step)
    (tmp_path / catalogue.KNOWN_SETS[name].folders[0]).mkdir()
    assert catalogue.is_here(name, tmp_path)
