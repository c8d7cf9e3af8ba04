"""Facts about TRL's configuration files: the keys of each trainer, its defaults, and the keys without an equivalent.

Defaults are those of TRL 1.16 where they differ from transformers'. Those of PPO, which TRL 1.16 no longer has, are
from the last release with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINERS = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "online_dpo", "ppo")
ONLINE = ("grpo", "rloo", "online_dpo", "ppo")

_COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
    "learning_rate": 1e-6,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
    "lr_scheduler_type": "linear",
    "gradient_checkpointing": True,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "use_rslora": False,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": False,
}
_ONLINE: dict[str, Any] = {
    "max_completion_length": 512,
    "num_iterations": 1,
    "epsilon": 0.2,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "mask_truncated_completions": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {**_COMMON, "learning_rate": 2e-5, "max_length": 1024, "packing": False},
    "reward": {**_COMMON, "learning_rate": 1e-4, "max_length": 1024},
    "dpo": {**_COMMON, "max_length": 1024, "beta": 0.1, "label_smoothing": 0.0},
    "kto": {
        **_COMMON,
        "max_length": 1024,
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    },
    "grpo": {
        **_COMMON,
        **_ONLINE,
        "num_generations": 8,
        "beta": 0.0,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "entropy_coef": 0.0,
        "use_bias_correction_kl": True,
        "multi_objective_aggregation": "sum_then_normalize",
    },
    "rloo": {**_COMMON, **_ONLINE, "num_generations": 2, "beta": 0.05, "normalize_advantages": False},
    "online_dpo": {
        **_COMMON,
        "learning_rate": 5e-7,
        "max_new_tokens": 64,
        "max_length": 512,
        "temperature": 0.9,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "loss_type": "sigmoid",
    },
    "ppo": {
        **_COMMON,
        "learning_rate": 5e-5,
        "max_completion_length": 53,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "num_iterations": 4,
        "num_mini_batches": 1,
        "beta": 0.05,
        "kl_estimator": "k1",
        "epsilon": 0.2,
        "vf_coef": 0.1,
        "cliprange_value": 0.2,
        "gamma": 1.0,
        "lam": 0.95,
        "whiten_rewards": False,
    },
}
"""For each trainer, the defaults of every key that is written into the recipe even if the file does not set it."""

RENAMED_KEYS: dict[str, str] = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "rloo_k": "num_generations",
    "kl_coef": "beta",
    "num_ppo_epochs": "num_iterations",
    "cliprange": "epsilon",
    "response_length": "max_completion_length",
    "reward_model_path": "reward_model_name_or_path",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    "use_bnb_double_quant": "use_bnb_nested_quant",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
}
"""Earlier names of keys and their present names; if a file has both, the present name wins."""

_KEYS_OF_TRAINERS: dict[str, str] = {
    "sft": "packing packing_strategy eval_packing completion_only_loss assistant_only_loss dataset_text_field",
    "reward": "center_rewards_coefficient",
    "dpo": "label_smoothing f_divergence_type use_weighting discopop_tau ld_alpha loss_weights rpo_alpha",
    "kto": "desirable_weight undesirable_weight",
    "dpo kto": "precompute_ref_log_probs precompute_ref_batch_size",
    "grpo": "scale_rewards importance_sampling_level delta entropy_coef top_entropy_quantile "
    "use_bias_correction_kl multi_objective_aggregation "
    "vllm_importance_sampling_correction vllm_importance_sampling_clip_max vllm_importance_sampling_mode",
    "rloo": "normalize_advantages reward_clip_range",
    "online_dpo": "max_new_tokens judge",
    "ppo": "vf_coef cliprange_value gamma lam whiten_rewards kl_estimator sft_model_path "
    "local_rollout_forward_batch_size num_sample_generations",
    "online_dpo ppo": "missing_eos_penalty",
    "rloo ppo": "num_mini_batches total_episodes stop_token stop_token_id",
    "grpo rloo": "num_generations epsilon_high steps_per_generation generation_batch_size max_prompt_length "
    "mask_truncated_completions",
    "grpo rloo ppo": "max_completion_length num_iterations epsilon",
    "grpo rloo online_dpo": "reward_funcs reward_weights use_vllm vllm_mode",
    "grpo rloo online_dpo ppo": "temperature top_p top_k min_p",
    "dpo kto grpo rloo": "sync_ref_model",
    "dpo kto grpo rloo online_dpo ppo": "beta",
    "sft reward dpo kto online_dpo": "max_length",
    "sft dpo": "padding_free",
}
TRAINERS_OF_KEY: dict[str, frozenset[str]] = {
    key: frozenset(trainers.split()) for trainers, keys in _KEYS_OF_TRAINERS.items() for key in keys.split()
}
"""For each key, the trainers that have it; keys of all trainers are not listed."""

TRAINERS_OF_LOSS: dict[str, frozenset[str]] = {
    loss: frozenset(trainers.split())
    for trainers, losses in {
        "grpo": "grpo dr_grpo dapo bnpo cispo sapo luspo vespo",
        "dpo online_dpo": "sigmoid ipo",
        "dpo": "hinge robust exo_pair nca_pair apo_zero",
        "kto": "kto apo_zero_unpaired",
        "sft": "nll dft",
    }.items()
    for loss in losses.split()
}
"""For each value of `loss_type`, the trainers that have it."""

_REASONS: Mapping[str, str] = {
    "metrics go to metrics.jsonl in the run folder, every step; observers are plugins": "logging_steps "
    "logging_strategy logging_first_step logging_dir report_to log_level log_level_replica log_completions "
    "wandb_project wandb_entity trackio_space_id num_completions_to_print log_unique_prompts disable_tqdm "
    "log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen project",
    "a run saves its adapters and nothing goes to the hub by itself": "save_steps save_strategy save_total_limit "
    "save_only_model push_to_hub hub_model_id hub_strategy hub_private_repo hub_token hub_revision "
    "hub_always_push hub_model_revision push_to_hub_revision resume_from_checkpoint load_best_model_at_end "
    "metric_for_best_model greater_is_better overwrite_output_dir overwrite_hub_revision",
    "micro-batches follow from model.tokens_per_forward": "per_device_eval_batch_size auto_find_batch_size "
    "padding_free pad_to_multiple_of eval_accumulation_steps precompute_ref_log_probs "
    "precompute_ref_batch_size num_generations_eval torch_empty_cache_steps group_by_length "
    "length_column_name train_sampling_strategy",
    "one process, data in memory": "dataloader_num_workers dataloader_pin_memory dataloader_drop_last "
    "dataset_num_proc dataset_streaming dataloader_persistent_workers dataloader_prefetch_factor "
    "preprocessing_num_workers ddp_find_unused_parameters ddp_timeout ddp_backend deepspeed fsdp fsdp_config "
    "local_rank ds3_gather_for_generation accelerator_config remove_unused_columns parallelism_config",
    "computed so already: log-probabilities in chunks, checkpointing without re-entry": "use_liger_kernel "
    "use_liger_loss gradient_checkpointing_kwargs activation_offloading liger_kernel_config",
    "the order of rows is shuffled from `seed`": "shuffle_dataset data_seed full_determinism",
    "adapters are plain LoRA on linear layers": "use_dora lora_modules_to_save lora_task_type "
    "lora_target_parameters modules_to_save",
    "dropout is off while log-probabilities are compared": "disable_dropout",
    "an answer ends at the tokens that end the model's texts": "stop_token stop_token_id",
    "sizes follow from the batch size": "local_rollout_forward_batch_size num_sample_generations exp_name world_size "
    "num_total_batches micro_batch_size local_batch_size local_mini_batch_size mini_batch_size",
    "AdamW takes no further arguments here": "optim_args optim_target_modules",
    "the reference is the policy as the stage begins": "sync_ref_model ref_model_mixup_alpha "
    "ref_model_sync_steps ref_model",
    "the base decodes in this process; a server is sampler.name: vllm_server": "use_vllm vllm_mode "
    "vllm_server_host vllm_server_port vllm_server_timeout vllm_server_base_url vllm_gpu_memory_utilization "
    "vllm_tensor_parallel_size vllm_enable_sleep_mode vllm_max_model_length vllm_model_impl vllm_device "
    "vllm_dtype vllm_max_model_len vllm_group_port use_transformers_paged "
    "use_transformers_continuous_batching cache_implementation",
    "given on the command line only: --trust-remote-code": "trust_remote_code",
    "the model's own chat template is used": "chat_template chat_template_path eos_token pad_token",
    "a run does all that its recipe says": "do_train do_eval do_predict tf32 torch_compile env",
}
REASONS: dict[str, str] = {key: reason for reason, keys in _REASONS.items() for key in keys.split()}
"""For each key that a recipe does not need, the reason."""

REWARDS: dict[str, dict[str, Any]] = {
    "accuracy_reward": {"name": "numeric_answer", "column": "solution"},
    "accuracy": {"name": "numeric_answer", "column": "solution"},
    "think_format_reward": {
        "name": "regex",
        "pattern": "^<think>(?!.*<think>)(.*?)</think>.*$",
        "match": "fullmatch",
        "flags": ["dotall"],
    },
    "get_soft_overlong_punishment": {"name": "length", "max": 1280, "cache": 256},
}
"""For each reward function of `trl.rewards`, the equivalent built-in reward."""
