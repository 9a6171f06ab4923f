"""O-LoRA: a new LoRA branch per task, kept orthogonal to the earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from components.adapters.penalties import NormPenalty, OverlapPenalty, PenaltySum
from components.methods.base import Engine, Forgotten, Loss, MethodState, Selection, TaskInfo
from components.methods.common.branches import TaskBranches
from components.methods.common.unlearning import branch_forgotten, place_of
from components.methods.options.o_lora import OLoraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

OVERLAP, NORM = "o_lora_overlap", "o_lora_norm"  # the penalties' modules in the model, while a task is trained


class OLora(TaskBranches[OLoraConfig]):
    """O-LoRA: every task learns a LoRA branch of its own, whose input directions avoid those of earlier branches.

    Paper: Wang et al. 2023, "Orthogonal Subspace Learning for Language Model Continual Learning" (arXiv 2310.14152).
    Idea: if a new branch reads other input directions than the old ones, learning it disturbs old tasks little.
    Objective: with A_i = down_i [R, d_in] of task i's branch, B_i = up_i, all branches summed,
            W = W0 + (alpha / R) sum_{i <= t} B_i A_i
            language-model loss + lambda 1 * sum_layers sum_{i < t} L(A_i A_t^T) + lambda 2 * sum_layers (|A_t| + |B_t|)
        "absolute": L = sum of |entries|;  "squared": L = sum of squared entries;  |.| is the Frobenius norm.
    Overrides: begin_task, select (all branches serve; the penalties are computed there), served_by, loss, end_task,
        forget_task; `TaskBranches` does the rest.
    Carried between tasks: all branches; those of earlier tasks are frozen, and no bit of them changes. Every task
        adds R (d_in + d_out) values per adapted layer. Frozen branches are computed as one pair of factors, or, once
        half as large as a float32 layer, in a copy of its weight that they are added to; neither is in a checkpoint.
    Differs:
        - The paper's formula squares the entries; the released code sums their absolute values, which is what its
          lambda 1 belongs to. "absolute" is the default for that reason, and because its pull does not fade as the
          overlap shrinks. Entries start well below 1, so squares are far smaller and need a weight of 1 to 10 here.
        - In the paper A is the factor that raises the dimension; the code, as here, penalises the one reading inputs.
        - lambda 2 is the code's (plain norms, over both factors); the paper's text does not explain it. 0 by default.
        - The penalty is a plain sum, so it grows with layers, tasks and R^2 and shrinks with 1 / sqrt(d_in): values
          in the thousands are normal. The part `overlap` is logged without its weight, to help choose lambda 1.
        - Scale, lambda 1 and learning rate are the scripts'; the rank is the plain baseline's, as it is there. The
          scripts hold the rate constant, with dropout 0.1 on the adapter; here the schedule decays it and dropout is 0.
          With few updates lambda 1 = 0.5 can leave a new task half learned, above all on the pocket model.
        - All branches serve every answer, as in the paper; which one is active in the code is contested.
        - Placement is this project's (o_proj); the paper adapts queries and values.
    ZeRO: all stages. The penalties are modules with the factors they read, called inside the engine's forward, where
        stage 3 gathers them.
    """

    rows_leave = rows_join = True

    def __init__(self, config: OLoraConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.penalties: dict[str, PenaltySum] = {}  # by their name in the model
        self.values: dict[str, Tensor] = {}  # of the penalties, inside `select`

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        factors = [self.factors(layer, task.index) for layer in self.bank.layers]
        if task.index:
            old = [[self.factors(layer, i)[0] for i in range(task.index)] for layer in self.bank.layers]
            pairs = zip(factors, old, strict=True)
            self.penalties[OVERLAP] = PenaltySum(OverlapPenalty(new[0], o, self.config.penalty) for new, o in pairs)
        if self.config.norm_weight:
            self.penalties[NORM] = PenaltySum(NormPenalty(both) for both in factors)
        for name, penalty in self.penalties.items():
            model.add_module(name, penalty)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        self.values = {name: penalty() for name, penalty in self.penalties.items()}
        try:
            with self.bank.mixing.using(*self.first_branches(self.begun)):
                yield Selection()
        finally:
            self.values = {}

    served_by = TaskBranches.served_by  # the branches in force are all that serves

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        if not self.values:
            return Loss(total=outputs.loss)
        weights = {OVERLAP: self.config.orthogonality_weight, NORM: self.config.norm_weight}
        total = task_loss = outputs.loss
        for name, value in self.values.items():
            total = total + weights[name] * value
        parts = {name.removeprefix("o_lora_"): value for name, value in self.values.items()}
        return Loss(total=total, parts={"task_loss": task_loss, **parts})

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert engine is not None, "O-LoRA trains every task"
        for name in self.penalties:
            delattr(engine.model, name)
        self.penalties = {}

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place, learned = place_of(state, task)
        left = "" if place == learned - 1 else "later branches were trained while this one served, and away from it"
        return Forgotten(state=branch_forgotten(state, task), traces=left)
