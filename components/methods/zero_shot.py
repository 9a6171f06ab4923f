"""Zero-shot control: the frozen backbone as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from components.methods.base import Export, Method, MethodConfig, MethodState

if TYPE_CHECKING:
    from components.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(MethodConfig):
    """The frozen backbone; nothing is trained."""

    name: ClassVar[str] = "zero_shot"
    export: ClassVar[Export] = "plain"
    is_trainable: ClassVar[bool] = False

    def build(self, *, seed: int) -> ZeroShot:
        return ZeroShot(self, seed=seed)


class ZeroShot(Method[ZeroShotConfig]):
    """The backbone without adapters: what every other method has to beat.

    Paper: none.
    Idea: learn nothing.
    Objective: none.
    Overrides: attach.
    Carried between tasks: nothing.
    Differs: a control, not a published method.
    """

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        model.requires_grad_(False)
        if state is not None:
            self.restore(state)
