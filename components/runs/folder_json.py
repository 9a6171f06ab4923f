"""Light on purpose (no torch, no ray, no mlflow): the JSON files of a run's folder, whose damage is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.core.errors import ConfigError
from components.core.location import Place
from components.core.run_files import CONFIG_FILE


def read_object(path: Place) -> dict[str, Any]:
    """The JSON object in a file; raises `ConfigError` that names the file and its damage."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is damaged ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} is damaged (it is no JSON object)")
    return content


def read_optional(path: Place, problems: list[str]) -> dict[str, Any]:
    """The same for a file that may be missing, and whose damage is only noted."""
    try:
        return read_object(path) if path.is_file() else {}
    except ConfigError as error:
        problems.append(str(error))
        return {}


def text_of(config: Mapping[str, Any], part: str, name: str) -> str:
    inside = config.get(part)
    if not isinstance(inside, dict) or not isinstance(inside.get(name), str):
        raise ConfigError(f"{CONFIG_FILE} is damaged (it has no {part}.{name})")
    return inside[name]
