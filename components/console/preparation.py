"""A preparation's report in a terminal: nothing is cut, whatever its width, and nothing is said twice."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.console.tables import print_table
from components.core.visible import visible
from components.data.problems import Problem
from components.data.quality.overlaps import Overlap, Shared
from components.data.quality.report import ImportReport
from components.data.quality.report_tables import ReportTable, pairs_table, splits_table

SHOWN_PROBLEMS, SHOWN_PAIRS = 40, 20  # report.json has more
_NAME_ROOM = 12  # characters of a folded name
_GAP = 3  # between columns


def say(text: str, console: Console, *, indent: str = "") -> None:
    """A sentence as it is, wrapped between words in a terminal and one line anywhere else; paths are never cut."""
    width = console.width if console.is_terminal else len(indent + text) + 1
    filled = textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    console.print(filled, soft_wrap=True, markup=False, highlight=False)


def show_table(table: ReportTable, console: Console) -> None:
    """A table whose names are folded when it is too wide, or that is printed in parts when that does not suffice."""
    heads = (*table.names, *table.numbers)
    lines = [list(map(visible, line)) for line in table.lines]  # as wide as it is shown
    widths = [max(len(line[at]) for line in (heads, *lines)) + _GAP for at in range(len(heads))]
    if (console.width - sum(widths[len(table.names) :])) // len(table.names) < _NAME_ROOM:
        print_table(heads, lines, console)
        return
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in table.names:
        shown.add_column(name, overflow="fold")
    for name in table.numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        shown.add_row(*map(escape, line))
    console.print(shown, highlight=False)
    console.print()


def show_report(report: ImportReport, console: Console) -> None:
    """The outcome, one line a split, every kind of problem, the first problems, and the licences.

    The sentence of a refusal is printed by the caller, as the program's error.
    """
    if report.refused is None:
        say(report.verdict, console)
        for sentence in report.leaks or ():
            say(f"{sentence}.", console, indent="  ")
    show_table(splits_table(report, sources=False), console)
    for found in report.kinds:
        where = ", ".join(f"{name} {count:,}" for name, count in found.splits)
        say(f"{found.kind}: {found.outcome} ({where}). {found.meaning} {found.advice}", console)
    for remark in report.remarks:
        say(remark, console)
    problems = [(file.name, problem) for file in report.files for problem in file.problems]
    for problem in _various(problems):
        say(str(problem), console, indent="  ")
    left = sum(file.found.total() for file in report.files) - SHOWN_PROBLEMS
    if left > 0:
        say(f"and {left:,} more; the report lists the first thousand of a split", console, indent="  ")
    for licence in report.licences:
        where = f"; get it: {licence.get}" if licence.get else ""
        say(f"Licence of {', '.join(licence.tasks)}: {licence.licence}{where}", console)


def _various(problems: Sequence[tuple[str, Problem]]) -> list[Problem]:
    """The problems to show, in their order: the first of every kind and split before further ones of any."""
    times: Counter[tuple[str, str]] = Counter()
    places: list[tuple[int, int]] = []
    for at, (name, problem) in enumerate(problems):
        times[name, problem.kind] += 1
        places.append((times[name, problem.kind], at))
    return [problems[at][1] for _, at in sorted(sorted(places)[:SHOWN_PROBLEMS], key=lambda place: place[1])]


def show_overlaps(shared: Shared, console: Console) -> None:
    """A table of what pairs of splits share, in rows; what test rows share with training is in the outcome."""
    if not shared.pairs:
        say("No pictures look alike and no questions are equal between splits.", console)
        return
    show_table(pairs_table(sorted(shared.pairs, key=_weight, reverse=True)[:SHOWN_PAIRS]), console)
    if len(shared.pairs) > SHOWN_PAIRS:
        say(f"and {len(shared.pairs) - SHOWN_PAIRS} more pairs of splits in overlaps.json", console)


def _weight(pair: Overlap) -> tuple[int, int, bool, int]:
    """The same questions about the same pictures first, then pictures, then what a test part shares with training."""
    leak = pair.first.endswith(" train") and pair.second.endswith(" test")
    return pair.repeats, pair.pictures, leak, pair.questions
