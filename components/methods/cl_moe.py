"""CL-MoE: MoELoRA whose experts are averaged with their former selves, served by gates per token and per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.dual_router import DualRouterExperts, inject_dual_router
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import (
    Engine,
    Loss,
    MethodState,
    Selection,
    TaskInfo,
    copy_tensors,
    load_parameters,
    target_pattern,
)
from components.methods.common.features import ReadsInstructions
from components.methods.common.key_selection import evenly_spaced
from components.methods.options.cl_moe import ClMoeConfig, Specific

if TYPE_CHECKING:
    from components.adapters.serving import Digests
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

CENTRES, COUNTS, IN_TASK = "tasks.centres", "tasks.counts", "in_task."  # names in a state
INDEXED_TEXTS = 20_000  # instructions of a task that its centre is the mean of, evenly spaced
PREPARED_TEXTS = 50_000  # embedded before the first task; half of what the encoder remembers


class ClMoe(ReadsInstructions[ClMoeConfig]):
    """CL-MoE, dual momentum mixture of experts.

    Paper: Huai et al., CVPR 2025, "CL-MoE: Enhancing Multimodal Large Language Model with Dual Momentum
        Mixture-of-Experts for Continual Visual Question Answering", arXiv 2503.00413. Available were the released layer
        and scripts (ECNU-ICALK/CL-MoE), the merging and counting scripts in copies, the same lab's EasyCL, and of the
        paper the abstract and summaries with its two formulas. Released values for LLaVA-7B: rank 32, alpha 64,
        4 experts (8 in the merging script), every linear layer, learning rate 2e-4, momentum 0.7, beta 0.5.
    Idea: the experts that a task uses most decide which of them may change much, and which serve the whole task.
    Objective: while training, MoELoRA's: the language-model loss with
            h' = W0 h + (alpha / rank) sum_e g_e(h) up_e down_e h,  g(h) = softmax(router h), for each token.
        Meanwhile it counts how often each expert has one of a token's two largest gates (ties are not counted).
        After every task but the first, per expert e, with theta its values before the task and phi those after it,
            theta_e = m_e theta_e + (1 - m_e) phi_e,  m_e = 1 - momentum if e is task-specific, otherwise momentum.
        The routers keep what they have learned. At test g becomes beta g(h) + (1 - beta) G(t), with G(t) the counts of
        task t's `top_experts` as shares, and t the task whose centre is nearest to the sample.
    Overrides: attach, prepare, begin_task, select, served_by (before any task), loss (counts), step, end_task,
        state_dict, task_state, parameters.
    Carried between tasks: experts and routers, which all tasks share and change; per task its counts and its centre.
        No expert belongs to a task, so `is_routed` is False; `Selection.slots` tells which task's gates G were taken.
    Not known: how the paper finds t at test (task centres; of what, and at what distance). The released code leaves the
        line with G out and expects G to be filled in by hand for a known task. Here a centre is the mean of the
        normalised sentence embeddings of a task's instructions, and the nearest has the largest cosine; beta = 1
        serves without it.
    Differs:
        - The copy of the merging script tests tensor names in a way that no released name passes, so as it reads it
          averages nothing. EasyCL repairs that, with the same shares, and so does this.
        - specific="old", as written there: experts in the former task's list and not in the new one's take most of
          phi. specific="new" is our reading of the idea (the new task's own experts take most of phi).
        - Their lists have up to 8 of at most 8 experts, so no expert is specific. `top_experts` is 2 here, as many as
          are counted per token: only then has the momentum rule any effect. top_experts = num_experts is theirs.
        - Uses are counted for every training token, not only at second 30 of the clock. statistics="model" sums over
          layers as they do, although expert e of one layer has nothing to do with expert e of the next; "layer" does
          not. G as shares of the counts is our reading of a comment.
        - The learning rate is MoELoRA's, not tuned again: in training the layers are the same.
    """

    rows_leave = True
    owned_by_none = "every task trains all experts and routers, and owns no more than its counts and its centre"

    def __init__(self, config: ClMoeConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.experts: DualRouterExperts
        self.centres: list[Tensor] = []  # [E] of every learned task
        self.uses: list[Tensor] = []  # [L, N] float64, of every learned task
        self.training = False  # between begin_task and end_task
        self.before: dict[str, Tensor] = {}  # values at the task's start; none in the first
        self.counts = torch.zeros(0, 0, dtype=torch.float64)  # [L, N], of the updates made in this task
        self.pending = self.counts  # [L, N], of this worker's micro-batches since the last update
        self.interrupted: dict[str, Tensor] = {}  # of a state that was taken inside a task

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        config = self.config
        self.experts = inject_dual_router(
            model,
            model.target_modules(target_pattern(config.targets)),
            num_experts=config.num_experts,
            rank=config.rank,
            scale=config.alpha / config.rank,
            dropout=config.dropout,
            beta=config.beta,
            seed=self.seed,
        )
        if state is not None:
            self.restore(state)
            tensors = dict(state.tensors)
            for key in [key for key in tensors if key.startswith(IN_TASK)]:
                self.interrupted[key.removeprefix(IN_TASK)] = tensors.pop(key).clone()
            if self.tasks:
                centres, uses = tensors.pop(CENTRES, None), tensors.pop(COUNTS, None)
                if centres is None or uses is None or not len(centres) == len(uses) == len(self.tasks):
                    raise CheckpointError("the checkpoint's state lacks a task's counts or centre; start a new run.")
                self.centres, self.uses = list(centres.clone()), list(uses.clone())
            load_parameters(self.parameters(), tensors)
        self.experts.set_trainable(False)

    def prepare(self, instructions: Sequence[str]) -> None:
        if self.config.beta < 1.0:
            self.encoder.encode(evenly_spaced(instructions, PREPARED_TEXTS))

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if not task.instructions:
            raise ConfigError(f"task {task.name!r} has no instructions to make a centre of; give it training rows.")
        self.experts.set_trainable(True)
        self.before = {}
        if self.tasks:
            self.before = {
                name: self.interrupted.get(name, parameter).detach().to(parameter.device, copy=True)
                for name, parameter in self.parameters().items()
                if not name.endswith(".router")
            }
        shape = len(self.experts.layers), self.config.num_experts
        empty = torch.zeros(shape, dtype=torch.float64, device=model.device)
        self.counts = self.interrupted.get("counts", empty).to(model.device)
        self.pending = torch.zeros_like(empty)
        self.interrupted, self.training = {}, True

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        rows, selection = None, Selection()
        if not self.training and self.tasks and self.config.beta < 1.0:
            nearest = self._nearest(batch.instructions)
            gates = torch.stack([task_gates(uses, self.config.top_experts) for uses in self._pooled()])  # [T, L, N]
            rows = gates[nearest].transpose(0, 1).to(model.device, torch.float32)
            selection = Selection(slots=nearest.unsqueeze(1))
        with self.experts.task_gates.using(rows), self.experts.record.recording(batch.attention_mask):
            yield selection

    @property
    def num_slots(self) -> int:
        return len(self.tasks)

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        fresh = not self.tasks and not any(bool(layer.up.any()) for layer in self.experts.layers.values())
        return "" if fresh else None

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        gates = self.experts.record.take()
        if gates is None or not self.training:  # a forward pass outside training
            return Loss(total=outputs.loss)
        tokens = gates.detach()[:, batch.attention_mask.bool()]  # [L, tokens, N] without padding
        self.pending = self.pending + count_leaders(tokens)
        entropy = torch.special.entr(tokens).sum(dim=-1).mean()
        return Loss(total=outputs.loss, parts={"router_entropy": entropy})

    def step(self, engine: Engine) -> bool:
        if not engine.step():
            return False
        if engine.skipped:
            self.pending = torch.zeros_like(self.pending)
            return True
        self.counts = self.counts + engine.mean_over_workers({"counts": self.pending})["counts"]
        self.pending = torch.zeros_like(self.pending)
        return True

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.uses.append(self.counts.cpu())
        embedded = self.encoder.encode(evenly_spaced(task.instructions, INDEXED_TEXTS))
        self.centres.append(F.normalize(embedded, dim=1).mean(dim=0))
        if self.before:
            old, new = self._pooled()[-2:]
            config = self.config
            shares = former_shares(old, new, top=config.top_experts, momentum=config.momentum, specific=config.specific)
            self.experts.average(self.before, shares)
        self.experts.set_trainable(False)
        self.before, self.training = {}, False

    def state_dict(self, model: Backbone) -> MethodState:
        tensors: dict[str, Tensor] = dict(self.parameters())
        if self.tasks:
            tensors |= {CENTRES: torch.stack(self.centres), COUNTS: torch.stack(self.uses)}
        in_task = {**self.before, **self.task_state()}
        tensors |= {f"{IN_TASK}{name}": tensor for name, tensor in in_task.items()}
        return MethodState(tensors=copy_tensors(tensors), structure=self.structure())

    def task_state(self) -> dict[str, Tensor]:
        return copy_tensors({"counts": self.counts}) if self.training else {}

    def load_task_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.counts = tensors["counts"].to(self.counts.device, copy=True)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.experts.parameters()

    # What the hooks are made of.

    def _pooled(self) -> list[Tensor]:
        """Uses [L, N] of every learned task, the same in all layers where layers count together."""
        if self.config.statistics == "layer":
            return self.uses
        return [uses.sum(dim=0, keepdim=True).expand_as(uses) for uses in self.uses]

    def _nearest(self, instructions: Sequence[str]) -> Tensor:
        """The learned task with the nearest centre [B] int64."""
        centres = F.normalize(torch.stack(self.centres), dim=1)
        return (F.normalize(self.encoder.encode(instructions), dim=1) @ centres.T).argmax(dim=1)


def count_leaders(gates: Tensor) -> Tensor:
    """gates [L, tokens, N] -> how often each expert has one of a token's two largest gates [L, N] float64.

    A token whose two largest are equal is not counted: the order would be the sort's.
    """
    largest = gates.topk(2, dim=-1)
    clear = (largest.values[..., 0] != largest.values[..., 1]).unsqueeze(-1)
    leads = torch.zeros_like(gates, dtype=torch.float64)
    return leads.scatter_(-1, largest.indices, clear.expand_as(largest.indices).double()).sum(dim=1)


def used(uses: Tensor, top: int) -> Tensor:
    """uses [L, N] -> the `top` most used experts of each layer [L, N] bool; of equal ones the first, never unused."""
    ranks = uses.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < top) & (uses > 0)


def task_gates(uses: Tensor, top: int) -> Tensor:
    """uses [L, N] -> the most used experts' shares [L, N]; even where nothing was counted."""
    kept = uses * used(uses, top)
    total = kept.sum(dim=1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=1e-12), torch.full_like(kept, 1.0 / kept.shape[1]))


def former_shares(old: Tensor, new: Tensor, *, top: int, momentum: float, specific: Specific) -> Tensor:
    """Uses [L, N] of the former and the new task -> each expert's share of its former values [L, N]."""
    before, now = used(old, top), used(new, top)
    alone = before & ~now if specific == "old" else now & ~before
    return torch.where(alone, 1.0 - momentum, momentum)
