"""Names of keys in TRL, transformers, PEFT and bitsandbytes, and the equivalent keys of a recipe.

`*` stands for a stage. Names that are the same in a recipe are not listed.
"""

from __future__ import annotations

_ALGORITHM = "stages.*.algorithm"
_SAMPLER = "stages.*.sampler"

RECIPE_KEYS: dict[str, str] = {
    # sampling
    "max_completion_length": f"{_SAMPLER}.max_new_tokens",
    "response_length": f"{_SAMPLER}.max_new_tokens",
    "max_tokens": f"{_SAMPLER}.max_new_tokens",
    "generation_batch_size": "stages.*.prompts_per_step",
    "rollout_batch_size": "stages.*.prompts_per_step",
    "vllm_importance_sampling_cap": "stages.*.importance_cap",
    # the algorithm
    "num_ppo_epochs": f"{_ALGORITHM}.num_epochs",
    "ppo_epochs": f"{_ALGORITHM}.num_epochs",
    "num_iterations": f"{_ALGORITHM}.num_epochs",
    "num_mini_batches": f"{_ALGORITHM}.num_minibatches",
    "kl_coef": f"{_ALGORITHM}.beta",
    "init_kl_coef": f"{_ALGORITHM}.beta",
    "kl_coeff": f"{_ALGORITHM}.beta",
    "cliprange": f"{_ALGORITHM}.epsilon",
    "steps_per_generation": f"{_ALGORITHM}.num_minibatches",
    # rewards
    "reward_funcs": "stages.*.rewards",
    "reward_weights": "stages.*.rewards.<name>.weight",
    "reward_model_path": "stages.*.init.reward",
    "sft_model_path": "stages.*.init.policy",
    "reward_model_name_or_path": "stages.*.rewards",
    "reward_clip_range": "stages.*.rewards.<name>.clip",
    "vllm_importance_sampling_clip_max": "stages.*.importance_cap",
    "rloo_k": f"{_ALGORITHM}.num_generations",
    # sizes and schedule
    "per_device_train_batch_size": "stages.*.batch_size",
    "gradient_accumulation_steps": "stages.*.batch_size",
    "train_batch_size": "stages.*.batch_size",
    "local_mini_batch_size": "stages.*.batch_size",
    "per_device_eval_batch_size": "stages.*.eval.size",
    "lr": "stages.*.learning_rate",
    "epochs": "stages.*.num_train_epochs",
    "total_episodes": "stages.*.max_steps",
    "lr_scheduler_type": "stages.*.lr_scheduler",
    "warmup_steps": "stages.*.warmup",
    "warmup_ratio": "stages.*.warmup",
    "optim": "stages.*.optimizer",
    "eval_steps": "stages.*.eval.every",
    "eval_strategy": "stages.*.eval.every",
    "evaluation_strategy": "stages.*.eval.every",
    "eval_on_start": "stages.*.eval.every",
    # the model
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "model_revision": "model.revision",
    "dtype": "model.compute_dtype",
    "torch_dtype": "model.compute_dtype",
    "bf16": "model.compute_dtype",
    "fp16": "model.compute_dtype",
    "bnb_4bit_compute_dtype": "model.compute_dtype",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "bnb_4bit_quant_type": "model.quantization",
    "use_bnb_nested_quant": "model.quantization.double_quantization",
    "bnb_4bit_use_double_quant": "model.quantization.double_quantization",
    "max_seq_length": "model.max_length",
    "max_prompt_length": "model.max_length",
    # adapters
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    # data
    "dataset_name": "stages.*.dataset.path",
    "dataset_config": "stages.*.dataset.name",
    "dataset_train_split": "stages.*.dataset.split",
    "dataset_test_split": "stages.*.eval.split",
    "dataset_prompt_column": "stages.*.dataset.columns",
    "dataset_text_field": "stages.*.dataset.columns",
    "system_prompt": "stages.*.dataset.system",
    # the run
    "use_cpu": "device",
    "run_name": "name",
    "data_seed": "seed",
}
"""For each of their names, the key of a recipe."""
