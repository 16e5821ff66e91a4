"""A study small enough to run in seconds, and the command line in this process."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forks import Fork
from twinbench.data import scenes
from twinbench.harness.main import main

TINY_STUDY = """
title: Tiny
description: Two methods on a few images.
image_set: digit-scenes
recipes: digit-scenes
methods: [random_init, barlow_twins]
limit: {train: 192, val: 32, test: 64}
overrides:
  backbone.width: 8
  epochs: 2
  batch_size: 96
  schedule.warmup_epochs: 0
tables:
  - name: main
    title: kNN and linear
    columns:
      - {protocol: knn/cosine-v1, metric: top1, label: kNN top-1}
      - {protocol: linear/cached-v1, metric: top1, label: linear top-1}
"""

# Seconds, for a process that hangs: a busy machine may take very long over what an idle one does at once.
LAST_RESORT = 1800
# The set is a function of its arguments; every command in this process would make the same images anew.
GENERATED = functools.cache(scenes.classification)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def install(site, package, modules, entry_points=None):
    """Put a package with files of Python and entry points (by default one, its name) on a path."""
    for name, text in modules.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    described = site / f"{package}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n"
    )
    lines = [f"{name} = {value}" for name, value in (entry_points or {package: package}).items()]
    (described / "entry_points.txt").write_text("\n".join(["[twinbench.plugins]", *lines, ""]))


def python_path(site):
    """The path of this process with ``site`` before it."""
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object], subprocess.Popen], None]:
    """Wait until something has happened, as long as the process that is to make it happen lives."""

    def wait(happened: Callable[[], object], process: subprocess.Popen) -> None:
        hung = time.monotonic() + LAST_RESORT
        while not happened():
            assert process.poll() is None, "the process ended before it happened"
            assert time.monotonic() < hung, "the process hangs"
            time.sleep(0.02)

    return wait


@pytest.fixture
def started() -> Iterator[list[Fork]]:
    """Processes that are killed at the end, unless they have ended."""
    processes: list[Fork] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes that differ in brightness, 24 images to train and 8 to test each; no name twice."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 24), ("test", 8)):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(low, low + 127, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_STUDY)
    return path


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line in ``tmp_path`` and in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "classification", GENERATED)

    def call(*arguments: str | Path) -> Outcome:
        here = ["--workers", "1"] if arguments[0] == "run" and "--workers" not in arguments else []
        monkeypatch.setattr(sys, "argv", ["twinbench", *map(str, arguments), *here])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `finished` keeps what the first test that asks for it has made."""
    return tmp_path_factory.mktemp("kept") / "tiny"


@pytest.fixture
def finished(cli: Callable[..., Outcome], tiny_study: Path, tmp_path: Path, kept: Path) -> Path:
    """The current folder with the tiny study, its runs and its results: a copy, for a run takes seconds."""
    if not kept.exists():
        outcome = cli("run", tiny_study)
        assert outcome.code == 0, outcome.err
        shutil.copytree(tmp_path, kept)
    for name in ("runs", "results"):
        shutil.copytree(kept / name, tmp_path / name, dirs_exist_ok=True)
    return tmp_path
