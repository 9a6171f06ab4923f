"""List the runs and sweeps of a storage, newest movement first: littoral list [--storage DIR] [--json].

Folders that are damaged or no runs have a line that says so. `littoral status RUN` tells more about one.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("list"))

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.location import place
from components.core.options import to_plain
from components.core.visible import print_text, visible_line
from components.runs.status import RunStatus, SweepStatus, read_storage
from pipelines.littoral import read_options
from pipelines.status import figure

HEADER = ["run", "state", "tasks", "average", "last moved", "method", "stream", "backbone"]
OPTIONAL = ("backbone", "stream", "method", "last moved")  # left out in this order where a terminal is too narrow


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Where runs are."""

    storage: str = "runs"
    """Folder that holds runs, a path or a URI such as s3://bucket/runs."""
    json: bool = False
    """Print a JSON list instead of a table."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Read the storage and print a line for each run."""
    command = read_options(ListOptions, arguments, name="list", description=(__doc__ or "").split("\n\n")[0])
    storage = place(command.storage)
    found = read_storage(storage)
    if command.json:
        print_text(json.dumps([to_plain(each) for each in found], indent=1))
        return 0
    if not found:
        print_text(f"no runs in {storage}")
        return 0
    table = [line(each) for each in found if each.method]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for cells in fitting([HEADER, *table], width) if table else ():
        print_text(visible_line(cells))
    for each in found:
        if not each.method:
            print_text(visible_line(f"{each.path.name}: {each.state}: {each.problem or each.note}"))
    return 0


def fitting(table: list[list[str]], columns: int | None) -> list[str]:
    """The lines of a table, its first one the names of the cells; without some of `OPTIONAL` where that is too wide.

    A line is a run and is never wrapped or cut: names get copied. `columns` None: as wide as it comes.
    """
    left_out = 0
    while True:
        shown = [place for place, name in enumerate(table[0]) if name not in OPTIONAL[:left_out]]
        rows = [[cells[place] for place in shown] for cells in table]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if columns is None or left_out == len(OPTIONAL) or sum(widths) + 2 * (len(widths) - 1) <= columns:
            return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]
        left_out += 1


def line(each: RunStatus | SweepStatus) -> list[str]:
    """The cells of a run, or of a sweep with its trials in the place of tasks."""
    name = each.path.name
    if isinstance(each, SweepStatus):
        ended = sum(trial.state in ("finished", "stopped") for trial in each.trials)
        name, tasks, average = f"{name} (sweep)", f"{ended}/{len(each.trials)}", None
    else:
        if each.origin:
            name = f"{name} (from {each.origin.replace(' after task ', ':')})"
        tasks, average = f"{each.learned}/{each.tasks or '?'}", each.figures.get("final_average")
    moved = "" if each.moved is None else f"{each.moved:%Y-%m-%d %H:%M}"
    return [name, each.state, tasks, figure(average), moved, each.method, each.stream, each.backbone]
