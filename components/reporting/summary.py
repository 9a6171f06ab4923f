"""A report's first sentences: what the majority answer beats, which line ends highest, which forgets least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from components.evaluation.majority import majority_average
from components.reporting.facts import boundary_notes, chosen_notes, known_facts, lineage_notes
from components.reporting.groups import Groups
from components.statistics.mean_std import MeanStd

if TYPE_CHECKING:  # it imports scipy, which the terminal's table does without
    from components.reporting.curves import Curves

TIE = 0.05  # points: figures that print alike


def summary_sentences(groups: Groups, average: Curves) -> list[str]:
    """First the lines that a constant reply beats, which no later sentence praises; then one sentence per figure.

    A single line is not called the best, and a line that forgets nothing is not called the most forgetful.
    """
    ends = {point.line: point.text for point in average.points if point.after == average.after[-1]}
    above = {line: group for line, group in groups.items() if line not in set(_beaten(groups))}
    said = [
        *chosen_notes(run for group in groups.values() for run in group),
        *lineage_notes(run for group in groups.values() for run in group),
        *boundary_notes(run for group in groups.values() for run in group),
        *below_majority(groups),
        _best(above, "final_average", "Highest average after the last task", ends),
        _best(above, "average_over_time", "Highest average over time", {}),
        _best(above, "immediate_average", "Learned most, by the average just after each task", {}),
        _best(above, "forgetting", "Least forgetting", {}, lowest=True),
        _most_forgetting(groups),
    ]
    single, two = ([line for line, group in groups.items() if len(group) == count] for count in (1, 2))
    if single:
        said.append(
            f"{len(single)} of {len(groups)} lines are of one seed: their intervals hold other test rows, "
            "not other seeds."
        )
    if single or two:
        said.append("Fewer than three seeds of a line tell runs apart, not methods.")
    return [sentence for sentence in said if sentence]


def below_majority(groups: Groups) -> list[str]:
    """Which lines end no higher than one constant reply does, and on which tasks no line does; [] for neither."""
    majority = _majority(groups)
    average = majority_average(majority, list(majority))
    if average is None:
        return ["The majority answer is not known: these runs' data are not here, or are other data by now."]
    beaten, said = _beaten(groups), list[str]()
    if beaten and len(beaten) == len(groups):
        every = "The line ends" if len(groups) == 1 else "All lines end"
        said.append(
            f"{every} at or below the majority answer ({average:.1f}), which one constant reply to every question "
            "reaches: differences say little."
        )
    elif beaten:
        listed = ", ".join(f"{line} {mean:.1f}" for line, mean in beaten.items())
        said.append(f"At or below the majority answer ({average:.1f}) after the last task: {listed}.")
    nobody = [
        f"{task} ({score:.1f})"
        for task, score in majority.items()
        if all(
            np.mean([run.matrix.values[-1, run.matrix.tasks.index(task)] for run in group]) <= score + TIE
            for group in groups.values()
        )
    ]
    if nobody and len(nobody) < len(majority):
        said.append(f"No line ends above the majority answer on {', '.join(nobody)}.")
    return said


def _majority(groups: Groups) -> Mapping[str, float]:
    facts = known_facts(run for group in groups.values() for run in group)
    return {task: one.majority for task, one in facts.items()}


def _beaten(groups: Groups) -> dict[str, float]:
    """Lines whose final average is no higher than the majority answer's, with it; none where that is not known."""
    majority = _majority(groups)
    average = majority_average(majority, list(majority))
    if average is None:
        return {}
    means = {line: spread.mean for line, spread in _spreads(groups, "final_average").items()}
    return {line: mean for line, mean in means.items() if mean <= average + TIE}


def _spreads(groups: Groups, figure: str) -> dict[str, MeanStd]:
    """By line, mean and deviation over its runs; lines of which a run lacks the figure are left out."""
    found: dict[str, MeanStd] = {}
    for line, group in groups.items():
        values = [summary[figure] for run in group if figure in (summary := run.matrix.summary())]
        if len(values) == len(group):
            found[line] = MeanStd.of(values)
    return found


def _best(groups: Groups, figure: str, says: str, texts: dict[str, str], *, lowest: bool = False) -> str:
    """The lines at the top of a figure, by their means over seeds; "" where fewer than two lines have it."""
    spreads = _spreads(groups, figure)
    if len(spreads) < 2:
        return ""
    top = (min if lowest else max)(spread.mean for spread in spreads.values())
    best = [line for line, spread in spreads.items() if abs(spread.mean - top) < TIE]
    if len(best) == len(spreads):
        return f"{says}: all alike, {_number(top)}."
    shown = texts.get(best[0], str(spreads[best[0]])) if len(best) == 1 else _number(top)
    return f"{says}: {', '.join(best)}, {shown}{' (a tie)' if len(best) > 1 else ''}."


def _most_forgetting(groups: Groups) -> str:
    spreads = _spreads(groups, "forgetting")
    if not spreads or max(spread.mean for spread in spreads.values()) < TIE:
        return "" if not spreads else "No line forgets."
    return _best(groups, "forgetting", "Most forgetting", {})


def _number(value: float) -> str:
    """One decimal, never -0.0."""
    return f"{round(value, 1) + 0.0:.1f}"
