"""Moves keys of older recipes to their present places, so that the recipe of an earlier run can still be read."""

from __future__ import annotations

from typing import Any


def move_renamed_keys(data: dict[str, Any]) -> None:
    """Make `model.double_quantization` an option of the quantizer; its default, true, is the quantizers' too."""
    model = data.get("model")
    if not isinstance(model, dict) or "double_quantization" not in model:
        return
    value = model.pop("double_quantization")
    if value is True:
        return
    section = model.get("quantization", "nf4")
    if isinstance(section, str):
        section = model["quantization"] = {"name": section}
    if isinstance(section, dict):
        section.setdefault("double_quantization", value)
