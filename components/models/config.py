"""Which backbone a run takes. Importing this imports no model library: a command's help must not wait for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from components.errors import ConfigError
from components.options import Count, check_options

VisionLayer = Literal["block4", "block10", "final"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which model, in which precision, and how rows are turned into its inputs."""

    name: str = "smol"  # "smol", "pocket", or a directory or hub id in Hugging Face's LLaVA layout
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights; adapters are float32 in both cases
    vision_layer: VisionLayer = "block4"  # smol only: where its vision tower is tapped
    template: str = "auto"  # "auto", "vicuna_v1", "chatml" or "chat" (the tokenizer's own chat template)
    pad_to_square: bool = True  # as LLaVA-1.5 does; off: the image processor's centre crop cuts long pictures
    max_length: Count = 2048  # tokens, pictures included; a longer row is an error, never cut
    gradient_checkpointing: bool = False
    attention: Literal["auto", "sdpa", "eager"] = "auto"  # auto: sdpa on GPUs, eager on CPUs (as fast or faster)

    def __post_init__(self) -> None:
        check_options(self, "backbone")
        if not self.name:
            raise ConfigError('backbone.name is empty; give "smol", "pocket", a model directory or a hub id.')
