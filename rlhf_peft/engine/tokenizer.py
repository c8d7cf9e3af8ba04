"""Loads the tokenizer and settles what padding and end-of-sequence mean."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ..errors import ModelError
from .source import Source, not_loaded


def load_tokenizer(source: Source, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad token (EOS where it has none; masks come from lengths, so that is harmless).

    Raises:
        ModelError: there is none, it has no EOS, or its tokens do not fit the model's embedding.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(not_loaded(source, error)) from error
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"model.path: {source.path} has no usable tokenizer ({first}).") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.path: the tokenizer of {source.path} has no EOS token, so no completion could ever end. "
            "Set `eos_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_vocabulary(tokenizer, config, source.path)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, path: str) -> None:
    """Raise ModelError if the tokenizer knows a token that the embedding does not have."""
    size = config.get_text_config().vocab_size
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    if beyond:
        token, index = min(beyond.items(), key=lambda item: item[1])
        raise ModelError(
            f"model.path: the tokenizer of {path} has {len(beyond)} tokens that the model's embedding of "
            f"{size} rows does not have, the first {token!r} = {index}. Remove them from the tokenizer, or "
            "resize the model's embedding and save it before it is quantized."
        )


def eos_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any) -> frozenset[int]:
    """Every id that ends a completion: the tokenizer's and those of the generation config."""
    found = {int(tokenizer.eos_token_id)}
    listed = getattr(generation_config, "eos_token_id", None)
    if isinstance(listed, int):
        found.add(listed)
    elif listed is not None:
        found.update(int(i) for i in listed)
    return frozenset(found)
