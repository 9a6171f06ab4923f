"""Options that state their own bounds: `rank: Count = 32`, checked whenever a configuration is made."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from components.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareUpToHalf = Annotated[float, Field(ge=0, le=0.5)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


def check_options(options: object, owner: str) -> None:
    """Check every field of the dataclass `options` against its annotation, types and bounds both.

    Nothing is converted: a text is no number. Fields that are dataclasses check themselves. Raises `ConfigError` that
    names the first wrong field as `owner.field`.
    """
    for name, adapter in _adapters(type(options)).items():
        value = getattr(options, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]["msg"].removeprefix("Input ")
            raise ConfigError(f"{owner}.{name} is {value!r}; it {wrong}.") from error


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind)]
    return {name: TypeAdapter(hints[name]) for name in fields if not dataclasses.is_dataclass(hints[name])}
