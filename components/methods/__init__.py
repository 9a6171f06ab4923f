"""The methods by name. Adding one: a file here and a line in `METHODS`; the contract tests run over it."""

from __future__ import annotations

import difflib

from components.errors import ConfigError
from components.methods.base import MethodConfig, SequentialLoraConfig
from components.methods.coda_prompt import CodaPromptConfig
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.dual_prompt import DualPromptConfig
from components.methods.l2p import L2PConfig
from components.methods.zero_shot import ZeroShotConfig

METHODS: dict[str, type[MethodConfig]] = {
    "sequential_lora": SequentialLoraConfig,
    "continual_llava": ContinualLlavaConfig,
    "l2p": L2PConfig,
    "dual_prompt": DualPromptConfig,
    "coda_prompt": CodaPromptConfig,
    "zero_shot": ZeroShotConfig,
}


def method_config(name: str) -> type[MethodConfig]:
    """The config class of method `name`; raises `ConfigError` with the nearest name for an unknown one."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown method {name!r}; known are {', '.join(METHODS)}.{hint}")
