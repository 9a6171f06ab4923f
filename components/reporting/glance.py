"""The page's first sentences: who ends highest, who forgets least, who learned most, and how sure that is."""

from __future__ import annotations

from components.evaluation.spread import Spread
from components.reporting.curves import Curves
from components.reporting.facts import Groups

TIE = 0.05  # points: figures that print alike


def glance(groups: Groups, average: Curves) -> list[str]:
    """One sentence a figure that every run of a line has; none about one line alone being best of one."""
    ends = {point.line: point.text for point in average.points if point.after == average.after[-1]}
    said = [
        _best(groups, "final_average", "Highest average after the last task", ends),
        _best(groups, "immediate_average", "Learned most, by the average just after each task", {}),
        _best(groups, "forgetting", "Least forgetting", {}, lowest=True),
        _best(groups, "forgetting", "Most forgetting", {}),
    ]
    single = [line for line, group in groups.items() if len(group) == 1]
    if single:
        said.append(
            f"{len(single)} of {len(groups)} lines are of one seed: their intervals hold other test rows, "
            "not other seeds."
        )
    return [sentence for sentence in said if sentence]


def _best(groups: Groups, figure: str, says: str, texts: dict[str, str], *, lowest: bool = False) -> str:
    """The lines at the top of a figure, by their means over seeds; "" where fewer than two lines have it."""
    means: dict[str, Spread] = {}
    for line, group in groups.items():
        values = [summary[figure] for run in group if figure in (summary := run.matrix.summary())]
        if len(values) == len(group):
            means[line] = Spread.of(values)
    if len(means) < 2:
        return ""
    top = (min if lowest else max)(spread.mean for spread in means.values())
    best = [line for line, spread in means.items() if abs(spread.mean - top) < TIE]
    if len(best) == len(means):
        return f"{says}: all alike, {top:.1f}."
    return f"{says}: {', '.join(best)}, {texts.get(best[0], str(means[best[0]]))}."
