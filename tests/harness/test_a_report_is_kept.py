"""A part of a study, or the study with other keys, does not take the place of its report unless it is told to."""

import pytest


@pytest.mark.parametrize("change", [("--methods", "random_init"), ("--set", "batch_size=32")])
def test_another_command_does_not_replace_a_report_unasked(cli, tiny_study, finished, change):
    page = finished / "results" / "tiny" / "report.html"
    before = page.read_bytes()
    ended = cli("run", tiny_study, *change)
    assert ended.code == 2
    assert "the report here was made by another command: twinbench run" in ended.err
    assert "--out" in ended.err
    assert page.read_bytes() == before
    assert cli("run", tiny_study, *change, "--out", "results/tiny").code == 0
    assert page.read_bytes() != before


def test_the_same_part_and_the_whole_study_go_on_in_their_folder(cli, tiny_study, tmp_path):
    part = ("--methods", "random_init")
    assert cli("run", tiny_study, *part).code == 0
    assert cli("run", tiny_study, *part).code == 0
    assert cli("run", tiny_study).code == 0
    assert "barlow_twins" in (tmp_path / "results" / "tiny" / "records.csv").read_text()
