"""The recipe as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .fields import RunName, Seed, check_run_name
from .open_section import OpenSection
from .quantization import Quantization
from .sections import DatasetSource, Lora, Model, RewardEntry, Section
from .stages import RewardModelStage, Stage


class Recipe(Section):
    """A whole run."""

    version: Literal[1] = Field(description="Version of the recipe format.")
    name: RunName = Field(description="Name of the run, and of its folder under output_dir.")
    seed: Seed = Field(
        17, description="Seeds data order, sampling and initialisation, each a stream of its own."
    )
    output_dir: str = Field("runs", description="Where run folders go.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, xpu, mps.")
    tracking: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default_factory=list,
        description="Trackers that receive the metrics: tensorboard, wandb, trackio, mlflow, each installed by you.",
    )
    plugins: list[str] = Field(default_factory=list, description="Distributions that the recipe requires.")
    model: Model = Field(description="The base model.")
    lora: Lora = Field(default_factory=lambda: Lora(), description="Adapters of all roles.")
    stages: list[Stage] = Field(
        min_length=1, description="Done in order; each begins where the one before ended."
    )

    @model_validator(mode="after")
    def _inherit_lora(self) -> Recipe:
        for index, stage in enumerate(self.stages):
            if isinstance(stage, RewardModelStage) and stage.lora is not None:
                overrides = {key: getattr(stage.lora, key) for key in stage.lora.model_fields_set}
                lora = Lora(**{**self.lora.model_dump(), **overrides})
                self.stages[index] = stage.model_copy(update={"lora": lora})
        return self

    @model_validator(mode="after")
    def _unique_stage_names(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        for name in names:
            check_run_name(name)
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"two stages are called {', '.join(duplicates)}: give each its own `name`")
        return self

    @property
    def run_folder(self) -> Path:
        """`<output_dir>/<name>`."""
        return Path(self.output_dir) / self.name


RESERVED: dict[str, frozenset[str]] = {
    "algorithms": frozenset(OpenSection.model_fields),
    "samplers": frozenset(OpenSection.model_fields),
    "rewards": frozenset(RewardEntry.model_fields),
    "datasets": frozenset(DatasetSource.model_fields),
    "environments": frozenset(OpenSection.model_fields),
    "quantizers": frozenset(Quantization.model_fields),
}
"""For each kind, the keys of a plugin's section that belong to the recipe itself; no option may have such a name."""
