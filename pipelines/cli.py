"""The command line of a run: [PRESET] [--method NAME] [--dotted.field VALUE ...]."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from typing import Annotated, Literal, TypeVar

import tyro

from components.console.tables import listed, wrapped
from components.core.errors import ConfigError
from components.core.options import Count
from components.core.options import listed as listed_names
from components.core.visible import print_text
from components.methods import METHODS, installed_methods
from components.training.config import RunConfig
from pipelines.presets import DEFAULT_PRESET, FORMER, PRESETS, preset, preset_notes, with_method
from pipelines.words import in_sentences, understood


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
    wait: bool = False
    """While another process holds the run or sweep, wait for it instead of refusing, and then go on."""
    debug: bool = False
    """Show Ray's logs, and tracebacks instead of one sentence."""


@dataclass(frozen=True, kw_only=True)
class StreamCommand(Command):
    """A run's options, and where a new one begins."""

    continue_from: str | None = None
    """Begin a new run with the tasks that this run, an id or a folder, has learned; --stream.name or --stream.order
    names what to add. Its configuration is the preset."""
    at_task: Count | None = None
    """With --continue-from: take over only so many tasks; without it, all that the run has learned."""
    score_again: bool = False
    """With --continue-from: score the last task that is taken over, and those before it, anew after it."""


SHORT = {f"--{name}": f"--evaluation.{name}" for name in ("max-forgetting", "forgetting-of", "on-forgetting")}
_SEVERAL, _ANY_NUMBER = re.compile(r"\[(\w+) \[\1 \.\.\.\]\]"), r"\1 ..."  # of a metavar, as argparse has it
CommandT = TypeVar("CommandT", bound=Command)
FIRST = (  # what `--help` shows
    "--run-id",
    "--storage",
    "--seed",
    "--stream.name",
    "--stream.order",
    "--training.updates-per-task",
    "--training.optimizer.learning-rate",
    "--method.rank",
    "--cluster.num-workers",
    "--cluster.use-gpu",
    "--dry-run",
)


def parse(
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    kind: type[CommandT] = Command,
    default_preset: str = DEFAULT_PRESET,
    first: Sequence[str] = FIRST,
    examples: Mapping[str, str] | None = None,
) -> CommandT:
    """Resolve preset, method and overrides; raises `LittoralError` for unknown names and options.

    `first`: the options that `--help` shows; `examples`: arguments and what they do.
    """
    rest = list(arguments)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default_preset
    if name in FORMER:
        instead = f"coast-domain {FORMER[name]}"
        print_text(
            f"Note: the preset {name} is `{instead}` now; the old name goes with the next release", to=sys.stderr
        )
        name, *options = instead.split()
        rest = [*options, *rest]
    config = preset(name)
    for note in preset_notes(name):
        print_text(f"Warning: {note}", to=sys.stderr)
    # The options that --method brings follow the backbone, wherever on the line it is named; tyro reads the rest later.
    _, backbone = taken(rest, "--backbone.name")
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone))
    rest, method = taken(rest, "--method")
    if method is not None:
        config = with_method(name, config, method)
    rest = [_in_full(argument) for argument in _with_gpu_value(rest)]
    default = kind(run=config, preset=name)
    usage = f"{program} [PRESET] [--method NAME] [--OPTION VALUE ...]"
    asked = next((place for place, argument in enumerate(rest) if argument in ("-h", "--help")), None)
    if asked is not None:
        pages, sections = Help(default, default_preset), rest[asked + 1 : asked + 2]
        print_text(pages.section(sections[0]) if sections else pages.first(usage, description, first, examples or {}))
        raise SystemExit(0)
    if "--help-all" in rest:  # looks at what is installed, which takes a sixth of the time
        description = f"{wrapped(description)}\n\n{presets_help(default_preset)}\n\n{methods_help()}"
    with in_sentences(program):
        parsed = tyro.cli(
            kind,
            prog=usage.removesuffix(" [--OPTION VALUE ...]"),
            description=description,
            default=default,
            args=["--help" if argument == "--help-all" else argument for argument in rest],
            return_unknown_args=True,
        )
    return understood(*parsed, called=program)


def presets_help(default: str) -> str:
    """Every preset with its sentence."""
    found = {name: (PRESETS[name].__doc__ or "").splitlines()[0] for name in PRESETS}
    return f"{wrapped(f'Presets (default {default}), or a JSON file: a configuration or a record:')}\n{listed(found)}"


def methods_help() -> str:
    """Every method with its sentence; installed ones with where they come from."""
    found = {name: kind.summary() for name, kind in METHODS.items()}
    return f"Methods:\n{listed(found | {name: str(point.value) for name, point in installed_methods().items()})}"


class Help:
    """Help in sections, from tyro's own parser: a page for most people, and a page for each group of options."""

    def __init__(self, default: Command, default_preset: str) -> None:
        parser = tyro.extras.get_parser(type(default), default=default)
        self._groups = {(group.title or "").removesuffix("options").strip(): group for group in parser._action_groups}
        self._actions = {action.option_strings[0]: action for action in parser._actions if action.option_strings}
        self._default_preset = default_preset

    @property
    def sections(self) -> list[str]:
        """What `--help SECTION` takes."""
        return ["presets", "methods", *(name for name in self._groups if name not in ("", "positional arguments"))]

    def first(self, usage: str, description: str, options: Sequence[str], examples: Mapping[str, str]) -> str:
        """What most people need, and where the rest is."""
        program, known = usage.partition(" [")[0], [self._actions[name] for name in options if name in self._actions]
        shown = {"--method NAME": f"One of {len(METHODS) + len(installed_methods())} methods (see --help methods)"}
        shown |= {_usage(action): _clause(action) for action in known}
        return "\n\n".join(
            [
                f"usage: {usage}",
                wrapped(description),
                wrapped(f"Presets: {', '.join(PRESETS)} (default {self._default_preset}), or a JSON file."),
                f"Options:\n{listed(shown)}",
                f"Examples:\n{listed({f'{program} {line}': what for line, what in examples.items()}, most=44)}",
                wrapped(f"Every option: --help-all. One section: --help SECTION, of {', '.join(self.sections)}."),
            ]
        )

    def section(self, name: str) -> str:
        """One group of options, the presets or the methods; raises `ConfigError` for another name."""
        if name == "presets":
            return presets_help(self._default_preset)
        if name == "methods":
            return methods_help()
        if name not in self.sections:
            raise ConfigError(f"--help has no section {name!r}; there are {listed_names(name, self.sections)}")
        group = self._groups[name]
        options = {_usage(action): " ".join((action.help or "").split()) for action in group._group_actions}
        return f"{wrapped(group.description or name)}\n\n{listed(options)}"


def _usage(action: argparse.Action) -> str:
    """`--seed INT`, `--stream.order STR ...`."""
    metavar = "" if action.metavar is None or action.nargs == 0 else str(action.metavar).removeprefix("{None}|")
    return f"{action.option_strings[0]} {_SEVERAL.sub(_ANY_NUMBER, metavar)}".strip()


def _clause(action: argparse.Action) -> str:
    """What an option's help says before the first semicolon, colon or end of a sentence, and its default."""
    said, _, default = " ".join((action.help or "").split()).rpartition(" (default: ")
    clause = re.split(r"[;:.] |\.$", said)[0]
    return clause if default in ("None)", "False)", ")") else f"{clause} ({default}"


def with_names(kind: type[CommandT]) -> type[CommandT]:
    """`kind` with the option --method, which `parse` takes before tyro sees the rest: for shell completion."""
    names = tuple(name.replace("_", "-") for name in (*METHODS, *installed_methods()))
    method = Annotated[Literal[names], tyro.conf.arg(name="method")]  # type: ignore[valid-type]
    return make_dataclass(kind.__name__, [("method_name", method, names[0])], bases=(kind,), frozen=True, kw_only=True)


def _with_gpu_value(arguments: Sequence[str]) -> list[str]:
    """`--cluster.use-gpu` as a switch, which it was once, and with true or false in small letters, as tyro takes it."""
    flag, off, given = "--cluster.use-gpu", "--cluster.no-use-gpu", list[str]()
    words = [word for each in arguments for word in (each.split("=", 1) if each.startswith(f"{flag}=") else [each])]
    for word, following in zip(words, [*words, "-"][1:], strict=True):
        if word == off:
            given += [flag, "False"]
        elif given and given[-1] == flag and word in ("true", "false"):
            given.append(word.title())
        else:
            given += [word, "True"] if word == flag and following.startswith("-") else [word]
    return given


def _in_full(argument: str) -> str:
    """An option of `SHORT` by its whole name, with its value if that is in the same word."""
    name, equals, value = argument.partition("=")
    return f"{SHORT.get(name, name)}{equals}{value}"


def taken(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """`arguments` without `flag VALUE` (or `flag=VALUE`), and the value, the last one of several.

    Raises `ConfigError` for a flag at the end of the line, without its value.
    """
    rest, value, left = list[str](), None, iter(arguments)
    for argument in left:
        if argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        elif argument == flag:
            value = next(left, None)
            if value is None:
                raise ConfigError(f"{flag} needs a name behind it; {flag} was the last word.")
        else:
            rest.append(argument)
    return rest, value
