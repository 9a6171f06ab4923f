"""RegLoRA: a new LoRA branch per task, kept away from the weights that earlier branches changed most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.penalties import MarkedPenalty, PenaltySum
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import Engine, Loss, MethodState, Selection, TaskInfo
from components.methods.common.branches import TaskBranches
from components.methods.options.reg_lora import RegLoraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

PENALTY = "reg_lora_penalty"  # the penalty's module in the model, while a task is trained
MARKS = "marks."  # prefix in `memory`, before a layer's name


class RegLora(TaskBranches[RegLoraConfig]):
    """RegLoRA, the model half of SEFE: later updates avoid the key elements of earlier ones.

    Paper: Chen et al. 2025, "SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual Instruction
        Tuning" (ICML 2025, arXiv 2505.02486); code jinpeng0528/SEFE.
    Idea: the weights that a task's update changed most hold what it learned; if later updates are small there, that
        knowledge stays.
    Objective: with D_t = B_t A_t, A_t = down_t [R, d_in], B_t = up_t [d_out, R] of task t's branch, all summed,
            W = W0 + (alpha / R) sum_{i <= t} D_i
            language-model loss + lambda * mean over layers, over marks (r, c) of |D_t[r, c]|
        After task t the `marked_share` of D_t's entries with the largest magnitudes is marked, layer by layer.
        "sum": marks of all tasks are listed one after the other, so the mean counts an entry once per task that marked
        it (the released code); "union": once. Both agree after one task.
    Overrides: attach, begin_task, select (all branches serve; the penalty is computed there), served_by, loss, end_task
        (marks).
    Carried between tasks: all branches, frozen bit by bit; per layer and task the marked places, 4 bytes
        each (o_proj of a 7B model: 1.3 MB per layer and task, ten times a branch of rank 8).
    Differs:
        - SEFE's other half, answer style diversification (ASD), rewrites the training data so that every task asks for
          answers of many styles. That is data preparation, not a method: give the stream rewritten rows.
        - The released code merges a learned branch into the weights. Here it stays beside them, frozen: the same
          sum, and the backbone's bits never change.
        - The formula is the code's: absolute values, a mean over marks and over adapted layers, products without
          alpha / R. The paper's text was not available; where it may differ, the code is followed.
        - The code marks entries of bfloat16 products and trains at rank 128; here all is float32 at rank 32. Both ranks
          are those of the plain baseline.
        - Lambda is the code's 2500, which it has at a learning rate of 2e-4. Adam moves every entry by about the rate,
          so after a few steps the penalty grows with lambda * rate, and at this project's ten times higher rate 250 is
          as strong (reasoned, not tuned); on the pocket model 2500 swamps a fresh branch. The part `marked` is logged
          without its weight, to help choose lambda.
        - Placement is this project's (o_proj); the code adapts all linear layers of the language model.
        - With several tasks more and more is marked, at most `marked_share` per task; nothing is ever freed.
    ZeRO: all stages. The penalty is a module with the branch's factors, called inside the engine's forward, where stage
        3 gathers them; marks are read on the plain model after the engine. The places are whole on every worker.
    """

    rows_leave = rows_join = True

    def __init__(self, config: RegLoraConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.penalty: PenaltySum | None = None  # while a task after the first is trained
        self.marked: Tensor | None = None  # mean magnitude of marked entries, inside `select`

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        super().attach(model, state)
        expected = {f"{MARKS}{layer}" for layer in self.bank.layers} if self.tasks else set()
        if expected != self.memory.keys():
            raise CheckpointError(
                f"the checkpoint's state marks weights of {len(self.memory)} layers, this backbone and method need "
                f"{len(expected)}; use the backbone it was trained on."
            )

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if task.index:
            self.penalty = PenaltySum(
                MarkedPenalty(*self.factors(layer, task.index), self.memory[f"{MARKS}{layer}"])
                for layer in self.bank.layers
            )
            model.add_module(PENALTY, self.penalty)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        self.marked = None if self.penalty is None else self.penalty() / len(self.bank.layers)
        try:
            with self.bank.mixing.using(*self.first_branches(self.begun)):
                yield Selection()
        finally:
            self.marked = None

    served_by = TaskBranches.served_by  # the branches in force are all that serves

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        if self.marked is None:
            return Loss(total=outputs.loss)
        total = outputs.loss + self.config.penalty_weight * self.marked
        return Loss(total=total, parts={"task_loss": outputs.loss, "marked": self.marked})

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert engine is not None, "RegLoRA trains every task"
        if self.penalty is not None:
            delattr(engine.model, PENALTY)
            self.penalty = None
        for layer in self.bank.layers:
            marks = self._largest(*self.factors(layer, task.index))
            old = self.memory.get(f"{MARKS}{layer}", marks.new_zeros(0))
            marks = torch.cat([old, marks])
            self.memory[f"{MARKS}{layer}"] = marks.unique() if self.config.repeated == "union" else marks

    # What the hooks are made of.

    @torch.no_grad()
    def _largest(self, down: Tensor, up: Tensor) -> Tensor:
        """Places row * d_in + column of the largest |up down|, int32 on the CPU; at least one."""
        sizes = (up @ down).abs().flatten()
        if sizes.numel() >= 2**31:
            raise ConfigError(f"reg_lora marks places of a layer in 32 bits; one of {sizes.numel()} weights has more.")
        count = max(1, int(self.config.marked_share * sizes.numel()))
        return sizes.topk(count).indices.sort().values.int().cpu()
