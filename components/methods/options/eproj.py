"""Options of method eproj. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from components.core.errors import ConfigError
from components.core.options import CountOrZero, Json, NonNegative
from components.methods.options.base import Export, ExportFormat, MethodConfig

if TYPE_CHECKING:
    from components.methods.eproj import EProj
    from components.models.families.base import Family


@dataclass(frozen=True, kw_only=True)
class EProjConfig(MethodConfig):
    """A projector for every task unlike the earlier ones, found by picture and instruction; like tasks share one."""

    name: ClassVar[str] = "eproj"
    export: ClassVar[Export] = "hard"
    is_routed: ClassVar[bool] = True
    is_stochastic: ClassVar[bool] = False  # every projector starts as the pretrained one
    learns_from_text: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 1e-3  # LLaVA's for a projector that trains alone

    threshold: NonNegative = 0.8
    """Least similarity for sharing a projector; above 1 gives each task its own, as released."""
    penalty_weight: NonNegative = 100.0
    """Lambda of the regularisation; the released example's."""
    importance_samples: CountOrZero = 128  # per worker and task, the first ones of its training order; 0 takes all
    keys: Literal["both", "image", "text"] = "both"
    """Which keys find the task at test."""
    sentence_encoder: str = "minilm"
    """What embeds instructions."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(sentence_encoder="hash")

    def slot_name(self, slot: int, tasks: Sequence[str]) -> str:
        return f"projector {slot}"

    @property
    def result_depends_on(self) -> tuple[str, ...]:
        return ("cluster.num_workers",) if self.importance_samples else ()

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        return ("merged", "bundle")  # a projector is no LoRA

    def export_groups(self, structure: Mapping[str, Json]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        homes = cast("list[int]", structure["homes"])  # of begun tasks
        for task, home in zip(cast("list[str]", structure["tasks"]), homes, strict=False):
            found.setdefault(f"projector-{home}", []).append(task)
        return found

    def check_family(self, family: type[Family], *, backbone: str) -> None:
        super().check_family(family, backbone=backbone)
        if family.projector is None:
            raise ConfigError(
                f"eproj trains the projector, and in backbone {backbone!r} none stands apart from what encodes "
                "pictures; choose another method or a model of the LLaVA-1.5 kind."
            )

    def build(self, *, seed: int) -> EProj:
        from components.methods.eproj import EProj

        return EProj(self, seed=seed)
