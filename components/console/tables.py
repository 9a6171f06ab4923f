"""Text in a terminal: paragraphs and lists as wide as it is, tables in parts where they are wider."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.console.terminal import Terminal
from components.core.visible import visible, visible_line

MOST_COLUMNS = 100  # of a paragraph; longer lines are hard to read
BORDER = 3  # of a column: two spaces and a line


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Print texts as they are (no markup) under a bold header; cells are never cut, but long ones wrap.

    Where not all columns fit, the first one, which every part repeats, takes a third of the width at most.
    """
    console = console or Terminal(highlight=False)
    header, lines = list(map(visible, header)), [list(map(visible, line)) for line in lines]  # as wide as it is shown
    widths = [max(cell_len(row[number]) for row in (header, *lines)) + BORDER for number in range(len(header))]
    room = console.width - 1
    if sum(widths) > room:
        widths[0] = min(widths[0], max(room // 3, cell_len(header[0]) + BORDER))
    for columns in parts(widths, room):
        table = Table(header_style="bold")
        for number in columns:
            table.add_column(escape(header[number]), overflow="fold", max_width=None if number else widths[0] - BORDER)
        for line in lines:
            table.add_row(*(escape(line[number]) for number in columns))
        console.print(table)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(map(visible_line, line))} |" for line in (header, ["---"] * len(header), *lines)]


def parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Column numbers of each part: the first column, and as many of the rest, in order, as fit; at least one."""
    found, used = [[0]], widths[0]
    for number, width in enumerate(widths[1:], start=1):
        if used + width > room and len(found[-1]) > 1:
            found.append([0])
            used = widths[0]
        found[-1].append(number)
        used += width
    return found


def wrapped(text: str) -> str:
    """A paragraph of a description, which tyro does not wrap: as wide as the terminal, 100 columns at most.

    Lines after the first are indented, since tyro joins lines that begin with a letter.
    """
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    return textwrap.fill(
        " ".join(text.split()), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def listed(texts: Mapping[str, str], *, most: int = 28) -> str:
    """Names with what they mean, in two columns; a name too long for a first column of `most` is a line of its own."""
    column = min(max(map(len, texts)) + 4, most)
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    lines: list[str] = []
    for name, text in texts.items():
        fits = len(name) + 4 <= column
        lines += [] if fits else [f"  {name}"]
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=f"  {name if fits else ''}".ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
