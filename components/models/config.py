"""Which backbone a run takes. Light on purpose: a command's help must not wait for a model library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from components.core.errors import ConfigError
from components.core.options import Count, check_options
from components.models.registry import EMBEDDED, accepted_names

VisionLayer = Literal["block4", "block10", "final"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which model, in which precision, and how rows are turned into its inputs."""

    name: str = "smol"
    """smol, pocket, or a directory or hub id in Hugging Face's LLaVA layout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights; adapters are float32 in both cases."""
    vision_layer: VisionLayer = "block4"
    """smol only: where its vision tower is tapped."""
    template: str = "auto"
    """How a conversation is written: auto (the model's own chat template where it can carry training, else the one that
    goes with its tokenizer), vicuna_v1 (LLaVA-1.5), llava_v1, chatml, or chat (the model's own)."""
    pad_to_square: bool = True
    """Pad pictures to a square, as LLaVA-1.5 does; off: the image processor's centre crop cuts long pictures."""
    max_length: Count = 2048
    """Most tokens that a row may take, its picture included."""
    too_long: Literal["error", "cut", "skip"] = "error"
    """Rows above max_length: refused before anything is trained, cut (never the picture, never the whole answer), or
    left out of training and scoring."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, slower training."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention kernel; auto takes sdpa on GPUs and eager on CPUs, where it is as fast or faster."""

    def __post_init__(self) -> None:
        check_options(self, "backbone")
        if not self.name:
            raise ConfigError(f"backbone.name is empty; give {accepted_names()}.")

    @property
    def is_small(self) -> bool:
        """A few layers that know no language: methods start from their options for small backbones."""
        return self.name in EMBEDDED and EMBEDDED[self.name].is_small
