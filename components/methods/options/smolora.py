"""Options of method smolora. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.core.options import Count, Positive, ShareBelowOne
from components.methods.common.codebook_options import Field
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.smolora import Smolora


@dataclass(frozen=True, kw_only=True)
class SmoloraConfig(MethodConfig):
    """Two routed sets of LoRA blocks, visual understanding and instruction following, fused per token.

    The released code's values for LLaVA-7B are in `Smolora`'s docstring.
    """

    name: ClassVar[str] = "smolora"
    is_task_free: ClassVar[bool] = True  # all blocks train all the time, and are chosen by sample; but see `bound_by`

    blocks: Count = 4
    """Blocks in each of the two sets."""
    rank: Count = 16
    """Rank of one block; a sample is served by two of them."""
    alpha: Positive = 32.0
    """A block is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the blocks' input while they train; 0.05 in the released code."""
    targets: str = "all_linear"
    """Which layers are adapted: all_linear, o_proj or a pattern below the language model."""

    vu_reads: Literal["prompt", "picture"] = "prompt"
    """Which positions of a layer's input are averaged for the visual router: the prompt's or the picture's."""
    instruction_field: Field = "last_line_to_colon"
    """What is embedded of an instruction: its last line, up to a colon or all of it, or the whole."""
    sentence_encoder: str = "minilm"
    """What embeds instructions; the code's."""
    router: Literal["fixed", "straight_through"] = "fixed"
    """Whether routers stay as drawn, as the code's come out, or learn in the first task (straight_through)."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(sentence_encoder="hash")

    @property
    def bound_by(self) -> str:
        return "router" if self.router == "straight_through" else ""  # routers learn in the first task only

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        (layer, kind), block = divmod(slot // self.blocks, 2), slot % self.blocks
        return f"layer {layer} {('VU', 'IF')[kind]} block {block}"

    def build(self, *, seed: int) -> Smolora:
        from components.methods.smolora import Smolora

        return Smolora(self, seed=seed)
