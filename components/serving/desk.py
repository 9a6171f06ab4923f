"""Where replicas meet. Light on purpose: its process imports nothing large."""

from __future__ import annotations

import time

from components.serving.metrics import Family
from components.serving.plan import Plan

SILENT_S = 5.0  # after which a replica that says nothing is not waited for


class Desk:
    """An actor that holds the current plan and the replicas' latest figures. A replica that starts anew asks it."""

    def __init__(self, plan: Plan) -> None:
        self._number, self._plan = 1, plan
        self._families: dict[str, list[Family]] = {}
        self._ending, self._inside = False, dict[str, tuple[float, int | None]]()

    def put(self, plan: Plan, known: int) -> int:
        """From now on all replicas shall answer by `plan`; its number, which is above `known`."""
        self._number, self._plan = max(self._number, known) + 1, plan
        return self._number

    def get(self) -> tuple[int, Plan]:
        """The current plan and its number."""
        return self._number, self._plan

    def exchange(
        self, replica: str, families: list[Family], number: int, plan: Plan, inside: int | None
    ) -> tuple[int, Plan, bool]:
        """Leave figures and learn of the plan, and whether no more requests shall be taken.

        `inside`: the requests of a replica that takes no more; None for one that does. A desk that had to start anew
        learns of the plan from the replicas.
        """
        self._families[replica], self._inside[replica] = families, (time.monotonic(), inside)
        if number > self._number:
            self._number, self._plan = number, plan
        return self._number, self._plan, self._ending

    def end(self) -> None:
        """From now on no replica shall take a request."""
        self._ending = True

    def empty(self) -> bool:
        """Whether no replica takes requests any more, and none is inside."""
        heard = time.monotonic() - SILENT_S
        return all(inside == 0 for at, inside in self._inside.values() if at > heard)

    def all_said_so(self) -> bool:
        """Whether every replica that was ever heard has said that none is inside."""
        return bool(self._inside) and all(inside == 0 for _, inside in self._inside.values())

    def others(self, replica: str) -> list[Family]:
        """Figures that the other replicas left last."""
        return [family for name, families in self._families.items() if name != replica for family in families]
