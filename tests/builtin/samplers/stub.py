"""A stand-in for a vLLM server, on localhost: it keeps what it is asked and can be made to fail."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

EOS = 2


class StubServer:
    """Answers as vLLM does.

    Attributes:
        asked: (path, payload, headers) of every request.
        adapters: names loaded now.
        failures: path to a list of (status, text), used up first.
        processed: log-probabilities are of the processed distribution.
        change: applied to a completion's answer.
        raw: path to what writes the answer itself, given the handler.
        model: a causal language model that says what the tokens are; None: the seed says it.
    """

    def __init__(self):
        self.asked, self.adapters, self.failures, self.processed = [], [], {}, True
        self.change = lambda answer: answer
        self.raw, self.model = {}, None
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                """Nothing on stderr."""

            def do_GET(self):
                self.reply(None)

            def do_POST(self):
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, payload):
                if self.path in stub.raw:
                    self.close_connection = True
                    with contextlib.suppress(ConnectionError):
                        stub.raw[self.path](self)
                    return
                with stub.lock:
                    stub.asked.append((self.path, payload, dict(self.headers)))
                    failures = stub.failures.get(self.path)
                    status, answer = failures.pop(0) if failures else stub.answer(self.path, payload)
                body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # the client had no more patience
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def of(self, path):
        """Payloads of one path."""
        return [payload for where, payload, _ in self.asked if where == path]

    def answer(self, path, payload):
        if path == "/v1/models":
            return 200, {"data": [{"id": "base"}]}
        if path == "/v1/load_lora_adapter":
            return self.load(payload)
        if path == "/v1/unload_lora_adapter":
            if payload["lora_name"] not in self.adapters:
                return 404, {"error": {"message": "The lora adapter cannot be found."}}
            self.adapters.remove(payload["lora_name"])
            return 200, "Success"
        if path == "/v1/completions":
            return self.complete(payload)
        return 404, "Not Found"

    def load(self, payload):
        if not (Path(payload["lora_path"]) / "adapter_config.json").is_file():
            return 400, {"error": {"message": "No adapter found for it"}}
        if payload["lora_name"] in self.adapters:
            return 400, {"error": {"message": "The lora adapter has already been loaded."}}
        self.adapters.append(payload["lora_name"])
        return 200, "Success: LoRA adapter added successfully."

    def complete(self, payload):
        if payload["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{payload['model']}` does not exist."}}
        if self.model is not None:
            return 200, self.change(self.draw(payload))
        seed = payload.get("seed", 0)
        tokens = [10 + (seed + i) % 90 for i in range(min(payload["max_tokens"], 1 + seed % 5))]
        reason = "length" if len(tokens) == payload["max_tokens"] else "stop"
        if reason == "stop" and not payload.get("stop"):
            tokens[-1] = EOS
        logps = [-0.5 - i for i in range(len(tokens))]
        if payload.get("top_k") == 1 and self.processed:
            logps = [0.0] * len(tokens)
        choice = {"token_ids": tokens, "finish_reason": reason, "logprobs": {"token_logprobs": logps}}
        return 200, self.change({"choices": [choice]})

    def draw(self, payload):
        """What the model says, token by token, with its log-probabilities."""
        stream, ids, logps = (
            torch.Generator().manual_seed(payload.get("seed", 0)),
            list(payload["prompt"]),
            [],
        )
        reason = "length"
        with torch.no_grad():
            for _ in range(payload["max_tokens"]):
                log_probs = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                token = int(torch.multinomial(log_probs.exp(), 1, generator=stream))
                ids.append(token)
                logps.append(float(log_probs[token]))
                if token in (payload.get("stop_token_ids") or ()):
                    reason = "stop"
                    break
        tokens = ids[len(payload["prompt"]) :]
        choice = {"token_ids": tokens, "finish_reason": reason, "logprobs": {"token_logprobs": logps}}
        return {"choices": [choice]}
