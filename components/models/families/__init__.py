"""The families by `model_type`. Light on purpose: a family's module is imported when a model of its type is opened.

Adding one: a module in this package and a line here; from another package, an entry point in the group
`littoral.families` whose name is the model type.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from components.core.errors import ConfigError

if TYPE_CHECKING:
    from components.models.families.base import Family

GROUP = "littoral.families"
FAMILIES = {
    "llava": "llava:Llava",
    "llava_next": "llava_next:LlavaNext",
    "llava_onevision": "llava_next:LlavaOnevision",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "qwen2_5_vl:Qwen25VL"),
    "qwen3_vl": "qwen3_vl:Qwen3VL",
    "internvl": "internvl:InternVL",
    **dict.fromkeys(("smolvlm", "idefics3"), "smolvlm:SmolVLM"),
    "paligemma": "gemma:PaliGemma",
    "gemma3": "gemma:Gemma3",
    "mistral3": "mistral3:Mistral3",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "text:Text"),
}


def supported_types() -> list[str]:
    """Every `model_type` that a backbone may have, also of families from other packages."""
    return sorted({*FAMILIES, *(entry.name for entry in entry_points(group=GROUP))})


def family_class(model_type: str, *, backbone: str) -> type[Family]:
    """The class for `model_type`; raises `ConfigError` naming the supported types where there is none."""
    if model_type in FAMILIES:
        module, _, name = FAMILIES[model_type].partition(":")
        return getattr(import_module(f"{__name__}.{module}"), name)
    for entry in entry_points(group=GROUP):
        if entry.name == model_type:
            return entry.load()
    raise ConfigError(
        f"backbone {backbone!r} is of the type {model_type!r}, which is not supported; give a model of one of these "
        f"types: {', '.join(supported_types())}."
    )
