"""What a user sees while a plan is carried out."""

import io

import pytest
from rich.console import Console

from twinbench.harness import watch
from twinbench.harness.watch import LiveView, PlainLines, Rebuilding

TABLES = {
    "table1": ["pretrain byol", "linear byol", "pretrain simclr", "linear simclr"],
    "table2": ["pretrain byol", "semi byol"],
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    found = Clock()
    monkeypatch.setattr(watch, "time", found)
    return found


def shown(view: LiveView) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=120).print(view.render())
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def counts(view: LiveView) -> dict[str, list[str]]:
    """For each line of the plan: done, of, running, waiting, failed."""
    rows = [line.split() for line in shown(view)]
    return {row[0]: [row[1], *row[3:7]] for row in rows if len(row) > 6 and row[2] == "of"}


def test_a_job_that_two_tables_need_counts_in_both_and_once_in_all(clock):
    view = LiveView(TABLES, ["pretrain byol"])
    assert counts(view) == {
        "table1": ["1", "4", "-", "3", "-"],
        "table2": ["1", "2", "-", "1", "-"],
        "all": ["1", "5", "-", "4", "-"],
    }


def test_jobs_move_from_waiting_over_running_to_done_or_failed_with_the_reason(clock):
    view = LiveView(TABLES)
    view.start("pretrain byol")
    view.start("pretrain simclr")
    assert counts(view)["table1"] == ["0", "4", "2", "2", "-"]
    view.end("pretrain byol")
    view.end("pretrain simclr", "the loss is [NaN]")
    view.end("linear simclr", "there is no encoder")
    assert counts(view)["table1"] == ["1", "4", "-", "1", "2"]
    assert "failed: pretrain simclr: the loss is [NaN]" in shown(view)


def test_only_the_last_failures_are_listed_and_the_others_counted(clock):
    view = LiveView({"": [f"pretrain {seed}" for seed in range(9)]})
    for seed in range(9):
        view.end(f"pretrain {seed}", "no")
    text = "\n".join(shown(view))
    assert "failed before these: 4" in text
    assert "pretrain 3" not in text
    assert "pretrain 4" in text


def test_the_eta_of_a_resumed_job_counts_from_where_it_went_on(clock):
    view = LiveView(TABLES)
    report = view.start("pretrain byol")
    report(0.5, "epoch 6")
    clock.now += 30
    report(0.75, "epoch 9")
    assert any("75% ETA 30 s epoch 9" in line for line in shown(view))


def test_the_time_left_is_that_of_like_jobs_shared_by_the_workers(clock):
    view = LiveView({"t": [f"pretrain {n}" for n in range(6)]})
    for name in ("pretrain 0", "pretrain 1"):
        view.start(name)
    assert view.seconds_left() is None
    clock.now += 100
    view.end("pretrain 0")
    view.end("pretrain 1")
    assert view.seconds_left() == 4 * 100 / 2
    assert "about 3 min 20 s left" in shown(view)


def test_nothing_is_claimed_of_a_kind_of_job_that_has_not_been_seen(clock):
    view = LiveView(TABLES)
    view.start("pretrain byol")
    clock.now += 10
    view.end("pretrain byol")
    assert view.seconds_left() is None


def test_plain_lines_number_the_jobs_and_tell_how_far_a_long_one_is(clock, capsys):
    lines = PlainLines({"pretrain byol", "linear byol"})
    report = lines.start("pretrain byol")
    report(0.0, "")
    clock.now += 11
    report(0.25, "loss 3")
    lines.end("pretrain byol")
    lines.start("linear byol")
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] pretrain byol",
        "[1/2] pretrain byol: 25%, ETA 33 s  loss 3",
        "[2/2] linear byol",
    ]


def test_jobs_that_never_begin_count_all_the_same(clock, capsys):
    lines = PlainLines({"pretrain byol", "linear byol", "pretrain simclr"})
    lines.start("pretrain byol")
    lines.end("pretrain byol", "the embeddings collapsed")
    lines.end("linear byol")
    lines.start("pretrain simclr")
    lines.end("found finished before")
    assert capsys.readouterr().err.splitlines() == ["[1/3] pretrain byol", "[3/3] pretrain simclr"]


def test_the_report_is_made_again_at_most_once_a_minute_and_for_a_twentieth_of_the_time(clock):
    made = []

    def rebuild() -> None:
        made.append(clock.now)
        clock.now += 10

    watched = Rebuilding(PlainLines({"job"}), rebuild)
    for _ in range(100):
        clock.now += 5
        watched.end("job")
    assert [round(at - 1000) for at in made] == [60, 270, 480]
