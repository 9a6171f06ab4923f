"""The command line of a run: [PRESET] [--method NAME] [--dotted.field VALUE ...], and how errors reach a person."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from components.errors import LittoralError
from components.methods import METHODS, installed_methods, method_config
from components.training.config import RunConfig
from pipelines.presets import DEFAULT_PRESET, PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for on the command line."""

    run: RunConfig
    print_config: bool
    dry_run: bool
    debug: bool


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    print_config: bool = False
    """Print the resolved configuration as JSON and stop."""
    dry_run: bool = False
    """Print what would be trained and stop."""
    debug: bool = False
    """Show Ray's logs, and tracebacks instead of one sentence."""


def parse(arguments: Sequence[str], *, program: str, description: str) -> Command:
    """Resolve preset, method and overrides; raises `LittoralError` for unknown names (tyro reports unknown options)."""
    rest = list(arguments)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else DEFAULT_PRESET
    config = preset(name)
    rest, method = _taken(rest, "--method")
    if method is not None:
        kind = method_config(method.replace("-", "_"))
        # pocket has three layers and no real sentences: a method's options for tests are those that suit it
        config = replace(config, method=kind.tiny() if config.backbone.name == "pocket" else kind())
    presets = "\n".join(f"  {key:18} {(PRESETS[key].__doc__ or '').splitlines()[0]}" for key in PRESETS)
    methods = "\n".join(f"  {key:18} {kind.summary()}" for key, kind in METHODS.items())
    others = "".join(f"\n  {key:18} {point.value}" for key, point in installed_methods().items())
    parsed = tyro.cli(
        _Arguments,
        prog=f"{program} [PRESET] [--method NAME]",
        description=f"{description}\n\nPresets (default {DEFAULT_PRESET}):\n{presets}\n\nMethods:\n{methods}{others}",
        default=_Arguments(run=config),
        args=rest,
    )
    return Command(run=parsed.run, print_config=parsed.print_config, dry_run=parsed.dry_run, debug=parsed.debug)


def guarded(main: Callable[[], int]) -> int:
    """Run `main`; an error a user can act on becomes one sentence on stderr and exit code 1 (2 for interrupts)."""
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


def quiet_environment() -> None:
    """Before the heavy imports: no progress bars or advice from libraries, tokenizers without threads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
