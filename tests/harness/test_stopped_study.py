"""A signal to a study: what is finished stands in its tables when the command has ended."""

import csv
import os
import signal

import pytest

from twinbench.harness.watch import PlainLines


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a signal when the job begins whose label begins with a word."""

    def prepare(number: signal.Signals, word: str) -> None:
        start = PlainLines.start

        def begin(self, label):
            if label.startswith(word):
                os.kill(os.getpid(), number)
            return start(self, label)

        monkeypatch.setattr(PlainLines, "start", begin)

    return prepare


def statuses(report):
    with (report / "records.csv").open(newline="") as handle:
        return {(row["method"], row["protocol"]): row["status"] for row in csv.DictReader(handle)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_tables_of_a_stopped_study_show_what_is_finished(cli, tiny_study, tmp_path, signal_at, number):
    part = (tiny_study, "--methods", "random_init")
    before = signal.getsignal(number)
    signal_at(number, "linear")
    ended = cli("run", *part)
    assert ended.code == 75
    assert f"stopped by {number.name}" in ended.err
    assert "run the same command again" in ended.err
    assert "results/tiny is made again with what is finished" in ended.err
    assert signal.getsignal(number) == before
    report = tmp_path / "results" / "tiny"
    assert statuses(report)["random_init", "knn/cosine-v1"] == "done"
    assert statuses(report)["random_init", "linear/cached-v1"] == "not run"
    assert "not run" in (report / "tables" / "main.md").read_text()


def test_a_place_for_the_report_that_cannot_be_used_is_named(cli, tiny_study, tmp_path):
    """As on a disk that became read-only while the study ran: a file lies where the lease of the report would be."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".tiny.lock").write_text("")
    ended = cli("run", tiny_study, "--methods", "random_init")
    assert ended.code == 1
    assert "error: cannot write a report here: " in ended.err
    assert "unexpected" not in ended.err
