"""What may be asked of Ray, on a machine that may not have it; no other command imports it."""

import re
from pathlib import Path

import pytest

from twinbench.harness import doctor, ray_options


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--devices", "2"], ["only Ray takes this", "devices", "--executor ray"]),
        (["--address", "auto", "--executor", "local"], ["only Ray takes this", "address"]),
        (["--executor", "ray", "--debug"], ["--debug", "in this process"]),
        (["--executor", "ray", "--address", "ray://head:10001"], ["Ray's client", "HOST:PORT"]),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    cli, tiny_study, tmp_path, monkeypatch, more, expected
):
    monkeypatch.setattr(ray_options, "ray_version", lambda: "2.60.0")
    refused = cli("run", tiny_study, *more)
    assert refused.code == 2, refused.err
    for words in expected:
        assert words in refused.err
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.yaml"]


def test_without_ray_it_is_said_how_to_get_it(cli, tiny_study, tmp_path, monkeypatch):
    for module in (ray_options, doctor):
        monkeypatch.setattr(module, "ray_version", lambda: None)
    refused = cli("run", tiny_study, "--executor", "ray")
    assert refused.code == 2
    assert "Ray is not installed" in refused.err
    assert ray_options.HOW_TO_INSTALL in refused.err
    (line,) = [line for line in doctor.examine(None) if line.startswith("Ray")]
    assert (
        line
        == f"Ray         not installed; only `twinbench run --executor ray` needs it: {ray_options.HOW_TO_INSTALL}"
    )


def test_devices_of_a_training_are_checked_before_any_work(cli, tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_options, "ray_version", lambda: "2.60.0")
    refused = cli("run", tiny_study, "--executor", "ray", "--devices", "5")
    assert refused.code == 2
    assert "batch_size 96 does not divide evenly over 5 devices" in refused.err
    assert not (tmp_path / "runs").exists()


def test_one_module_alone_imports_ray():
    """It takes seconds, and other commands do not need it."""
    rooms = Path(ray_options.__file__).parents[1]
    importing = re.compile(r"^\s*(import|from) ray\b", re.MULTILINE)
    ours = [file for room in rooms.glob("[a-z]*") for file in room.glob("**/*.py")]  # and no .venv
    found = [file.name for file in ours if importing.search(file.read_text(encoding="utf-8"))]
    assert set(found) <= {"ray_executor.py", "test_ray.py", "fault_servers.py"}, "and who tests it"
    assert "ray_executor.py" in found
