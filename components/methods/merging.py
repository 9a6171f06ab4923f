"""Model merging: every task learns alone, and one merged increment serves everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.dense_increment import DenseIncrement, drop_and_rescale, elect_and_average, kth_magnitude, trim
from components.adapters.low_rank import LowRankPairs, seeded_generator
from components.adapters.mixing import Scales
from components.methods.base import Engine, Forgotten, MethodState, Selection, TaskInfo
from components.methods.common.branches import TaskBranches
from components.methods.common.unlearning import branch_forgotten
from components.methods.options.merging import MergingConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone

MERGED = "merged"  # the bank's group that holds a dense merge
COEFFICIENTS = {"task_arithmetic": 0.4, "ties": 1.0, "dare": 0.4}  # where `coefficient` is None


class Merging(TaskBranches[MergingConfig]):
    """Post-hoc merging of one adapter per task.

    Paper: task arithmetic is Ilharco et al. 2022 (arXiv 2212.04089), TIES is Yadav et al. 2023 (arXiv 2306.01708),
        DARE is Yu et al. 2023 (arXiv 2311.03099).
    Idea: tasks fine-tuned apart from the same model differ from it by increments, which can be added up. TIES first
        removes what disturbs other tasks (small entries, and those of the losing sign), DARE thins them out at random.
    Objective: the language-model loss of the task at hand, on its own branch alone. After task t, with
        D_i = (alpha / R) up_i down_i of every layer and task i <= t, W = W0 + M:
            average, task_arithmetic: M = c sum_i D_i;  average has c = 1 / t
            dare: M = c sum_i mask_i * D_i / (1 - p), every entry of mask_i being 0 with probability p
            ties: E_i = D_i where |D_i| is among the largest `keep` of task i's entries, 0 elsewhere;
                s = sign(sum_i E_i);  M = c * mean of those E_i that have sign s, entry by entry, 0 if none has
    Cost: average and task arithmetic are served by the branches themselves, exactly and without a dense matrix. The
        others keep one dense float32 matrix per adapted layer on the device (LLaVA-7B's o_proj: 2 GiB) beside the
        branches. It is neither a parameter nor in a checkpoint: `attach` and `end_task` compute it on the CPU, where
        the same branches give the same bits, with one thin product per layer and task (three for TIES).
    Overrides: attach, weights, serve, served_by, end_task, forget_task; `TaskBranches` does the rest.
    Carried between tasks: every task's branch, frozen. After each task they are merged anew.
    Differs:
        - What is merged are increments, never the factors: a sum of products is not the product of sums. The papers
          merge whole fine-tuned models, so here W0 is the common start; the branches' random `down` differ by task.
        - TIES trims over all adapted layers of a task at once, as the paper does. `keep` of the entries means those
          at least as large as the (keep * number)-th; equal ones stay together. Where both signs have the same mass
          the paper's formula gives 0, as here; the released code lets the majority of all entries decide.
        - Coefficients: without validation data the TIES paper takes `keep` 0.2 and lambda 1, and 0.4 for task
          arithmetic. With held-out data the papers tune them; a continual stream has none. DARE has the same expected
          sum as task arithmetic, hence its coefficient. Its 0.9 is the rate that the paper claims to be harmless for
          increments within 0.002; LoRA's at this learning rate can be larger, so lower it if it hurts.
        - A task's DARE mask is drawn once: merging a later task does not redraw it.
    ZeRO: all stages. Merging happens between tasks, on the plain model, and every worker does it by itself.
    """

    rows_leave = rows_join = True

    @property
    def coefficient(self) -> float:
        """c after the tasks learned so far."""
        if self.config.rule == "average":
            return 1.0 / len(self.tasks)
        return COEFFICIENTS[self.config.rule] if self.config.coefficient is None else self.config.coefficient

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        super().attach(model, state)
        self._merge()

    def weights(self, model: Backbone, batch: Batch) -> Tensor:
        return torch.full((len(batch), len(self.tasks)), self.coefficient, dtype=torch.float64)

    def serve(self, model: Backbone, batch: Batch) -> tuple[Scales, Selection]:
        if self.config.rule in ("ties", "dare"):
            return {MERGED: 1.0}, Selection()
        return super().serve(model, batch)

    served_by = TaskBranches.served_by  # which says nothing of a dense merge

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self._merge()

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        return Forgotten(state=branch_forgotten(state, task))

    # What the hooks are made of.

    def _merge(self) -> None:
        """Put the dense merge of all learned branches into every layer, for the rules that need one."""
        tasks, config = range(len(self.tasks)), self.config
        if not tasks or config.rule not in ("ties", "dare"):
            return
        thresholds = [self._threshold(task) for task in tasks] if config.rule == "ties" else []
        for name, layer in self.bank.layers.items():
            if config.rule == "ties":
                merged = elect_and_average(trim(self._increment(name, i), thresholds[i]) for i in tasks)
            else:
                merged = torch.zeros(layer.weight.shape)
                for thinned in self._thinned(name):
                    merged += thinned
            layer.groups[MERGED] = DenseIncrement((merged * self.coefficient).to(layer.weight.device))

    def _increment(self, layer: str, task: int) -> Tensor:
        """(alpha / R) up down of one layer and task [d_out, d_in] float32, on the CPU."""
        pairs = self.bank.layers[layer].groups[str(task)]
        assert isinstance(pairs, LowRankPairs)
        return pairs.up.detach().cpu() @ pairs.down.detach().cpu() * self.scale

    def _threshold(self, task: int) -> float:
        """The smallest magnitude of a task's entries that survives trimming."""
        total = sum(layer.in_features * layer.out_features for layer in self.bank.layers.values())
        kept = max(1, round(self.config.keep * total))
        return kth_magnitude(lambda: (self._increment(layer, task) for layer in self.bank.layers), kept)

    def _thinned(self, layer: str) -> Iterator[Tensor]:
        """Every task's increment after dropping and rescaling."""
        for task in range(len(self.tasks)):
            generator = seeded_generator(self.seed, "dare", str(task), layer)
            yield drop_and_rescale(self._increment(layer, task), self.config.drop_rate, generator)
