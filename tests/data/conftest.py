"""Real rows and tokenizers, where there are any, and small files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_peft.data import identity

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def shared(name: str) -> Path:
    """A real file or folder; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no real data here: {path} is absent")
    return path


@functools.cache
def tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(shared(name))
    SHARED_BACKENDS[id(made.backend_tokenizer)] = made.backend_tokenizer
    return made


SHARED_BACKENDS: dict[int, Any] = {}
"""By its `id`, what is serialised of each tokenizer that all tests share."""
DIGESTS: dict[int, str] = {}
"""Its digest."""


@pytest.fixture(autouse=True)
def digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizers above, which no test changes, are serialised once: each time takes 70 ms.

    A copy that a test changes is serialised as ever.
    """
    serialised = identity._serialised

    def once(tok: Any) -> str:
        key = id(tok.backend_tokenizer)
        if key not in SHARED_BACKENDS:
            return serialised(tok)
        if key not in DIGESTS:
            DIGESTS[key] = serialised(tok)
        return DIGESTS[key]

    monkeypatch.setattr(identity, "_serialised", once)


@pytest.fixture
def qwen2() -> Any:
    """151,646 tokens, a chat template that adds a system message, no BOS."""
    return tokenizer("tokenizers/qwen2")


@pytest.fixture
def minimind() -> Any:
    """6,400 tokens, a chat template that writes `<think>` blocks."""
    return tokenizer("tokenizers/minimind")


@pytest.fixture
def stories() -> Any:
    """2,048 tokens, BOS before every text, no chat template."""
    return tokenizer("models/tinystories656k")


@pytest.fixture(params=["tokenizers/qwen2", "tokenizers/minimind"])
def chat(request: pytest.FixtureRequest) -> Any:
    return tokenizer(request.param)


@pytest.fixture(params=["tokenizers/qwen2", "tokenizers/minimind", "models/tinystories656k"])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer(request.param)


@pytest.fixture
def ultrafeedback() -> Path:
    return shared("preferences/ultrafeedback.jsonl")


@pytest.fixture
def hh() -> Path:
    return shared("preferences/hh_harmless.jsonl")


@pytest.fixture
def gsm8k() -> Path:
    return shared("maths/gsm8k.jsonl")


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (or lines, as text) to a jsonl file."""

    def write(*rows: dict[str, Any] | str, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "home"))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def as_example(row: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A row in the form that encoders read."""
    from datasets import Dataset

    from rlhf_peft.data.examples import example
    from rlhf_peft.data.formats import detect

    format = detect(Dataset.from_list([row]))
    assert format is not None
    return example(row, format, **options)
