"""Loads the tokenizer and settles what padding and end-of-sequence mean."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import ModelError
from .base_spec import BaseSpec, not_loaded


def load_tokenizer(source: BaseSpec, rows: int) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad token (EOS where it has none; masks come from lengths, so that is harmless).

    It may know tokens beyond the embedding, as Gemma 3's for pictures: they may stand in no row.

    Args:
        source: of the model.
        rows: of the model's input embedding.

    Raises:
        ModelError: there is none, it has no EOS, or its EOS is beyond the embedding.
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
    if tokenizer.eos_token_id >= rows:
        raise ModelError(
            f"model.path: the EOS token of {source.path}'s tokenizer, {tokenizer.eos_token!r} = "
            f"{tokenizer.eos_token_id}, is beyond the model's embedding of {rows} rows, so no completion could ever "
            "end. Set `eos_token` in its tokenizer_config.json, or resize the model's embedding and save it."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
