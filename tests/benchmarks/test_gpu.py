"""The one command for a GPU: everything in it runs at small size here, and an early end loses nothing measured."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def order(gpu, **changes):
    values = {
        "minutes": 8.0,
        "small": False,
        "parts": gpu.PARTS,
        "data_root": None,
        "commit": "abc",
        **changes,
    }
    return gpu.Order(**values)


@pytest.mark.programs
def test_every_part_runs_at_small_size_and_is_written_as_it_is_known(gpu, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    planned = gpu.throughput_measurements(small=True)
    rows = [row for row in planned if row.title in ("twinbench", "roof") and row.job.batch_size == 8]
    rows += [row for row in planned if row.title == "twinbench compiled"]
    assert [row.title for row in rows] == ["twinbench", "roof", "twinbench compiled"]
    monkeypatch.setattr(gpu, "throughput_measurements", lambda small: rows)
    monkeypatch.setattr(
        gpu.Order,
        "comparison",
        lambda self, seconds: gpu.Comparison(self.data_root, seconds, self.small, methods=("moco_v2",)),
    )
    written = []

    def write(document):
        gpu.publish(document, tmp_path)
        written.append(sum(bool(document[key]) for key in ("tests", "throughput", "training")))

    document = gpu.carry_out(order(gpu, small=True, minutes=600), write, gpu.time.monotonic())
    assert written == [1, 2, 2, 3]
    (compiled,) = document["left_out"]
    assert compiled.startswith("twinbench compiled: ")
    assert "at small size" in compiled
    (on_disk,) = tmp_path.glob("*-small.json")
    assert json.loads(on_disk.read_text()) == document
    assert document["facts"]["commit"] == "abc"
    assert document["tests"]["passed"] >= 3
    assert document["tests"]["failed"] == []
    ours, roof = document["throughput"]
    assert ours["pairs_per_second"] > 0
    assert roof["flops_per_pair"] == pytest.approx(6.8e9, rel=0.01)  # as throughput.py counts it
    assert min(roof["bytes_per_pair"], roof["product_rate"], roof["copy_rate"]) > 0
    assert [row["method"] for row in document["training"]["rows"]] == ["random_init", "moco_v2"]
    assert all({"knn/cosine-v1", "linear/cached-v1"} <= row.keys() for row in document["training"]["rows"])
    text = on_disk.with_suffix(".md").read_text()
    assert "the numbers mean nothing" in text
    assert "| moco_v2 " in text


def test_what_a_process_printed_before_its_time_was_up_counts(gpu):
    endless = "import time\nprint('{\"a\": 1}', flush=True)\nprint('{\"b\"', flush=True)\ntime.sleep(600)"
    outcome = gpu.run_process([sys.executable, "-c", endless], 5)
    assert outcome.trouble == "ended after 5 s"
    assert outcome.documents() == [{"a": 1}]
    failing = gpu.run_process([sys.executable, "-c", "print('{}'); raise SystemExit('so')"], 60)
    assert failing.trouble == "exit code 1: so"
    assert failing.documents() == [{}]


def test_a_process_runs_in_the_repository_from_where_pytest_names_the_tests(gpu, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = "import os; print(os.getcwd())"
    assert gpu.run_process([sys.executable, "-c", code], 60).lines == [str(BENCHMARKS.parent)]


def test_trouble_that_no_failed_test_explains_is_said(gpu):
    one = gpu.tests_measurement(small=True)
    failed = "tests/gpu/test_a.py::test_one FAILED [ 10%]"
    for lines, said in (
        ([failed], []),
        (["../tests/gpu/test_a.py::test_one FAILED"], ["tests: exit code 1: no"]),
    ):
        document = {"tests": None, "left_out": []}
        gpu.add(document, one, gpu.Outcome(lines, "exit code 1: no"))
        assert document["left_out"] == said
        assert document["tests"]["log"] == lines


def test_what_fails_or_has_no_time_left_is_said_and_the_rest_goes_on(gpu, monkeypatch):
    answer = {"pairs_per_second": 5.0, "peak_memory_mb": 1.0}
    job = gpu.Job("twinbench", "barlow_twins", "bf16", 512, 1, 1)

    def printing(title, code, seconds=1.0):
        command = [sys.executable, "-c", code]
        return gpu.Measurement("throughput", title, command, seconds, 600.0, job=job)

    measurements = [
        printing("broken", "raise SystemExit('no memory')"),
        printing("too long", "", seconds=60 * 60 * 10),
        printing("fine", f"print('''{json.dumps(answer)}''')"),
    ]
    monkeypatch.setattr(gpu, "throughput_measurements", lambda small: measurements)
    document = gpu.carry_out(
        order(gpu, parts=("throughput",), minutes=60.0), lambda so_far: None, gpu.time.monotonic()
    )
    assert [row["name"] for row in document["throughput"]] == ["fine"]
    broken, too_long = document["left_out"]
    assert broken == "broken: resnet18 at 32 px, batch 512, bf16: exit code 1: no memory"
    assert "36000 s expected" in too_long


def test_tests_are_counted_in_both_of_pytests_forms(gpu):
    found = gpu.tests_found(
        [
            "tests/gpu/test_a.py::test_one PASSED                     [ 10%]",
            "tests/gpu/test_a.py::test_two[a b-1] FAILED [ 20%]",
            "[gw1] [ 30%] PASSED tests/gpu/test_b.py::test_three[x] ",
            "tests/gpu/test_b.py::test_four SKIPPED (no GPU) [ 40%]",
            "[gw0] [ 50%] ERROR tests/gpu/test_b.py::test_five ",
            "[gw0] [ 60%] SKIPPED tests/gpu/test_b.py::test_six ",
            "FAILED tests/gpu/test_a.py::test_two[a b-1] - AssertionError",
            "tests/gpu/test_b.py::test_under_way ",
        ]
    )
    failed = ["tests/gpu/test_a.py::test_two[a b-1]", "tests/gpu/test_b.py::test_five"]
    assert found == {"passed": 2, "skipped": 2, "failed": failed}


def test_a_table_sets_rates_against_roofs_and_goals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_report

    job = {"network": "resnet18", "size": 32, "batch_size": 512, "precision": "bf16"}
    ours = {**job, "name": "twinbench", "side": "twinbench", "peak_memory_mb": 9.0}
    rows = [
        {**ours, "pairs_per_second": 21_000.0},
        {**ours, "pairs_per_second": 6_000.0, "name": "lightly tuned", "side": "lightly"},
        {
            **job,
            "name": "roof",
            "side": "twinbench",
            "flops_per_pair": 7e9,
            "bytes_per_pair": 30e6,
            "product_rate": 700e12,
            "copy_rate": 3e12,
        },
    ]
    document = {"throughput": rows, "small": False, "device": "NVIDIA H100 80GB HBM3"}
    text = "\n".join(gpu_report._throughput(document))
    assert "| 21,000  | 21%" in text  # of 700e12 / 7e9 = 100,000
    assert "| 21%                | 9 " in text  # 3e12 / 30e6 is the same roof
    assert "roofs of 100,000 and 100,000 pairs/s" in text
    assert "- resnet18 at 32 pixels, pairs/s: 21,000; goal on one H100 20,000: reached" in text
    assert "- resnet18 at 32 pixels, times the faster lightly: 3.50; goal on one H100 3: reached" in text
    assert "resnet50" not in text
    rows[0]["pairs_per_second"] = 19_000.0
    assert "19,000; goal on one H100 20,000: missed" in "\n".join(gpu_report._throughput(document))
    elsewhere = "\n".join(gpu_report._throughput({**document, "device": "NVIDIA L4"}))
    assert "- resnet18 at 32 pixels, pairs/s: 19,000; goal on one H100 20,000\n" in elsewhere
    assert "missed" not in elsewhere
    assert "reached" not in elsewhere


def test_all_rows_fit_into_eight_minutes_with_lightly(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "has_lightly", lambda: True)
    wanted = order(gpu)
    titles = {(one.title, one.job.network if one.job else "") for one in wanted.measurements()}
    assert {("lightly tuned", "resnet18"), ("lightly tuned", "resnet50")} < titles
    assert {("twinbench compiled", "resnet18"), ("lightly as documented", "resnet18")} < titles
    seconds = sum(one.seconds for one in wanted.measurements())
    # 20 s for starting and writing, a fifth for training
    assert seconds + 20 + 96 <= 8 * 60
    table = gpu.plan_table(order(gpu, data_root="DIR"))
    assert "left out" not in table
    assert f"| {480 - 20 - seconds:.0f} " in table
    for text in ("resnet50 at 224 px", "lightly as documented", "batch 1024", "compiled", "CIFAR-10"):
        assert text in table


def test_the_plan_leaves_out_what_the_run_would(gpu, monkeypatch):
    """A run in which every process takes exactly what is expected, on a clock that only they move."""
    monkeypatch.setattr(gpu, "has_lightly", lambda: True)
    clock, done = [0.0], []

    def run(command, limit, environment=None):
        one = next((one for one in short.measurements() if one.command == command), None)
        done.append(gpu.describe(one) if one else "training")
        clock[0] += one.seconds if one else 0
        return gpu.Outcome([])

    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "run_process", run)
    short = order(gpu, minutes=6.0)
    document = gpu.carry_out(short, lambda so_far: None, 0.0)
    for row in gpu.plan_table(short).splitlines()[2:]:
        if row.startswith(("| tests", "| throughput")):
            what = row.split("|")[2].strip()
            assert (what in done) != ("left out" in row)
            assert any(text.startswith(what) and " left" in text for text in document["left_out"]) == (
                "left out" in row
            )
    assert "lightly as documented: resnet18 at 32 px, batch 512, fp32" not in done
    assert done[-1] == "training"


def test_a_row_that_cannot_be_measured_is_planned_with_the_reason(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "has_lightly", lambda: False)
    rows = [row for row in gpu.plan_table(order(gpu)).splitlines() if "lightly" in row]
    assert len(rows) == 3
    assert all("left out: the package lightly is not installed" in row for row in rows)
    only = order(gpu, minutes=4.0, parts=("training",))
    assert only.measurements() == []
    assert only.kept_for_training == 4 * 60


def test_a_method_that_fails_ends_no_other(gpu, monkeypatch):
    """One in the few steps that are timed and in its training, one when it is measured."""
    train, evaluate = gpu.pretrain, gpu.evaluate_encoder

    def no_memory(recipe, *more):
        if recipe.method == "simclr":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(recipe, *more)

    def broken(encoder, *more):
        if encoder.info.method == "moco_v2":
            raise ZeroDivisionError("in the middle")
        return evaluate(encoder, *more)

    def seconds(recipe, images):
        assert recipe.method != "simclr", "no memory"
        return 1.0

    monkeypatch.setattr(gpu, "pretrain", no_memory)
    monkeypatch.setattr(gpu, "evaluate_encoder", broken)
    monkeypatch.setattr(gpu, "epoch_seconds", seconds)
    plan = gpu.Comparison(None, 600.0, small=True, methods=("simclr", "moco_v2", "simsiam"))
    images, reference, failed, unmeasured, fine = gpu.compare(plan)
    assert images["images"] == "digit-scenes"
    assert failed["status"] == "OutOfMemoryError: CUDA out of memory"
    assert unmeasured["status"] == "trained; then ZeroDivisionError: in the middle"
    assert unmeasured["images_per_second"] > 0
    for row in (reference, fine):
        assert {"knn/cosine-v1", "linear/cached-v1"} <= row.keys()


def test_a_training_ends_when_its_time_is_up(gpu, tmp_path):
    plan = gpu.Comparison(None, 60.0, small=True)
    images = plan.images()
    row = gpu.train_and_measure(plan.recipe("simclr", images, 2), images, tmp_path, ends=0.0)
    assert row["status"].startswith("the time was up after 12% of the training")
    assert "knn/cosine-v1" not in row


def test_what_will_not_do_is_refused_before_anything_is_measured(gpu):
    arguments = argparse.Namespace(minutes=8.0, small=True, parts="training,tests", data_root=None, commit="")
    assert gpu._order(arguments).parts == ("training", "tests")
    for wrong, said in ({"parts": "test"}, "tests, throughput, training"), ({"minutes": 0.0}, "minutes"):
        with pytest.raises(gpu.InputError, match=said):
            gpu._order(argparse.Namespace(**{**vars(arguments), **wrong}))
    with pytest.raises(gpu.InputError, match="no such folder"):
        gpu._order(argparse.Namespace(**{**vars(arguments), "data_root": BENCHMARKS / "none"}))
