"""The contract of a continual method; sequential_lora.py is its plainest instance.

A method is policy in plain PyTorch: it never sees Ray, MLflow, ranks or paths. The worker loop calls its hooks in this
order: `attach` (in every process, before any engine exists); per task `begin_task`, then `calibrate` (a pass over the
first batches, still before the engine); per batch `select` around forward and backward, with `loss` inside it, and
`step` instead of the optimizer step; `end_task` after the last step. Generation runs inside `select` too. `state_dict`
returns everything that the next task, a resumed run and evaluation need.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from components.core.errors import CheckpointError, ConfigError
from components.core.options import Json
from components.methods.common.tensors import copy_tensors as copy_tensors  # part of the contract, as those below:
from components.methods.common.tensors import load_parameters as load_parameters  # methods elsewhere find them here
from components.methods.options.base import DataScope as DataScope
from components.methods.options.base import Export as Export
from components.methods.options.base import ExportFormat as ExportFormat
from components.methods.options.base import MethodConfig, refuse_renamed

if TYPE_CHECKING:  # listing methods must not import transformers
    from components.adapters.serving import Digests
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

MeanOverWorkers = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # a collective, as `Engine.mean_over_workers`

CARD = ("Paper", "Idea", "Objective", "Overrides", "Carried between tasks", "Differs")  # of every card, in order

# Hooks, with `GrowingMethod.grow`, by which a subclass may answer otherwise than its base's `served_by` knows.
ANSWERING = frozenset(
    {"attach", "begin_task", "end_task", "grow", "parameters", "select", "separate_rows", "test_file"}
)
# Names of earlier versions. Python would silently ignore a class attribute of an old name, so it is refused.
RENAMED_HOOKS = {"trains": "is_trainable", "routes": "is_routed", "survey": "calibrate"}


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a method may know about a task: its training instructions, never its data files."""

    index: int  # 0-based position in the stream = number of tasks learned before
    name: str
    instructions: Sequence[str]  # first human turns of the training rows, without picture placeholder


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """A method's whole memory as plain tensors plus a JSON structure; safe to write as safetensors + JSON."""

    tensors: dict[str, Tensor]
    structure: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """A method's state after a task was taken out of it."""

    state: MethodState
    traces: str = ""  # a sentence on what other tasks learned from the task and keep; empty: nothing


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What served each sample of a batch; None for methods that do not route."""

    slots: Tensor | None = None  # [B, M] int64, ids of the chosen slots, experts or groups
    routed_to: list[str] | None = None  # [B] name of the task whose parameters served the sample most
    matched: list[bool] | None = None  # [B] False: nothing matched the sample and a fallback served it


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

    @property
    def at_boundary(self) -> bool:
        """Between backward and step: True if that step will update the parameters, so `gradients` are complete."""
        ...

    def step(self) -> bool:
        """One engine step; True if it updated the parameters (at the end of an accumulation), or skipped that."""
        ...

    @property
    def skipped(self) -> bool:
        """After a step at the boundary: its gradient was not finite, and nothing was updated; the same on all workers.

        A method that keeps anything by update must then keep nothing. Asking may wait for the device.
        """
        ...

    def parameters(self) -> dict[str, Tensor]:
        """Full values of the trainable parameters by name, read-only until the next step; every rank must call it."""
        ...

    def mean_over_workers(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]: ...


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(Generic[ConfigT]):
    """The hooks with their defaults; a method overrides what it needs.

    `Method[MyConfig]` gives `self.config` its type; the type argument may be left out. `tasks` lists the names of the
    tasks learned so far. Code outside a method reads `config`, `tasks`, `is_trainable`, `is_routed`, `owner` and
    `num_slots`, and calls the hooks.
    """

    rows_leave: ClassVar[bool] = False
    """Whether rows of a batch may leave while its answers are generated, each when its own has ended: what the adapters
    hold of each row they then read through `adapters.present.present`, or hold nothing of a row.
    """

    rows_join: ClassVar[bool] = False
    """Whether rows may join a batch whose answers are being generated. `select` is then entered anew for all of them,
    and must serve each as before: by the row alone, without what a pass over its prompt found, and at little cost.
    """

    owned_by_none: ClassVar[str] = "what its tasks learn is shared by them, and none of it belongs to one"
    """Why the default `forget_task` refuses."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_renamed(cls, RENAMED_HOOKS)

    @classmethod
    def card(cls) -> dict[str, str]:
        """The sections of the class's docstring by name: those of `CARD`, and others such as Cost or ZeRO.

        The first paragraph is the title and belongs to no section. After it, a section starts with `Name: ` at the
        margin and goes on in lines that are indented by four.
        """
        _, _, body = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        sections: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in body.splitlines():
            heading = re.match(r"([A-Z][\w -]*): ?", line)
            if heading:
                lines = sections[heading[1]] = [line[heading.end() :]]
            else:
                lines.append(line.removeprefix("    "))
        return {name: "\n".join(lines).strip("\n") for name, lines in sections.items()}

    def __init__(self, config: ConfigT, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.tasks: list[str] = []

    @property
    def is_trainable(self) -> bool:
        """False: no task is trained, only evaluated."""
        return self.config.is_trainable

    @property
    def is_routed(self) -> bool:
        """True: `select` names the task that served each sample, and `batch.oracle_task` restricts it."""
        return self.config.is_routed

    def owner(self, task: str) -> str:
        """The name in `routed_to` for a correctly routed sample of `task`; another task's if they share parameters."""
        return task

    @property
    def num_slots(self) -> int | None:
        """Number of slots, experts or groups so far that `Selection.slots` can name; None if it names none."""
        return None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that the method added, frozen or not, by its name in the model (ZeRO-3 gathers these)."""
        return {}

    def freeze(self) -> None:
        """Freeze every parameter that the method added."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)

    def learning_rates(self) -> dict[str, float]:
        """Peak learning rates, by name, of those parameters of the current task that do not use the run's rate. The
        run's schedule scales both.
        """
        return {}

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        """Freeze `model` and insert adapters, empty or rebuilt from `state` (`CheckpointError` if it does not fit).

        Called once per model, in every process, before any engine. Nothing is trainable afterwards.
        """
        raise NotImplementedError

    def prepare(self, instructions: Sequence[str]) -> None:
        """Called once before the first task with all training instructions of the stream: a chance to fill caches.

        It must not change any result: a method may not learn from it about tasks to come.
        """

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        """Grow, freeze, choose what to train: exactly the parameters with `requires_grad`. Deterministic."""
        self.check_next(task)

    def calibrate(
        self, model: Backbone, task: TaskInfo, batches: Iterable[Batch], mean_over_workers: MeanOverWorkers
    ) -> None:
        """Look at the task's first batches before training; `config.calibration_share` says how many this worker gets.

        Called right after `begin_task`, on every worker, on the plain model before any engine exists; called again when
        a task is resumed, before its values are restored. It must be deterministic, and independent of the number of
        workers except for rounding. What must stay exactly the same when a task is resumed on another number of workers
        belongs in `task_state` too.
        """

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        """Choose the adapters that serve each sample of `batch` in forward, backward and generate; undone on exit."""
        yield Selection()

    @contextmanager
    def test_file(self, instructions: Sequence[str]) -> Iterator[None]:
        """A scope around answering one task or suite; `instructions` are the first human turns of all its test rows.

        For methods whose released code decides once per test file. Every worker gets the same texts. The method does
        not learn which task the rows belong to. Never entered in training.
        """
        yield

    @contextmanager
    def separate_rows(self) -> Iterator[None]:
        """A scope around answering rows that have nothing to do with each other, such as requests to a server: each
        counts as a test file of its own, whatever else is in its batch.
        """
        yield

    def served(self, selection: Selection) -> Selection:
        """Called after generation, or once its first pass is over, still inside `select`: adds what only the
        forward pass of the prompts can know.
        """
        return selection

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        """A digest of all that the method adds to the frozen model to answer `batch`, bit for bit, or "" where it adds
        nothing. Called inside `select`, outside training. The same rows keep their replies where they have the digest
        that they had before, so a digest may change without need, but never stay when an answer could change.

        None, the default: all that `state_dict` returns. It is also taken for a subclass that overrides one of the
        hooks in `ANSWERING` and says nothing here, and where `served` adds what no digest holds: see `serving`.
        """
        return None

    def serving(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        """`served_by`, where it was written for the way in which this very class answers; None elsewhere."""
        if type(self).served is not Method.served:
            return None
        for kind in type(self).__mro__:
            if "served_by" in vars(kind):
                return self.served_by(model, batch, digests)
            if ANSWERING & vars(kind).keys():
                return None
        raise AssertionError("Method itself has served_by")

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        """The scalar to minimise; called inside the `select` scope."""
        return Loss(total=outputs.loss)

    def step(self, engine: Engine) -> bool:
        """One engine step, called exactly once; True when an optimizer update happened."""
        return engine.step()

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        """Consolidate after the last step. `batches` are the task's training batches, for methods that need a pass.

        A method that trains nothing gets no engine (None) and no batches.
        """
        self.tasks.append(task.name)

    def state_dict(self, model: Backbone) -> MethodState:
        """Everything that the next task, a resumed run and evaluation need, as CPU copies. Also called in the middle
        of a task: attaching that state and beginning the same task again continues it.
        """
        return MethodState(tensors=copy_tensors(self.parameters()), structure=self.structure())

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        """`state`, taken between tasks, without the learned `task`: what it owns is gone, later tasks move up by one.

        No tensor of another task changes. Raises `ConfigError` where tasks share what they learn.
        """
        raise ConfigError(f"method {self.config.name} cannot unlearn task {task!r}: {self.owned_by_none}.")

    def decisions(self) -> dict[str, dict[str, Json]]:
        """What the method decided about each learned task, as plain JSON by task name, for files and curves; {} if it
        decides nothing. It must follow from `state_dict`, so that a resumed run reports the same. Called between tasks.
        """
        return {}

    def routing(self) -> dict[str, Json]:
        """Of a hard method: how a sample's set of weights is chosen at test, as plain JSON for servers: `rule`, a
        sentence, and the values that the rule reads.
        """
        return {}

    def task_state(self) -> dict[str, Tensor]:
        """What accumulates during a task besides trainable parameters; saved in mid-task checkpoints.

        On resume the order is: `attach` with the state of the task's start, `begin_task`, `calibrate`, the trained
        parameters are restored, `load_task_state`.
        """
        return {}

    def load_task_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `task_state` returned."""

    def structure(self) -> dict[str, Json]:
        """The JSON part of the state: the method's name, its options and the learned tasks."""
        return {"method": self.config.name, "options": self.config.options(), "tasks": list(self.tasks)}

    def check_next(self, task: TaskInfo) -> None:
        """Raise `ConfigError` when `task` cannot be the next one of this method's stream."""
        if task.name in self.tasks:
            raise ConfigError(f"task {task.name!r} was learned already; a stream names each task once.")
        assert task.index == len(self.tasks), f"task {task.index} after {len(self.tasks)} learned tasks"

    def restore(self, state: MethodState) -> None:
        """Take the learned tasks from `state`; raises `CheckpointError` if its method or options differ."""
        wanted, found = self.structure(), state.structure
        if found.get("method") != wanted["method"]:
            raise CheckpointError(
                f"the checkpoint is of method {found.get('method')!r}, this run uses {self.config.name!r}; "
                "use the checkpoint's method or start a new run."
            )
        options = found.get("options")
        if not isinstance(options, dict):
            raise CheckpointError("the checkpoint's method state has no options; it is damaged, start a new run.")
        kind = type(self.config)
        known = {**kind().options(), **kind.older(options)}  # options newer than the checkpoint have their default
        for name, value in self.config.options().items():
            if known[name] != value:
                raise CheckpointError(
                    f"the checkpoint has {self.config.name}.{name} = {known[name]!r}, this run asks for "
                    f"{value!r}; use the checkpoint's value or start a new run."
                )
        tasks = found.get("tasks")
        if not isinstance(tasks, list):
            raise CheckpointError("the checkpoint's method state has no list of tasks; it is damaged, start a new run.")
        self.tasks = [str(task) for task in tasks]


TARGETS = {  # named placements -> patterns for Backbone.target_modules
    "o_proj": r"self_attn\.o_proj",
    "all_linear": r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
}


def target_pattern(targets: str) -> str:
    """A named placement, or the pattern itself."""
    return TARGETS.get(targets, targets)
