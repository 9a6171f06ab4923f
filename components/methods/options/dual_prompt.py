"""Options of method dual_prompt. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from components.adapters.options import Space, parse_layers
from components.core.errors import ConfigError
from components.core.options import Count, NonNegative
from components.methods.options.base import MethodConfig

if TYPE_CHECKING:
    from components.methods.dual_prompt import DualPrompt


@dataclass(frozen=True, kw_only=True)
class DualPromptConfig(MethodConfig):
    """A key-value prefix shared by all tasks in early layers, and one per task, found by its key, in later ones.

    Layers and lengths are the paper's for a 12-layer ViT.
    """

    name: ClassVar[str] = "dual_prompt"
    is_routed: ClassVar[bool] = True
    slots_are_tasks: ClassVar[bool] = True
    starts_as_backbone: ClassVar[bool] = False  # prefixes draw attention, whatever their values
    default_learning_rate: ClassVar[float] = 1e-1  # pairs have size 1 (see PrefixedAttention)

    general_layers: str = "0-1"
    """Layers with the shared prefix, 0-based, first and last."""
    expert_layers: str = "2-4"
    """Layers with the tasks' own prefixes, 0-based, first and last."""
    general_length: Count = 5
    """Key-value pairs of the shared prefix."""
    expert_length: Count = 20
    """Key-value pairs of a task's prefix; as released 5 for Split CIFAR-100, 20 for Split ImageNet-R."""
    pull: NonNegative = 1.0
    """Lambda, the weight of the key's distance."""
    prefix_space: Space = "projected"
    """Where a prefix joins: projected, after the layer's projections as released, or hidden, the paper's formula."""
    prefix_start: Literal["words", "uniform"] = "words"
    """How prefixes start: keys and values of random tokens, or U(0, 0.01) as released."""
    expert_start: Literal["previous", "fresh"] = "previous"
    """How a task's prefix starts: as the last task's, as released, or drawn anew."""
    sentence_encoder: str = "minilm"
    """What embeds instructions into queries."""

    @classmethod
    def tiny(cls) -> Self:  # for a model of three layers
        return cls(sentence_encoder="hash", general_layers="0-0", expert_layers="1-2", expert_length=40)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("general_layers", "expert_layers"):
            try:
                parse_layers(getattr(self, name))
            except ValueError as error:
                raise ConfigError(f"dual_prompt.{name}: {error}.") from error
        if set(parse_layers(self.general_layers)) & set(parse_layers(self.expert_layers)):
            raise ConfigError(
                f"dual_prompt.general_layers {self.general_layers} and expert_layers {self.expert_layers} overlap; "
                "give each layer one kind of prefix."
            )

    def build(self, *, seed: int) -> DualPrompt:
        from components.methods.dual_prompt import DualPrompt

        return DualPrompt(self, seed=seed)
