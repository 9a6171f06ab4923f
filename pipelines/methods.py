"""List the methods and what each costs, measured on a backbone. `--markdown` prints the table of the pages.

littoral methods [--backbone smol|pocket|DIR] [--markdown]
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("methods"))

from collections.abc import Sequence
from dataclasses import dataclass

from components.console.tables import markdown, print_table
from components.core.visible import print_text
from components.methods import METHODS, options_for
from components.models.config import BackboneConfig
from pipelines.littoral import importing, read_options

HEADER = ["`--method`", "what it does", "trains", "adds per task", "passes", "export", "task-free", "ZeRO"]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """On which backbone to measure."""

    backbone: str = "smol"
    """The backbone to measure on: smol, pocket, or a directory or hub id."""
    markdown: bool = False
    """Print the Markdown table of the pages instead of one for the terminal."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Measure every method and print the table."""
    command = read_options(Methods, arguments, name="methods", description=(__doc__ or "").split("\n\n")[0])
    lines = [line(name, command.backbone) for name in METHODS]
    if command.markdown:
        print_text("\n".join(markdown(HEADER, lines)))
    else:
        header, *rest = [[cell.replace("`", "") for cell in cells] for cells in (HEADER, *lines)]
        print_table(header, rest)
    return 0


def line(name: str, backbone: str) -> list[str]:
    """One method: its summary and its costs."""
    with importing():
        from components.training.method_cost import measure_cost

    kind, config = METHODS[name], BackboneConfig(name=backbone)
    cost = measure_cost(options_for(name, config), config)
    return [
        f"`{name}`",
        kind.summary(),
        count(cost.trainable),
        count(cost.growth),
        str(cost.forward_passes),
        kind.export,
        "yes" if kind.is_task_free else "no",
        "any" if len(kind.zero_stages) == 3 else ", ".join(map(str, sorted(kind.zero_stages))),
    ]


def count(number: int) -> str:
    """Parameters, in millions where that is shorter."""
    return f"{number / 1e6:.2f} M" if number >= 10_000 else str(number)
