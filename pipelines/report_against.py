"""Every method against one baseline: intervals, paired differences, and a verdict in words for each."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import ConfigError
from components.evaluation.contributions import Contributions, contributions
from components.evaluation.matrix_rows import MatrixError
from components.evaluation.paired import Comparison, compare, verdict
from components.evaluation.statistics import Interval, holm, over_both, over_rows
from components.recorded import FinishedRun, scored
from pipelines.report_groups import Line, grouped, named, orders_of, require_comparable, seeds_of

FIGURES = ("final_average", "forgetting")
COLUMNS = ("95 %", "minus baseline", "p", "d_z", "rows above : below")  # of each figure

Groups = dict[str, list[FinishedRun]]  # by label


def against(runs: Sequence[FinishedRun], baseline: str) -> tuple[Line, list[Line], list[str]]:
    """Header, lines and verdicts.

    P values of one figure are adjusted for the number of methods compared (Holm). Raises `ConfigError` for an unknown
    baseline, nothing to compare, runs of different streams, seeds, orders or test rows.
    """
    require_comparable(runs)
    groups = named(grouped(runs))
    base = baseline_of(groups, baseline)
    others = [name for name in groups if name != base]
    if not others:
        raise ConfigError(f"every run given belongs to the baseline {base}; give runs of another method too.")
    lines, verdicts = {name: [name, seeds_of(groups[name])] for name in (base, *others)}, []
    header = ["method", "seeds"]
    for figure in FIGURES:
        known = {name: added for name in lines if (added := rows_of(figure, groups[name])) is not None}
        compared = {name: paired(name, base, known) for name in others if name in known and base in known}
        adjusted = dict(zip(compared, holm([one.p for one in compared.values()]), strict=True))
        header += [f"{figure.replace('_', ' ')} {column}" for column in COLUMNS]
        for name, line in lines.items():
            own = str(interval_of(known[name])) if name in known else "-"
            line += [own, *cells(compared[name], adjusted[name])] if name in compared else [own, "", "", "", ""]
        verdicts += [verdict(one, name, base, adjusted_p=adjusted[name]) for name, one in compared.items()]
    return header, list(lines.values()), [*verdicts, *caveats(groups)]


def baseline_of(groups: Groups, name: str) -> str:
    """The label of the group that `name` means: its label, its method, or the run id of one of its runs."""
    plain = name.replace("`", "")
    found = [one for one in groups if one.replace("`", "") == plain]
    found = found or [one for one, runs in groups.items() if runs[0].config.method.name == plain.replace("-", "_")]
    found = found or [one for one, runs in groups.items() if plain in {run.config.run_id for run in runs}]
    if len(found) == 1:
        return found[0]
    problem = "is no method or run given here" if not found else "has several lines here"
    names = ", ".join(repr(one.replace("`", "")) for one in (found or groups))
    raise ConfigError(f"the baseline {name!r} {problem}; choose one of {names}.")


def rows_of(figure: str, group: Sequence[FinishedRun]) -> Contributions | None:
    """What every test row adds to the figure; None for methods without it, such as the forgetting of joint learning."""
    if any(figure not in run.matrix.summary() for run in group):
        return None
    return contributions(figure, [scored(run) for run in group])


def paired(name: str, base: str, known: dict[str, Contributions]) -> Comparison:
    """The comparison with the baseline; an error names both."""
    try:
        return compare(known[name], known[base])
    except MatrixError as error:
        raise ConfigError(f"{name} and {base}: {error}") from error


def interval_of(figure: Contributions) -> Interval:
    """Over test rows and runs; over test rows for a single run."""
    return over_both(figure) if len(figure.draws) > 1 else over_rows(figure)


def cells(one: Comparison, adjusted_p: float) -> Line:
    """The figure's columns after the method's own interval."""
    effect = "-" if one.effect is None else f"{one.effect:+.2f}"
    return [str(one.difference), f"{adjusted_p:.3f}", effect, f"{one.rows_above} : {one.rows_below}"]


def caveats(groups: Groups) -> list[str]:
    """What the intervals do not say."""
    several = len({order for group in groups.values() for order in orders_of(group)}) > 1
    single = [name for name, group in groups.items() if len(group) == 1]
    return [
        "Intervals are 95 %, over test rows and seeds. P values are adjusted for the number of methods (Holm). "
        "d_z is Cohen's, over test rows.",
        *(["Orders count as draws, as seeds do; a few say little about all others."] if several else []),
        *([f"Test rows only, nothing about other seeds, for one seed each: {', '.join(single)}."] if single else []),
    ]
