"""The order of jobs and the time they take, against calculations by hand and against every possible order."""

import random

import pytest

from twinbench.harness.schedule import Waiting, timetable


def shortest_end(runs, workers):
    """The earliest end of all orders in which a worker takes the next job of some run as soon as it is free."""
    best = float("inf")

    def go_on(now, places, busy):
        nonlocal best
        if now >= best:
            return
        ready = [run for run, jobs in enumerate(runs) if run not in busy and places[run] < len(jobs)]
        if not ready and not busy:
            best = min(best, now)
        elif ready and len(busy) < workers:
            for run in ready:
                further = {**busy, run: now + runs[run][places[run]]}
                go_on(now, [place + (index == run) for index, place in enumerate(places)], further)
        else:
            run = min(busy, key=busy.get)
            go_on(busy[run], places, {other: end for other, end in busy.items() if other != run})

    go_on(0.0, [0] * len(runs), {})
    return best


def test_three_equal_runs_keep_two_workers_busy_until_the_end():
    # Two train; the third's training, the longest way left, goes before the evaluations of the first.
    starts, end = timetable([[4, 2, 1, 1]] * 3, workers=2)
    assert starts == [
        (0, 0, 0),
        (0, 1, 0),
        (4, 2, 0),
        (4, 0, 1),
        (6, 1, 1),
        (8, 0, 2),
        (8, 2, 1),
        (9, 1, 2),
        (10, 0, 3),
        (10, 2, 2),
        (11, 1, 3),
        (11, 2, 3),
    ]
    assert end == 12 == 3 * 8 / 2


def test_what_has_begun_ends_first_while_more_runs_wait_than_there_are_workers():
    starts, end = timetable([[4, 1]] * 6, workers=2)
    assert [(start.run, start.place) for start in starts[:6]] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (2, 0),
        (3, 0),
    ]
    assert end == 15 == 6 * 5 / 2


def test_the_longest_run_starts_first_and_equal_ones_in_their_order():
    starts, end = timetable([[1], [2, 1], [5], [2, 1]], workers=2)
    assert [start.run for start in starts] == [2, 1, 3, 0, 1, 3]
    assert end == 6


def test_runs_may_begin_in_their_order_instead():
    # The first run goes on before the third begins; the longest begins last and ends alone.
    runs = [[1, 1], [3], [5]]
    starts, end = timetable(runs, workers=2, longest_first=False)
    assert starts == [(0, 0, 0), (0, 1, 0), (1, 0, 1), (2, 2, 0)]
    assert end == 7
    assert timetable(runs, workers=2)[1] == 5


def test_one_worker_needs_the_sum_and_a_single_run_gains_nothing_from_more():
    assert timetable([[3, 1], [2]], workers=1)[1] == 6
    assert timetable([[3, 1]], workers=4)[1] == 4
    assert timetable([], workers=2) == ([], 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_jobs_is_much_shorter(seed):
    draw = random.Random(seed)
    runs = [[draw.randint(1, 9) for _ in range(draw.randint(1, 3))] for _ in range(draw.randint(2, 3))]
    starts, end = timetable(runs, workers=2)
    best = shortest_end(runs, workers=2)
    # Graham's bound for any order: at most half longer on two workers
    assert best <= end <= 1.5 * best
    assert sorted((run, place) for _, run, place in starts) == [
        (run, place) for run, jobs in enumerate(runs) for place in range(len(jobs))
    ]
    at = {(run, place): (seconds, seconds + runs[run][place]) for seconds, run, place in starts}
    for (run, place), (begins, _) in at.items():
        assert place == 0 or begins >= at[run, place - 1][1], "a run's jobs go one after another"
        busy = sum(start <= begins < stop for start, stop in at.values())
        assert busy <= 2
    assert max(stop for _, stop in at.values()) == end


def test_jobs_wait_for_those_before_them_and_for_nothing_else():
    waiting = Waiting([[1, 1], [5]], workers=2)
    assert waiting.start() == (1, 0)
    assert waiting.start() == (0, 0)
    assert waiting.start() is None
    waiting.ended(0)
    assert waiting.start() == (0, 1)
    waiting.ended(0)
    waiting.ended(1)
    assert waiting.start() is None


def test_the_best_end_is_found_by_hand():
    assert shortest_end([[4, 2, 1, 1]] * 3, workers=2) == 12
    assert shortest_end([[3], [3], [2], [2], [2]], workers=2) == 6


def next_by_the_rule(runs, places, busy, workers):
    """The run to go on with by a look at each of them; None if none can."""
    ready = [run for run, jobs in enumerate(runs) if run not in busy and places[run] < len(jobs)]
    begun = [run for run in ready if places[run]]
    if begun and places.count(0) > workers:
        ready = begun
    return max(ready, key=lambda run: sum(runs[run][places[run] :]), default=None)


@pytest.mark.parametrize("seed", range(20))
def test_every_job_is_the_one_that_a_look_at_all_runs_would_choose(seed):
    draw = random.Random(seed)
    workers = draw.randint(1, 4)
    runs = [[draw.randint(0, 5) for _ in range(draw.randint(1, 4))] for _ in range(draw.randint(1, 15))]
    waiting, places, busy = Waiting(runs, workers), [0] * len(runs), set()
    done = 0
    while done < sum(map(len, runs)):
        expected = next_by_the_rule(runs, places, busy, workers) if len(busy) < workers else None
        if expected is None:
            ended = draw.choice(sorted(busy))
            busy.remove(ended)
            waiting.ended(ended)
        else:
            assert waiting.start() == (expected, places[expected])
            places[expected] += 1
            busy.add(expected)
            done += 1
    assert waiting.start() is None
