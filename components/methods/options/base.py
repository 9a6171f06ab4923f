"""What every method's options share. Light on purpose (no torch): commands that only read JSON import all options.

So a method's class is imported where `build` makes one, and not before; the same holds for what else needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from components.core.errors import ConfigError
from components.core.options import Json, check_options

if TYPE_CHECKING:
    from components.methods.base import Method
    from components.models.families.base import Family

Export = Literal["plain", "hard", "soft"]  # one set of weights; one of several sets per request; its own forward pass
ExportFormat = Literal["peft", "merged", "bundle"]  # what `littoral export --to` writes
DataScope = Literal["each", "first", "union"]  # each task's rows in turn; the first task's only; all at once

# Names of earlier versions. Python would silently ignore a class attribute of an old name, so it is refused.
RENAMED_FLAGS = {
    "draws": "is_stochastic",
    "trains": "is_trainable",
    "routes": "is_routed",
    "learns_from": "data_scope",
    "survey_share": "calibration_share",
}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of every method's options. The class attributes hold for the method as a whole, whatever its options."""

    name: ClassVar[str]
    zero_stages: ClassVar[frozenset[int]] = frozenset({0, 2, 3})  # DeepSpeed ZeRO stages the method works with
    is_trainable: ClassVar[bool] = True  # False: no task is trained, only evaluated
    default_learning_rate: ClassVar[float] = 2e-3  # AdamW's peak rate that suits the scale of the increments
    is_routed: ClassVar[bool] = False  # True: `select` names the task that served each sample; oracle routing works
    needs_task_id: ClassVar[bool] = False  # True: evaluation passes the task (`batch.oracle_task`); for bounds only
    slots_are_tasks: ClassVar[bool] = False  # True: slot i of `Selection.slots` belongs to task i
    data_scope: ClassVar[DataScope] = "each"
    export: ClassVar[Export] = "soft"  # the least that a server must support; the probe of an export proves it
    starts_as_backbone: ClassVar[bool] = True  # False: even untrained, it changes outputs, as prompts do
    is_stochastic: ClassVar[bool] = True  # False: it draws no random numbers; a seed changes only the data's order
    learns_from_text: ClassVar[bool] = True  # False: only samples with a picture reach the trained parameters
    # True: it can learn a stream without boundaries, whose segments hold rows of several tasks. It grows nothing for a
    # task, consolidates nothing after one, compares no tasks and is never told one: `begin_task` and `end_task` may
    # come at any time. Not inherited: False in a subclass that does not repeat it, since that may override these.
    is_task_free: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_renamed(cls, RENAMED_FLAGS)
        cls.is_task_free = vars(cls).get("is_task_free", False)

    def __post_init__(self) -> None:
        check_options(self, self.name)

    @classmethod
    def summary(cls) -> str:
        """One line: what the method does (the first line of the class's docstring)."""
        return (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    @classmethod
    def tiny(cls) -> Self:
        """The options for small backbones, which have few layers and know no language: what a run on one starts from.

        Besides what suits such a model they leave out what is slow or needs a download, so tests take them, too.
        """
        return cls()

    @classmethod
    def older(cls, options: Mapping[str, Json]) -> dict[str, Json]:
        """Options read from a file; those of older files are translated to today's names and defaults."""
        return {**options}

    @property
    def stored_samples(self) -> int:
        """Rows stored of every past task and mixed into later ones (replay)."""
        return 0

    @property
    def calibration_share(self) -> float:
        """`Method.calibrate` gets the samples of this share of a task's updates, the first ones; 0: none."""
        return 0.0

    @property
    def bound_by(self) -> str:
        """Of a task-free method: an option whose value needs to know where tasks end, such as "diversify"; or ""."""
        return ""

    @property
    def result_depends_on(self) -> tuple[str, ...]:
        """Options of execution, such as "cluster.num_workers", that change what is learned by more than rounding.

        A run does not go on with other values of these.
        """
        return ()

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        """What a run with these options can be exported to.

        A method that is not soft has constant weights inside `select` (of a batch with an oracle task, if it is hard),
        and its layers say what they add to the frozen ones (`AdaptedLinear.increments`).
        """
        if not self.is_trainable:
            return ()
        return ("bundle",) if self.export == "soft" else ("peft", "merged", "bundle")

    def export_groups(self, structure: Mapping[str, Json]) -> dict[str, list[str]]:
        """Of a hard method: its sets of weights by name, each with the tasks it serves, from a state's `structure`."""
        return {task: [task] for task in cast("list[str]", structure["tasks"])}

    def check_family(self, family: type[Family], *, backbone: str) -> None:
        """Raise `ConfigError` where the method, with these options, cannot serve a model of this family.

        Called when a run is planned, before any process starts, and with no model. What only a model can tell is
        raised by `attach`, which a plan calls too, on a model without weights.
        """
        if not self.learns_from_text and not family.takes_pictures():
            raise ConfigError(
                f"{self.name} learns from rows with a picture only, and backbone {backbone!r} takes no pictures; "
                "choose another method or a vision-language model."
            )

    def build(self, *, seed: int) -> Method:
        """The method with these options; every random draw in it depends on `seed`."""
        raise NotImplementedError

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        """A short label for number `slot` in `Selection.slots`; `tasks` are in the order learned."""
        return tasks[slot] if self.slots_are_tasks and slot < len(tasks) else f"slot {slot}"

    def options(self) -> dict[str, Json]:
        """The options as plain JSON values."""
        return cast("dict[str, Json]", asdict(self))

    def small_backbone_options(self) -> dict[str, Json]:
        """Those options that have the value for small backbones (`tiny`) where the default is another."""
        published, small = type(self)().options(), type(self).tiny().options()
        return {
            name: value
            for name, value in self.options().items()
            if value == small[name] and small[name] != published[name]
        }


def refuse_renamed(kind: type, renamed: Mapping[str, str]) -> None:
    """Raise `ConfigError` if the class body of `kind` declares an old name."""
    for old, new in renamed.items():
        if old in vars(kind):
            raise ConfigError(f"{kind.__name__} declares {old!r}, which is now called {new!r}; rename it in the class.")
