"""PPOTrainer of TRL 1.12, the last that had one: policy, reward model and value model on a 4-bit base each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .measure import forget_peak, median, peak, resident, say
from .models import make_model, prompts
from .trl_common import Clock, loading


def ppo(case: dict[str, Any]) -> None:
    """PPO steps; the reference is the policy's base without its adapter, the value has LoRA of its own."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = case["prompts"] * case["generations"]
    micro = case.get("micro", rows)
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name) / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        base = loading(llm_int8_skip_modules=["score", "lm_head"])
        linear = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
        policy = AutoModelForCausalLM.from_pretrained(folder, **base)
        judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **base)
        value = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **base)
        for parameter in value.parameters():
            parameter.requires_grad_(False)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        inject_adapter_in_model(LoraConfig(**{**linear, "target_modules": names}), value)
        value.score.weight.requires_grad_(True)
        config = PPOConfig(
            output_dir=str(Path(name) / "out"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            local_rollout_forward_batch_size=micro,
            num_mini_batches=1,
            num_ppo_epochs=case.get("epochs", 1),
            total_episodes=rows * case["steps"],
            response_length=case["new"],
            temperature=1.0,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            report_to="none",
            save_strategy="no",
            use_cpu=not cuda,
            bf16=cuda,
            gradient_checkpointing=False,
        )
        clock = Clock()
        texts = prompts(64, case["prompt"])
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=judge,
            value_model=value,
            train_dataset=Dataset.from_list([{"input_ids": tokenizer(text).input_ids} for text in texts]),
            peft_config=LoraConfig(**linear, task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        before = resident()
        forget_peak()
        trainer.train()
        steps = clock.steps
        top = peak()
        say({"seconds": median(steps[1:]), "peak": top, "added": top - before, "all": steps})


CASES = {"ppo": ppo}
