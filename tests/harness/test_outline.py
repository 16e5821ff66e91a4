"""What the whole paper would take on ImageNet, told at once and without any image."""

import re
from types import SimpleNamespace

import pytest

from twinbench.data import catalogue
from twinbench.harness.outline import outline_lines
from twinbench.harness.studies import load_study


def lines(study, scale="imagenet", **overrides):
    found = {}
    for line in outline_lines(load_study(study, scale), overrides):
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
    assert (found.trainings, found.evaluations) == (24, 48)
    assert published < found.hours < 1.06 * published
    assert lines("table1", epochs=1)["table1"].hours < found.hours / 10


def test_what_several_tables_need_counts_once():
    whole = lines("paper")
    assert whole["table2"].trainings == whole["table3"].trainings == whole["table4-voc"].trainings == 0
    alone = {name: lines(name)[name] for name in ("table1", "fig5")}
    assert whole["table1"].hours == alone["table1"].hours
    assert whole["fig5"].trainings <= alone["fig5"].trainings
    assert whole["together"].trainings == sum(t.trainings for name, t in whole.items() if name != "together")


def test_a_time_that_nobody_published_is_not_guessed():
    assert "of unknown length" in lines("table1", "cifar10")["table1"].rest


@pytest.mark.parametrize("scale", ["cifar10", "imagenet"])
@pytest.mark.parametrize("name", [*load_study("paper").include, "paper"])
def test_every_study_of_the_paper_has_an_outline(name, scale):
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
