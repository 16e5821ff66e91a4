"""Jobs side by side within memory and GPUs: which start, which wait, and what each worker sees."""

import hashlib
import json
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info

from twinbench.data import scenes
from twinbench.foundation.cores import own_cores
from twinbench.harness import room, workers
from twinbench.harness.estimate import Use
from twinbench.harness.images import Images
from twinbench.harness.plan import jobs, plan_study
from twinbench.harness.room import Room, gpu_of_each, room_for
from twinbench.harness.schedule import Waiting, timetable
from twinbench.harness.studies import load_study

from .conftest import GENERATED


def test_a_job_that_does_not_fit_waits_and_a_smaller_one_goes_first():
    waiting = Waiting([[9], [8], [1]], workers=3, memory=[[6], [5], [4]], room=10)
    assert waiting.start() == (0, 0)
    assert waiting.wanted() == (1, 0)
    assert waiting.start() == (2, 0), "6 + 5 is more than 10, 6 + 4 is not"
    assert waiting.start() is None
    waiting.ended(2)
    assert waiting.start() is None
    waiting.ended(0)
    assert waiting.start() == (1, 0)
    assert waiting.wanted() is None


def test_a_job_that_fits_nowhere_is_done_alone():
    starts, end = timetable([[3, 1], [2], [2]], workers=3, memory=[[50, 1], [1], [1]], room=10)
    assert [(start.seconds, start.run, start.place) for start in starts] == [
        (0, 0, 0),
        (3, 1, 0),
        (3, 2, 0),
        (3, 0, 1),
    ]
    assert end == 5


def test_without_a_word_on_memory_nothing_waits_for_it():
    assert timetable([[3], [3], [3]], workers=3)[1] == 3
    assert timetable([[3], [3], [3]], workers=3, memory=[[0.0]] * 3, room=0.0)[1] == 3


@pytest.mark.parametrize("seed", range(20))
def test_no_moment_has_more_memory_than_there_is_and_every_job_is_done(seed):
    draw = random.Random(seed)
    runs = [[draw.randint(1, 9) for _ in range(draw.randint(1, 3))] for _ in range(draw.randint(1, 8))]
    memory = [[draw.randint(0, 12) for _ in jobs] for jobs in runs]
    starts, end = timetable(runs, workers=4, memory=memory, room=10)
    assert sorted((start.run, start.place) for start in starts) == [
        (run, place) for run, jobs in enumerate(runs) for place in range(len(jobs))
    ]
    spans = [(s.seconds, s.seconds + runs[s.run][s.place], memory[s.run][s.place]) for s in starts]
    for moment, _, _ in spans:
        held = [mb for begins, ends, mb in spans if begins <= moment < ends]
        assert sum(held) <= 10 or len(held) == 1
    assert max(ends for _, ends, _ in spans) == end <= sum(map(sum, runs)), (
        "never longer than one after another"
    )


def test_the_room_of_the_machine_is_what_jobs_share():
    use = {"a": Use(1, 3000), "b": Use(1, 9000), "c": Use(1, 100)}
    shared, job = Room(8192, 8192), SimpleNamespace
    assert shared.of([[job(label="a"), job(label="b")], [job(label="unknown")]], use) == [
        [3000, math.inf],
        [0],
    ]
    assert shared.too_large(use) == (
        "1 job is done alone, for want of memory: b needs about 8.8 GiB, and there are 8.0 GiB"
    )
    assert shared.too_large({"a": use["a"]}) == ""


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, of 40 and of 24 GiB, as torch tells of them."""
    sizes = [40 * 2**30, 24 * 2**30]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))


def test_there_is_a_worker_for_each_gpu_with_its_memory_for_itself(gpus):
    assert workers.workers_here() == 2
    own = room_for(2)
    assert own == Room(2 * 24 * 1024, 24 * 1024)
    assert own.taken_by(20 * 1024) + own.taken_by(24 * 1024) <= own.together_mb, "each on its own"
    assert own.taken_by(1) + own.taken_by(30 * 1024) > own.together_mb, "too large for one of them: alone"


def test_workers_that_share_a_gpu_have_a_part_of_it_each(gpus):
    shared = room_for(4)
    assert shared == Room(4 * 12 * 1024, 12 * 1024)
    assert 4 * shared.taken_by(5) == shared.together_mb


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1", "0"]), ("5, 2", ["5", "2", "5"]), ("GPU-aa,MIG-bb", ["GPU-aa", "MIG-bb", "GPU-aa"])],
)
def test_each_worker_gets_a_gpu_among_those_that_this_process_may_see(gpus, visible, expected):
    assert gpu_of_each(3, visible) == expected


def test_without_gpus_no_worker_is_told_of_one_and_the_machine_s_memory_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(room, "usable_memory", lambda: 5 * 2**30)
    assert gpu_of_each(2, "0,1") == [None, None]
    assert room_for(3) == Room(5120, 5120)


def seen_by_worker():
    """In a worker: its GPU, and the threads that each library would start."""
    return (
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch.get_num_threads(),
        own_cores(),
        {library["num_threads"] for library in threadpool_info()},
    )


def test_a_worker_sees_its_own_gpu_and_starts_threads_for_its_share_of_the_cores(gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    with workers._started(None, 1, threads=1) as crew:
        assert crew.submit(seen_by_worker).result() == ("5", 1, 1, {1})


def results(runs):
    """The weights and measurements of every run."""
    return {
        str(file.relative_to(runs)): json.loads(file.read_text()).get("measurements")
        or hashlib.sha256(file.with_name("encoder.safetensors").read_bytes()).hexdigest()
        for file in runs.rglob("*.json")
        if file.parent.name == "records" or file.name == "encoder.json"
    }


def test_where_nothing_fits_beside_another_the_results_have_the_same_bits(
    cli, tiny_study, photos, monkeypatch
):
    # of the embedded set each process would draw all images
    text = tiny_study.read_text().replace("digit-scenes\nrecipes", f"folder:{photos}\nrecipes")
    text = text.replace("limit: {train: 192, val: 32, test: 64}\n", "")
    tiny_study.write_text(text.replace("batch_size: 96", "batch_size: 8"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli("run", tiny_study, "--runs", "alone").code == 0
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(workers, "room_for", lambda workers: Room(1.0, 1.0))
    monkeypatch.setattr(workers, "usable_cores", lambda: 2)  # so that each has one thread, as the run alone
    ended = cli("run", tiny_study, "--runs", "narrow", "--workers", "2")
    assert ended.code == 0, ended.err
    assert "for their memory" in ended.err
    assert "jobs are done alone, for want of memory: " in ended.err
    assert "waits for memory that running jobs need" in ended.err
    assert results(Path("narrow")) == results(Path("alone"))
    assert len(results(Path("alone"))) == 2 * 3, "two encoders, and of each two records"


@pytest.mark.parametrize(
    ("methods", "seeds", "cores", "expected"),
    [
        (["random_init", "barlow_twins"], 1, 4, (1, 4)),
        (["random_init", "barlow_twins", "byol"], 1, 4, (2, 2)),
        (["random_init", "barlow_twins", "byol"], 2, 4, (4, 1)),
        (["random_init", "barlow_twins", "byol"], 2, 64, (4, 16)),
        (["barlow_twins", "byol", "simsiam"], 20, 64, (8, 8)),
        (["random_init"], 3, 6, (3, 2)),
        (["barlow_twins"], 1, 1, (1, 1)),
    ],
)
def test_no_core_is_left_to_a_run_that_is_not_there(
    tiny_study, tmp_path, monkeypatch, methods, seeds, cores, expected
):
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    monkeypatch.setattr(scenes, "classification", GENERATED)
    rows = f"methods: [{', '.join(methods)}]\nseeds: {seeds}"
    tiny_study.write_text(tiny_study.read_text().replace("methods: [random_init, barlow_twins]", rows))
    study, images = load_study(str(tiny_study)), Images(None)
    plan = jobs(plan_study(study, images, tmp_path / "runs", {}), images)
    count = workers.default_workers(plan)
    assert (count, workers.threads_each(count)) == expected
