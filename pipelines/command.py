"""The command line of a run: [PRESET] [--method NAME] [--dotted.field VALUE ...], and how errors reach a person."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from components.errors import LittoralError
from components.methods import METHODS, installed_methods
from components.training.config import RunConfig
from pipelines.presets import DEFAULT_PRESET, PRESETS, preset, preset_notes


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
    presets = "\n".join(f"  {key:18} {(PRESETS[key].__doc__ or '').splitlines()[0]}" for key in PRESETS)
    methods = "\n".join(f"  {key:18} {each.summary()}" for key, each in METHODS.items())
    others = "".join(f"\n  {key:18} {point.value}" for key, point in installed_methods().items())
    return tyro.cli(
        kind,
        prog=f"{program} [PRESET] [--method NAME]",
        description=f"{description}\n\nPresets (default {default_preset}), or a configuration's JSON file:\n{presets}"
        f"\n\nMethods:\n{methods}{others}",
        default=kind(run=config, preset=name),
        args=rest,
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
