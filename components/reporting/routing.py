"""Routing after the last task: which task's parameters, and which slots, answered the rows of each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from components.evaluation.predictions import CORRECT_FROM, Prediction
from components.reporting.heatmap_table import HeatMap, share_map
from components.runs.results import FinishedRun

SLOTS = 16  # shown of one run, the most used; the others are summed up
OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which parameters answered which rows in one run: a task's, or a group's, expert's or cluster's."""

    run_id: str
    served: HeatMap | None  # rows by what they were routed to
    slots: HeatMap | None  # uses by slot
    rescued: tuple[tuple[str, int, int], ...]  # task, rows right only with the task known, rows; empty without oracle


def routing(line: str, run: FinishedRun, replies: Sequence[Prediction]) -> Routing | None:
    """The run's routing after its last task; None for one that does not route, or whose replies are missing."""
    last = [reply for reply in replies if reply.after == run.matrix.after[-1]]
    routed = {task: [reply for reply in last if reply.task == task] for task in run.matrix.tasks}
    routed = {task: rows for task, rows in routed.items() if rows}
    named = any(reply.routed_to for reply in last)
    slotted = any(reply.slots for reply in last)
    if not named and not slotted:
        return None
    title, seed = line.replace("`", ""), f"seed {run.config.seed}"
    return Routing(
        run_id=str(run.config.run_id),
        served=_served(title, seed, routed) if named else None,
        slots=_slots(title, seed, routed, run) if slotted else None,
        rescued=_rescued(routed),
    )


def _served(title: str, seed: str, routed: dict[str, list[Prediction]]) -> HeatMap:
    shares = {
        task: _shares(Counter(reply.routed_to or "none" for reply in rows), len(rows)) for task, rows in routed.items()
    }
    names = {name for row in shares.values() for name in row}
    order = [*(task for task in routed if task in names), *sorted(names - set(routed))]
    ordered = {task: {name: row.get(name, 0.0) for name in order} for task, row in shares.items()}
    return share_map(f"{title}: routed to", "rows of", ordered, f"{seed}; percent of the task's rows")


def _slots(title: str, seed: str, routed: dict[str, list[Prediction]], run: FinishedRun) -> HeatMap | None:
    """Uses of slots as shares of the task's uses; a row may use several.

    None where slots are many and alike, as the blocks of every layer are: most uses would fall under "others".
    """
    uses = {task: Counter(slot for reply in rows for slot in reply.slots or ()) for task, rows in routed.items()}
    total = sum(uses.values(), Counter[int]())
    kept = sorted(slot for slot, _ in total.most_common(SLOTS))
    if sum(total[slot] for slot in kept) < sum(total.values()) / 2:
        return None
    shares: dict[str, dict[str, float]] = {}
    for task, counts in uses.items():
        named = {run.config.method.slot_name(slot, run.matrix.tasks): counts[slot] for slot in kept}
        if len(total) > SLOTS:
            named[OTHERS] = sum(counts.values()) - sum(named.values())
        shares[task] = _shares(named, sum(counts.values()))
    note = f"{seed}; percent of the task's uses; {len(total)} slots were used"
    return share_map(f"{title}: slots", "rows of", shares, note)


def _shares(counts: dict[str, int], total: int) -> dict[str, float]:
    return {name: count / max(total, 1) for name, count in counts.items()}


def _rescued(routed: dict[str, list[Prediction]]) -> tuple[tuple[str, int, int], ...]:
    if not any(reply.oracle_score is not None for rows in routed.values() for reply in rows):
        return ()
    return tuple(
        (task, sum((reply.oracle_score or 0.0) >= CORRECT_FROM and not reply.is_correct for reply in rows), len(rows))
        for task, rows in routed.items()
    )
