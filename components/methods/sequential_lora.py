"""Sequential LoRA: one adapter, trained on task after task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from components.adapters.inject import inject_bank
from components.adapters.low_rank import Bank
from components.adapters.projectors import ProjectorBank, inject_projectors
from components.adapters.serving import Digests, served_by_bank, served_by_projectors
from components.methods.base import Engine, Method, MethodState, TaskInfo, load_parameters, target_pattern
from components.methods.options.sequential_lora import SequentialLoraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


LoraConfigT = TypeVar("LoraConfigT", bound=SequentialLoraConfig)


class SequentialLora(Method[LoraConfigT]):
    """Sequential LoRA, the plainest continual learner and the usual lower bound.

    Paper: LoRA is Hu et al. 2021 (arXiv 2106.09685); trained sequentially it is every benchmark's baseline.
    Idea: one low-rank increment per target layer; each task continues training it from where the last one stopped. With
        `train_projector` the two-layer projector trains too, as in CoIN and in LLaVA's own recipe.
    Objective: the language-model loss of the task at hand, W = W0 + (alpha / R) up down.
    Overrides: attach, begin_task, end_task, parameters, served_by.
    Carried between tasks: the adapter, and the projector's copy if it trains.
    Differs: nothing known; equal to peft's LoRA in float32. The optimizer starts anew with every task. The projector's
        own tensors stay as they are: a float32 copy trains in their place. LLaVA and CoIN ask for a tenth of LoRA's
        learning rate (2e-5 and 2e-4; CoIN's release does not pass it on), here it is an eighth, a power of two, so that
        the copy starts with the projector's bits.
    """

    rows_leave = rows_join = True
    GROUP = "lora"

    def __init__(self, config: LoraConfigT, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.bank: Bank
        self.projectors: ProjectorBank | None = None  # if the projector trains

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        config = self.config
        self.bank = inject_bank(model, model.target_modules(target_pattern(config.targets)))
        self.bank.add_group(
            self.GROUP, num_pairs=1, rank=config.rank, init=config.init, seed=self.seed, dropout=config.dropout
        )
        self.bank.mixing.rest_at(self.GROUP, config.alpha / config.rank)
        if config.train_projector:
            self.projectors = inject_projectors(model, model.projector_name)
            self.projectors.add_copy(self.GROUP, unit=config.projector_rate)
            self.projectors.serving = self.GROUP
        if state is not None:
            self.restore(state)
            load_parameters(self.parameters(), state.tensors)
        self._set_trainable(False)

    def parameters(self) -> dict[str, nn.Parameter]:
        projectors = {} if self.projectors is None else self.projectors.parameters_by_name()
        return {**self.bank.parameters(), **projectors}

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        served = served_by_bank(self.bank, digests)
        if served is None or self.projectors is None:
            return served
        return f"{served_by_projectors(self.projectors, digests)} {served}"

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        self._set_trainable(True)

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.freeze()

    def _set_trainable(self, trainable: bool) -> None:
        self.bank.set_trainable(self.GROUP, trainable)
        if self.projectors is not None:
            self.projectors.set_trainable(self.GROUP, trainable)
