"""The cases of a GPU, in the order in which they are measured: what tells most comes first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SMALL, LARGE = "Qwen3 1.7B", "Llama 3 8B"
GIB = 1024**3
FULL = {
    SMALL: {
        "kind": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    LARGE: {
        "kind": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
}
"""The shapes, by the names of the models that have them; their weights are random."""
TOY = {
    name: {
        **shape,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 2048,
    }
    for name, shape in FULL.items()
}
"""The same in small, with which the code is tried on a CPU."""
SHAPES = {"full": FULL, "toy": TOY}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed.

    Attributes:
        prompt: tokens of a prompt.
        new: tokens that decoding writes after it.
        rows: that are decoded at once, in the second of two cases.
        micro: rows and tokens of a row in a micro-step.
        completion: tokens that a whole step writes after a prompt.
        prompts: of a whole step of PPO, each with one completion; GRPO has a quarter, with four each.
        steps: of a case of whole steps; the first one warms up.
        square: width of the product that gives the ceiling.
        copied: bytes that are copied for the other ceiling.
    """

    prompt: int = 512
    new: int = 128
    rows: int = 32
    micro: tuple[int, int] = (5, 768)
    completion: int = 256
    prompts: int = 32
    steps: int = 3
    square: int = 8192
    copied: int = 2**28


SIZES = {
    "full": Sizes(),
    "toy": Sizes(16, 16, 4, (2, 32), 12, 4, 2, 512, 2**24),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        name: in words; unlike that of any other case.
        work: the function that measures it, by its name in `worker.WORK`.
        part: 2: ceilings, decoding and micro-steps; 3: whole steps. `tests/gpu/run.sh` measures a part in a call.
        limit: seconds after which it is given up; the first case of a model makes the model as well.
        options: of the function.
    """

    name: str
    work: str
    part: int
    limit: float
    options: dict[str, Any] = field(default_factory=dict)


def _decoding(model: str, quantization: str, limit: float) -> list[Case]:
    held = "4-bit" if quantization == "nf4" else "dense"
    return [
        Case(
            f"decoding, {model}, {held}, {rows} row{'s' if rows > 1 else ''}",
            "decoding",
            2,
            limit if rows > 1 else 60,
            {"model": model, "quantization": quantization, "rows": rows},
        )
        for rows in (32, 1)
    ]


def _micro(model: str, work: str, recompute: bool, limit: float = 60) -> Case:
    what = f"{work}, recomputed" if recompute else work
    return Case(
        f"{what}, {model}, 4-bit, one micro-step", work, 2, limit, {"model": model, "recompute": recompute}
    )


def _ppo(name: str, model: str, **options: Any) -> Case:
    return Case(name, "ppo", 3, options.pop("limit", 150), {"model": model, **options})


CASES = [
    Case("ceilings", "ceilings", 2, 60),
    *_decoding(SMALL, "nf4", 150),
    _micro(SMALL, "update", recompute=False),
    _micro(SMALL, "scoring", recompute=False),
    *_decoding(LARGE, "nf4", 240),
    _micro(LARGE, "scoring", recompute=False),
    _micro(LARGE, "update", recompute=True, limit=120),
    _micro(SMALL, "update", recompute=True),
    *_decoding(SMALL, "none", 60),
    *_decoding(LARGE, "none", 150),
    _ppo(f"PPO step, {SMALL}, as the recipe rlhf-8gb has it", SMALL),
    Case(f"GRPO step, {SMALL}", "grpo", 3, 120, {"model": SMALL}),
    _ppo(f"PPO step, {SMALL}, as rlhf-8gb, capped at 8 GB", SMALL, cap=8 * GIB, steps=2, limit=120),
    _ppo(
        f"PPO step, {SMALL}, 8 rows, capped at 6 GB", SMALL, cap=6 * GIB, steps=2, prompts=8, tokens=2048, limit=90
    ),
    _ppo(
        f"PPO step, {LARGE}, 8 rows, capped at 16 GB", LARGE, cap=16 * GIB, steps=2, prompts=8, tokens=2048
    ),
    Case(f"GRPO step by TRL, {SMALL}", "trl_grpo", 3, 150, {"model": SMALL, "micro": 8}),
]  # fmt: skip
"""All cases; together about 15 minutes on a card of a data centre, by estimate: none has been measured."""
