"""Digests of everything that encoded rows depend on: the rows, the tokenizer, its template, and the libraries."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import date
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow

from .cache import release
from .rows import BATCH

if TYPE_CHECKING:
    from datasets import Dataset

    from .encode import Encoder

LIBRARIES = ("transformers", "tokenizers", "jinja2", "datasets")
"""Libraries whose versions are part of the digest, since another version may encode the same row differently."""


class _Hash(io.RawIOBase):
    """A file object that only hashes what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(memoryview(data))


def rows_identity(dataset: Dataset) -> str:
    """Digest of all values of a dataset, with the names and types of its columns."""
    sink = _Hash()
    sink.hash.update(repr(dataset.features).encode())
    schema = dataset.features.arrow_schema.remove_metadata()
    arrow = dataset.with_format("arrow")
    with pyarrow.ipc.new_stream(pyarrow.PythonFile(sink, "w"), schema) as writer:
        for table in arrow.iter(BATCH):
            writer.write_table(table.combine_chunks().replace_schema_metadata(None))
            release()
    return sink.hash.hexdigest()


def encoder_identity(encoder: Encoder) -> list[Any] | None:
    """Everything that an encoder's ids depend on, as JSON values; None if that cannot be known.

    It cannot be known for a tokenizer written in Python, or whose class is not part of transformers, because these
    cannot be serialised.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return None
    template = tokenizer.chat_template
    try:
        return [
            [_version(name) for name in LIBRARIES],
            type(tokenizer).__qualname__,
            _serialised(tokenizer),
            {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            bool(getattr(tokenizer, "split_special_tokens", False)),
            template,
            str(date.today()) if "strftime_now" in json.dumps(template) else "",
            json.loads(json.dumps(encoder.template_kwargs)),
            encoder.system,
            encoder.max_length,
            encoder.truncation,
            encoder.vocab_size,
            encoder.eos_id,
            sorted(encoder.eos_ids),
        ]
    except (TypeError, ValueError):
        return None


def _serialised(tokenizer: Any) -> str:
    """Digest of a fast tokenizer, without the padding and truncation settings of its last call."""
    text = tokenizer.backend_tokenizer.to_str()
    head, mark, rest = text.partition('"added_tokens"')
    return hashlib.sha256((mark + rest or head).encode()).hexdigest()


@cache
def _version(name: str) -> str:
    return version(name)


__all__ = ["encoder_identity", "rows_identity"]
