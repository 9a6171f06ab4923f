"""The contract of a continual method, and its plainest instance: sequential LoRA.

A method is policy and plain PyTorch: it never sees Ray, MLflow, ranks or paths. The worker loop calls its hooks in this
order: `attach` (every process, before any engine), then per task `begin_task`, per batch `select` around forward and
backward with `loss` inside it, `step` instead of the optimizer step, `end_task` after the last step. Generation runs
inside `select` too. `state_dict` returns all that the next task, a resumed run and evaluation need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn

from components.data.batch import Batch
from components.models.backbone import Backbone, Outputs

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a method may know of a task: never its data files, only its training instructions."""

    index: int  # 0-based position in the stream = number of tasks learned before
    name: str
    instructions: Sequence[str]  # first human turns of the training rows, without picture placeholder


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """A method's whole memory as plain tensors plus a JSON structure; safe to write as safetensors + JSON."""

    tensors: dict[str, Tensor]
    structure: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What served each sample of a batch. None where a method does not route."""

    slots: Tensor | None = None  # [B, M] int64, ids of the chosen slots, experts or groups
    routed_to: list[str] | None = None  # [B] name of the task whose parameters mainly served the sample


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The scalar to minimise and its named parts, for logging only."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Engine(Protocol):
    """The narrow view of the training engine that a method gets (see components/training/engine.py)."""

    @property
    def model(self) -> Backbone: ...

    def gradients(self) -> dict[str, Tensor]:
        """Full gradients by parameter name; valid only between backward and step, at an accumulation boundary."""
        ...

    def step(self) -> bool:
        """One engine step; True when an optimizer update really happened (end of an accumulation)."""
        ...

    def mean_over_workers(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]: ...
