"""Options that state their own bounds: `rank: Count = 32`, checked whenever a configuration is made."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints
from urllib.parse import unquote

from pydantic import Field, TypeAdapter, ValidationError

from components.core.errors import ConfigError
from components.core.reading import read_object
from components.core.secrets import without_secrets

if TYPE_CHECKING:
    from components.core.location import Place

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareUpToHalf = Annotated[float, Field(ge=0, le=0.5)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
T = TypeVar("T")

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/.*|$)", re.DOTALL)


def check_options(options: object, owner: str) -> None:
    """Check every field of the dataclass `options` against its annotation, types and bounds both.

    Nothing is converted: a text is no number. Fields that are dataclasses check themselves. Raises `ConfigError` that
    names the first wrong field as `owner.field`.
    """
    for name, adapter in _adapters(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, Path):
            require_no_uri(value, f"{owner}.{name}")
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            raise _first_wrong(error, f"{owner}.{name}") from error


def to_plain(options: object) -> Any:
    """A dataclass of options, or the value of a field of one, as plain JSON (`Json`)."""
    return _adapter(type(options)).dump_python(options, mode="json")


def from_plain(kind: type[T], plain: Json, owner: str) -> T:
    """The inverse of `to_plain`: absent fields have their defaults, unknown ones are left out.

    Nothing is converted: a text is no number. Raises `ConfigError` that names the first wrong field as `owner.field`.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise _first_wrong(error, owner) from error


def read_kept(kind: type[T], path: Place, advice: str) -> T | None:
    """The dataclass that a JSON file holds; None where there is no file.

    Raises `ConfigError` for a damaged one, with `advice` on what to do about it.
    """
    if not path.is_file():
        return None
    content = read_object(path, ConfigError, advice)
    try:
        return from_plain(kind, content, path.name)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read ({error}); {advice}.") from error


def _first_wrong(error: ValidationError, owner: str) -> ConfigError:
    first = error.errors()[0]
    name = ".".join((owner, *map(str, first["loc"])))
    if first["type"] == "missing":
        return ConfigError(f"{name} is missing.")
    return ConfigError(f"{name} is {first['input']!r:.200}; it {first['msg'].removeprefix('Input ')}.")


def suggest(given: str, known: Iterable[str]) -> str:
    """` Did you mean rank?`, to go behind a message about an unknown name; empty where no known one is like it."""
    close = difflib.get_close_matches(given, [*known], n=1)
    return f" Did you mean {close[0]}?" if close else ""


def listed(given: str, known: Iterable[str]) -> str:
    """`alpha, rank. Did you mean rank?`, the end of a message about the unknown name `given`."""
    names = [*known]
    return f"{', '.join(names)}.{suggest(given, names)}"


def require_paths(command: object) -> None:
    """Refuse URIs in the fields of a command's dataclass that hold paths; raises `ConfigError`."""
    for item in dataclasses.fields(command):  # type: ignore[arg-type]
        value = getattr(command, item.name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                require_no_uri(path, f"--{item.name.replace('_', '-')}")


def require_no_uri(path: Path, option: str) -> None:
    """Raise `ConfigError` where `path`, which `option` gave, is a URI: as a path it would name a new folder here.

    A `Path` has lost a slash of it: `s3://bucket/runs` arrives as `s3:/bucket/runs`.
    """
    found = _URI.match(str(path))
    if found is None:
        return
    scheme, rest = found[1], found[2]
    given = without_secrets(f"{scheme}:/{rest}")
    if scheme.lower() == "file":
        raise ConfigError(f"{option} is {given}, a URI; give the path itself, {unquote(rest)}.")
    raise ConfigError(
        f"{option} is {given}, a URI; give a path of this machine, such as that of a folder where it is mounted."
    )


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind)]
    return {name: TypeAdapter(hints[name]) for name in fields if not dataclasses.is_dataclass(hints[name])}
