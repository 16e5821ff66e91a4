"""kill -9 in the middle of a job: the same command goes on and ends with the same bits."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.forks import SLOWLY, Fork
from twinbench.encoders.encoder import Encoder

from .conftest import install, python_path

MAIN = f"""
{SLOWLY}
import sys
import twinbench.pretraining.train
from twinbench.harness.main import main

twinbench.pretraining.train._CHECKPOINT_SECONDS = float(sys.argv.pop(1))
main()
"""


def started(tmp_path: Path, checkpoint_seconds: float, words: list[str], **variables: str) -> Fork:
    """The command in a process of its own, to be killed; this one goes on, with as many threads for the same bits."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **variables}
    return Fork(MAIN, str(checkpoint_seconds), *words, cwd=tmp_path, env=environment)


def kill(process: Fork) -> None:
    process.kill()
    assert process.wait() == -9


@pytest.fixture
def study_of(tiny_study, photos):
    """The tiny study on a few photos, with so many epochs of two steps: an embedded set is drawn whole."""

    def study(epochs: int) -> Path:
        text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
        text = text.replace("limit: {train: 192, val: 32, test: 64}\n", "")
        tiny_study.write_text(text.replace("epochs: 2", f"epochs: {epochs}").replace("size: 96", "size: 16"))
        return tiny_study

    return study


def test_a_killed_study_goes_on_where_it_was(cli, study_of, tmp_path, wait_for, monkeypatch):
    study = study_of(epochs=8)

    def words(runs: str) -> list[str]:
        return ["run", str(study), "--runs", runs, "--out", f"results-{runs}/tiny", "--workers", "1"]

    always = 0.0  # seconds between checkpoints: one after every step
    process = started(tmp_path, always, words("killed"))
    wait_for(lambda: list(tmp_path.glob("killed/barlow_twins*/checkpoints/step-00000000[5-9]-*.pt")), process)
    kill(process)
    finished = next(tmp_path.glob("killed/random_init*/records/knn--cosine-v1.json"))
    written = finished.stat().st_mtime_ns
    assert not list(tmp_path.glob("killed/barlow_twins*/encoder"))

    monkeypatch.setattr("twinbench.pretraining.train._CHECKPOINT_SECONDS", always)
    resumed, whole = (cli(*words(runs)) for runs in ("killed", "whole"))
    assert resumed.code == whole.code == 0, resumed.err + whole.err
    assert finished.stat().st_mtime_ns == written, "a finished job was repeated"
    assert "6 jobs, 3 already finished" in resumed.err
    assert "6 jobs, 0 already finished" in whole.err
    columns = ["method", "protocol", "metric", "value", "encoder_checksum"]
    first, second = (
        pd.read_csv(tmp_path / f"results-{side}/tiny/records.csv")[columns] for side in ("killed", "whole")
    )
    pd.testing.assert_frame_equal(first, second)
    (folder,) = tmp_path.glob("killed/barlow_twins*/encoder")
    assert Encoder.load(folder).checksum in set(second.encoder_checksum)


def test_killed_workers_let_go_and_the_study_goes_on(cli, study_of, tmp_path, wait_for):
    words = ["run", str(study_of(epochs=10))]
    install(tmp_path / "site", "slowly", {"slowly.py": SLOWLY})  # for the workers, too
    slow = python_path(tmp_path / "site")
    process = started(tmp_path, 30.0, [*words, "--workers", "2"], PYTHONPATH=slow)
    wait_for(lambda: list(tmp_path.glob("runs/random_init*/records/linear--cached-v1.json")), process)
    kill(process)
    resumed = cli(*words, "--workers", "1")
    assert resumed.code == 0, resumed.err
    assert "3 already finished" in resumed.err
    assert (pd.read_csv(tmp_path / "results/tiny/records.csv").status == "done").all()
