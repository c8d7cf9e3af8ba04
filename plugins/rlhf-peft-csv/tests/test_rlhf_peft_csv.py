import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import rlhf_peft_csv

from rlhf_peft.plugin import PluginError
from rlhf_peft.testing import FakeRun, check_plugin


@pytest.fixture
def run(tmp_path):
    return FakeRun(tmp_path)


def read(run, stage):
    with (run.folder / "csv" / f"{stage}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_joins_beside_what_ships():
    found = [str(finding) for finding in check_plugin(rlhf_peft_csv)]
    assert found == ["ok      hook rlhf_peft_run_end", "ok      hook rlhf_peft_step_end"]


def test_rows_are_there_at_once_and_columns_grow(run):
    rlhf_peft_csv.rlhf_peft_step_end(run, "rl", 1, {"reward": 0.5})
    assert read(run, "rl") == [{"step": "1", "reward": "0.5"}]
    rlhf_peft_csv.rlhf_peft_step_end(run, "rl", 2, {"reward": 0.75})
    rlhf_peft_csv.rlhf_peft_step_end(run, "rl", 3, {"reward": 1.0, "eval/kl": 2.0})
    rlhf_peft_csv.rlhf_peft_step_end(run, "rl", 4, {"reward": 1.5})
    rlhf_peft_csv.rlhf_peft_step_end(run, "sft", 1, {"loss": 3.0})
    rows = read(run, "rl")
    assert [row["reward"] for row in rows] == ["0.5", "0.75", "1.0", "1.5"]
    assert [row["eval/kl"] for row in rows] == ["", "", "2.0", ""]
    assert read(run, "sft") == [{"step": "1", "loss": "3.0"}]
    assert [path.name for path in sorted((run.folder / "csv").iterdir())] == ["rl.csv", "sft.csv"]


def test_the_webhook_is_told(run, monkeypatch):
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        rlhf_peft_csv.rlhf_peft_run_end(run, "done", {"reward": 1.0})
        assert heard == []
        monkeypatch.setenv("RLHF_PEFT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/")
        rlhf_peft_csv.rlhf_peft_run_end(run, "done", {"reward": 1.0})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert heard == [{"run": "fake", "status": "done", "metrics": {"reward": 1.0}}]


def test_only_http_is_spoken(run, monkeypatch):
    monkeypatch.setenv("RLHF_PEFT_WEBHOOK", "file:///etc/hostname")
    with pytest.raises(PluginError, match="https"):
        rlhf_peft_csv.rlhf_peft_run_end(run, "done", {})
