"""The shared base of methods that add parameters with every task: rebuilding, resuming in mid-task, freezing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from components.core.errors import CheckpointError
from components.methods.base import ConfigT, Engine, Json, Method, MethodState, TaskInfo, copy_tensors, load_parameters

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


class GrowingMethod(Method[ConfigT]):
    """Base of methods that add parameters with every task and freeze them when the task ends.

    A subclass implements `grow` and `set_trainable`; its `attach` puts its modules into the model and then calls the
    one here. `memory` holds other tensors that methods keep (prototypes, Gram matrices), on the CPU; the state has
    them under names that start with `MEMORY`.
    """

    MEMORY: ClassVar[str] = "memory."

    def __init__(self, config: ConfigT, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.begun = 0  # tasks that have their parameters, learned or not
        self.current: TaskInfo | None = None  # between begin_task and end_task
        self.memory: dict[str, Tensor] = {}

    def grow(self, model: Backbone, index: int) -> None:
        """Add the parameters of task `index`, drawn from the seed and the index only: `attach` calls it again for every
        task of a state, before it loads the values.
        """
        raise NotImplementedError

    def set_trainable(self, index: int) -> None:
        """Unfreeze the parameters that train in task `index`; everything is frozen when this is called."""
        raise NotImplementedError

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        """Call it at the end of a subclass's `attach`: it regrows what `state` has, loads its values, freezes all."""
        if state is not None:
            self.restore(state)
            begun = state.structure.get("begun")
            if isinstance(begun, list):  # older states of methods with a branch per task have names here
                begun = len(begun)
            if not isinstance(begun, int) or begun not in (len(self.tasks), len(self.tasks) + 1):
                raise CheckpointError("the checkpoint's state does not say how many tasks were begun; start a new run.")
            for index in range(begun):
                self.grow(model, index)
            self.begun = begun
            tensors = dict(state.tensors)
            for name in [name for name in tensors if name.startswith(self.MEMORY)]:
                self.memory[name.removeprefix(self.MEMORY)] = tensors.pop(name).clone()
            load_parameters(self.parameters(), tensors)
        model.requires_grad_(False)

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if self.begun == task.index:  # a resumed task has its parameters from `attach` already
            self.grow(model, task.index)
            self.begun += 1
        self.freeze()
        self.set_trainable(task.index)
        self.current = task

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.freeze()
        self.current = None

    def state_dict(self, model: Backbone) -> MethodState:
        memory = {f"{self.MEMORY}{name}": tensor for name, tensor in self.memory.items()}
        return MethodState(tensors=copy_tensors({**self.parameters(), **memory}), structure=self.structure())

    def structure(self) -> dict[str, Json]:
        return {**super().structure(), "begun": self.begun}
