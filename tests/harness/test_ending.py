"""How commands end: the exit code, one message, a traceback only when asked for, quiet where nobody reads."""

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import twinbench.data
from tests.forks import COMMAND, Fork
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.harness.console import LegibleOutput
from twinbench.pretraining.interrupt import Interrupted

ROOMS = Path(twinbench.data.__file__).parents[1]

# One wrong use of each command, and what it says.
WRONG = [
    (["run", "quik"], "unknown study"),
    (["pretrain", "simsam", "--image-set", "digit-scenes"], "unknown method"),
    (["evaluate", "nowhere", "--protocol", "knn", "--image-set", "digit-scenes"], "no encoder here"),
    (["import", "nothing.pth", "--out", "x"], "no such file"),
    (["export", "nowhere", "--format", "timm", "--out", "x"], "encoder"),
    (["report", "nowhere", "--out", "x"], "no runs here"),
    (["run", "quick", "--runs", ""], "a path is empty"),
    (["export", "", "--format", "timm", "--out", "x"], "a path is empty"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_only_debug_shows_the_traceback_and_the_code_stays(cli, arguments, said):
    for debug in ([], ["--debug"]):
        outcome = cli(*arguments, *debug)
        assert outcome.code == 2
        assert said in outcome.err
        assert ("Traceback" in outcome.err) == bool(debug)


@pytest.mark.parametrize("arguments", [["ls", "methods"], ["doctor"]])
def test_every_command_takes_debug(cli, arguments):
    assert cli(*arguments, "--debug").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: twinbench"),
        (["rn"], "'rn'"),
        (["run"], "study"),
        (["run", "quick", "--sedes", "3"], "--seeds"),
        (["run", "quick", "--seeds", "0"], "--seeds"),
        (["run", "quick", "extra"], "extra"),
        (["evaluate", "x", "--protocol", "knn"], "--image-set"),
        (["ls", "metods"], "methods"),
    ],
)
def test_words_that_no_command_knows_end_with_code_2(cli, arguments, said):
    """Without the fixture's own words: an option that it adds would be the first to be unknown."""
    command = [sys.executable, "-c", "from twinbench.harness.main import main; main()", *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 2
    said_by_it = (outcome.stderr + outcome.stdout).lower()  # older versions of typer write STUDY
    assert said.lower() in said_by_it
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("wrong", next_step="correct it"), 2, "error: wrong\n  next:    correct it"),
        (RunFailure("broken", where="here"), 1, "error: broken\n  where:   here"),
        (Interrupted("stopped"), 75, "error: stopped"),
        (ZeroDivisionError("by zero"), 1, "error: unexpected ZeroDivisionError: by zero\n  next:"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: unexpected BrokenPipeError"),
        (MemoryError(), 1, "error: there is not enough memory: MemoryError\n  next:"),
        (
            RuntimeError("can't allocate memory: you tried to\nallocate"),
            1,
            "memory: can't allocate memory: you tried to\n  next:",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_kind_of_error_has_its_code(cli, monkeypatch, error, code, said):
    def fail(*args):
        raise error

    monkeypatch.setattr("twinbench.harness.commands.list_names", fail)
    monkeypatch.setattr("twinbench.harness.ending._output_is_closed", lambda: False)
    outcome = cli("ls", "methods")
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_reading_is_no_error(unbuffered, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "said").open("w") as said, open(writer, "w") as out:
        if unbuffered:  # an interpreter reads this when it starts
            command = [sys.executable, "-c", COMMAND, "ls", "protocols"]
            code = subprocess.run(command, stdout=out, stderr=said).returncode
        else:
            code = Fork(COMMAND, "ls", "protocols", cwd=tmp_path, stdout=out, stderr=said).wait()
    assert (tmp_path / "said").read_text() == ""
    assert code == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is always full")
def test_no_job_fails_for_want_of_a_place_to_say_how_far_it_is(tiny_study, tmp_path):
    """A log on a full disk, or a terminal that was closed: what is printed there is lost, and no more."""
    with open("/dev/full", "w") as full:
        process = Fork(COMMAND, "run", tiny_study, cwd=tmp_path, stdout=full, stderr=full)
        assert process.wait() == 1, "the tables cannot be printed"
    assert {json.loads(file.read_text())["status"] for file in tmp_path.glob("runs/*/status.json")} == {
        "done"
    }
    assert list(tmp_path.glob("results/*/report.html"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is always full")
def test_what_cannot_be_printed_is_a_failure_in_words():
    with open("/dev/full", "w") as full:
        output = LegibleOutput(full)
        output.write("tables")
        with pytest.raises(RunFailure, match="cannot print: No space left on device"):
            output.flush()
        output.write("more")  # goes nowhere, as the interpreter's last words do


def test_a_closed_output_and_a_narrow_encoding_take_everything():
    assert LegibleOutput(None).write("tables") == 6
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    LegibleOutput(narrow).write("50.0 \N{PLUS-MINUS SIGN} 0.5")
    narrow.flush()
    assert narrow.buffer.getvalue() == rb"50.0 \xb1 0.5"


@pytest.fixture
def corrupt(tmp_path: Path) -> str:
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(folder / "0.png")
    broken = tmp_path / "photos" / "train" / "cats" / "1.png"
    broken.write_bytes((broken.parent / "0.png").read_bytes()[:60])
    return f"folder:{tmp_path / 'photos'}"


def test_an_option_is_named_by_the_commands_that_take_it(cli, corrupt, monkeypatch, tmp_path):
    trained = cli("pretrain", "simclr", "--image-set", corrupt)
    assert "corrupt_images: skip (--set corrupt_images=skip)" in trained.err
    monkeypatch.setattr("twinbench.encoders.encoder.Encoder.load", lambda folder: None)
    evaluated = cli("evaluate", "x", "--protocol", "knn", "--image-set", corrupt)
    assert evaluated.code == trained.code == 2
    assert evaluated.err.rstrip().endswith("corrupt_images: skip")
    no_data = cli("run", "cifar10-cpu")
    assert "as the data root (--data-root DIR)" in no_data.err


@pytest.mark.parametrize("room", ["foundation", "data", "encoders", "pretraining", "baselines", "downstream"])
def test_what_a_library_says_names_no_option_of_the_command_line(room):
    said = [
        f"{file.name}:{node.lineno}: {node.value}"
        for file in sorted((ROOMS / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"(?<!sbatch)(^|\s|\()--[a-z]", node.value)
    ]
    assert said == []
