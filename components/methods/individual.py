"""Individual learning: one adapter per task, and the task is told at test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from components.adapters.inject import inject_bank
from components.adapters.low_rank import Bank
from components.errors import CheckpointError
from components.methods.base import (
    Engine,
    Export,
    Json,
    Method,
    MethodState,
    Selection,
    SequentialLoraConfig,
    TaskInfo,
    load_parameters,
    target_pattern,
)

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class IndividualConfig(SequentialLoraConfig):
    """A fresh LoRA adapter for every task; evaluation tells which task a sample belongs to."""

    name: ClassVar[str] = "individual"
    export: ClassVar[Export] = "hard"
    needs_task_id: ClassVar[bool] = True

    def build(self, *, seed: int) -> Individual:
        return Individual(self, seed=seed)


class Individual(Method):
    """Individual learning: what each task reaches alone.

    Paper: none; reported by MCITlib and others as "Individual".
    Idea: tasks share nothing, and an oracle picks the adapter at test. No forgetting, no transfer.
    Objective: the language-model loss of the task at hand, W = W0 + (alpha / R) up_t down_t.
    Overrides: attach, begin_task, select, end_task, parameters, structure.
    Carried between tasks: every task's adapter, frozen. Grows by one adapter a task.
    Differs: a bound, not a continual method: it needs the task's identity (`needs_task_id`).
    """

    def __init__(self, config: IndividualConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.options = config
        self.owners: dict[str, str] = {}  # task name -> its group in the bank
        self.current: str | None = None  # the task between begin_task and end_task
        self.bank: Bank

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        self.bank = inject_bank(model, model.target_modules(target_pattern(self.options.targets)))
        if state is None:
            return
        self.restore(state)
        begun = state.structure.get("begun")
        if not isinstance(begun, list):
            raise CheckpointError("the checkpoint's state does not say which tasks were begun; start a new run.")
        for name in begun:
            self._grow(str(name))
        load_parameters(self.parameters(), state.tensors)
        self._freeze()

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if task.name not in self.owners:  # otherwise an interrupted task goes on with what `attach` restored
            self._grow(task.name)
        self._freeze()
        self.bank.set_trainable(self.owners[task.name], True)
        self.current = task.name

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        task = self.current or batch.oracle_task
        assert task is not None or not self.owners, "individual learning has to be told the task of a batch"
        known = {} if task not in self.owners else {self.owners[task]: self.options.alpha / self.options.rank}
        with self.bank.mixing.using(known):  # a task that was not learned yet is answered by the backbone
            yield Selection()

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.current = None

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.bank.parameters()

    def structure(self) -> dict[str, Json]:
        return {**super().structure(), "begun": list(self.owners)}

    def _freeze(self) -> None:
        """Nothing of the bank trains."""
        for group in self.owners.values():
            self.bank.set_trainable(group, False)

    def _grow(self, task: str) -> None:
        """Append the adapter of the next task; its draw depends on the seed and the position only."""
        options, group = self.options, str(len(self.owners))
        self.bank.add_group(
            group, num_pairs=1, rank=options.rank, init=options.init, seed=self.seed, dropout=options.dropout
        )
        self.owners[task] = group
