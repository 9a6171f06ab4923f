"""Where replicas meet. Light on purpose: its process imports nothing large."""

from __future__ import annotations

from components.serving.metrics import Family
from components.serving.plan import Plan


class Desk:
    """An actor that holds the current plan and the replicas' latest figures. A replica that starts anew asks it."""

    def __init__(self, plan: Plan) -> None:
        self._number, self._plan = 1, plan
        self._families: dict[str, list[Family]] = {}

    def put(self, plan: Plan, known: int) -> int:
        """From now on all replicas shall answer by `plan`; its number, which is above `known`."""
        self._number, self._plan = max(self._number, known) + 1, plan
        return self._number

    def get(self) -> tuple[int, Plan]:
        """The current plan and its number."""
        return self._number, self._plan

    def exchange(self, replica: str, families: list[Family], number: int, plan: Plan) -> tuple[int, Plan]:
        """Leave figures and learn of the plan. A desk that had to start anew learns of it from the replicas."""
        self._families[replica] = families
        if number > self._number:
            self._number, self._plan = number, plan
        return self._number, self._plan

    def others(self, replica: str) -> list[Family]:
        """Figures that the other replicas left last."""
        return [family for name, families in self._families.items() if name != replica for family in families]
