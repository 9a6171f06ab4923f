"""The embedded backbones by name. Light on purpose: configurations and `--help` import it, so it imports no model code.

What a backbone is loaded from is its `ModelSource` (components/models/source.py). Adding an embedded backbone: a module
in components/models/embedded with a source of its own, and an entry here; nothing else asks for its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.models.config import BackboneConfig
    from components.models.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class EmbeddedBackbone:
    """A backbone that needs no download."""

    source: Callable[[BackboneConfig], ModelSource]
    is_small: bool = False
    """A few layers that know no language: methods start from their options for it (`MethodConfig.tiny`)."""


def _smol(config: BackboneConfig) -> ModelSource:
    from components.models.embedded.smol import SmolSource

    return SmolSource(config)


def _pocket(config: BackboneConfig) -> ModelSource:
    from components.models.embedded.pocket import PocketSource

    return PocketSource(config)


EMBEDDED = {
    "smol": EmbeddedBackbone(source=_smol),
    "pocket": EmbeddedBackbone(source=_pocket, is_small=True),
}


def accepted_names() -> str:
    """What `backbone.name` may be, for error messages."""
    return f"{', '.join(map(repr, EMBEDDED))}, a model directory or a hub id"
