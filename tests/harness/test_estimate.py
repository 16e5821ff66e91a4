"""Estimates come from earlier runs on the same versions and device, else from a few timed steps."""

import heapq
import json
import re
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests import forks
from twinbench.foundation.documents import unsealed
from twinbench.harness import estimate, workers
from twinbench.harness.store import stored_runs

STEP, PASS = 0.5, 0.01
TINY_STEPS = 2 * 192 // 96
KNN, LINEAR = 192 + 64, 192 + 32 + 64


@pytest.fixture
def clock(monkeypatch):
    """A machine on which every training step and every forward pass takes the same time; what was timed, in order."""
    timed = []

    def step(unit, images):
        timed.append(unit)
        return STEP if unit.recipe.method == "barlow_twins" else 0.0

    def forward_pass(unit, images):
        timed.append(unit)
        return PASS

    monkeypatch.setattr(estimate.Step, "seconds", step)
    monkeypatch.setattr(estimate.ForwardPass, "seconds", forward_pass)
    return timed


def plan_of(outcome):
    assert outcome.code == 0, outcome.err
    jobs = re.findall(r"^  (\S.*?) {2,}(?:about (\d+) s, ([\d.]+) min|finished)", outcome.out, re.MULTILINE)
    (total,) = re.findall(r"estimated time: ([\d.]+) min", outcome.out)
    return {
        label: (seconds and float(seconds), start and float(start)) for label, seconds, start in jobs
    }, float(total)


def test_one_at_a_time_the_jobs_go_in_the_order_of_the_plan_and_take_their_sum(cli, tiny_study, clock):
    jobs, total = plan_of(cli("run", tiny_study, "--dry-run"))
    assert list(jobs) == [
        f"{job} {method} (seed 0)"
        for method in ("random_init", "barlow_twins")
        for job in ("pretrain", "knn/cosine-v1", "linear/cached-v1")
    ]
    seconds = [0, KNN * PASS, LINEAR * PASS, TINY_STEPS * STEP, KNN * PASS, LINEAR * PASS]
    assert [found for found, _ in jobs.values()] == [round(expected) for expected in seconds]
    assert total == pytest.approx(sum(seconds) / 60, abs=0.05)
    assert len(clock) == 2, "the method that trains, and the backbone"


def test_before_anything_is_timed_a_line_says_so(cli, tiny_study, clock):
    def said(*options):
        return cli("run", tiny_study, "--dry-run", *options).err.splitlines()

    assert said() == ["timing a few steps of 1 method"]
    assert said("--methods", "barlow_twins") == ["timing a few steps of 1 method"]
    assert said("--set", "epochs=0") == ["timing a forward pass"], "no step is taken"


def test_the_plan_of_a_finished_study_says_that_nothing_is_left_to_do(cli, tiny_study, clock):
    part = ("--methods", "random_init")
    assert cli("run", tiny_study, *part).code == 0
    clock.clear()
    ended = cli("run", tiny_study, *part, "--dry-run")
    assert ended.out.splitlines()[-1] == "nothing is left to do"
    assert "estimated time" not in ended.out
    assert clock == []


def test_seeds_share_what_is_timed(cli, tiny_study, clock):
    cli("run", tiny_study, "--dry-run", "--seeds", "3", "--set", "epochs=7")
    assert len(clock) == 2


def test_several_at_a_time_the_longest_run_starts_first_and_its_longest_evaluation(
    cli, tiny_study, clock, in_this_process
):
    jobs, total = plan_of(cli("run", tiny_study, "--dry-run", "--workers", "2", "--seeds", "2"))
    order = list(jobs)
    assert order[:2] == ["pretrain barlow_twins (seed 0)", "pretrain barlow_twins (seed 1)"]
    assert order.index("linear/cached-v1 barlow_twins (seed 0)") < order.index(
        "knn/cosine-v1 barlow_twins (seed 0)"
    )
    expected = TINY_STEPS * STEP + 2 * (KNN + LINEAR) * PASS
    assert total == pytest.approx(expected / 60, abs=0.05), "each worker does one run of each method"


def test_runs_of_which_none_waits_go_in_the_order_of_the_plan(cli, tiny_study, clock, in_this_process):
    # as `execute_in_parallel` does them: nothing is gained by another order
    jobs, total = plan_of(cli("run", tiny_study, "--dry-run", "--workers", "2"))
    assert [label for label, (_, start) in jobs.items() if start == 0][:2] == [
        "pretrain random_init (seed 0)",
        "pretrain barlow_twins (seed 0)",
    ]
    order = list(jobs)
    assert order.index("knn/cosine-v1 barlow_twins (seed 0)") < order.index(
        "linear/cached-v1 barlow_twins (seed 0)"
    )
    expected = TINY_STEPS * STEP + (KNN + LINEAR) * PASS
    assert total == pytest.approx(expected / 60, abs=0.05), "the other run fits beside it"


@pytest.mark.parametrize(("methods", "busy"), [("barlow_twins", 1), ("barlow_twins,random_init", 2)])
def test_as_many_are_timed_at_a_time_as_will_compute(cli, tiny_study, clock, in_this_process, methods, busy):
    # a run's jobs go one after another, so a single run has the machine to itself
    options = ["--dry-run", "--workers", "3", "--methods", methods]
    assert f"timed {busy} at a time" in cli("run", tiny_study, *options).out
    assert in_this_process.started == [(busy, workers.threads_each(3))]


def test_a_search_times_one_trial_a_method_and_begins_the_trials_in_their_order(cli, clock, in_this_process):
    small = ["--limit", "train=192", "--limit", "val=32", "--limit", "test=64", "--set", "epochs=120"]
    options = ["--image-set", "digit-scenes", *small, "--trials", "3", "--workers", "2", "--dry-run"]
    ended = cli("tune", "barlow_twins", "byol", *options)
    assert ended.code == 0, ended.err
    trials = re.findall(r"^  (\w+) trial (\d): about (\d+) s \(base_lr ", ended.out, re.MULTILINE)
    # 120 epochs of a step and the two evaluations; a step of the other method takes no time on this machine
    long, short = 120 * STEP + (KNN + LINEAR) * PASS, (KNN + LINEAR) * PASS
    assert trials == [
        (method, str(index), f"{seconds:.0f}")
        for index in range(3)
        for method, seconds in (("barlow_twins", long), ("byol", short))
    ]
    assert len({unit.key for unit in clock}) == 3, "a step of each method, and their backbone"
    # one worker: long, short, long; the other: short, long, short. Longest first would end after two and a short one.
    (total,) = re.findall(r"estimated time: ([\d.]+) min", ended.out)
    assert float(total) == round((2 * long + short) / 60, 1) == 2.3


class _InThisProcess:
    """Stands for worker processes, of a device without earlier runs; ``started`` are their numbers and threads."""

    def __init__(self):
        self.started = []

    def __call__(self, source, workers, threads):
        self.started.append((workers, threads))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(estimate.measured_use(arguments[0], None) if arguments else "a device")
        return future

    def kill(self, work):
        raise AssertionError("nothing hangs")


@pytest.fixture
def in_this_process(monkeypatch):
    stand_in = _InThisProcess()
    monkeypatch.setattr(workers, "_started", stand_in)
    return stand_in


@dataclass(frozen=True)
class Timing:
    """Stands for a unit whose timing takes so many seconds."""

    takes: float


class _OwnClock:
    """Processes of which each takes its seconds exactly, one after another as they are given; keeps when they ran."""

    def __init__(self):
        self.now, self.under_way, self.ran = 0.0, [], []

    def submit(self, function, unit):
        assert function is workers._time
        future = Future()
        heapq.heappush(self.under_way, (self.now + unit.takes, len(self.ran), future))
        self.ran.append((self.now, self.now + unit.takes))
        return future

    def kill(self, work):
        raise AssertionError("nothing hangs")

    def wait(self, futures, timeout, return_when):
        self.now, number, future = heapq.heappop(self.under_way)
        future.set_result(self.ran[number])
        return SimpleNamespace(done={future})


@pytest.mark.parametrize("busy", [1, 2, 3, 8])
@pytest.mark.parametrize("takes", [[3.0], [3.0, 0.1], [0.1, 3.0], [2.0, 1.5, 4.0, 2.5, 1.0, 3.0, 0.1]])
def test_whatever_is_timed_shares_the_machine_all_the_while(takes, busy, monkeypatch):
    pool = _OwnClock()
    monkeypatch.setattr(workers, "wait", pool.wait)
    timings = [timing.result() for timing in workers._timings(pool, [Timing(t) for t in takes], busy)]
    for *_, last in pool.under_way:
        last.cancel()  # nobody waits for these, and each has a timer
    assert [end - start for start, end in timings] == pytest.approx(takes)
    for start, end in timings:
        moments = [moment for times in pool.ran for moment in times if start <= moment < end]
        assert all(sum(a <= moment < b for a, b in pool.ran) == busy for moment in moments)
    # where units are fewer than workers, no longer than one at a time; else what two rounds of the rest would be
    assert pool.now <= sum(takes) / busy + max(takes)


def test_a_foreign_folder_in_the_run_store_is_named_once_and_a_line_says_what_is_timed(
    tiny_study, photos, tmp_path
):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    # of the embedded set each process would draw all images
    text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
    tiny_study.write_text(text.replace("limit: {train: 192, val: 32, test: 64}\n", ""))
    # in processes of its own, whose workers write to the same place; three runs, so that one waits
    words = ["run", tiny_study, "--workers", "2", "--methods", "random_init", "--seeds", "3"]
    ended = forks.run(forks.COMMAND, *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("mine is left out: not a run") == 1
    assert ended.stderr.count("timing a forward pass to begin with the longest runs") == 1


def test_what_earlier_runs_took_is_not_timed_again(cli, tiny_study, finished, clock):
    for run in (finished / "runs").iterdir():
        for file, changes in (
            ("status.json", {"images_per_second": 32.0}),
            ("records/knn--cosine-v1.json", {"seconds": 21.0}),
            ("records/linear--cached-v1.json", {"seconds": 33.0}),
        ):
            document = unsealed((run / file).read_text())
            (run / file).write_text(json.dumps({**document, **changes}))
    jobs, _ = plan_of(cli("run", tiny_study, "--dry-run", "--seeds", "2"))
    assert jobs["pretrain barlow_twins (seed 0)"] == ("", "")
    assert jobs["pretrain barlow_twins (seed 1)"][0] == TINY_STEPS * 96 / 32
    assert jobs["knn/cosine-v1 barlow_twins (seed 1)"][0] == 21
    assert jobs["linear/cached-v1 random_init (seed 1)"][0] == 33
    assert not clock
    longer, _ = plan_of(cli("run", tiny_study, "--dry-run", "--set", "epochs=4"))
    assert longer["pretrain barlow_twins (seed 0)"][0] == 2 * TINY_STEPS * 96 / 32
    wider, _ = plan_of(cli("run", tiny_study, "--dry-run", "--set", "backbone.width=16"))
    assert wider["pretrain barlow_twins (seed 0)"][0] == TINY_STEPS * STEP
    assert len(clock) == 2


def test_what_other_versions_or_devices_took_says_nothing_here(cli, tiny_study, tmp_path):
    assert cli("run", tiny_study, "--methods", "random_init").code == 0
    (run,) = stored_runs(tmp_path / "runs")
    record = run.folder / "records" / "knn--cosine-v1.json"
    document = unsealed(record.read_text())
    device = document["device"]

    def known(**changes):
        record.write_text(json.dumps({**document, **changes}))
        return {key.partition(" ")[0] for key in estimate.former_use(tmp_path / "runs", device)}

    assert known() >= {"knn/cosine-v1", "linear/cached-v1"}
    other_commit = {**document["environment"], "commit": "another"}
    assert known(environment=other_commit) == known()
    for changes in ({"device": "another"}, {"status": "failed"}, {"environment": {"torch": "1"}}):
        assert known(**changes) == known() - {"knn/cosine-v1"}
    record.write_text("damaged")
    assert "linear/cached-v1" in {k.partition(" ")[0] for k in estimate.former_use(tmp_path / "runs", device)}
