"""Options of method coda_prompt. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from components.adapters.options import Penalty, Space, parse_layers
from components.core.errors import ConfigError
from components.core.options import Count, Json, NonNegative
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.coda_prompt import CodaPrompt


@dataclass(frozen=True, kw_only=True)
class CodaPromptConfig(MethodConfig):
    """A key-value prefix mixed of components by attention to the instruction; every task adds components.

    Layers, length and components are the paper's for ten tasks and a 12-layer ViT.
    """

    name: ClassVar[str] = "coda_prompt"
    starts_as_backbone: ClassVar[bool] = False  # prefixes draw attention, whatever their values
    default_learning_rate: ClassVar[float] = 1e-1  # pairs have size 1 (see PrefixedAttention)

    layers: str = "0-4"
    """Layers with a prefix, 0-based, first and last."""
    components_per_task: Count = 10
    """Components that a task adds; the paper has 100 for ten tasks."""
    prompt_length: Count = 8
    """Length of a component; half of it is keys, half values."""
    orthogonality: NonNegative = 0.0
    """Lambda: 0 in the released commands, since new components start orthogonal; 0.1 in the paper."""
    penalty: Penalty = "mean_square"
    """What lambda weighs: the mean squared entry, as released; a millionth of that (at first); or the paper's norm."""
    prefix_space: Space = "projected"
    """Where a prefix joins: projected, after the layer's projections as released, or hidden, the paper's formula."""
    sentence_encoder: str = "minilm"
    """What embeds instructions into queries."""

    @classmethod
    def older(cls, options: Mapping[str, Json]) -> dict[str, Json]:
        """The first release's measure was called "released"."""
        return {**options, "penalty": "first_release"} if options.get("penalty") == "released" else {**options}

    @classmethod
    def tiny(cls) -> Self:  # for a model of three layers
        return cls(sentence_encoder="hash", layers="0-2")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            parse_layers(self.layers)
        except ValueError as error:
            raise ConfigError(f"coda_prompt.layers: {error}.") from error
        if self.prompt_length % 2:
            raise ConfigError(f"coda_prompt.prompt_length is {self.prompt_length}; give an even number from 2 on.")

    def build(self, *, seed: int) -> CodaPrompt:
        from components.methods.coda_prompt import CodaPrompt

        return CodaPrompt(self, seed=seed)
