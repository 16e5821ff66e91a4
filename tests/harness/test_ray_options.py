"""What may be asked of Ray, on a machine that may not have it; no other command imports it."""

import subprocess
import sys

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
    (line,) = [line for line in doctor.examine(None, tmp_path / "runs") if line.startswith("Ray")]
    assert (
        line
        == f"Ray         not installed; only `twinbench run --executor ray` needs it: {ray_options.HOW_TO_INSTALL}"
    )


def test_devices_of_a_training_are_checked_before_any_work(cli, tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_options, "ray_version", lambda: "2.60.0")
    refused = cli("run", tiny_study, "--executor", "ray", "--devices", "3")
    assert refused.code == 2
    assert "batch_size 64 does not divide evenly over 3 devices" in refused.err
    assert not (tmp_path / "runs").exists()


def test_commands_that_need_no_ray_do_not_import_it():
    script = "import sys, twinbench.harness.commands; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
