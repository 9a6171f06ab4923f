"""CF-Router: one LoRA branch per task, and a router that is solved for instead of trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.low_rank import seeded_generator
from components.core.errors import CheckpointError, ConfigError
from components.data.batch import IGNORE
from components.methods.base import Engine, Forgotten, Json, MethodState, TaskInfo
from components.methods.common.branches import TaskBranches
from components.methods.common.features import ReadsInstructions, picture_features
from components.methods.common.unlearning import branch_forgotten, place_of, without_rows
from components.methods.options.cf_router import CfRouterConfig

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    from components.data.batch import Batch
    from components.models.backbone import Backbone

GRAM, CROSS = "gram", "cross"  # G and C in `memory`


class CfRouter(ReadsInstructions[CfRouterConfig], TaskBranches[CfRouterConfig]):
    """CF-Router: hard routing to per-task adapters by regularised least squares.

    Paper: Li et al. 2026, "CF-Router: Closed-Form Solution for Expert Selection in Multimodal Agent Lifelong Learning"
        (listed at ICLR 2026; OpenReview 7tWtYHTIDD). Only its abstract and second-hand notes were available:
        they give the formula, the kind of feature and hard routing, but not lambda or any further detail.
    Idea: a linear regression on frozen features predicts the task of a sample. Its solution needs only two sums over
        the rows. A new task adds to them, and the router is what a fit on all tasks' rows together would give.
    Objective: the language-model loss of the task at hand, on its own branch alone: W = W0 + (alpha / R) up_t down_t.
        The router, with x [D] the features of a row and y [T] the one-hot position of its task:
            G = sum x x^T [D, D],  C = sum x y^T [D, T],  V = (G + lambda I)^-1 C,  task = argmax x^T V
    Features: "instruction": the frozen sentence encoder's embedding; "picture": the mean of the frozen tower's visual
        tokens, zero without a picture; "both": one after the other; "hidden": the frozen language model's last hidden
        states, averaged over the tokens before the first answer. Each part has length 1, and a constant 1 is appended:
        it gives the regression an intercept, which lambda shrinks like all weights.
    Overrides: attach, weights, served_by, end_task (one pass over the rows), routing, forget_task; `TaskBranches` does
        the rest.
    Carried between tasks: every task's branch, frozen; G and C in float64. A task adds its branch and a column of C.
    Differs:
        - The paper reads the language model's last hidden states, averaged: "hidden". The abstract does not say over
          which tokens, nor whether a branch is active; here it is over the tokens that exist at test too, without a
          branch. It costs another forward pass per answer. "both" costs none and sees the question and the picture
          before any adapter, so it is the default. The paper's figure of 64 MB fits G in float32 for hidden states of
          width 4096.
        - `expansion` maps x to relu(P^T x) / sqrt(E) with a random P, as analytic continual learners often do, for
          tasks that no plane separates. Off by default: nothing says that the paper does so, G grows with its square,
          and tasks usually differ in wording or in the kind of picture.
        - lambda = 1 weighs as much as one row, since rows have length 1 per part. The paper's value is not known.
        - A task weighs as its number of training rows: the mean of x x^T over the rows seen is scaled by it. If each
          row is seen once, that is G itself, and it does not change with more epochs or workers.
        - In doubt tasks with many rows win, as in any regression on class frequencies.
    ZeRO: all stages. The router is not trained; features are taken between tasks and at test, on the plain model.
    """

    rows_leave = rows_join = True

    def __init__(self, config: CfRouterConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.router = torch.zeros(0, 0, dtype=torch.float64)  # V [D, T], on the CPU
        self.projection: Tensor | None = None  # P of `expansion`

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        super().attach(model, state)
        if not self.tasks:
            return
        expected = {GRAM: (self._dim(model), self._dim(model)), CROSS: (self._dim(model), len(self.tasks))}
        found = {name: tuple(tensor.shape) for name, tensor in self.memory.items()}
        if found != expected:
            raise CheckpointError(
                f"the checkpoint's router has sums of shapes {found}, this backbone and method need {expected}; use "
                "the backbone and sentence encoder it was trained with."
            )
        self._solve()

    def weights(self, model: Backbone, batch: Batch) -> Tensor:
        scores = self._features(model, batch) @ self.router
        return F.one_hot(scores.argmax(dim=1), len(self.tasks)).float()

    served_by = TaskBranches.served_by  # the branches in force are all that serves

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert engine is not None, "CF-Router trains every task"
        model, dim = engine.model, self._dim(engine.model)
        gram = torch.zeros(dim, dim, dtype=torch.float64)
        total, seen = gram.new_zeros(dim), gram.new_zeros(())
        for batch in batches:
            rows = self._features(model, batch)
            gram += rows.T @ rows
            total += rows.sum(dim=0)
            seen += len(rows)
        sums = {"gram": gram, "total": total, "seen": seen}
        # a collective of the workers' GPUs takes tensors of theirs only
        means = engine.mean_over_workers({name: value.to(model.device) for name, value in sums.items()})
        gram, total, seen = (means[name].cpu() for name in sums)
        if not seen:
            raise ConfigError(f"cf_router got no training batch of task {task.name!r} to fit its router to.")
        num_rows = len(task.instructions)
        gram, column = gram / seen * num_rows, (total / seen * num_rows).unsqueeze(1)
        if self.memory:
            gram, column = self.memory[GRAM] + gram, torch.cat([self.memory[CROSS], column], dim=1)
        self.memory = {GRAM: gram, CROSS: column}
        self._solve()

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place, _ = place_of(state, task)
        left, name = branch_forgotten(state, task), f"{self.MEMORY}{CROSS}"
        column = {name: without_rows(left.tensors[name].T, place).T.contiguous()}
        return Forgotten(
            state=MethodState(tensors={**left.tensors, **column}, structure=left.structure),
            traces="the router's sum over the rows of all tasks still has those of this one",
        )

    def routing(self) -> dict[str, Json]:
        config = self.config
        found: dict[str, Json] = {
            "rule": "A row x goes to the task with the largest entry of x V; the method's page says what x is made of.",
            "features": config.features,
            "tasks": [*self.tasks],
        }
        if config.features in ("both", "instruction"):
            found["sentence_encoder"] = config.sentence_encoder
        if config.expansion:
            found["rule"] = f"{found['rule']} x is expanded at random first, so only littoral can route."
        else:
            found["V"] = self.router.tolist()
        return found

    # What the hooks are made of.

    def _solve(self) -> None:
        """V from G and C; G + lambda I is positive definite."""
        gram = self.memory[GRAM]
        regular = gram + self.config.ridge * torch.eye(len(gram), dtype=gram.dtype)
        self.router = torch.cholesky_solve(self.memory[CROSS], torch.linalg.cholesky(regular))

    def _dim(self, model: Backbone) -> int:
        """D, the constant included."""
        kind = self.config.features
        if self.config.expansion:
            return self.config.expansion + 1
        if kind == "hidden":
            return model.hidden_size + 1
        text = self.encoder.dim if kind in ("both", "instruction") else 0
        return text + (model.picture_width if kind in ("both", "picture") else 0) + 1

    @torch.no_grad()
    def _features(self, model: Backbone, batch: Batch) -> Tensor:
        """What the router reads of each sample [B, D] float64, on the CPU."""
        kind, parts = self.config.features, []
        if kind in ("both", "instruction"):
            parts.append(self.encoder.encode(batch.instructions))
        if kind in ("both", "picture"):
            parts.append(picture_features(model, batch)[0])
        if kind == "hidden":
            parts.append(self._hidden(model, batch))
        rows = torch.cat([F.normalize(part.cpu().double(), dim=1) for part in parts], dim=1)
        if self.config.expansion:
            rows = self._expanded(rows)
        return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)

    def _expanded(self, rows: Tensor) -> Tensor:
        """relu(P^T x) / sqrt(E) of rows [B, plain D]; P is standard normal and the same for the whole stream."""
        num = self.config.expansion
        if self.projection is None:
            generator = seeded_generator(self.seed, "expansion")
            self.projection = torch.randn(rows.shape[1], num, generator=generator, dtype=torch.float64)
        return (rows @ self.projection).relu() / math.sqrt(num)

    def _hidden(self, model: Backbone, batch: Batch) -> Tensor:
        """Mean of the frozen language model's last hidden states before the first answer [B, D]."""
        states: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: BaseModelOutputWithPast) -> None:
            assert output.last_hidden_state is not None
            states.append(output.last_hidden_state)

        was_training = model.training
        model.eval()
        handle = model.language_model.register_forward_hook(keep)
        try:
            with self.bank.mixing.using({}):
                model(batch)
        finally:
            handle.remove()
            model.train(was_training)
        asked = (batch.attention_mask != 0) & ((batch.labels != IGNORE).cumsum(dim=1) == 0)
        mask = asked.unsqueeze(2).float()
        return (states[0].float() * mask).sum(dim=1) / mask.sum(dim=1)
