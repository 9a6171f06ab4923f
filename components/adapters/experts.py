"""Linear layers with a mixture of LoRA experts and a router of their own (MoELoRA).

One layer computes, for each token x, with N experts of rank R (down [N*R, d_in], up [d_out, N*R], router [N, d_in]),

    y = W0 x + scale * up (drop(down x) * softmax(router x) repeated R times)

which is the sum over experts of gate * up_e down_e x in two flat products: no loop over experts, and nothing as wide as
the layer is held once per expert.

Shape letters: B batch, T tokens, P all B*T positions, N experts, R rank of one expert, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from components.adapters.compute import plus, weight
from components.adapters.inject import replace_linear
from components.adapters.low_rank import AdaptedLinear, seeded_generator
from components.adapters.present import is_later_part, present_prompts

DOWN_STD = 0.01  # of the released initial draw


class GateRecord:
    """The gates of all layers in one forward pass; shared by the layers of one model.

    With gradients the gates themselves are kept, with their graph; without, what they are on average over a prompt.
    """

    def __init__(self) -> None:
        self.num_layers = 0
        self._mask: Tensor | None = None
        self._gates: list[Tensor] | None = None
        self._means: list[Tensor] = []

    @contextmanager
    def recording(self, mask: Tensor | None = None) -> Iterator[None]:
        """Record until `take` or the end; mask [B, T] is 1 at the tokens of the first pass, which is the prompts'.

        None where a layer's gates are one choice per sample: they are kept as they are.
        """
        self._mask, self._gates, self._means = mask, [], []
        try:
            yield
        finally:
            self._mask, self._gates = None, None

    def add(self, gates: Tensor) -> None:
        if self._gates is None:
            return
        # The very tensor and nothing computed from it: checkpointing wants as many saved tensors when it recomputes.
        if torch.is_grad_enabled():
            self._gates.append(gates)
        elif len(self._means) < self.num_layers or is_later_part():  # other later passes are of generated tokens
            if self._mask is not None:
                weights = present_prompts(self._mask).to(gates.dtype)
                gates = torch.einsum("btn,bt->bn", gates, weights / weights.sum(dim=1, keepdim=True))
            self._means.append(gates)

    def means(self) -> Tensor | None:
        """Mean gates of the prompts [L, B, N], or the choices, from a pass without gradients; None without one."""
        parts = [self._means[at : at + self.num_layers] for at in range(0, len(self._means), self.num_layers)]
        return torch.cat([torch.stack(part) for part in parts], dim=1) if parts else None

    def take(self) -> Tensor | None:
        """Gates [L, B, T, N], or None if there are none; ends the recording, so that recomputation adds nothing."""
        gates, self._gates = self._gates, None
        return torch.stack(gates) if gates else None


class ExpertLinear(AdaptedLinear):
    """A frozen linear layer that owns a router and N low-rank experts, all float32.

    Everything is read in `forward`, around which ZeRO-3 makes this module's own parameters whole.
    """

    def __init__(
        self, linear: nn.Linear, *, num_experts: int, rank: int, scale: float, dropout: float, record: GateRecord
    ) -> None:
        """`rank` is that of all experts together."""
        assert rank % num_experts == 0, f"{num_experts} experts do not divide rank {rank}"
        super().__init__(linear)
        self.num_experts = num_experts
        self.scale = scale
        self.dropout = dropout
        self.record = record
        device = linear.weight.device
        self.router = nn.Parameter(torch.empty(num_experts, linear.in_features, device=device, dtype=torch.float32))
        self.down = nn.Parameter(torch.empty(rank, linear.in_features, device=device, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=device, dtype=torch.float32))

    def draw(self, generator: torch.Generator) -> None:
        """Router as PyTorch starts a linear layer, `down` normal; on the CPU, so that every worker gets the same."""
        bound = 1.0 / math.sqrt(self.in_features)
        router = torch.empty(self.router.shape).uniform_(-bound, bound, generator=generator)
        down = torch.empty(self.down.shape).normal_(0.0, DOWN_STD, generator=generator)
        with torch.no_grad():
            self.router.copy_(router)
            self.down.copy_(down)

    def forward(self, input: Tensor) -> Tensor:  # the base class names its argument so
        """input [B, T, d_in] -> [B, T, d_out] in the base layer's dtype."""
        output = F.linear(input, self.weight, self.bias)
        x = self.adapter_input(input)
        return self._with_increment(output, x, self._gates(x))

    def _gates(self, x: Tensor) -> Tensor:
        """x [B, T, d_in] -> each token's gates [B, T, N] float32."""
        gates = F.linear(x, weight(self.router, x.dtype)).float().softmax(dim=-1)
        self.record.add(gates)
        return gates

    def _with_increment(self, output: Tensor, x: Tensor, gates: Tensor) -> Tensor:
        """output [B, T, d_out] and what the experts add to it, weighed by gates [B, T, N]."""
        mixed = self._project_down(x) * (gates * self.scale).to(x.dtype).unsqueeze(-1)
        return plus(output, F.linear(mixed.flatten(-2), weight(self.up, x.dtype))).to(output.dtype)

    def _project_down(self, x: Tensor) -> Tensor:
        """x [B, T, d_in] -> what each expert makes of it [B, T, N, R]."""
        down = weight(self.down, x.dtype)
        if not (self.dropout and self.training):
            return F.linear(x, down).unflatten(-1, (self.num_experts, -1))
        flat = x.flatten(0, -2)
        dropped = bernoulli_places(self.num_experts * flat.numel(), self.dropout, flat.device)
        hidden = _DroppedDown.apply(flat, down, dropped, self.num_experts)
        assert isinstance(hidden, Tensor)
        return (hidden / (1.0 - self.dropout)).transpose(0, 1).unflatten(0, x.shape[:-1])


def bernoulli_places(total: int, probability: float, device: torch.device) -> Tensor:
    """Sorted places in range(total), each there with `probability`, independently; the rest of [K] int64 is `total`.

    Gaps between successes are geometric, so only the successes are drawn: cheap when they are few. How many there are
    is known on the device only; K does not depend on it, so that the host need not wait.
    """
    mean = total * probability
    enough = int(mean + 10.0 * math.sqrt(mean)) + 10  # more than ten standard deviations above the mean
    gaps = torch.empty(enough, dtype=torch.int64, device=device).geometric_(probability)
    return (gaps.cumsum(0) - 1).clamp_(max=total)


class _DroppedDown(torch.autograd.Function):
    """Each expert's product with a copy of the input that has its own zeros.

    flat [P, d_in], down [N*R, d_in], dropped: places in [N, P, d_in], or the one past them -> [N, P, R]. The copies and
    masks, N times as wide as the input, are not kept for backward: the dropped places are enough to make them again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, flat: Tensor, down: Tensor, dropped: Tensor, num_experts: int) -> Tensor:
        ctx.save_for_backward(flat, down, dropped)
        copies = _dropped_copies(flat, dropped, num_experts)
        return torch.bmm(copies, down.view(num_experts, -1, down.shape[1]).transpose(1, 2))

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = grad_outputs
        flat, down, dropped = ctx.saved_tensors  # type: ignore[attr-defined]
        num_experts = len(gradient)
        needs_flat, needs_down = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        to_flat = to_down = None
        if needs_down:
            copies = _dropped_copies(flat, dropped, num_experts)
            to_down = torch.bmm(gradient.transpose(1, 2), copies).view_as(down)
        if needs_flat:
            memory, spread = _one_longer(flat, num_experts)
            torch.bmm(gradient, down.view(num_experts, -1, down.shape[1]), out=spread)
            memory.index_fill_(0, dropped, 0.0)
            to_flat = spread.sum(dim=0)
        return to_flat, to_down, None, None


def _dropped_copies(flat: Tensor, dropped: Tensor, num_experts: int) -> Tensor:
    """flat [P, d_in] -> a copy for each expert [N, P, d_in] with zeros at places `dropped`."""
    memory, copies = _one_longer(flat, num_experts)
    copies.copy_(flat)
    memory.index_fill_(0, dropped, 0.0)
    return copies


def _one_longer(flat: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Memory for N tensors like flat [P, d_in] and one number more, where places past the end go; the N of it."""
    memory = flat.new_empty(num_experts * flat.numel() + 1)
    return memory, memory[:-1].view(num_experts, *flat.shape)


class Experts:
    """All expert layers of a model and the record they share. Not a module: the layers live in the model's tree."""

    def __init__(self, layers: Mapping[str, ExpertLinear], record: GateRecord) -> None:
        self.layers = dict(layers)
        self.record = record
        record.num_layers = len(layers)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Routers and experts under the names they have in the model's state dict."""
        return {
            f"{layer_name}.{name}": layer.get_parameter(name)
            for layer_name, layer in self.layers.items()
            for name in ("router", "down", "up")
        }

    def set_trainable(self, trainable: bool) -> None:
        """Let all of them train, or freeze them."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(trainable)


def inject_experts(
    model: nn.Module,
    targets: Mapping[str, nn.Linear],
    *,
    num_experts: int,
    rank: int,
    scale: float,
    dropout: float,
    seed: int,
) -> Experts:
    """Freeze `model` and replace each of `targets` (name in `model` -> layer) by an `ExpertLinear`.

    The model's outputs stay as they were until the experts are trained. The draw depends on (seed, layer) only.
    """
    record = GateRecord()

    def adapted(name: str, linear: nn.Linear) -> ExpertLinear:
        layer = ExpertLinear(linear, num_experts=num_experts, rank=rank, scale=scale, dropout=dropout, record=record)
        layer.draw(seeded_generator(seed, "experts", name))
        return layer

    return Experts(replace_linear(model, targets, adapted), record)
