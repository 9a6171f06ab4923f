"""How large a model is and what it keeps in memory, from its configuration alone.

Bytes are those of PyTorch's autograd over transformers' decoder layers with frozen weights: a frozen linear layer keeps
nothing for the backward pass, so what is left are the inputs of norms, attention and the gated MLP. The arithmetic for
one model is on the page docs/guides/memory-and-time.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from components.models.backbone import Backbone

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Numbers of one backbone. `width` is the bytes of one frozen weight: 2 in bfloat16, 4 in float32."""

    weights: int
    """All of them."""
    linear: int
    """Weights of the decoder's linear layers, the output layer apart: each costs two operations per token."""
    width: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tower: int
    """Weights of the vision tower."""
    tower_layers: int
    tower_hidden: int
    tower_tokens: int
    """Tokens inside the tower for one picture."""

    def layer_bytes(self, tokens_in_row: int, *, eager: bool) -> int:
        """Bytes that one decoder layer keeps for the backward pass, per token."""
        norms = 2 * self.hidden * FLOAT32  # computed in float32, whatever the weights are
        # Queries, keys and values of every head, and the output; written out, probabilities in place of the output, in
        # float32 and in the model's precision.
        attention = (3 if eager else 4) * self.heads * self.head_size * self.width
        probabilities = self.heads * tokens_in_row * (FLOAT32 + self.width % FLOAT32) if eager else 0
        mlp = 3 * self.intermediate * self.width  # the gate before and after its activation, what it is multiplied with
        return norms + attention + probabilities + mlp

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes per token and layer that are kept with gradient checkpointing: the layer's input."""
        return self.hidden * self.width

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values per token of a sequence that is being answered."""
        return 2 * self.layers * self.key_value_heads * self.head_size * self.width

    @property
    def prefill_bytes(self) -> int:
        """Bytes per prompt token while one layer runs without gradients: its MLP, and a few copies of its input."""
        return (3 * self.intermediate + 4 * self.hidden) * self.width

    @property
    def logit_bytes(self) -> int:
        """Bytes per supervised position: logits, their float32 copy, log-probabilities and gradients of both."""
        return self.vocabulary * (2 * self.width + 3 * FLOAT32)

    @property
    def tower_bytes(self) -> int:
        """Bytes of the tower's states for one picture; it runs without gradients."""
        return (self.tower_layers + 1) * self.tower_tokens * self.tower_hidden * self.width

    def forward_operations(self, tokens: float, tokens_in_row: float) -> float:
        """Floating point operations of the decoder's forward pass over `tokens` tokens in rows of that length."""
        attention = 4 * self.layers * self.heads * self.head_size * tokens_in_row
        return tokens * (2 * self.linear + attention)

    def tower_operations(self) -> float:
        """Floating point operations of the tower for one picture."""
        return 2.0 * self.tower * self.tower_tokens


def model_shape(model: Backbone, *, width: int) -> ModelShape:
    """The shape of a backbone, on any device: weights are counted, never read."""
    config: Any = model.model.config  # the library does not type its fields
    text = config.get_text_config()
    vision = getattr(config, "vision_config", None)
    linear = sum(module.weight.numel() for module in model.language_model.modules() if isinstance(module, nn.Linear))
    towers = [model.model.get_submodule(name) for name in model.family.towers]
    return ModelShape(
        weights=sum(parameter.numel() for parameter in model.model.parameters()),
        linear=linear,
        width=width,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        key_value_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocabulary=text.vocab_size,
        tower=sum(parameter.numel() for tower in towers[:1] for parameter in tower.parameters()),
        tower_layers=_first(vision, "num_hidden_layers", "depth"),
        tower_hidden=_first(vision, "hidden_size", "embed_dim"),
        tower_tokens=_tower_tokens(vision),
    )


def _first(config: object, *names: str) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if isinstance(value, int)), 0)


def _tower_tokens(vision: object) -> int:
    """Patches of one picture of the tower's own size, and the class token; 0 where a tower states no such size."""
    size, patch = _first(vision, "image_size"), _first(vision, "patch_size")
    return (size // patch) ** 2 + 1 if size and patch else 0
