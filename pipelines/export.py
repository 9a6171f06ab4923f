"""Write what a run learned for other programs: a PEFT folder, merged weights, or a bundle that Littoral answers with.

    littoral export runs/first --to peft --out exports/first
    littoral export runs/first --to merged --task docvqa --out exports/after-docvqa
    littoral export runs/second --to bundle --out exports/second

What was written is loaded again and its predictions are compared with the run's own before it takes its name.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("export"))

import os
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from components.core.location import folder_at
from components.core.visible import print_text
from components.exporting.learned import check_export, read_learned
from components.methods.options.base import ExportFormat
from pipelines.littoral import read_options


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export, and to where."""

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run (STORAGE/RUN-ID), a path or a URI such as s3://bucket/runs/first, finished or not."""
    to: ExportFormat
    """peft: LoRA folders; merged: a complete model directory; bundle: the method as it is, for Littoral. The table of
    methods says which of them a method can give."""
    out: Path
    """The new folder to write."""
    task: str | None = None
    """After which learned task: its name or its number from 1; without it after the last one."""
    group: str | None = None
    """Of a method with several sets of weights: which one is merged."""
    backbone: str | None = None
    """Where the base weights are now (a directory or hub id), if not where the run found them."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Check, write, prove, print."""
    command = read_options(Export, arguments, name="export", description=(__doc__ or "").split("\n\n")[0])
    out = command.out.expanduser().absolute()
    learned = read_learned(folder_at(command.run), command.task, command.backbone)
    check_export(learned, command.to, command.group, out)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which libraries import, would say what it guesses
    from components.exporting.writing import write_export  # loads the model libraries

    with warnings.catch_warnings():
        if not command.debug:  # libraries warn of their own future; what they pass over here, the probe refuses
            warnings.simplefilter("ignore")
        written = write_export(learned, command.to, command.group, out)
    print_text(f"{out}: {learned.config.method.name} after task {learned.number} ({learned.task}), as {command.to}")
    for name, tasks in written.groups.items():
        print_text(f"  {name}: serves {', '.join(tasks)}")
    seen = written.agreement
    print_text(
        f"  checked: logits are within {seen.error:.2g} of the run's own; the method moves them by {seen.effect:.2g}"
    )
    for note in written.serving:
        print_text(f"  {note.replace('FOLDER', shlex.quote(str(out)))}")
    return 0
