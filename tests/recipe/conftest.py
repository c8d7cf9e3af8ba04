from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from rlhf_peft.errors import PluginError
from rlhf_peft.hookspecs import Options


class Nested(BaseModel):
    model_config = {"extra": "forbid"}
    high: float = 1.0


class Ppo(Options):
    beta: float = Field(0.05, gt=0, description="Strength of the KL penalty.")
    num_epochs: int = Field(4, gt=0, description="Passes over a rollout.")
    clip: Nested = Field(default_factory=Nested, description="Bounds.")


class Cached(Options):
    max_new_tokens: int = Field(64, gt=0, description="Most tokens drawn.")
    temperature: float = Field(1.0, ge=0, description="Divides the logits.")


class Length(Options):
    target: int = Field(description="Tokens wanted.")


class Toy(Options):
    part: str = Field("prompts", description="Which rows.")


class Nf4(Options):
    double_quantization: bool = Field(True, description="Quantize the scales too.")


class Plain(Options):
    pass


OPTIONS = {
    "quantizers": {"nf4": Nf4, "none": Plain},
    "algorithms": {"ppo": Ppo},
    "samplers": {"cached": Cached},
    "rewards": {"length": Length},
    "datasets": {"toy": Toy},
}


class FakePlugins:
    def options_model(self, kind, name):
        known = OPTIONS[kind]
        if name not in known:
            raise PluginError(f"unknown {kind} {name!r}. Known: {', '.join(known)}")
        return known[name]

    def check_requirement(self, requirement):
        return None if requirement == "here" else f"{requirement} is not installed"


@pytest.fixture
def plugins():
    return FakePlugins()


GRPO = """\
# A test recipe.
version: 1
name: grpo
model:
  path: Qwen/Qwen3-0.6B
stages:
  - stage: sft
    dataset:
      path: trl-lib/Capybara
  - stage: rl
    learning_rate: 1e-6
    dataset:
      name: toy
      part: questions
    algorithm:
      name: ppo
      beta: 0.1
    sampler:
      name: cached
      max_new_tokens: 256
    rewards:
      - name: length
        weight: 0.5
        target: 20
"""


@pytest.fixture
def text():
    return GRPO


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = folder / "grpo.yaml"
    path.write_text(GRPO)
    return path
