"""`http`: a reward behind a URL.

In mode batch, a request `{"prompts": [...], "completions": [...], <columns>: [...]}` is answered by
`{"scores": [...]}`; in mode row, `{"prompt": ..., "completion": ...}` by `{"score": ...}`. A score of null abstains.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from rlhf_peft.plugin import (
    AsyncJsonClient,
    Options,
    RewardBatch,
    RewardError,
    Scores,
    SomeRowsFailed,
    environment_secret,
    plain_url,
)


class HttpOptions(Options):
    """Options of `http`: the address, the content of a request, and its retries."""

    url: Annotated[str, AfterValidator(plain_url)] = Field(description="Where to POST.")
    mode: Literal["batch", "row"] = Field(
        "batch", description="batch: lists of rows and scores; row: one of each a request."
    )
    batch_size: int = Field(32, gt=0, le=2**20, description="Rows in one request of mode batch.")
    columns: tuple[str, ...] = Field((), description="Columns of the dataset that are sent along.")
    header_env: dict[str, str] = Field(
        default_factory=dict,
        description="Header to the environment variable that holds its value: `Authorization: REWARD_TOKEN`.",
    )
    request_timeout: float = Field(60.0, gt=0, le=1e7, description="Seconds for one request.")
    retries: int = Field(
        3, ge=0, le=1000, description="Further attempts after a failed connection, 429, 503 and such."
    )
    backoff: float = Field(
        0.5, ge=0, le=1e5, description="Seconds before the first of them, doubled each time."
    )
    concurrency: int = Field(8, gt=0, le=10_000, description="Most requests at a time.")


class HttpReward:
    """Sends completions to a server and reads scores."""

    Options = HttpOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: HttpOptions) -> None:
        self.options = options
        self._client = AsyncJsonClient(
            options.url,
            {name: environment_secret(env, f"header_env.{name}") for name, env in options.header_env.items()},
            timeout=options.request_timeout,
            retries=options.retries,
            backoff=options.backoff,
            concurrency=options.concurrency,
        )

    async def score(self, batch: RewardBatch) -> Scores:
        """One score for each completion; null in the server's answer abstains.

        Raises:
            SomeRowsFailed: requests failed after all attempts, or an answer has no score for each row.
        """
        missing = [name for name in self.options.columns if name not in batch.columns]
        if missing:
            raise RewardError(f"reward http: the dataset has no column {', '.join(missing)}.")
        size = self.options.batch_size if self.options.mode == "batch" else 1
        parts = [list(range(i, min(i + size, len(batch)))) for i in range(0, len(batch), size)]
        results = await asyncio.gather(*(self._ask(batch, rows) for rows in parts), return_exceptions=True)
        row = torch.full((len(batch),), math.nan)
        failed: tuple[int, BaseException] | None = None
        for rows, scores in zip(parts, results, strict=True):
            if isinstance(scores, BaseException):
                if not isinstance(scores, RewardError):
                    raise scores
                failed = failed or (rows[0], scores)
            else:
                row[rows] = torch.tensor(scores)
        if failed is not None:
            raise SomeRowsFailed(f"reward http: {failed[1]}", Scores(row=row), failed[0]) from failed[1]
        return Scores(row=row)

    async def _ask(self, batch: RewardBatch, rows: list[int]) -> list[float]:
        """Send one request; returns the scores of its rows."""
        columns = {name: [batch.columns[name][i] for i in rows] for name in self.options.columns}
        fields = {
            **columns,
            "prompts": [batch.prompts[i] for i in rows],
            "completions": [batch.completions[i] for i in rows],
        }
        several = self.options.mode == "batch"
        body: dict[str, Any] = fields if several else {_SINGULAR.get(k, k): v[0] for k, v in fields.items()}
        try:
            json.dumps(body)
        except (TypeError, ValueError) as error:
            raise RewardError(f"a column of `columns` cannot be sent as JSON: {error}") from None
        answer = await self._client.post(body)
        key = "scores" if several else "score"
        scores = answer.get(key, answer) if isinstance(answer, dict) else answer
        return _numbers(scores if several else [scores], len(rows), key)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


_SINGULAR = {"prompts": "prompt", "completions": "completion"}


def _numbers(scores: Any, count: int, key: str) -> list[float]:
    """The scores of an answer as floats, NaN for null."""
    if not isinstance(scores, list) or len(scores) != count:
        content = f"{len(scores)} scores" if isinstance(scores, list) else f"no {key}"
        raise RewardError(f"its answer holds {content} for {count} completions")
    for score in scores:
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if score is not None and not (number and math.isfinite(score)):
            raise RewardError(f"its answer holds {score!r:.40}, which is no finite number; null abstains")
    return [math.nan if score is None else float(score) for score in scores]
