"""Advice on errors that a vLLM server reports."""

from __future__ import annotations

from pathlib import Path

from rlhf_peft.plugin import HttpError

COMMAND = "vllm serve BASE --enable-lora --max-lora-rank RANK --logprobs-mode processed_logprobs"
START = f"Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment: {COMMAND}"


def remedy(error: HttpError, folder: Path | None = None) -> str:
    """What to do about a request that failed; empty if the cause is not known.

    Args:
        error: error of the request.
        folder: folder where adapters are written, if the request was about one.
    """
    text = str(error).lower()
    if error.status == 0 and "connecterror" in text:
        return f"No server listens there. {START}; or set sampler.url to where it listens, or use sampler.name=cached."
    if error.status in (401, 403):
        return (
            "The server wants another key. Set sampler.api_key_env to the environment variable that holds it."
        )
    if "enable-lora" in text or "enable_lora" in text or "lora is not enabled" in text:
        return f"The server was started without --enable-lora. {START}"
    if "lora" in text and "rank" in text:
        return "Start the server with a --max-lora-rank of at least lora.r."
    if "no adapter found" in text or "no such file" in text:
        return (
            f"The server must see {folder} by this very path: set sampler.folder to a folder that both see."
        )
    if "does not exist" in text and "model" in text:
        return (
            "The server has lost the adapter that it was given: it was started anew, or other clients' adapters have "
            "taken its place. Start it with a larger --max-loras and --max-cpu-loras, then: "
            "rlhf-peft run RECIPE --resume"
        )
    return ""


def with_remedy(error: HttpError, folder: Path | None = None) -> str:
    """The error's message, followed by what to do about it."""
    return " ".join(filter(None, (str(error), remedy(error, folder))))
