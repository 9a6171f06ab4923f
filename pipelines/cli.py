"""The command line of a run: [PRESET] [--method NAME] [--dotted.field VALUE ...], and how errors reach a person."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from components.core.errors import LittoralError
from components.methods import METHODS, installed_methods
from components.training.config import RunConfig
from pipelines.presets import DEFAULT_PRESET, PRESETS, preset, preset_notes

MOST_COLUMNS = 100  # of a description; longer lines are hard to read


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for on the command line."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    preset: tyro.conf.Suppress[str] = ""
    """The preset, or the file, that the run's options start from."""
    print_config: bool = False
    """Print the resolved configuration as JSON and stop."""
    dry_run: bool = False
    """Print what would be trained and stop."""
    debug: bool = False
    """Show Ray's logs, and tracebacks instead of one sentence."""


CommandT = TypeVar("CommandT", bound=Command)


def parse(
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    kind: type[CommandT] = Command,
    default_preset: str = DEFAULT_PRESET,
    examples: str = "",
) -> CommandT:
    """Resolve preset, method and overrides; raises `LittoralError` for unknown names (tyro reports unknown options)."""
    rest = list(arguments)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default_preset
    config = preset(name)
    for note in preset_notes(name):
        print(f"Warning: {note}", file=sys.stderr)
    rest, method = _taken(rest, "--method")
    if method is not None:
        config = config.with_method(method)
    presets = {key: (PRESETS[key].__doc__ or "").splitlines()[0] for key in PRESETS}
    methods = {key: each.summary() for key, each in METHODS.items()}
    methods |= {key: str(point.value) for key, point in installed_methods().items()}
    return tyro.cli(
        kind,
        prog=f"{program} [PRESET] [--method NAME]",
        description="\n\n".join(
            [
                wrapped(description),
                f"{wrapped(f'Presets (default {default_preset}), or a JSON file: a configuration or a record:')}\n"
                f"{listed(presets)}",
                f"Methods:\n{listed(methods)}",
                *([f"Examples:\n{examples}"] if examples else []),
            ]
        ),
        default=kind(run=config, preset=name),
        args=rest,
    )


def wrapped(text: str) -> str:
    """A paragraph of a description, which tyro does not wrap: as wide as the terminal, 100 columns at most.

    Lines after the first are indented, since tyro joins lines that begin with a letter.
    """
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    return textwrap.fill(
        " ".join(text.split()), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def listed(texts: Mapping[str, str]) -> str:
    """Names with what they mean, in two columns of a description."""
    column = max(map(len, texts)) + 4
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    return "\n".join(
        textwrap.fill(
            f"  {name}".ljust(column) + text,
            width,
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in texts.items()
    )


def guarded(main: Callable[[], int]) -> int:
    """Run `main`; an error a user can act on becomes one sentence on stderr and exit code 1 (130 for interrupts)."""
    atexit.register(gc.freeze)  # the interpreter's last collection would look through all libraries for seconds
    debug = "--debug" in sys.argv
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("littoral").setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        return main()
    except LittoralError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head`, for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the rest is flushed into the pipe at exit
        print("stopped: whoever read this command's output has closed it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command with the same --run-id to continue", file=sys.stderr)
        return 130


def _taken(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """`arguments` without `flag VALUE` (or `flag=VALUE`), and the value."""
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return arguments[:index] + arguments[index + 1 :], argument.partition("=")[2]
        if argument == flag and index + 1 < len(arguments):
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
    return arguments, None
