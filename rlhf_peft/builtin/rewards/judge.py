"""`judge`: a language model behind an OpenAI-compatible chat endpoint grades completions, or compares them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Coroutine, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, field_validator

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

GRADE = """Grade the answer to the request below from {lowest} (useless) to {highest} (could not be better).

[Request]
{prompt}

[Answer]
{completion}

Write one sentence of reasons, then a last line that reads: Grade: <number>"""

COMPARE = """Which of two answers to the request below is better?

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Write one sentence of reasons, then a last line that reads: Better: A, or Better: B, or Better: tie"""

_NUMBER = r"[+\-−]?(?:\d+(?:\.\d+)?|\.\d+)"
# The dash of `Grade - 3` and of `Grade-3` stands between the two, that of `Grade: -3` and `Grade -3` is a sign.
_GRADE = re.compile(rf"grade(?:-|\s+[-–—]\s+|[^\w+\-−.]*)({_NUMBER})", re.IGNORECASE)
_BETTER = re.compile(r"better\W*(?:answer\W*)?(a\W+tie|tie|a|b)\b", re.IGNORECASE)
_THOUGHTS = ("think", "thinking", "thought", "reasoning")
_OPENED = re.compile(rf"<({'|'.join(_THOUGHTS)})>", re.IGNORECASE)
_CLOSED = re.compile(rf"</({'|'.join(_THOUGHTS)})>", re.IGNORECASE)


def _template(*names: str) -> Any:
    """A validator of templates that must contain these names."""

    def check(template: str) -> str:
        sample = {"lowest": 1, "highest": 10, **dict.fromkeys(names, "x")}
        try:
            template.format(**sample)
        except (KeyError, IndexError, ValueError) as error:
            allowed = ", ".join(f"{{{name}}}" for name in sample)
            raise ValueError(
                f"not a template ({error!r}): it may hold {allowed}; double other braces"
            ) from None
        missing = [name for name in names if f"{{{name}}}" not in template]
        if missing:
            raise ValueError(f"the template lacks {{{missing[0]}}}")
        return template

    return AfterValidator(check)


class JudgeOptions(Options):
    """Options of `judge`: the endpoint, the questions, and the retries."""

    url: Annotated[str, AfterValidator(plain_url)] = Field(
        description="Base of the endpoint, such as http://localhost:8000/v1; /chat/completions is added."
    )
    model: str = Field(description="Model name as the endpoint knows it.")
    mode: Literal["grade", "compare"] = Field(
        "grade",
        description="grade: a number a completion; compare: each against each of its group, in both orders; the score "
        "is the share won.",
    )
    lowest: float = Field(1.0, ge=-1e6, le=1e6, description="Lowest grade.")
    highest: float = Field(10.0, ge=-1e6, le=1e6, description="Highest grade.")
    grade_template: Annotated[str, _template("prompt", "completion")] = Field(
        GRADE, description="Asked in mode grade; {prompt}, {completion}, {lowest}, {highest}."
    )
    compare_template: Annotated[str, _template("prompt", "first", "second")] = Field(
        COMPARE, description="Asked in mode compare; {prompt}, {first}, {second}."
    )
    system: str | None = Field(None, description="System message.")
    temperature: float = Field(0.0, ge=0, le=1e6, description="Sampling temperature of the judge.")
    max_tokens: int = Field(256, gt=0, le=2**24, description="Most tokens of its reply.")
    api_key_env: str | None = Field(
        None, description="Environment variable with the key; null: none is sent."
    )
    request_timeout: float = Field(120.0, gt=0, le=1e7, description="Seconds for one request.")
    retries: int = Field(
        3, ge=0, le=1000, description="Further attempts after a failed connection, 429, 503 and such."
    )
    backoff: float = Field(
        1.0, ge=0, le=1e5, description="Seconds before the first of them, doubled each time."
    )
    concurrency: int = Field(8, gt=0, le=10_000, description="Most requests at a time.")

    @field_validator("url")
    @classmethod
    def _base(cls, url: str) -> str:
        return url.rstrip("/").removesuffix("/chat/completions")


def without_thoughts(reply: str) -> str | None:
    """A reply without its thoughts; None if the reply was cut off before they ended.

    A chat template may have written the first `<think>` into the prompt, so everything before the last `</think>` is
    thought.
    """
    text = _CLOSED.split(reply)[-1]
    return None if _OPENED.search(text) else text.strip()


def grade_in(reply: str, lowest: float, highest: float) -> float | None:
    """The last `Grade: <number>` of a reply, or the whole reply if it is only a number; None if out of range.

    Args:
        reply: the judge's reply; its thoughts do not count.
        lowest: lowest grade.
        highest: highest grade.
    """
    text = without_thoughts(reply) or ""
    matches = _GRADE.findall(text) or re.findall(rf"^{_NUMBER}$", text)
    grade = float(matches[-1].replace("−", "-")) if matches else math.nan
    return grade if lowest <= grade <= highest else None


def winner_in(reply: str) -> float | None:
    """1 if the last `Better:` names A, 0 for B, 0.5 for a tie; None if there is no verdict.

    Args:
        reply: the judge's reply; its thoughts do not count.
    """
    text = without_thoughts(reply) or ""
    matches = _BETTER.findall(text) or re.findall(r"^\W*(a|b|tie)\W*$", text, re.IGNORECASE)
    return {"a": 1.0, "b": 0.0}.get(matches[-1].lower(), 0.5) if matches else None


class Judge:
    """Asks a judge to grade or compare completions.

    Raises:
        UsageError: the environment variable with the key is not set.
    """

    Options = JudgeOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        key = options.api_key_env
        self._client = AsyncJsonClient(
            f"{options.url}/chat/completions",
            {} if key is None else {"Authorization": f"Bearer {environment_secret(key, 'api_key_env')}"},
            timeout=options.request_timeout,
            retries=options.retries,
            backoff=options.backoff,
            concurrency=options.concurrency,
        )

    async def score(self, batch: RewardBatch) -> Scores:
        """A grade, or the share of comparisons won; a completion that is alone in its group abstains.

        Raises:
            SomeRowsFailed: requests failed after all attempts, or replies hold no verdict.
        """
        return await (self._grades(batch) if self.options.mode == "grade" else self._win_rates(batch))

    async def _grades(self, batch: RewardBatch) -> Scores:
        """A grade for each completion."""
        o = self.options
        questions = [
            o.grade_template.format(
                prompt=as_text(p), completion=text, lowest=f"{o.lowest:g}", highest=f"{o.highest:g}"
            )
            for p, text in zip(batch.prompts, batch.texts, strict=True)
        ]
        verdicts = await _gather_verdicts([self._verdict(question, self._grade) for question in questions])
        row = torch.tensor(
            [math.nan if isinstance(verdict, RewardError) else verdict for verdict in verdicts]
        )
        return _scores_or_error(
            row, [(i, verdict) for i, verdict in enumerate(verdicts) if isinstance(verdict, RewardError)]
        )

    async def _win_rates(self, batch: RewardBatch) -> Scores:
        """The share of comparisons that each completion has won within its group."""
        group = batch.rollout.group.tolist()
        pairs = [(i, j) for i, j in combinations(range(len(batch)), 2) if group[i] == group[j]]
        orders = [order for i, j in pairs for order in ((i, j), (j, i))]
        texts = batch.texts
        questions = [
            self.options.compare_template.format(
                prompt=as_text(batch.prompts[i]), first=texts[i], second=texts[j]
            )
            for i, j in orders
        ]
        verdicts = await _gather_verdicts([self._verdict(question, winner_in) for question in questions])
        won, counted = torch.zeros(len(batch)), torch.zeros(len(batch))
        for (i, j), verdict in zip(orders, verdicts, strict=True):
            if not isinstance(verdict, RewardError):
                won[i] += verdict
                won[j] += 1 - verdict
                counted[[i, j]] += 1
        failed = [
            (i, verdict)
            for (i, _), verdict in zip(orders, verdicts, strict=True)
            if isinstance(verdict, RewardError)
        ]
        return _scores_or_error(torch.where(counted > 0, won / counted.clamp(min=1), math.nan), failed)

    def _grade(self, reply: str) -> float | None:
        return grade_in(reply, self.options.lowest, self.options.highest)

    async def _verdict(self, question: str, parse: Any) -> float:
        """Ask one question, and parse the reply."""
        o = self.options
        system = [] if o.system is None else [{"role": "system", "content": o.system}]
        answer = await self._client.post(
            {
                "model": o.model,
                "messages": [*system, {"role": "user", "content": question}],
                "temperature": o.temperature,
                "max_tokens": o.max_tokens,
            }
        )
        try:
            reply = str(answer["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            raise RewardError("the endpoint's answer holds no choices[0].message.content") from None
        verdict: float | None = parse(reply)
        if verdict is None and without_thoughts(reply) is None:
            raise RewardError(
                f"the judge's reply ends within its thoughts, after max_tokens={o.max_tokens} perhaps. Raise max_tokens"
            )
        if verdict is None:
            raise RewardError(f"the judge's reply holds no verdict: {reply[-120:]!r}")
        return verdict

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def as_text(prompt: Any) -> str:
    """A prompt as text; several messages follow one another, each after its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


async def _gather_verdicts(requests: Sequence[Coroutine[Any, Any, float]]) -> list[float | RewardError]:
    """All verdicts; a RewardError takes the place of one that failed."""
    verdicts = await asyncio.gather(*requests, return_exceptions=True)
    for verdict in verdicts:
        if isinstance(verdict, BaseException) and not isinstance(verdict, RewardError):
            raise verdict
    return [verdict for verdict in verdicts if isinstance(verdict, (float, RewardError))]


def _scores_or_error(row: torch.Tensor, failed: Sequence[tuple[int, RewardError]]) -> Scores:
    """The scores; raises SomeRowsFailed with them if requests failed."""
    if not failed:
        return Scores(row=row)
    first, error = failed[0]
    more = f" {len(failed)} requests of this batch failed." if len(failed) > 1 else ""
    raise SomeRowsFailed(f"reward judge: {error}.{more}", Scores(row=row), first) from error
