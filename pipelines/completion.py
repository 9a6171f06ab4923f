"""Print a shell script that completes `littoral` and its options: littoral completion bash|zsh|fish.

eval "$(littoral completion bash)"                           in ~/.bashrc
littoral completion zsh > ~/.zfunc/_littoral                 with ~/.zfunc in fpath
littoral completion fish > ~/.config/fish/completions/littoral.fish
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import tyro

from pipelines.cli import Command, StreamCommand, with_names
from pipelines.export import Export
from pipelines.judge import Judgement
from pipelines.list import ListOptions
from pipelines.littoral import read_options
from pipelines.methods import Methods
from pipelines.nightly import Nightly
from pipelines.prepare import Prepare
from pipelines.presets import DEFAULT_PRESET, preset
from pipelines.report import Report
from pipelines.rescore import Rescore
from pipelines.serve import Serve
from pipelines.status import StatusOptions
from pipelines.sweep import SweepCommand
from pipelines.train_projector import ProjectorRun
from pipelines.unlearn import Unlearn


@dataclass(frozen=True, kw_only=True)
class Completion:
    """For which shell."""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """The shell that reads the script."""
    debug: bool = False
    """A traceback instead of one sentence."""


FILES = "__TYRO_COMPLETE_FILES__"  # tyro's word for the shell's own completion
OPTIONS: dict[str, type[Any]] = {
    "coast": StreamCommand,
    "sweep": SweepCommand,
    "list": ListOptions,
    "status": StatusOptions,
    "prepare": Prepare,
    "report": Report,
    "judge": Judgement,
    "rescore": Rescore,
    "export": Export,
    "serve": Serve,
    "nightly": Nightly,
    "unlearn": Unlearn,
    "methods": Methods,
    "train-projector": ProjectorRun,
    "completion": Completion,
}  # by command, as `littoral` has it


# In tyro's scripts each line of an option's help is a word to choose, and where no word fits (a run, a file) none is.
MENDED = {
    "        print(completion)\n": "        print(*completion.splitlines())\n",
    "for completion in completions:\n        print": f"for completion in completions or ['{FILES}']:\n        print",
    'COMPREPLY=($(compgen -f -- "$cur"))': (
        "local IFS=$'\\n'\n    compopt -o filenames 2>/dev/null\n"
        '    COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))'
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Print tyro's script for all commands together."""
    shell = read_options(Completion, arguments, name="completion", description=__doc__).shell
    kinds = []
    for name, kind in OPTIONS.items():
        if issubclass(kind, Command):
            kind = with_names(kind)
            kinds.append(Annotated[kind, tyro.conf.subcommand(name, default=kind(run=preset(DEFAULT_PRESET)))])
        else:
            kinds.append(Annotated[kind, tyro.conf.subcommand(name)])
    script = io.StringIO()
    with suppress(SystemExit), redirect_stdout(script):
        tyro.cli(reduce(or_, kinds), prog="littoral", args=["--tyro-print-completion", shell])
    sys.stdout.write(mended(script.getvalue()))  # a shell script, which may hold any character
    return 0


def mended(script: str) -> str:
    """tyro's script with one line for each option, whatever its help has, and with files where no word fits."""
    for found, instead in MENDED.items():
        script = script.replace(found, instead)
    return script
