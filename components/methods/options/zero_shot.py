"""Options of method zero_shot. Light on purpose (no torch): see base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.methods.options.base import Export, MethodConfig

if TYPE_CHECKING:
    from components.methods.zero_shot import ZeroShot


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(MethodConfig):
    """The frozen backbone; nothing is trained."""

    name: ClassVar[str] = "zero_shot"
    export: ClassVar[Export] = "plain"
    is_trainable: ClassVar[bool] = False
    is_task_free: ClassVar[bool] = True  # it learns nothing

    def build(self, *, seed: int) -> ZeroShot:
        from components.methods.zero_shot import ZeroShot

        return ZeroShot(self, seed=seed)
