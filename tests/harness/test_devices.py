"""One command on several processes: the weights of one process, whoever started the ranks."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests import forks
from tests.forks import COMMAND, SLOWLY, Fork
from twinbench.data.catalogue import load_image_set
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.files import slug
from twinbench.harness.store import read_run
from twinbench.pretraining.build import build_method
from twinbench.pretraining.recipe import Recipe

# Seconds, for a process that hangs; a busy machine may take very long.
LAST_RESORT = 1800
Wait = Callable[[Callable[[], object], Fork], None]
# no AdamW: its first steps amplify the rounding of tiny gradients to full size
SETTINGS = {
    "epochs": 1,
    "batch_size": 64,
    "precision": "fp32",
    "backbone.width": 8,
    "optimizer": "{name: sgd, base_lr: 0.1}",
    "schedule": "{warmup_epochs: 0}",
}
OPTIONS = {
    "barlow_twins": {"options.lambd": 0.1, "options.loss_scale": 0.01},
    "moco_v2": {"options.queue_length": 384, "options.bn_splits": 4},
    "simsiam": {"accumulate": 2},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """A few digit-scenes images as files, so that an epoch has three steps."""
    root = tmp_path_factory.mktemp("photos")
    scenes = load_image_set("digit-scenes", limit={"train": 220, "test": 40})
    for name in ("train", "test"):
        split = scenes.split(name)
        for index, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            folder = root / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return f"folder:{root}"


def arguments(method: str, photos: str, runs: str, *more: str, **changes) -> list[str]:
    settings = {**SETTINGS, **OPTIONS.get(method, {}), **changes}
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    where = ["--image-set", photos, "--recipe", "digit-scenes", "--runs", runs]
    return ["pretrain", method, *where, *assignments, *more]


def environment(**variables: object) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (encoder,) = folder.glob("*/encoder")
    return Encoder.load(encoder).backbone.state_dict()


def difference(folder: Path, other: Path) -> float:
    """How far two trainings are apart, relative to how far they went."""
    recipe = Recipe(**yaml.safe_load(next(folder.glob("*/recipe.yaml")).read_text()))
    start = dict(build_method(recipe).backbone.named_parameters())
    ours, theirs = weights(folder), weights(other)
    apart = sum((ours[name] - theirs[name]).square().sum() for name in start)
    gone = sum((ours[name] - before).square().sum() for name, before in start.items())
    return (apart / gone).sqrt().item()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# Several commands, one after another in each of the ranks that torchrun's launcher starts: `test_installed` has its
# command line. What a rank says of a command goes to a file.
COMMANDS = """
import contextlib, glob, json, os, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from twinbench.data import image_sets
from twinbench.harness.console import console
from twinbench.harness.main import main


def rank():
    for name, words, in_memory in json.loads(sys.argv.pop()):
        if not in_memory:
            image_sets._IN_MEMORY_BYTES = 0
        sys.argv = ["twinbench", *(glob.glob(word)[0] if "*" in word else word for word in words)]
        with open(f"{name}.{os.environ['RANK']}", "w") as said, contextlib.redirect_stderr(said):
            console.file = said
            try:
                main()
            except SystemExit as end:
                assert not end.code, (name, end.code)


where = dict(rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0")
elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", monitor_interval=0.1, **where), rank)()
"""


# no fine-tuning: rounding grows quickly there, see `test_shares` for that in fp64
EVALUATED = ["linear/cached-v1", "linear/places205-v2"]


def evaluation(protocol: str, photos: str) -> list[str]:
    return ["evaluate", "evaluated/random_init-*", "--protocol", protocol, "--image-set", photos]


def trained(method: str, photos: str, runs: str, seed: int) -> list[str]:
    return arguments(method, photos, runs, "--seed", str(seed), batch_size=192)


@pytest.fixture(scope="module")
def two_devices(photos: str, damaged: str, seed_offset: int, tmp_path_factory) -> Path:
    """Where two ranks of torchrun have trained every method of `OPTIONS`, and then one that skips damaged images."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = [(method, trained(method, photos, method, seed_offset), True) for method in OPTIONS]
    words = ["--recipe", "digit-scenes", "--set", "backbone.width=8", "--runs", "evaluated"]
    commands.append(("random_init", ["pretrain", "random_init", "--image-set", photos, *words], True))
    commands += [(slug(name), evaluation(name, photos), True) for name in EVALUATED]
    commands.append(("again", evaluation(EVALUATED[0], photos), True))
    commands.append(("skipping", skipping(damaged), False))  # last: from here on all images are streamed
    ended = forks.run(COMMANDS, json.dumps(commands), cwd=folder, env=environment())
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.numerics
@pytest.mark.parametrize("method", OPTIONS)
def test_two_devices_train_what_one_device_trains(
    method, cli, photos, two_devices, tmp_path, seed_offset, margin
):
    """One step, since rounding grows quickly from step to step; `test_exact_across_ranks` has more in fp64."""
    alone = cli(*trained(method, photos, "one", seed_offset))
    assert alone.code == 0, alone.err
    said, other = ((two_devices / f"{method}.{rank}").read_text() for rank in range(2))
    assert (said + other).count("peak learning rate") == 1, "one rank speaks for all"
    assert "2 x CPU" in said
    share = "48 images x 2 micro-batches" if method == "simsiam" else "96 images"
    assert f"CPU (1 threads) x {share}" in said
    # With batch norm over each device's own images they are 0.75 apart and more.
    margin.at_most("difference", difference(tmp_path / "one", two_devices / method), 0.1, broken=0.75)


def test_the_run_is_held_once_by_each_command_on_two_devices(two_devices):
    """Each file of a lease has the next number: pretraining, every evaluation, and the look at one of these."""
    (last,) = two_devices.glob("evaluated/random_init-*/.lease/*")
    assert last.name == f"{2 + len(EVALUATED):09d}.free"


def test_two_devices_do_not_measure_again(two_devices):
    said, other = ((two_devices / f"again.{rank}").read_text() for rank in range(2))
    assert said.startswith("already measured: ")
    assert not other


@pytest.mark.parametrize("protocol", EVALUATED)
def test_two_devices_leave_the_record_that_one_device_leaves(protocol, cli, photos, two_devices, tmp_path):
    shutil.copytree(two_devices / "evaluated", tmp_path / "evaluated")
    (folder,) = (tmp_path / "evaluated").glob("random_init-*")
    file = folder / "records" / f"{protocol.replace('/', '--')}.json"
    of_two = read_run(folder).record(file)
    assert of_two is not None, "a study would evaluate it again"
    assert of_two["device"].startswith("2 x CPU")
    said, other = ((two_devices / f"{slug(protocol)}.{rank}").read_text() for rank in range(2))
    assert protocol in said
    assert not other, "one rank speaks for all"
    file.unlink()
    alone = cli(*(str(folder) if "*" in word else word for word in evaluation(protocol, photos)))
    assert alone.code == 0, alone.err
    of_one = read_run(folder).record(file)
    for key in (
        "measurements",
        "details",
        "remarks",
        "outcomes",
        "encoder_checksum",
        "image_set_fingerprint",
    ):
        assert of_two[key] == of_one[key], key
    assert not (folder / "unfinished").exists()


def test_a_detector_is_refused_on_devices_that_cannot_share_its_batches(cli, photos):
    words = ["--protocol", "detection/c4-torchvision-v2", "--image-set", photos, "--devices", "3"]
    outcome = cli("evaluate", "nowhere", *words)
    assert outcome.code == 2
    assert "the 4 images of a step do not divide evenly over 3 devices" in outcome.err
    assert "choose one of 1, 2, 4" in outcome.err


def test_a_signal_to_one_rank_stops_all_and_one_device_can_go_on(cli, photos, tmp_path, wait_for):
    """The option starts the ranks itself."""
    words = arguments("simsiam", photos, "stopped", epochs=5)
    script = tmp_path / "slowly.py"
    script.write_text(SLOWLY + COMMAND)
    assert "2 x CPU" in stopped_by(signal.SIGUSR1, script, [*words, "--devices", "2"], tmp_path, wait_for)
    resumed = cli(*words)
    assert resumed.code == 0, resumed.err
    assert "15 steps from" in resumed.err


STREAMING = """
from twinbench.data import image_sets
image_sets._IN_MEMORY_BYTES = 0
from twinbench.harness.main import main
main()
"""


@pytest.fixture(scope="module")
def damaged(photos: str, tmp_path_factory) -> str:
    """The photos with two files cut off."""
    folder = tmp_path_factory.mktemp("damaged") / "photos"
    shutil.copytree(photos.removeprefix("folder:"), folder)
    for index in (5, 50):
        (path,) = folder.glob(f"train/*/{index}.png")
        path.write_bytes(path.read_bytes()[:60])
    return f"folder:{folder}"


def skipping(images: str) -> list[str]:
    return arguments("simsiam", images, "skipping", corrupt_images="skip")


@pytest.mark.parametrize("starter", ["option", "torchrun"])
def test_ranks_with_workers_that_skip_images_come_to_an_end(starter, damaged, two_devices, tmp_path):
    """Forked from a rank, whose threads hold locks, a worker may wait for ever, and both ranks with it."""
    if starter == "torchrun":
        folder, said = two_devices, "".join(file.read_text() for file in two_devices.glob("skipping.?"))
    else:
        folder, script = tmp_path, tmp_path / "stream.py"
        script.write_text(STREAMING)
        ended = forks.run(script, *skipping(damaged), "--devices", "2", cwd=folder, env=environment())
        assert ended.returncode == 0, ended.stderr
        said = ended.stderr
    assert "2 x CPU" in said
    assert "multi-threaded" not in said
    (status,) = folder.glob("skipping/*/status.json")
    assert json.loads(status.read_text())["skipped_images"] == 2


def test_slurm_tasks_find_each_other(photos, tmp_path):
    """Two tasks on one machine with the variables that srun sets."""
    port = free_port()
    tasks = []
    for task in range(2):
        variables = environment(
            SLURM_JOB_ID=77,
            SLURM_STEP_ID=0,
            SLURM_JOB_NAME="pretrain",
            SLURM_NTASKS=2,
            SLURM_NTASKS_PER_NODE=2,
            SLURM_NNODES=1,
            SLURM_NODELIST="127.0.0.1",
            SLURM_PROCID=task,
            SLURM_LOCALID=task,
            SLURM_NODEID=0,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        words = arguments("simsiam", photos, "slurm")
        with (tmp_path / f"said.{task}").open("w") as said:
            tasks.append(Fork(COMMAND, *words, cwd=tmp_path, env=variables, stderr=said))
    codes = [task.wait(LAST_RESORT) for task in tasks]
    messages = [(tmp_path / f"said.{task}").read_text() for task in range(2)]
    assert codes == [0, 0], messages
    assert "2 x CPU" in messages[0]
    assert len(weights(tmp_path / "slurm")) > 0


def stopped_by(
    number: signal.Signals, program: str | Path, words: list[str], tmp_path: Path, wait_for: Wait
) -> str:
    """Begin, send the signal in the middle of training, and check that it saved and said so; returns all it said."""

    def rows() -> int:
        return sum(log.read_text().count("\n") for log in tmp_path.glob("stopped/*/metrics.jsonl"))

    before = rows()
    # this process goes on, with as many threads for the same bits
    variables = environment(OMP_NUM_THREADS=torch.get_num_threads())
    with (tmp_path / "said").open("w") as said:
        process = Fork(program, *words, cwd=tmp_path, env=variables, stderr=said)
        wait_for(lambda: rows() >= before + 3, process)
        process.send_signal(number)
        assert process.wait(LAST_RESORT) == 75
    message = (tmp_path / "said").read_text()
    assert f"stopped by {number.name} after step" in message
    assert "run the same command again" in message
    assert list(tmp_path.glob("stopped/*/checkpoints/step-*.pt"))
    assert not list(tmp_path.glob("stopped/*/encoder"))
    return message


def test_signals_save_and_the_same_command_goes_on_to_the_same_bits(cli, photos, tmp_path, wait_for):
    stopped, whole = (arguments("byol", photos, runs, epochs=8) for runs in ("stopped", "whole"))
    stopped_by(signal.SIGTERM, SLOWLY + COMMAND, stopped, tmp_path, wait_for)
    stopped_by(signal.SIGINT, SLOWLY + COMMAND, stopped, tmp_path, wait_for)
    for words in (stopped, whole):
        ended = cli(*words)
        assert ended.code == 0, ended.err
    first, second = (weights(tmp_path / side) for side in ("stopped", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize(
    ("method", "more", "changes", "expected"),
    [
        ("simclr", ["--devices", "3"], {}, ["batch_size 64", "3 devices", "63 or 66"]),
        ("simclr", ["--devices", "100"], {}, ["set batch_size to 100"]),
        ("simclr", ["--nodes", "2"], {}, ["2 nodes", "MASTER_ADDR", "srun or torchrun"]),
        ("swav", [], {"epochs.more": 1}, ["cannot set 'more' below 'epochs'", "--set 'epochs=...'"]),
        ("moco_v2", ["--devices", "8"], {"options.bn_splits": 4}, ["bn_splits=4", "1, 8, 16, 32"]),
        ("moco_v2", [], {"options.queue_length": 100}, ["options.queue_length", "64 or 128"]),
        ("swav", [], {"options.queue_length": 100}, ["options.queue_length", "64 or 128"]),
        ("simclr", [], {"accumulate": 2}, ["accumulate=2", "byol", "simsiam"]),
        ("byol", [], {"accumulate": 3}, ["3 micro-batches", "63 or 66"]),
        ("simclr", [], {"views": "[{}, {}, {size: 16}]"}, ["takes 2 views", "gives 3"]),
        ("simclr", ["--precision", "fp16"], {}, ["fp16 needs a GPU", "bf16"]),
    ],
)
def test_impossible_combinations_are_refused_before_any_work(
    cli, photos, tmp_path, method, more, changes, expected
):
    if method == "moco_v2" and "options.queue_length" in changes:
        changes = {**changes, "options.symmetric": "false"}
    if "--precision" in more and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which does fp16")
    outcome = cli(*arguments(method, photos, "runs", *more, **changes))
    assert outcome.code == 2
    for words in expected:
        assert words in outcome.err
    assert not list(tmp_path.glob("runs/*"))
