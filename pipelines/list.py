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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.options import to_plain
from components.core.visible import print_text, visible_line
from components.runs.status import RunStatus, SweepStatus, read_storage
from pipelines.littoral import read_options
from pipelines.status import figure, when

HEADER = ["run", "state", "method", "stream", "backbone", "tasks", "final average", "last moved"]


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Where runs are."""

    storage: Path = Path("runs")
    """Folder that holds runs."""
    json: bool = False
    """Print a JSON list instead of a table."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Read the storage and print a line for each run."""
    command = read_options(ListOptions, arguments, name="list", description=(__doc__ or "").split("\n\n")[0])
    found = read_storage(command.storage.expanduser())
    if command.json:
        print_text(json.dumps([to_plain(each) for each in found], indent=1))
        return 0
    if not found:
        print_text(f"no runs in {command.storage}")
        return 0
    lines = [HEADER, *(line(each) for each in found if each.method)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:  # never wrapped: a line is a run
        print_text(visible_line("  ".join(map(str.ljust, cells, widths))).rstrip())
    for each in found:
        if not each.method:
            print_text(visible_line(f"{each.path.name}: {each.state}: {each.problem or each.note}"))
    return 0


def line(each: RunStatus | SweepStatus) -> list[str]:
    """The cells of a run, or of a sweep with its trials counted."""
    if isinstance(each, SweepStatus):
        ended = sum(trial.state in ("finished", "stopped") for trial in each.trials)
        tasks, average = f"{ended}/{len(each.trials)} trials", None
    else:
        tasks, average = f"{each.learned}/{each.tasks or '?'}", each.figures.get("final_average")
    name = f"{each.path.name} ({each.kind})" if each.kind == "sweep" else each.path.name
    return [name, each.state, each.method, each.stream, each.backbone, tasks, figure(average), when(each.moved)]
