"""What a method decided for each task and which parameters answered its rows: decisions.json, also part of records.

{"format": ..., "tasks": {task: what `Method.decisions` says}, "served": {after: {task: rows, own, fallback, by}}}
Both halves are computed from checkpointed state, so a resumed run writes the same file as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from components.core.errors import ConfigError, DataError
from components.core.files import write_text
from components.core.location import Place
from components.core.options import Json, from_plain
from components.core.reading import read_object

DECISIONS_FILE, FORMAT = "decisions.json", "littoral-decisions-1"


@dataclass(frozen=True, kw_only=True)
class Served:
    """Which parameters answered a task's test rows. Shares are 0..1; None where a method does not report them."""

    rows: int
    own: float | None  # served by the parameters that learned the task (of a shared group: that group's)
    fallback: float | None  # nothing matched the row and a fallback answered it
    by: dict[str, int]  # rows by the task whose parameters served them

    @classmethod
    def of(cls, owner: str, routed_to: Sequence[str | None], matched: Sequence[bool | None]) -> Served:
        """Counted over a task's rows; `owner` is the value of `routed_to` for a correctly routed row."""
        names = [name for name in routed_to if name is not None]
        hits = [hit for hit in matched if hit is not None]
        return cls(
            rows=len(routed_to),
            own=names.count(owner) / len(names) if names else None,
            fallback=hits.count(False) / len(hits) if hits else None,
            by=dict(sorted(Counter(names).items())),
        )


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What was decided, by learned task; which parameters answered, by row of the score matrix and task."""

    tasks: dict[str, dict[str, Json]] = field(default_factory=dict)
    served: dict[str, dict[str, Served]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """False where the method decides nothing, and for runs made before this file existed."""
        return bool(self.tasks or any(self.served.values()))

    def metrics(self, after: str, names: Mapping[str, str]) -> dict[str, float]:
        """Metrics of the row after the task `after`: its decision's numbers and every task's shares.

        `names`: each task's name in a form that a metric's name may contain.
        """
        values = {
            f"decisions/{key}": value for key, value in _numbers(self.tasks.get(after, {}), names) if value is not None
        }
        served = self.served.get(after, {}).items()  # their `own` is routing_accuracy already
        if known := {task: one.fallback for task, one in served if one.fallback is not None}:
            values |= {f"fallback/{names.get(task, task)}": share for task, share in known.items()}
            values["fallback_mean"] = sum(known.values()) / len(known)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        served = {after: {task: asdict(one) for task, one in row.items()} for after, row in self.served.items()}
        return {"format": FORMAT, "tasks": self.tasks, "served": served}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Decisions:
        """The inverse of `to_dict`; raises `DataError`."""
        if content.get("format") != FORMAT:
            raise DataError(f"decisions have format {content.get('format')!r:.80}, expected {FORMAT!r}.")
        try:
            return cls(
                tasks=from_plain(dict[str, dict[str, Any]], content["tasks"], "tasks"),
                served=from_plain(dict[str, dict[str, Served]], content["served"], "served"),
            )
        except (KeyError, ConfigError) as error:
            raise DataError(f"this is not a file of decisions ({error}).") from error

    def write(self, path: Place) -> None:
        """Replace the file atomically."""
        write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Place) -> Decisions:
        """From a decisions.json; empty where there is none; raises `DataError` when it is broken."""
        if not path.is_file():
            return cls()
        advice = "delete it to go on without the decisions"
        content = read_object(path, DataError, advice)
        try:
            return cls.from_dict(content)
        except DataError as error:
            raise DataError(f"{path}: {error} It can be repaired: {advice}.") from error


def served_from_json(content: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Served]]:
    """Rows of `Served` as `dataclasses.asdict` left them."""
    return {after: {task: Served(**one) for task, one in row.items()} for after, row in content.items()}


def _numbers(content: Mapping[str, Json], names: Mapping[str, str]) -> list[tuple[str, float]]:
    """Numbers of a decision by name, those of mappings as name/key; lists and texts are left out."""
    found: list[tuple[str, float]] = []
    for key, value in content.items():
        if isinstance(value, bool | int | float):
            found.append((key, float(value)))
        elif isinstance(value, dict):
            found += [(f"{key}/{names.get(name, name)}", number) for name, number in _numbers(value, names)]
    return found
