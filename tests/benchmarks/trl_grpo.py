"""TRL's GRPOTrainer on the same model, data, LoRA and quantization."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .measure import forget_peak, median, peak, resident, say
from .models import make_model, prompts, reward
from .trl_common import Clock, loading


def grpo(case: dict[str, Any]) -> None:
    """GRPO steps; generation by transformers, as TRL has it without vLLM."""
    say(measured(case))


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """The figures of GRPO steps on the benchmark's model, or on that of the case's `folder`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    rows = case["prompts"] * case["generations"]
    micro = case.get("micro", rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(case["folder"]) if "folder" in case else make_model(Path(name) / "model")
        config = GRPOConfig(
            output_dir=str(Path(name) / "out"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            num_generations=case["generations"],
            max_completion_length=case["new"],
            beta=0.04,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_steps=case["steps"],
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=False,
            model_init_kwargs=loading(),
        )
        clock = Clock()
        trainer = GRPOTrainer(
            model=str(folder),
            reward_funcs=lambda completion_ids, **_: reward(completion_ids),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row} for row in prompts(64, case["prompt"])]),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        before = resident()
        forget_peak()
        trainer.train()
        steps = clock.steps
        top = peak()
        return {"seconds": median(steps[1:]), "peak": top, "added": top - before, "all": steps}


CASES = {"grpo": grpo}
