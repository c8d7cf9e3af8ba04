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
