"""twinbench as installed, editable or from a wheel, beside folders of the user's that are named like our rooms."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
METHODS = {"barlow_twins", "byol", "moco_v2", "random_init", "simclr", "simsiam", "supervised", "swav"}
STUDY = """
title: Tiny
description: One method on a few images.
image_set: digit-scenes
recipes: digit-scenes
methods: [barlow_twins]
limit: {train: 128, val: 32, test: 32}
overrides: {backbone.width: 8, epochs: 1, batch_size: 64, schedule.warmup_epochs: 0}
tables: [{name: main, columns: [{protocol: knn/cosine-v1, metric: top1}]}]
"""
# Every command, one after the other in one process, so that the rooms are imported once.
COMMANDS = """
import sys
from pathlib import Path
from twinbench.harness.main import main

def command(*words):
    sys.argv = ["twinbench", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)

for thing in ("methods", "protocols", "image-sets", "recipes", "studies", "formats"):
    command("ls", thing, "--json")
command("doctor")
command("run", "tiny.yaml", "--workers", "1")
command("ls", "runs")
(run,) = map(str, Path("runs").glob("barlow_twins-*"))
command("evaluate", run, "--protocol", "knn/cosine-v1", "--image-set", "folder:photos")
command("export", run, "--format", "timm", "--out", "exported.safetensors")
command("import", "exported.safetensors", "--out", "imported")
command("report", "runs", "--out", "results/all")
print("OURS", Path(sys.modules["twinbench.data"].__file__).parent)
"""


def run(words: list[str | Path], folder: Path, path: str = "") -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": path}
    outcome = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-4000:]
    return outcome.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the rooms, so that no leftover of an earlier build is in it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheels")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, tree], tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["editable", "wheel"])
def bin_and_path(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, Path]:
    """The folder of the scripts, the PYTHONPATH and the folder of the code of an installation."""
    if request.param == "editable":
        path = os.environ.get("PYTHONPATH", "")
        return Path(sysconfig.get_path("scripts")), path, ROOT
    environment = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", environment], environment)
    python = environment / "bin" / "python"
    site = Path(
        run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip()
    )
    # What is installed beside the tests, but without the editable twinbench: a .pth file found this way is not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel], environment)
    return environment / "bin", "", site / "twinbench"


@pytest.fixture(params=["packages", "folders"])
def users_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of the user's own data/, baselines/ and so on, with and without __init__.py."""
    for room in ROOMS:
        folder = tmp_path / room
        folder.mkdir()
        mine = "raise ImportError('this is the code of the user')\n"
        (folder / "main.py").write_text(mine)
        (folder / "simclr.py").write_text(mine)
        if request.param == "packages":
            (folder / "__init__.py").write_text(mine)
    (tmp_path / "tiny.yaml").write_text(STUDY)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(16):
                Image.fromarray(rng.integers(low, low + 127, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def test_a_wheel_installs_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"twinbench"}


def test_a_wheel_holds_every_file_of_the_rooms(wheel: Path) -> None:
    kept = {name.removeprefix("twinbench/") for name in zipfile.ZipFile(wheel).namelist()}
    ours = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours - kept == set()


@pytest.mark.parametrize(
    ("bin_and_path", "users_folder"), [("editable", "packages"), ("wheel", "folders")], indirect=True
)
def test_every_command_works_beside_the_users_own_folders(
    bin_and_path: tuple[Path, str, Path], users_folder: Path
) -> None:
    scripts, path, code = bin_and_path
    # "-c" puts the current folder first on the path, as "-m" does and a console script does not: the harder case
    printed = run([scripts / "python", "-c", COMMANDS], users_folder, path)
    (ours,) = (line.removeprefix("OURS ") for line in printed.splitlines() if line.startswith("OURS "))
    assert Path(ours).resolve() == (code / "data").resolve()
    assert set(json.loads(printed.splitlines()[0])) == METHODS
    assert (users_folder / "results" / "all" / "report.html").is_file()


@pytest.mark.parametrize("users_folder", ["packages"], indirect=True)
def test_the_console_script_and_the_readmes_torchrun_line_work_there(
    bin_and_path: tuple[Path, str, Path], users_folder: Path
) -> None:
    scripts, path, code = bin_and_path
    assert "Usage: twinbench" in run([scripts / "twinbench", "--help"], users_folder, path)
    launch, torchrun_line = readmes_torchrun_line(scripts, processes=1 if code == ROOT else 2)
    words = [
        "byol",
        "--image-set",
        "folder:photos",
        "--recipe",
        "digit-scenes",
        "--set",
        "epochs=1",
        "--set",
        "batch_size=16",
    ]
    small = ["--set", "backbone.width=8", "--set", "schedule.warmup_epochs=0"]
    printed = run([*launch, *torchrun_line, *words, *small], users_folder, path)
    assert "encoder: runs/byol-" in printed


def readmes_torchrun_line(scripts: Path, processes: int) -> tuple[list[str | Path], list[str]]:
    """The line up to the method, on so many processes, with the scripts of this installation."""
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("torchrun "))
    words = line.split()
    words[words.index("--nproc-per-node") + 1] = str(processes)
    before = words[1 : words.index("pretrain") + 1]
    before = [str(scripts / "twinbench") if word == "twinbench" else word for word in before]
    # torch's console script is not in the second installation's folder: its module is the same program
    return [scripts / "python", "-m", "torch.distributed.run"], before
