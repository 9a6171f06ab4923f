"""Zero-shot control: the frozen backbone as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.methods.base import Method, MethodState
from components.methods.options.zero_shot import ZeroShotConfig

if TYPE_CHECKING:
    from components.adapters.serving import Digests
    from components.data.batch import Batch
    from components.models.backbone import Backbone


class ZeroShot(Method[ZeroShotConfig]):
    """The backbone without adapters: what every other method has to beat.

    Paper: none.
    Idea: learn nothing.
    Objective: none.
    Overrides: attach, served_by.
    Carried between tasks: nothing.
    Differs: a control, not a published method.
    """

    rows_leave = rows_join = True
    owned_by_none = "nothing is learned"

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        model.requires_grad_(False)
        if state is not None:
            self.restore(state)

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return ""
