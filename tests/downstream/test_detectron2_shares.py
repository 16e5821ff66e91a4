"""Detectron2 on processes of its own launcher, against one, and going on from its own checkpoints after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytestmark = pytest.mark.detectron2

WORKER = Path(__file__).with_name("detectron2_worker.py")
QUICK = """
from dataclasses import replace
from twinbench.downstream.detection.detectron2_c4 import Detectron2C4
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.protocol import register_protocol

schedule = replace(TINY, iterations=4, steps=(2, 3), warmup_iterations=1, train_sizes=(64,), test_size=64, precise_bn=1)
register_protocol(Detectron2C4("detection/quick-detectron2-v1", schedule))
"""


def run(*command, folder, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1800,  # only for ranks that hang: a busy machine may take very long
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder in which the processes have left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    finished = run(WORKER, folder, folder=folder)
    assert finished.returncode == 0, finished.stderr
    return folder


def result(results, name):
    return torch.load(results / name, weights_only=False)


@pytest.mark.numerics
@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_trains_what_one_process_does(world, results, margin):
    expected = result(results, "result.1.0")
    for rank in range(world):
        found = result(results, f"result.{world}.{rank}")
        margin.close("difference", found["weights"], expected["weights"], rtol=1e-7, atol=1e-9)
    assert result(results, f"result.{world}.0")["measured"] == expected["measured"]


def test_a_killed_training_ends_with_the_same_bits(results):
    for rank in range(2):
        whole, went_on = (result(results, f"{name}.{rank}") for name in ("result.2", "went on"))
        assert (whole["first"], went_on["first"]) == (0, 3)
        assert went_on["measured"] == whole["measured"]
        assert all(torch.equal(went_on["weights"][key], value) for key, value in whole["weights"].items())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A folder with an encoder in a run, and a package with a protocol that takes seconds."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "quick.py").write_text(QUICK)
    about = folder / "quick-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: quick\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[twinbench.plugins]\nquick = quick\n")
    words = ["pretrain", "random_init", "--image-set", "digit-scenes", "--set", "backbone.width=8"]
    pretrained = twinbench(folder, *words)
    assert pretrained.returncode == 0, pretrained.stderr
    return folder


def twinbench(folder, *words):
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return run("-m", "twinbench.harness.main", *words, folder=folder, PYTHONPATH=path)


def test_the_command_starts_detectron2s_launcher_and_keeps_the_record(quick):
    (folder,) = quick.glob("runs/random_init-*")
    words = ["evaluate", folder, "--protocol", "detection/quick-detectron2-v1", "--image-set", "digit-scenes"]
    finished = twinbench(quick, *words, "--devices", "2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("box_ap50") == 1, "one rank speaks for all"
    (record,) = folder.glob("records/*.json")
    assert json.loads(record.read_text())["device"].startswith("2 x CPU")
    # each file of a lease has the next number: pretraining, and rank 0 of this evaluation
    assert [path.name for path in folder.glob(".lease/*")] == ["000000002.free"]
    refused = twinbench(quick, *words, "--devices", "3")
    assert refused.returncode == 2
    assert "choose one of 1, 2, 4" in refused.stderr
