"""How a recipe names the quantizer: by its name alone, or by a section with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from .open_section import OpenSection

DEFAULT_QUANTIZER = "nf4"


class Quantization(OpenSection):
    """A registered quantizer: its name alone, or `name` with its own options beside it."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, (Mapping, Quantization)):
            raise PydanticCustomError(
                "quantization", "Input should be the name of a quantizer or keys with values"
            )
        return value

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        """The name alone if there are no options."""
        section = handler(self)
        return section if self.model_extra else section["name"]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string"}, {**section, "type": "object"}]}
