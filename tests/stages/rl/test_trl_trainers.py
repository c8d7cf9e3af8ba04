"""Whole updates against TRL's own trainers: the same completions, the same rewards, the same adapter to begin with.

The stage runs first and its completions are written down; TRL's trainer, on plain transformers and PEFT, is given them
in place of what it would have sampled, and everything else it does itself. After several updates both adapters are
compared.
"""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from rlhf_peft.engine import POLICY
from rlhf_peft.hookspecs import hookimpl
from rlhf_peft.plugin import Options, Scores
from rlhf_peft.recipe.schema import RewardEntry

from ...small_model import one_layer
from .support import run, stage

STEPS, PROMPTS, EACH, RATE = 3, 4, 4, 1e-3


def points(ids):
    """A score of a completion, from nothing but its tokens; hardly ever the same for two."""
    return sum(place * token for place, token in enumerate(ids, 1)) % 997 / 997


class Points:
    roles, timeout = (), None
    Options = Options

    def __init__(self, options): ...

    async def score(self, batch):
        return Scores(row=torch.tensor([points(ids) for ids in batch.completion_ids]))


class Recorder:
    """Gives the reward, and writes down what was sampled."""

    def __init__(self):
        self.rollouts = []

    @hookimpl
    def rlhf_peft_register_rewards(self, register):
        register("points", Points)

    @hookimpl
    def rlhf_peft_rollout_end(self, run, stage, step, batch):
        self.rollouts.append(batch.rollout)


def ours(make_context, tmp_path, algorithm):
    """The adapter after the stage, the folder of the one before it, and what was sampled."""
    settings = stage(
        eval={},
        prompts_per_step=PROMPTS,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler="constant",
        sampler={"name": "cached", "max_new_tokens": 12},
    )
    ctx = make_context(settings | {"algorithm": algorithm}, model={"quantization": "none"})
    recorder = Recorder()
    ctx.registry.add(recorder, "recorder", "tests", "1", "a test")
    ctx.recipe.stages[0] = ctx.recipe.stages[0].model_copy(
        update={"rewards": [RewardEntry.model_validate({"name": "points"})]}
    )
    ctx.base.roles.save(POLICY, tmp_path / "before")
    run(ctx)
    names = {n: p.detach().clone() for n, p in ctx.base.model.named_parameters() if f".{POLICY}." in n}
    return {name.replace(f".{POLICY}.", ".default."): p for name, p in names.items()}, recorder.rollouts


def parts(rollout):
    """Prompt and completion ids of each row."""
    rows = zip(rollout.input_ids, rollout.action_mask, strict=True)
    return [(ids[~mask].tolist(), ids[mask].tolist()) for ids, mask in rows]


def replayed(kind, rollouts):
    """A trainer that is given completions, in place of sampling them; its prompts are not read."""

    class Replayed(kind):
        def _tokenize_prompts(self, prompts):
            self.rows = parts(rollouts.pop(0))
            assert len(self.rows) == len(prompts)
            return [prompt for prompt, _ in self.rows], None, {}

        def _generate_single_turn(self, *_):
            completions = [ids for _, ids in self.rows]
            return completions if kind is RLOOTrainer else (completions, None)

        def _generate(self, *given):
            if kind is not OnlineDPOTrainer:
                return super()._generate(*given)
            rows = parts(rollouts.pop(0))
            rows = rows[::2] + rows[1::2]  # the first answers to all prompts, then the second ones
            pad = self.processing_class.pad_token_id
            left = padded([prompt[::-1] for prompt, _ in rows], pad).flip(1)
            right = padded([ids for _, ids in rows], pad)
            counts = [torch.tensor([len(part[side]) for part in rows])[:, None] for side in (0, 1)]
            width = left.shape[1]
            prompt_mask = (torch.arange(width) >= width - counts[0]).long()
            return left, prompt_mask, right, (torch.arange(right.shape[1]) < counts[1]).long(), None

    return Replayed


def padded(rows, pad):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, pad)


def theirs(kind, config, tmp_path, rollouts, **options):
    """The adapter after TRL's trainer."""
    location = one_layer()
    plain = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, tmp_path / "before", is_trainable=True)
    epochs = options.get("num_iterations", 1)
    settings = config(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=PROMPTS if kind is OnlineDPOTrainer else PROMPTS * EACH,
        max_steps=STEPS * epochs,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_epsilon=1e-5,
        max_grad_norm=1.0,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        temperature=1.0,
        **options,
    )
    trainer = replayed(kind, rollouts)(
        model=model,
        args=settings,
        reward_funcs=lambda completion_ids, **_: [points(ids) for ids in completion_ids],
        train_dataset=Dataset.from_dict({"prompt": ["-"] * (STEPS * PROMPTS)}),
        processing_class=AutoTokenizer.from_pretrained(location),
    )
    trainer.train()
    assert not rollouts
    return {name: p.detach() for name, p in trainer.model.named_parameters() if ".default." in name}


def compare(mine, other):
    """Updates of both adapters agree; they did move."""
    assert mine.keys() == other.keys()
    difference = max(float((mine[name] - other[name]).abs().max()) for name in mine)
    moved = max(float(other[name].abs().max()) for name in other if ".lora_B." in name)
    assert moved > RATE and difference < 1e-3 * moved, (difference, moved)


GRPO = {"num_generations": EACH, "max_completion_length": 12}


@pytest.mark.parametrize(
    ("mine", "options"),
    [
        ({"loss_type": "dapo"}, {"loss_type": "dapo"}),
        (
            {"loss_type": "dr_grpo", "scale_rewards": "none"},
            {"loss_type": "dr_grpo", "scale_rewards": "none"},
        ),
        (
            {"loss_type": "grpo", "beta": 0.1, "num_epochs": 2},
            {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2, "use_bias_correction_kl": False},
        ),
    ],
    ids=["dapo", "dr_grpo", "grpo, KL and two passes"],
)
def test_grpo(make_context, tmp_path, mine, options):
    adapter, rollouts = ours(
        make_context, tmp_path, {"name": "grpo", "num_generations": EACH, "num_minibatches": 1, **mine}
    )
    compare(adapter, theirs(GRPOTrainer, GRPOConfig, tmp_path, rollouts, **GRPO, **options))


def test_rloo(make_context, tmp_path):
    algorithm = {"name": "rloo", "num_generations": EACH, "num_epochs": 1, "num_minibatches": 1, "beta": 0.05}
    adapter, rollouts = ours(make_context, tmp_path, algorithm)
    compare(adapter, theirs(RLOOTrainer, RLOOConfig, tmp_path, rollouts, **GRPO, beta=0.05))


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_online_dpo(make_context, tmp_path, loss_type):
    algorithm = {"name": "online_dpo", "num_generations": 2, "beta": 0.1, "loss_type": loss_type}
    algorithm |= {"num_epochs": 1, "num_minibatches": 1}
    adapter, rollouts = ours(make_context, tmp_path, algorithm)
    options = {"beta": 0.1, "loss_type": loss_type, "max_new_tokens": 12, "missing_eos_penalty": None}
    compare(adapter, theirs(OnlineDPOTrainer, OnlineDPOConfig, tmp_path, rollouts, **options))
