"""Long passes over rows are reported, short ones are not."""

import pytest

from rlhf_peft.data import progress
from rlhf_peft.data.progress import progress_reports, with_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only as a test says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def take(rows, clock, seconds, total=None):
    """Take all rows, each of which takes some seconds; returns the rows and what was reported."""
    reports = []
    with progress_reports(lambda *report: reports.append(report)):
        taken = []
        for row in with_progress(rows, "reading", total):
            taken.append(row)
            clock[0] += seconds
    return taken, reports


def test_a_short_pass_is_not_reported(clock):
    taken, reports = take(range(1000), clock, 0.001, 1000)
    assert taken == list(range(1000)) and reports == []


@pytest.mark.parametrize("total", [1050, None])
def test_a_long_pass_is_reported_now_and_then_and_at_its_end(clock, total):
    taken, reports = take(range(1050), clock, 0.01, total)
    assert taken == list(range(1050))
    # After 3 seconds, which are 300 rows, and then after every 100 rows, which take a second.
    assert reports == [("reading", done, total) for done in range(300, 1001, 100)] + [("reading", 1050, 1050)]


def test_nothing_is_reported_where_nobody_listens(clock):
    reports = []
    with progress_reports(lambda *report: reports.append(report)), progress_reports(None):
        for _ in with_progress(range(500), "reading"):
            clock[0] += 1
    assert reports == []


def test_a_pass_that_ends_early_is_no_error(clock):
    rows = with_progress(iter(range(500)), "reading")
    assert [next(rows), next(rows)] == [0, 1]
    rows.close()
