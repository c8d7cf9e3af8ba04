"""What is shown of a run's progress: in a log file, on a terminal, as JSON, and nothing."""

import io
import json
import re
import sys

from rlhf_peft.cli.progress import reporter


def report_all(shown):
    shown.stage("rl", 30)
    for step in range(1, 31):
        shown.step("rl", step, {"reward": 0.123456, "kl": 2.0, "other": 1.0})
    shown.say("[news]")
    shown.close()


def test_progress_in_a_log_file_is_a_few_whole_lines(capsys):
    report_all(reporter())
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "rl: 30 updates"
    assert lines[1].split()[:2] == ["rl", "1/30"]
    assert "  reward 0.123  KL 2  " in lines[1] and lines[1].endswith(" GB")
    assert lines[-2].split()[1] == "30/30"
    assert lines[-1] == "[news]"
    assert len(lines) <= 14


def test_progress_says_how_long_it_takes_and_what_each_reward_and_the_memory_are(capsys):
    shown = reporter()
    shown.stage("rl", 4)
    shown.step(
        "rl",
        1,
        {"reward": 3.0, "rewards/a/mean": 1.0, "rewards/b/mean": 2.0, "rewards/a/std": 9.0, "kl": 0.5},
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"  rl 1/4  0:00, 0:00 left  reward 3  a 1  b 2  KL 0\.5  \d+\.\d GB", line)


def test_the_time_that_is_left_counts_from_where_a_stage_was_resumed(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("rlhf_peft.cli.progress.time.monotonic", lambda: now[0])
    shown = reporter()
    shown.stage("rl", 1000)
    for step in range(901, 907):
        now[0] += 10
        shown.step("rl", step, {})
    shown._last = 0
    now[0] += 10
    shown.step("rl", 907, {})
    assert "rl 907/1000  1:10, 15:30 left" in capsys.readouterr().err


def test_progress_as_json_is_an_object_a_line(capsys):
    report_all(reporter(as_json=True))
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events[0] == {"event": "stage", "stage": "rl", "total": 30} and events[-1] == {
        "event": "note",
        "text": "[news]",
    }
    metrics = {"reward": 0.123456, "kl": 2.0, "other": 1.0}
    assert events[1:-1] == [
        {"event": "step", "stage": "rl", "step": i, "metrics": metrics} for i in range(1, 31)
    ]


def test_quiet_says_nothing(capsys):
    report_all(reporter(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    report_all(reporter())
    assert "reward 0.123" in stream.getvalue()
    assert "30/30" in stream.getvalue()
    assert "[news]" in stream.getvalue()


def report_rows(shown, total):
    for done in range(1000, 100_001, 1000):
        shown.rows("reading rows", done, total)
    shown.rows("reading rows", 100_000, 100_000)
    shown.close()


def test_a_long_pass_over_rows_is_a_few_lines_in_a_log_file(capsys):
    report_rows(reporter(), 100_000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("  ")[0].strip() for line in lines] == [
        f"reading rows: {done:,} of 100,000" for done in range(10_000, 100_001, 10_000)
    ]


def test_a_pass_of_unknown_length_is_shown_without_a_total(capsys):
    shown = reporter()
    shown.rows("reading rows", 10_000_000, None)
    line = capsys.readouterr().err
    assert "reading rows: 10,000,000" in line and " of " not in line


def test_a_long_pass_over_rows_as_json_has_its_numbers(capsys):
    shown = reporter(as_json=True)
    shown.rows("reading rows", 500, None)
    shown.rows("reading rows", 900, 900)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events == [
        {"event": "rows", "what": "reading rows", "done": 500, "total": None},
        {"event": "rows", "what": "reading rows", "done": 900, "total": 900},
    ]


def test_the_bar_of_a_pass_over_rows_goes_when_it_is_done(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = reporter()
    shown.rows("reading rows", 500, None)
    assert [task.description for task in shown._progress.tasks] == ["reading rows"]
    shown.rows("reading rows", 900, 900)
    assert shown._progress.tasks == []
    shown.close()
