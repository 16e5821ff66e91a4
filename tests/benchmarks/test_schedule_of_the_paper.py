"""The simulated cluster, against calculations by hand and against the formulas of Daly and of Young."""

import itertools
import math
import random
import statistics
from pathlib import Path

import pytest
import torch
import torchvision

from twinbench.harness.outline import outline_lines, outlined_jobs
from twinbench.harness.recipes import load_recipe
from twinbench.harness.studies import load_study, narrowed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NEVER = math.inf
NO_STORE = Path("there is no store")


@pytest.fixture
def schedule(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import schedule

    return schedule


def test_without_failures_the_end_is_that_of_the_lists_by_hand(schedule):
    training, evaluation = schedule.Work(8.0, 8), schedule.Work(2.0, 1)
    runs = [[training, evaluation], [training, evaluation], [schedule.Work(6.0, 8)]]
    never = schedule.Faults(NEVER, 60)
    # two machines: both long runs until 8, then the third until 14 beside one evaluation after the other, until 12
    assert schedule.simulate(runs, 2, NEVER, never, seed=0).end == 14
    assert schedule.simulate(runs, 1, NEVER, never, seed=0).end == 8 + 8 + 6 + 2 + 2
    found = schedule.simulate(runs, 3, NEVER, never, seed=0)
    assert (found.end, found.packed_end) == (10, 10)
    assert (found.lost, found.saving, found.failures) == (0, 0, 0)
    assert schedule.lower_bound(runs, 16) == (8 * 22 + 4) / 16, "all GPUs are busy until then"
    assert schedule.lower_bound(runs, 64) == 10, "the longest run"


def test_packed_evaluations_share_a_machine(schedule):
    runs = [[schedule.Work(8.0, 8), schedule.Work(4.0, 1)] for _ in range(4)]
    never = schedule.Faults(NEVER, 60)
    # two machines: trainings until 8 and until 16; then four evaluations, two and two, or all at once
    found = schedule.simulate(runs, 2, NEVER, never, seed=0)
    assert (found.end, found.packed_end) == (24, 20)
    # a training does not begin on a machine of which an evaluation has one GPU, and one on another does not hinder it
    runs = [[schedule.Work(2.0, 8), schedule.Work(9.0, 1)], [schedule.Work(3.0, 8)], [schedule.Work(1.0, 8)]]
    assert schedule.simulate(runs, 1, NEVER, never, seed=0).packed_end == 2 + 9 + 3 + 1
    assert schedule.simulate(runs, 2, NEVER, never, seed=0).packed_end == 2 + 9


def test_checkpoints_follow_every_interval_but_the_last(schedule):
    work = schedule.Work(100.0, 8, saving=2.0)
    assert schedule.endure(work, 25, 7, iter([NEVER])) == schedule.Outcome(106, saving=6)
    assert schedule.endure(work, 30, 7, iter([NEVER])) == schedule.Outcome(106, saving=6)
    assert schedule.endure(work, 100, 7, iter([NEVER])) == schedule.Outcome(100)


def test_a_failure_costs_what_came_after_the_last_checkpoint_and_the_restart(schedule):
    work = schedule.Work(100.0, 8, saving=2.0)
    # two intervals and checkpoints, 54 seconds, are kept; 6 seconds are lost; 50 seconds and one checkpoint are left
    found = schedule.endure(work, 25, 7, iter([60, NEVER]))
    assert found == schedule.Outcome(60 + 7 + 52, lost=6, restarts=7, saving=4 + 2, failures=1)
    # in the middle of the second checkpoint, which is then not there
    found = schedule.endure(work, 25, 7, iter([53, NEVER]))
    assert found == schedule.Outcome(53 + 7 + 75 + 4, lost=26, restarts=7, saving=2 + 4, failures=1)
    # at the end of the work there is nothing left to lose
    assert schedule.endure(work, 25, 7, iter([106])) == schedule.Outcome(106, saving=6)


def test_an_evaluation_begins_again(schedule):
    found = schedule.endure(schedule.Work(100.0, 1), 25, 7, iter([99, 1, NEVER]))
    assert found == schedule.Outcome(99 + 7 + 1 + 7 + 100, lost=100, restarts=14, failures=2)


def by_daly(work, interval, hours, restart):
    """The mean: each interval is tried until no failure comes, which takes (M + R)(exp(w / M) - 1) seconds."""
    between, intervals = hours * 3600 / work.gpus, math.ceil(work.seconds / interval)
    widths = [interval + work.saving] * (intervals - 1) + [work.seconds - interval * (intervals - 1)]
    return sum((between + restart) * math.expm1(width / between) for width in widths)


@pytest.mark.parametrize("interval", [500.0, 2000.0, 5000.0])
def test_the_mean_of_a_training_is_that_of_the_exponential_law(schedule, interval):
    work, faults = (
        schedule.Work(20_000.0, 8, saving=40.0),
        schedule.Faults(8.0, 60.0),
    )  # 3600 s between failures
    draw = random.Random(0)
    found = [schedule.endure(work, interval, 60.0, faults.gaps(8, draw)) for _ in range(2000)]
    seconds = [each.seconds for each in found]
    error = statistics.stdev(seconds) / math.sqrt(len(seconds))
    assert statistics.fmean(seconds) == pytest.approx(by_daly(work, interval, 8.0, 60.0), abs=4 * error)


def test_a_failure_loses_half_an_interval_on_average(schedule):
    # failures are rare in an interval, so that they are equally likely anywhere in it
    work, faults = schedule.Work(200_000.0, 8, saving=0.0), schedule.Faults(40.0, 0.0)  # 18,000 s
    draw = random.Random(0)
    found = [schedule.endure(work, 600.0, 0.0, faults.gaps(8, draw)) for _ in range(400)]
    failures = sum(each.failures for each in found)
    assert failures == pytest.approx(400 * 200_000 / 18_000, rel=0.06)
    lost = sum(each.lost for each in found) / failures
    assert lost == pytest.approx(300, abs=4 * 600 / math.sqrt(12 * failures) + 600**2 / 12 / 18_000)


def test_youngs_interval_is_the_best_of_those_around_it(schedule):
    work, faults = schedule.Work(1e6, 8, saving=20.0), schedule.Faults(80.0, 60.0)  # 36,000 s
    best = schedule.best_interval(20.0, 36_000)
    assert best == 1200
    means = {interval: by_daly(work, interval, faults.hours, 60.0) for interval in (best / 4, best, best * 4)}
    assert min(means, key=means.get) == best
    draw = random.Random(0)
    simulated = {
        interval: statistics.fmean(
            schedule.endure(work, interval, 60.0, faults.gaps(8, draw)).seconds for _ in range(200)
        )
        for interval in means
    }
    assert min(simulated, key=simulated.get) == best


def test_the_same_seed_gives_the_same_simulation_and_another_another(schedule):
    runs = [[schedule.Work(50_000.0 + place, 8, 1.0), schedule.Work(9000.0, 1)] for place in range(9)]
    faults = schedule.Faults(100.0, 600.0)
    first, again, other = (schedule.simulate(runs, 2, 900, faults, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.failures > 0
    assert min(first.end, first.packed_end) >= schedule.lower_bound(runs, 16)


def test_trainings_of_here_save_every_half_minute_or_for_a_hundredth_of_the_time(schedule):
    faults, (quick, slow) = (
        schedule.Faults(NEVER, 0.0),
        (schedule.Work(3000.0, 8, each) for each in (0.1, 2.0)),
    )
    assert schedule.simulate([[quick]], 1, schedule.OWN, faults, 0).saving == pytest.approx(8 * 99 * 0.1)
    assert schedule.simulate([[slow]], 1, schedule.OWN, faults, 0).saving == 8 * 14 * 2.0


def test_a_machine_has_as_many_failures_as_its_gpus_together(schedule):
    gaps = schedule.Faults(10.0, 0.0).gaps(8, random.Random(0))
    found = list(itertools.islice(gaps, 4000))
    assert statistics.fmean(found) == pytest.approx(36_000 / 8, rel=4 / math.sqrt(4000))


def test_the_works_are_those_of_the_outline_in_the_order_of_a_run(schedule):
    study = narrowed(load_study("table1", "imagenet"), 1, ("byol", "random_init"), None)
    tables = outlined_jobs(study, {}, NO_STORE)
    runs = schedule.work_of(tables["table1"], writing=5e8)
    trained, untrained = runs
    assert [work.gpus for work in trained] == [8, 1, 1]
    assert [work.gpus for work in untrained] == [1, 1], "there is nothing to train"
    assert trained[0].seconds == pytest.approx(113 * 32 / 8 * 3600)
    assert trained[1].seconds > trained[2].seconds, "the longest evaluation first"
    hours = sum(work.gpus * work.seconds for run in runs for work in run) / 3600
    (line,) = (line for line in outline_lines(study, {}, NO_STORE) if line.startswith("together"))
    assert f"{hours:,.0f} GPU-hours" in line
    (row,) = schedule.plan_rows(tables)
    assert (row["trainings"], row["evaluations"]) == (1, 4)
    gib = (row["encoder_bytes"] + row["feature_bytes"]) / 2**30
    assert f"{gib:,.1f} GiB of disk" in line


def test_the_parameters_of_barlow_twins_are_those_of_its_layers(schedule):
    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
    trunk = sum(p.numel() for p in resnet.parameters()) - sum(p.numel() for p in resnet.fc.parameters())
    # three layers without biases, two batch norms between them
    head = 2048 * 8192 + 2 * 8192 * 8192 + 2 * 2 * 8192
    found = schedule.network(load_recipe("imagenet", "barlow_twins", "imagenet", {}))
    assert found.trained == trunk + head
    # the parameters and their momentum; the running statistics of the norms are a thousandth
    assert found.checkpoint_bytes == pytest.approx(2 * 4 * found.trained, rel=0.001)
    moco = schedule.network(load_recipe("imagenet", "moco_v2", "imagenet", {}))
    # the momentum encoder and a queue of 65,536 x 128 are not trained, but kept
    assert moco.checkpoint_bytes == pytest.approx(3 * 4 * moco.trained + 4 * 65536 * 128, rel=0.01)


def test_a_ring_sends_nearly_twice_the_gradients(schedule):
    rows = {(row["method"], row["gpus"]): row for row in schedule.network_rows((8, 64))}
    eight = rows["barlow_twins", 8]
    assert eight["sent_bytes"] == 2 * 7 / 8 * 4 * eight["trained"]
    steps = 1_281_167 // 2048
    assert eight["step_seconds"] == pytest.approx(3.968 * 3600 / 8 / steps)
    assert rows["barlow_twins", 64]["step_seconds"] == pytest.approx(eight["step_seconds"] / 8)
    assert eight["images"] == 256
