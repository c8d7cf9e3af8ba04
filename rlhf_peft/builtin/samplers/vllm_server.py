"""Decodes on a vLLM server over HTTP; each `sync` writes the policy's adapter to a folder and has the server load it.

Start the server on a machine that sees the same files:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank 32 \\
        --logprobs-mode processed_logprobs

At the first `sync` a few completions show whether the server has exactly the base model that is trained.

In TRL 1.16 `trl vllm-serve --model BASE --enable-lora ...` runs this same server and takes the same variable. Older
servers of TRL have their own endpoints and receive whole weights over NCCL, not an adapter by path. They are refused,
because they would keep sampling from the base.

Each row is one request with its own seed. vLLM's arithmetic still depends on the other rows of its batch, so rows do
not depend on their seed alone. Its weights differ a little from the 4-bit ones that are trained; `sampler_logps` show
by how much.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from rlhf_peft.plugin import (
    HttpError,
    JsonClient,
    PolicyView,
    Request,
    Rollout,
    Row,
    SampleContext,
    SamplerError,
    SamplingOptions,
    provided,
    rollout_of,
    server_root,
    start_rows,
)

from .vllm_answer import finish, read_completion
from .vllm_probe import check_base
from .vllm_remedies import START, with_remedy
from .vllm_request import completion_request

log = logging.getLogger("rlhf_peft.samplers.vllm_server")

WHO = "sampler vllm_server"
FAREWELL = 10.0
"""Most seconds that a server may take to drop an adapter at the end, or to answer at the beginning."""
ANSWER_BYTES, TOKEN_BYTES = 2**20, 2**10
"""Most bytes of an answer: a fixed part, and a part for each of its tokens."""


class VllmServerOptions(SamplingOptions):
    """Options of `vllm_server`: the server, and how completions are drawn."""

    url: str = Field(
        "http://localhost:8000",
        pattern="^https?://",
        description="Where the server listens, with or without `/v1`.",
    )
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the server's API key; null: none."
    )
    folder: str | None = Field(
        None,
        description="Folder for adapters that this machine and the server see by the same path; null: a temporary one.",
    )
    timeout: float = Field(600.0, gt=0, le=1e7, description="Seconds for one answer.")
    retries: int = Field(
        3, ge=0, le=1000, description="Further attempts if the server is busy, fails or cannot be reached."
    )
    connections: int = Field(64, gt=0, le=10_000, description="Most requests at the same time.")
    check_base: bool = Field(
        True,
        description="Refuse a server whose log-probabilities are not the policy's, for it has another base; "
        "false: do not compare.",
    )

    @field_validator("url")
    @classmethod
    def _is_a_server(cls, url: str) -> str:
        server_root(url)
        return url


class VllmServerSampler:
    """Writes completions on a vLLM server."""

    Options = VllmServerOptions

    def __init__(self, options: VllmServerOptions) -> None:
        self.options = options
        self.params = options.params
        self.provides = provided(options.params, "logps")
        self._client: JsonClient | None = None
        self._vocabulary = 0
        self._view: PolicyView | None = None
        self._folder: Path | None = None
        self._adapter: str | None = None
        self._version = self._pushed = 0
        self._processed: bool | None = None
        self._compared = not options.check_base

    def ready(self) -> None:
        """Check that the server can be reached and is vLLM's own, before the model is loaded.

        Raises:
            SamplerError: the server cannot be reached, or is something else.
            UsageError: the API key is missing.
        """
        try:
            self._connect(retries=0)
        finally:
            self.close()

    # --- the adapter ---

    def sync(self, policy: PolicyView, version: int) -> None:
        """Write the adapter, have the server load it under a new name, and drop the previous one.

        Raises:
            SamplerError: the server cannot be reached, is no vLLM server, or does not take adapters.
            UsageError: the API key is missing.
        """
        client, folder = self._connect(), self._place()
        self._vocabulary = policy.vocab_size
        self._drop()
        self._pushed += 1
        # The name is set before the adapter exists, so that it is dropped even after an error.
        self._adapter = name = f"{folder.name}-{version}-{self._pushed}"
        policy.save_adapter(folder / name)
        try:
            client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder / name)})
        except HttpError as error:
            if error.status == 404 and "adapter" not in str(error).partition("status 404")[2].lower():
                raise SamplerError(f"{error} The server does not take adapters at runtime. {START}") from None
            if not error.status or "already" not in str(error):  # an earlier try came through after all
                raise SamplerError(with_remedy(error, folder)) from None
        if not self._compared:
            check_base(WHO, policy, self._complete)
            self._compared = True
        self._view, self._version = policy, version

    def close(self) -> None:
        """Have the server drop the adapter, and remove the written files."""
        try:
            self._drop(timeout=FAREWELL, retries=0)
        except SamplerError as error:
            log.warning("the server keeps an adapter: %s", error)
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            if self._client is not None:
                self._client.close()
            self._client = self._view = self._folder = None

    def _connect(self, retries: int | None = None) -> JsonClient:
        """The client of the server; checks at the first call that it is a vLLM server."""
        if self._client is None:
            o = self.options
            client = JsonClient(WHO, o.url, o.api_key_env, o.timeout, o.retries, o.connections)
            try:
                answer = client.get("/v1/models", timeout=min(FAREWELL, o.timeout), retries=retries)
                models = [str(model["id"]) for model in answer["data"]]
            except HttpError as error:
                client.close()
                raise SamplerError(_not_vllm(error) if error.status == 404 else with_remedy(error)) from None
            except (KeyError, TypeError):
                client.close()
                message = f"{WHO}: {client.shown}/v1/models: it gave {str(answer)[:200]!r}."
                raise SamplerError(_not_vllm(message)) from None
            log.debug("%s serves %s", client.shown, ", ".join(models))
            self._client = client
        return self._client

    def _place(self) -> Path:
        """The folder for adapters."""
        if self._folder is None:
            if self.options.folder:
                Path(self.options.folder).mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="rlhf-peft-", dir=self.options.folder)).resolve()
        return self._folder

    def _drop(self, timeout: float | None = None, retries: int | None = None) -> None:
        """Have the server drop the current adapter, and remove its files."""
        if self._adapter is None or self._client is None or self._folder is None:
            return
        name, self._adapter = self._adapter, None
        try:
            self._client.post(
                "/v1/unload_lora_adapter", {"lora_name": name}, timeout=timeout, retries=retries
            )
        except HttpError as error:
            if error.status != 404:  # the server has been started anew and knows nothing of it
                raise
        finally:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    # --- the rows ---

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """One completion for each request.

        Raises:
            SamplerError: no policy was given yet, a prompt leaves no room for a token, or the server fails.
        """
        view = self._view
        if view is None:
            raise SamplerError(f"{WHO}: sample() before sync().")
        rows = start_rows(requests, view.max_length, "vllm_server")
        self._check_logprobs(rows)
        client = self._connect()
        with ThreadPoolExecutor(self.options.connections) as pool:
            running = [pool.submit(self._write, row, view) for row in rows]
            try:
                for future in as_completed(running):
                    future.result()
            except BaseException:
                client.interrupt()
                pool.shutdown(wait=True, cancel_futures=True)
                client.go_on()
                raise
        return rollout_of(rows, self._version)

    def _write(self, row: Row, view: PolicyView) -> None:
        """Request the completion of one row."""
        tokens, logps, reason = self._complete(
            completion_request(
                row.request.prompt_ids, row.request.seed, row.room, row.request.params, view.eos_ids
            )
        )
        row.tokens, row.logps, row.finish = tokens, logps, finish(tokens, reason, view.eos_ids)

    def _complete(self, request: dict[str, Any]) -> tuple[list[int], list[float], str]:
        """Send a request; returns token ids, their log-probabilities, and the finish reason."""
        client = self._connect()
        most = ANSWER_BYTES + TOKEN_BYTES * int(request["max_tokens"])
        try:
            answer = client.post("/v1/completions", {"model": self._adapter, **request}, most=most)
        except HttpError as error:
            raise SamplerError(with_remedy(error, self._folder)) from None
        where = f"{WHO}: {client.shown}/v1/completions"
        return read_completion(where, answer, request["max_tokens"], self._vocabulary)

    def _check_logprobs(self, rows: list[Row]) -> None:
        """Raise SamplerError if log-probabilities are not of the distribution that tokens are drawn from.

        By default vLLM gives those of the unchanged logits. For a draw from one possible token it must give 0.
        """
        if self._processed or all(
            row.request.params.temperature in (0, 1) and not row.request.params.truncated for row in rows
        ):
            return
        probe = {
            "prompt": rows[0].request.prompt_ids.tolist(),
            "max_tokens": 1,
            "temperature": 1.0,
            "top_k": 1,
        }
        _, logps, _ = self._complete({**probe, "logprobs": 0, "return_token_ids": True})
        self._processed = logps[0] > -1e-6
        if not self._processed:
            raise SamplerError(
                f"{WHO}: the server's log-probabilities leave out temperature and truncation. {START}; or sample with "
                "temperature 1 and no top_p, top_k or min_p."
            )


def _not_vllm(message: object) -> str:
    return f"{message} This is not vLLM's own server. An old one of TRL takes no adapter by path. {START}"
