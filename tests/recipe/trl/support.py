"""TRL's configurations, and what became of them."""

GRPO = """\
# trl grpo --config grpo.yaml
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: trl-lib/DeepMath-103K
bf16: true
use_vllm: true
vllm_mode: colocate
gradient_accumulation_steps: 4
gradient_checkpointing_kwargs:
  use_reentrant: false
learning_rate: 2e-6
logging_steps: 1
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
max_prompt_length: 512
max_completion_length: 2048
max_steps: 200
num_generations: 16
num_iterations: 2
steps_per_generation: 8
scale_rewards: false
loss_type: dr_grpo
epsilon_high: 0.28
output_dir: data/Qwen2.5-1.5B-GRPO
per_device_train_batch_size: 16
push_to_hub: true
report_to: [wandb]
reward_funcs:
  - accuracy_reward
  - think_format_reward
  - my_lib.rewards.tag_count
reward_weights: [1.0, 1.0, 0.5]
seed: 7
delta: 4.0
warmup_ratio: 0.1
"""


DPO = """\
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/ultrafeedback_binarized
dataset_train_split: train
learning_rate: 5.0e-6
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: false
beta: 0.05
label_smoothing: 0.1
loss_type: [sigmoid]
eval_strategy: steps
eval_steps: 50
output_dir: Qwen3-0.6B-DPO
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
load_in_4bit: true
use_bnb_nested_quant: true
optim: paged_adamw_8bit
warmup_steps: 20
"""


def notes_of(conversion):
    return dict(conversion.notes)


def only_stage(conversion):
    (stage,) = conversion.data["stages"]
    return stage
