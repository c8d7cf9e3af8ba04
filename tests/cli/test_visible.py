"""Text that is not ours cannot steer the terminal."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest
from rich.table import Table

from rlhf_peft.cli import execute
from rlhf_peft.cli.terminal import EscapingStream, escape, escaped_output, make_console

ESC, BEL, CSI, RLO, LRI, PSEP = "\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\u2029"
EVIL = f"a{ESC}]0;title{BEL}b{CSI}2Jc{RLO}d{LRI}e\rf{PSEP}g\x7fh\x00i\x08j\U000e0041"
SHOWN = r"a\u001b]0;title\u0007b\u009b2Jc\u202ed\u2066e\u000df\u2029g\u007fh\u0000i\u0008j\U000e0041"


def test_control_characters_are_written_out():
    assert escape(EVIL) == SHOWN
    assert escape("a\tb\nc\r\nd é ✓ 😀 א‏ب 👩‍🚀 क्‍ष") == "a\tb\nc\r\nd é ✓ 😀 א‏ب 👩‍🚀 क्‍ष"


def test_both_streams_and_back_again(capsys):
    before = sys.stdout, sys.stderr
    with escaped_output():
        print(EVIL)
        print(EVIL, file=sys.stderr)
        sys.stdout.writelines([EVIL, "\n"])
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n{SHOWN}\n" and err == f"{SHOWN}\n"


def test_json_stays_json(capsys):
    with escaped_output():
        print(json.dumps({"x": EVIL}, ensure_ascii=False).replace("\\U000e0041", ""))
    output = capsys.readouterr().out.replace("\\U000e0041", "\U000e0041")
    assert json.loads(output) == {"x": EVIL}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_shows_them_and_no_markup(terminal):
    from rich.text import Text

    out = io.StringIO()
    console = make_console()
    console.file = out
    console._force_terminal = terminal
    table = Table("x[red]", EVIL)
    table.add_row("[bold]y[/nothing]", EVIL)
    table.add_row("a text", Text(EVIL))
    console.width = 400
    console.print(table)
    console.print("[red]" + EVIL)
    text = out.getvalue()
    assert "[bold]y[/nothing]" in text and "x[red]" in text and "[red]a" in text
    assert text.count(SHOWN) == 3
    assert not set(text) & {BEL, CSI, RLO, LRI, PSEP, "\x00", "\x08", "\r"} and f"{ESC}]0" not in text


def test_bars_of_downloads_are_left_to_themselves():
    from tqdm import tqdm

    out = io.StringIO()
    for _ in tqdm(range(2), file=EscapingStream(out)):
        pass
    assert "\r" in out.getvalue() and "\\u000d" not in out.getvalue()


def test_a_terminal_that_is_gone_takes_everything():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

    stream = EscapingStream(Gone())
    print("x", file=stream)


BMP = EVIL[:-1]
PLUGIN = 'raise ValueError("no \\x1b]0;title\\x07 \\u202e here")\n'


def evil_files(folder):
    column = BMP.replace("\x00", "")
    rows = [{"prompt": f"p{i}", f"col{column}": "x", "completion": f"c{column}"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evil.yaml").write_text(
        json.dumps(
            {"version": 1, "name": f"n{BMP}", f"key{BMP}": 1, "model": {"path": f"m{BMP}"}, "stages": []}
        )
    )
    (folder / "plugin.py").write_text(PLUGIN)


COMMANDS = [
    ["data", "rows.jsonl"],
    ["data", f"no{EVIL}.jsonl".replace("\x00", "")],
    ["validate", "evil.yaml"],
    ["validate", "quickstart", f"x{EVIL}=1"],
    ["validate", "quickstart", f"stages.rl.rewards=[{{name: {json.dumps(BMP)}}}]"],
    ["validate", "quickstart", "--plugin", "plugin.py"],
    ["run", f"quickstart{EVIL}".replace("\x00", "")],
    ["runs", "show", f"r{EVIL}".replace("\x00", "")],
    [f"verb{EVIL}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0][:8])
def test_no_verb_prints_them(tmp_path, monkeypatch, capsys, command):
    evil_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    execute(command)
    out, err = capsys.readouterr()
    assert not {ESC, BEL, CSI, RLO, LRI, PSEP, "\x00", "\x08"} & set(out + err)
    assert "\\u001b" in out + err or "\\x1b" in out + err


def test_help_has_colours_on_a_terminal():
    above, below = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "rlhf_peft", "run", "--help"],
        stdout=below,
        stderr=below,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(below)
    text = b""
    while True:
        try:
            part = os.read(above, 65536)
        except OSError:
            break
        if not part:
            break
        text += part
    assert done.wait() == 0
    assert b"\\u001b" not in text and b"resume" in text
