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
    """smol, pocket, or a directory or hub id of a supported model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the frozen weights; what trains is float32 in all cases. auto: bfloat16 where a measurement on this
    machine finds it quicker; a run and a sweep keep what was found."""
    adapter_compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of adapters' arithmetic beside bfloat16 weights; auto takes bfloat16 on GPUs, as under autocast, and
    float32 on CPUs."""
    float32_matmul: Literal["auto", "highest", "high"] = "auto"
    """Products of float32 matrices on GPUs: high computes them in TF32, highest exactly; auto takes high, unless
    adapter_compute asks for float32."""
    float32_kernels: Literal["auto", "torch", "onednn"] = "auto"
    """Who multiplies float32 matrices while a CPU answers: torch's own choice (MKL), or oneDNN, which is as exact and
    sums in another order; auto takes oneDNN on AMD processors with AVX-512, which MKL does not use there."""
    vision_layer: VisionLayer = "block4"
    """smol only: where its vision tower is tapped."""
    template: str = "auto"
    """How a conversation is written: auto (the model's own chat template where it can carry training, else the one that
    goes with its type or tokenizer), vicuna_v1 (LLaVA-1.5), llava_v1, chatml, mistral, paligemma, or chat (the model's
    own)."""
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
        if self.adapter_compute == "bfloat16" and self.dtype == "float32":
            raise ConfigError(
                "backbone.adapter_compute is bfloat16, but the frozen weights are float32; give --backbone.dtype "
                "bfloat16, or leave backbone.adapter_compute at auto."
            )

    def arithmetic(self, *, gpu: bool) -> str:
        """In words for a plan: in which precision a worker on a GPU, or on CPUs, computes."""
        if self.dtype == "float32":
            adapters = "float32"
        elif self.adapter_compute != "auto":
            adapters = self.adapter_compute
        else:
            adapters = "bfloat16" if gpu else "float32"
        if gpu and self.tf32:
            return f"{adapters} adapters over float32 values, float32 products in TF32"
        return f"{adapters} adapters over float32 values, float32 products exact"

    @property
    def tf32(self) -> bool:
        """Whether GPUs multiply float32 matrices in TF32."""
        exact = self.adapter_compute == "float32"
        return self.float32_matmul == "high" or (self.float32_matmul == "auto" and not exact)

    @property
    def is_small(self) -> bool:
        """A few layers that know no language: methods start from their options for small backbones."""
        return self.name in EMBEDDED and EMBEDDED[self.name].is_small
