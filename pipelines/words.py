"""What tyro cannot read on a command line, as one sentence.

Light on purpose: it imports tyro only when it is asked for something.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from components.core.errors import ConfigError

OptionsT = TypeVar("OptionsT")
_NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}  # by tyro's word for them
_NO_NUMBER = re.compile(r"(?:base 10|to float): (.*)")  # how a line of int() and float() ends: with what was given


@contextmanager
def in_sentences(called: str) -> Iterator[None]:
    """Inside, what tyro refuses raises `ConfigError`, one sentence.

    `called`: the command as the user called it.
    """
    # tyro does not promise this hook. Where it is gone, or its events have changed, tyro prints its own box and exits.
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return

    def refuse(event: Any) -> None:  # Any: tyro's events, which differ by version
        with suppress(AttributeError):
            if said := _refused(type(event).__name__, event):
                raise ConfigError(f"{said}; `{called} --help-all` says what there is.")

    with on_parse_error(refuse):
        yield


def _refused(kind: str, event: Any) -> str | None:
    """None for what tyro may say itself."""
    if kind == "MissingArgs":
        return f"{_listed([_name(each.arg) for each in event.missing_arguments])} must be given"
    if kind == "InvalidChoice":
        return f"{_name(event.argument)} is {event.value!r:.200}, and can be {_listed(event.choices, 'or')}"
    if kind == "BadValue" and event.reason == "too_few_values":
        return f"{_name(event.argument)} needs a value behind it"
    if kind == "InstantiationFailure" and event.argument is not None:
        return _no_value(event.argument, event.message)
    return None


def _no_value(argument: Any, message: str) -> str:
    """`--seed is '1.5'; give a whole number`; where no number is wanted, tyro's `message`."""
    wanted = _NUMBERS.get(str(argument.lowered.metavar).removeprefix("{None}|"))
    given = _NO_NUMBER.search(message)
    if wanted is None or given is None:
        return f"{_name(argument)}: {' '.join(message.split()):.300}"
    return f"{_name(argument)} is {given[1]:.200}; give {wanted}"


def _name(argument: Any) -> str:
    """`--seed`, or `RUN` of a word that needs no option before it."""
    if argument.is_positional():
        return str(argument.field.intern_name).upper().replace("_", "-")
    return str(argument.lowered.name_or_flags[0])


def _listed(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def understood(options: OptionsT, unknown: Sequence[str], *, called: str) -> OptionsT:
    """`options`, which tyro read from a command line, where it left no word over.

    Raises `ConfigError` for the first word in `unknown`.
    """
    if not unknown:
        return options
    import tyro

    from components.core.options import suggest

    actions = tyro.extras.get_parser(type(options), default=options)._actions
    known = [name for action in actions for name in action.option_strings]
    word = unknown[0].partition("=")[0]
    if word.startswith("-"):
        same_end = [name for name in known if name.rpartition(".")[2] == word.lstrip("-")]
        meant = f" Did you mean {' or '.join(same_end)}?" if same_end else suggest(word, known)
        raise ConfigError(f"{called} has no option {word}; `{called} --help-all` shows all that it has.{meant}")
    is_place = "--storage" in known and ("/" in unknown[0] or Path(unknown[0]).is_dir())
    storage = f" A storage is given as --storage {unknown[0]}." if is_place else ""
    raise ConfigError(
        f"{called} does not know what {unknown[0]!r} is for; `{called} --help` shows what it takes.{storage}"
    )
