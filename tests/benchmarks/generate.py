"""transformers' own `generate` on the same 4-bit base with the same LoRA."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .measure import Stopwatch, forget_peak, median, peak, resident, say
from .models import limits, make_model, rows_of


def rollout(case: dict[str, Any]) -> None:
    """Completions by sampling, with the key-value cache that transformers chooses."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        StoppingCriteria,
        StoppingCriteriaList,
    )

    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name) / "model")
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        base = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=four, dtype=dtype, device_map={"": device}
        )
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor(rows_of(tokenizer, case), device=device)
        ends = list(range(4, 4 + case["ends"])) if case.get("ends") else [1]
        most = torch.tensor(limits(case), device=device)

        class Limits(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                return input_ids.shape[1] - ids.shape[1] >= most

        before = resident()
        forget_peak()
        speeds = []
        for turn in range(case["steps"]):
            torch.manual_seed(turn)
            watch = Stopwatch()
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=case["new"],
                    eos_token_id=ends,
                    pad_token_id=2,
                    stopping_criteria=StoppingCriteriaList([Limits()]),
                )
            seconds = watch.seconds
            written = out[:, ids.shape[1] :]
            ended = torch.isin(written, torch.tensor(ends, device=device)).long()
            lengths = (ended.cumsum(-1) - ended == 0).sum(-1).minimum(most)
            speeds.append(int(lengths.sum()) / seconds)
        say(
            {"tokens_per_second": median(speeds[1:]), "added": peak() - before, "peak": peak(), "all": speeds}
        )


CASES = {"rollout": rollout}
