"""kill -9 in the middle of a job: the same command goes on and ends with the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd

from twinbench.encoders.encoder import Encoder

SCRIPT = """
import sys
import twinbench.pretraining.train
from twinbench.harness.main import main

twinbench.pretraining.train._CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step
sys.argv = ["twinbench", *sys.argv[1:]]
main()
"""


def command(study: Path, runs: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        SCRIPT,
        "run",
        str(study),
        "--runs",
        runs,
        "--out",
        f"results-{runs}/tiny",
        "--workers",
        "1",
    ]


def test_a_killed_study_goes_on_where_it_was(tiny_study, tmp_path, wait_for):
    tiny_study.write_text(tiny_study.read_text().replace("epochs: 2", "epochs: 8"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tiny_study, "killed"), cwd=tmp_path, env=environment)
    wait_for(lambda: list(tmp_path.glob("killed/barlow_twins*/checkpoints/step-00000001*.pt")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = next(tmp_path.glob("killed/random_init*/records/knn--cosine-v1.json"))
    written = finished.stat().st_mtime_ns
    assert not list(tmp_path.glob("killed/barlow_twins*/encoder"))

    resumed, whole = (
        subprocess.run(
            command(tiny_study, runs),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        for runs in ("killed", "whole")
    )
    assert finished.stat().st_mtime_ns == written, "a finished job was repeated"
    assert "6 jobs, 3 already finished" in resumed.stderr
    assert "6 jobs, 0 already finished" in whole.stderr
    columns = ["method", "protocol", "metric", "value", "encoder_checksum"]
    first, second = (
        pd.read_csv(tmp_path / f"results-{side}/tiny/records.csv")[columns] for side in ("killed", "whole")
    )
    pd.testing.assert_frame_equal(first, second)
    (folder,) = tmp_path.glob("killed/barlow_twins*/encoder")
    assert Encoder.load(folder).checksum in set(second.encoder_checksum)


def test_killed_workers_let_go_and_the_study_goes_on(tiny_study, tmp_path, wait_for):
    tiny_study.write_text(tiny_study.read_text().replace("epochs: 2", "epochs: 24"))
    parallel = [
        sys.executable,
        "-c",
        "from twinbench.harness.main import main; main()",
        "run",
        str(tiny_study),
    ]
    parallel += ["--workers", "2"]
    process = subprocess.Popen(parallel, cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("runs/random_init*/records/linear--cached-v1.json")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run(parallel, cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "3 already finished" in resumed.stderr
    assert (pd.read_csv(tmp_path / "results/tiny/records.csv").status == "done").all()
