"""The schema of a recipe: every key, its type, its default and its description.

Open sections (`quantization`, `algorithm`, `sampler`, each of `rewards`, a registered dataset) hold a `name` and that
plugin's own options; the registry validates those. A recipe names registered things only; no key imports code. A stage
has only the keys that it reads, so that a setting which would be ignored is reported as an unknown key.
"""

from .fields import RUN_NAME, check_run_name, check_stage_name
from .open_section import OpenSection
from .quantization import DEFAULT_QUANTIZER, Quantization
from .recipe import RESERVED, Recipe
from .sections import (
    Checkpoint,
    Collapse,
    DatasetSource,
    Eval,
    Lora,
    Model,
    PolicyEval,
    RewardEntry,
    RlEval,
    Section,
)
from .stages import (
    PolicyStage,
    PreferenceStage,
    RewardModelStage,
    RlStage,
    RowStage,
    SftStage,
    Stage,
    StageBase,
    TrlStage,
)

__all__ = [
    "DEFAULT_QUANTIZER",
    "RESERVED",
    "RUN_NAME",
    "Checkpoint",
    "Collapse",
    "DatasetSource",
    "Eval",
    "Lora",
    "Model",
    "OpenSection",
    "PolicyEval",
    "PolicyStage",
    "PreferenceStage",
    "Quantization",
    "Recipe",
    "RewardEntry",
    "RewardModelStage",
    "RlEval",
    "RlStage",
    "RowStage",
    "Section",
    "SftStage",
    "Stage",
    "StageBase",
    "TrlStage",
    "check_run_name",
    "check_stage_name",
]
