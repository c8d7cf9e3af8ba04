"""Recipes: the schema, loading and checking, printing, and those that are shipped."""

from . import shipped
from .document import document
from .dump import dump, json_schema
from .edit import edit_text
from .feasible import check_settings
from .load import Plugins, is_path, load
from .schema import (
    RESERVED,
    DatasetSource,
    Eval,
    Lora,
    Model,
    OpenSection,
    PreferenceStage,
    Recipe,
    RewardEntry,
    RewardModelStage,
    RlStage,
    SftStage,
    StageBase,
)
from .trl.convert import Converted, convert

__all__ = [
    "RESERVED",
    "Converted",
    "DatasetSource",
    "Eval",
    "Lora",
    "Model",
    "OpenSection",
    "Plugins",
    "PreferenceStage",
    "Recipe",
    "RewardEntry",
    "RewardModelStage",
    "RlStage",
    "SftStage",
    "StageBase",
    "check_settings",
    "convert",
    "document",
    "dump",
    "edit_text",
    "is_path",
    "json_schema",
    "load",
    "shipped",
]
