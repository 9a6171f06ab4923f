"""Linear layers with two separately routed sets of low-rank blocks, one block of each in force per sample (SMoLoRA).

One layer has, for each of two sets s (visual understanding, instruction following), K blocks of rank R and a router.
With block k(s) of set s chosen for a sample, it computes for each of its tokens x

    v_s = scale * up_k(s) down_k(s) x        a = softmax over s of (fusion_s . v_s)        y = W0 x + sum_s a_s v_s

The choice is a one-hot row, so all blocks lie in one flat pair of factors (down [2*K*R, d_in], up [d_out, 2*K*R]); and
fusion_s . v_s needs only fusion_s up, so no v_s is ever built: nothing as wide as the layer is held per block or set.

Shape letters: B batch, T tokens, K blocks of one set, R rank of a block, E embedding of an instruction, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.compute import plus, weight
from components.adapters.experts import DOWN_STD, GateRecord
from components.adapters.inject import replace_linear
from components.adapters.low_rank import AdaptedLinear, seeded_generator
from components.adapters.present import continues, present, present_prompts, with_earlier

ROUTERS = ("vu_router", "if_router")
TRAINED = ("down", "up", "fusion")


class RouterInputs:
    """What the routers of all layers read for the batch at hand; outside a `using` scope no block is in force."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # [B, T] float32, of the positions averaged for the vu router; rows sum to 1
        self.instructions = torch.empty(0)  # [B, E] float32
        self.held: dict[nn.Module, Tensor] = {}  # each layer's latest choice, for the tokens generated after a prompt

    @contextmanager
    def using(self, weights: Tensor, instructions: Tensor) -> Iterator[None]:
        """Put a batch's inputs in force; the previous ones are restored on exit, even after an exception."""
        before = self.weights, self.instructions, self.held
        self.weights, self.instructions, self.held = weights, instructions, {}
        try:
            yield
        finally:
            self.weights, self.instructions, self.held = before


class SeparableLinear(AdaptedLinear):
    """A frozen linear layer that owns two routers, 2K low-rank blocks and the fusion's two vectors, all float32.

    Everything is read in `forward`, around which ZeRO-3 makes this module's own parameters whole.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        blocks: int,
        rank: int,
        scale: float,
        dropout: float,
        embedding: int,
        inputs: RouterInputs,
        record: GateRecord,
    ) -> None:
        """`blocks` in each set, `rank` of each block, `embedding` = E."""
        super().__init__(linear)
        self.blocks = blocks
        self.scale = scale
        self.dropout = dropout
        self.inputs = inputs
        self.record = record
        width, device = 2 * blocks * rank, linear.weight.device
        self.vu_router = nn.Parameter(torch.zeros(blocks, linear.in_features, device=device))
        self.if_router = nn.Parameter(torch.zeros(blocks, embedding, device=device))
        self.down = nn.Parameter(torch.zeros(width, linear.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(linear.out_features, width, device=device))
        self.fusion = nn.Parameter(torch.zeros(2, linear.out_features, device=device))

    def draw(self, generator: torch.Generator) -> None:
        """`down` normal, `up` zero, the rest as PyTorch starts a linear layer; on the CPU: the same in every worker."""
        with torch.no_grad():
            for name in (*ROUTERS, "fusion"):
                parameter = self.get_parameter(name)
                bound = 1.0 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
            self.down.copy_(torch.empty(self.down.shape).normal_(0.0, DOWN_STD, generator=generator))

    def forward(self, input: Tensor) -> Tensor:  # the base class names its argument so
        """input [B, T, d_in] -> [B, T, d_out] in the base layer's dtype."""
        output = F.linear(input, self.weight, self.bias)
        if self.inputs.weights is None:
            return output
        x = self.adapter_input(input)
        chosen = (self._choose(x, present_prompts(self.inputs.weights)) * self.scale).to(x.dtype)
        hidden = self._project_down(x).unflatten(-1, (2, self.blocks, -1))
        hidden = (hidden * chosen[:, None, :, :, None]).flatten(-2)  # [B, T, 2, K*R]
        readout = torch.einsum("so,osh->sh", self.fusion, self.up.unflatten(1, (2, -1))).to(x.dtype)
        shares = (hidden * readout).sum(dim=-1, dtype=torch.float32).softmax(dim=-1).to(x.dtype)  # [B, T, 2]
        mixed = (hidden * shares.unsqueeze(-1)).flatten(-2)
        return plus(output, F.linear(mixed, weight(self.up, x.dtype))).to(output.dtype)

    def _choose(self, x: Tensor, weights: Tensor) -> Tensor:
        """One-hot rows [B, 2, K]; routers that train get the gradient of the softmax in their place."""
        if continues() or x.shape[1] != weights.shape[1]:  # tokens of a reply: their prompt has chosen
            return present(self.inputs.held[self])
        with torch.no_grad():  # a hidden state is not changed for a router's sake
            features = torch.einsum("bt,bti->bi", weights.to(x.dtype), x).float()
        logits = [F.linear(features, self.vu_router), F.linear(present(self.inputs.instructions), self.if_router)]
        scores = torch.stack(logits, dim=1)
        chosen = F.one_hot(scores.argmax(dim=-1), self.blocks).to(scores.dtype)
        if scores.requires_grad:
            smooth = scores.softmax(dim=-1)
            chosen = chosen + (smooth - smooth.detach())
        self.inputs.held[self] = with_earlier(self.inputs.held.get(self), chosen.detach())
        self.record.add(chosen)
        return chosen

    def _project_down(self, x: Tensor) -> Tensor:
        """x [B, T, d_in] -> what every block makes of it [B, T, 2*K*R]; each set drops inputs of its own."""
        if not (self.dropout and self.training):
            return F.linear(x, weight(self.down, x.dtype))
        halves = weight(self.down, x.dtype).chunk(2)
        return torch.cat([F.linear(F.dropout(x, self.dropout), half) for half in halves], dim=-1)


class SeparableLayers:
    """All such layers of a model and what they share. Not a module: the layers live in the model's tree."""

    def __init__(self, layers: Mapping[str, SeparableLinear], inputs: RouterInputs, record: GateRecord) -> None:
        self.layers = dict(layers)
        self.inputs = inputs
        self.record = record
        record.num_layers = len(layers)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Routers, blocks and fusion vectors under the names they have in the model's state dict."""
        return {
            f"{layer_name}.{name}": layer.get_parameter(name)
            for layer_name, layer in self.layers.items()
            for name in (*ROUTERS, *TRAINED)
        }

    def set_trainable(self, *, routers: bool, rest: bool) -> None:
        """Let the routers train, and the rest (blocks and fusion vectors), or freeze them."""
        for layer in self.layers.values():
            for name in (*ROUTERS, *TRAINED):
                layer.get_parameter(name).requires_grad_(routers if name in ROUTERS else rest)


def inject_separable(
    model: nn.Module,
    targets: Mapping[str, nn.Linear],
    *,
    blocks: int,
    rank: int,
    scale: float,
    dropout: float,
    embedding: int,
    seed: int,
) -> SeparableLayers:
    """Freeze `model` and replace each of `targets` (name in `model` -> layer) by a `SeparableLinear`.

    The model's outputs stay as they were until the blocks are trained. The draw depends on (seed, layer) only.
    """
    inputs, record = RouterInputs(), GateRecord()

    def adapted(name: str, linear: nn.Linear) -> SeparableLinear:
        layer = SeparableLinear(
            linear,
            blocks=blocks,
            rank=rank,
            scale=scale,
            dropout=dropout,
            embedding=embedding,
            inputs=inputs,
            record=record,
        )
        layer.draw(seeded_generator(seed, "separable", name))
        return layer

    return SeparableLayers(replace_linear(model, targets, adapted), inputs, record)
