"""Every method against one baseline: intervals, paired differences, and a one-sentence verdict for each."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import ConfigError
from components.evaluation.matrix import MatrixError
from components.reporting.groups import Groups, Line, grouped, named, orders_of, require_comparable, seeds_of
from components.reporting.summary import below_majority
from components.runs.results import FinishedRun, scored
from components.statistics import paired
from components.statistics.contributions import Contributions, contributions
from components.statistics.intervals import Interval, over_both, over_rows
from components.statistics.paired import Comparison, VerdictKind

FIGURES = ("final_average", "forgetting")
COLUMNS = ("95 %", "minus baseline", "p", "d_z", "rows above : below")  # of each figure
GROUPED: dict[VerdictKind, str] = {  # beginnings of sentences on several methods, in order
    "better": "Distinguishable, {better} {base}",
    "worse": "Distinguishable, {worse} {base}",
    "tie": "Tie with {base} in {figure}",
    "not distinguishable": "Not distinguishable from {base} in {figure} at this size",
    "no verdict": "No verdict on {figure} against {base}",
}
WORDS = {  # of these sentences
    "final_average": {"better": "final average above", "worse": "final average below", "figure": "final average"},
    "forgetting": {"better": "forgets less than", "worse": "forgets more than", "figure": "forgetting"},
}

Claims = dict[tuple[str, str], tuple[Comparison, float | None]]  # by figure and label, with the adjusted p


def against_baseline(runs: Sequence[FinishedRun], baseline: str) -> tuple[Line, list[Line], list[str]]:
    """The table (header and lines) and the verdicts of all methods against `baseline`.

    P values are adjusted for all comparisons made here, of both figures (Holm). Raises `ConfigError` for an unknown
    baseline, no other method, or runs of different streams, seeds, orders or test rows.
    """
    require_comparable(runs)
    groups = named(grouped(runs))
    base = baseline_of(groups, baseline)
    others = [name for name in groups if name != base]
    if not others:
        raise ConfigError(f"every run given belongs to the baseline {base}; give runs of another method too.")
    known = {
        figure: {name: added for name in (base, *others) if (added := rows_of(figure, groups[name])) is not None}
        for figure in FIGURES
    }
    made = {
        (figure, name): compared(name, base, known[figure])
        for figure in FIGURES
        for name in others
        if name in known[figure] and base in known[figure]
    }
    ps = paired.adjusted(list(made.values()))
    claims = {key: (one, p) for (key, one), p in zip(made.items(), ps, strict=True)}
    header = ["method", "seeds", *(f"{figure.replace('_', ' ')} {column}" for figure in FIGURES for column in COLUMNS)]
    lines = [[name, seeds_of(groups[name])] for name in (base, *others)]
    for figure in FIGURES:
        for line in lines:
            own = known[figure].get(line[0])
            line += ["-" if own is None else str(interval_of(own)), *cells(claims.get((figure, line[0])))]
    return header, lines, [*below_majority(groups), *verdicts(claims, base), *caveats(groups, claims)]


def verdicts(claims: Claims, base: str) -> list[str]:
    """One sentence for each figure and kind of verdict, naming all methods of the kind."""
    said: list[str] = []
    for figure, words in WORDS.items():
        for kind, beginning in GROUPED.items():
            alike = {
                name: (one, p)
                for (of, name), (one, p) in claims.items()
                if of == figure and paired.kind_of(one, p) == kind
            }
            if len(alike) == 1:
                said += [paired.verdict(one, name, base, adjusted_p=p) for name, (one, p) in alike.items()]
            elif alike:
                listed = ", ".join(paired.short_verdict(one, name, adjusted_p=p) for name, (one, p) in alike.items())
                runs = " or ".join(dict.fromkeys(paired.runs_text(one) for one, _ in alike.values()))
                said.append(f"{beginning.format(base=base, **words)} ({runs}): {listed}.")
    return said


def baseline_of(groups: Groups, name: str) -> str:
    """The label of the group that `name` means: its label, its method, or the run id of one of its runs."""
    plain = name.replace("`", "")
    found = [one for one in groups if one.replace("`", "") == plain]
    found = found or [one for one, runs in groups.items() if runs[0].config.method.name == plain.replace("-", "_")]
    found = found or [one for one, runs in groups.items() if plain in {run.config.run_id for run in runs}]
    if len(found) == 1:
        return found[0]
    problem = "is not a method or run given here" if not found else "has several lines here"
    names = ", ".join(repr(one.replace("`", "")) for one in (found or groups))
    raise ConfigError(f"the baseline {name!r} {problem}; choose one of {names}.")


def rows_of(figure: str, group: Sequence[FinishedRun]) -> Contributions | None:
    """What every test row adds to the figure; None for methods without it, such as the forgetting of joint learning."""
    if any(figure not in run.matrix.summary() for run in group):
        return None
    return contributions(figure, [scored(run) for run in group])


def compared(name: str, base: str, known: dict[str, Contributions]) -> Comparison:
    """The comparison with the baseline; an error names both."""
    try:
        return paired.compare(known[name], known[base])
    except MatrixError as error:
        raise ConfigError(f"{name} and {base}: {error}") from error


def interval_of(figure: Contributions) -> Interval:
    """Over test rows and runs; over test rows for a single run."""
    return over_both(figure) if len(figure.draws) > 1 else over_rows(figure)


def cells(claim: tuple[Comparison, float | None] | None) -> Line:
    """The figure's columns after the method's own interval; empty for the baseline. No p below three seeds."""
    if claim is None:
        return [""] * (len(COLUMNS) - 1)
    one, p = claim
    effect = "-" if one.effect is None else f"{one.effect:+.2f}"
    p_cell = paired.p_text(None if one.p is None else p, name=False)
    return [str(one.difference), p_cell, effect, f"{one.rows_above} : {one.rows_below}"]


def caveats(groups: Groups, claims: Claims) -> list[str]:
    """Caveats: what the intervals do not cover."""
    several = len({order for group in groups.values() for order in orders_of(group)}) > 1
    single = [name for name, group in groups.items() if len(group) == 1]
    said = [
        "Intervals are 95 %, over test rows and seeds. P values are adjusted for "
        f"{'the comparison' if len(claims) == 1 else f'all {len(claims)} comparisons'} made here (Holm). "
        "d_z is Cohen's, over test rows."
    ]
    if any(one.num_seeds < paired.LEAST_SEEDS for one, _ in claims.values()):
        said.append(
            "Below three seeds there is no verdict on methods; a p value of one seed is of the two runs' test rows "
            "alone, and other seeds may differ."
        )
    if several:
        said.append("Orders count as draws, as seeds do; a few say little about all others.")
    if single:
        said.append(f"Test rows only, nothing about other seeds, for one seed each: {', '.join(single)}.")
    return said
