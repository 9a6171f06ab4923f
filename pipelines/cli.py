"""The command line of a run: [PRESET] [--method NAME] [--dotted.field VALUE ...]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from typing import Annotated, Literal, TypeVar

import tyro

from components.console.tables import listed, wrapped
from components.methods import METHODS, installed_methods
from components.training.config import RunConfig
from pipelines.presets import DEFAULT_PRESET, PRESETS, preset, preset_notes


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for on the command line."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    preset: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
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
    # A method's options follow the backbone, wherever on the line that is named; tyro reads the rest on top of them.
    _, backbone = _taken(rest, "--backbone.name")
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone))
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


def with_names(kind: type[CommandT]) -> type[CommandT]:
    """`kind` with the option --method, which `parse` takes before tyro sees the rest: for shell completion."""
    names = tuple(name.replace("_", "-") for name in (*METHODS, *installed_methods()))
    method = Annotated[Literal[names], tyro.conf.arg(name="method")]  # type: ignore[valid-type]
    return make_dataclass(kind.__name__, [("method_name", method, names[0])], bases=(kind,), frozen=True, kw_only=True)


def _taken(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """`arguments` without the last `flag VALUE` (or `flag=VALUE`), and the value."""
    for index, argument in reversed(list(enumerate(arguments))):
        if argument.startswith(f"{flag}="):
            return arguments[:index] + arguments[index + 1 :], argument.partition("=")[2]
        if argument == flag and index + 1 < len(arguments):
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
    return arguments, None
