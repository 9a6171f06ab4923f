"""Constraints on a reply that a program can check: length, case, beginning and end, words, items, lists, order.

Written as text, "NAME: VALUE", so that a row of metric "constraints" holds them as its accepted answers, one each. A
row composes several of them, as MIA-Bench (2407.01509) and SIFo (2406.19999) do; those have a language model judge the
reply, while every check here is a pure function, as in IFEval (2311.07911), from which the two figures come as well:
the share of fulfilled constraints, and the share of replies that fulfil all of theirs. The checks are our own.

Words are runs of letters, digits and apostrophes. Words are compared without regard to case, so that a reply in
capitals can still begin with "The".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from components.core.errors import DataError

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_ORDER = re.compile(r"\s*>\s*")


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One constraint; raises `DataError` for an unknown name or a value that it cannot have."""

    name: str
    value: str

    def __post_init__(self) -> None:
        if self.name not in _CHECKS:
            raise DataError(f"there is no constraint {self.name!r}; allowed are {', '.join(_CHECKS)}.")
        if self.name in _COUNTS and not self.value.isdecimal():
            raise DataError(f"the constraint {self.name} needs a whole number, given: {self.value!r}.")
        if self.name == "case" and self.value not in ("upper", "lower"):
            raise DataError(f"the constraint case needs upper or lower, given: {self.value!r}.")
        phrases = _ORDER.split(self.value) if self.name == "order" else [self.value]
        if self.name in _TEXTS and not all(map(words, phrases)):
            raise DataError(f"the constraint {self.name} needs words, given: {self.value!r}.")

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"

    def fulfilled(self, reply: str) -> bool:
        """Whether a reply meets it; an empty one meets none."""
        return bool(reply.strip()) and _CHECKS[self.name](reply.strip(), self.value)


def constraint(text: str) -> Constraint:
    """From "NAME: VALUE"; raises `DataError`."""
    name, _, value = text.partition(":")
    return Constraint(name=name.strip(), value=value.strip())


def constraints(prediction: str, answers: Sequence[str]) -> float:
    """The share of constraints that the reply fulfils; each of `answers` is a constraint as text.

    One that cannot be read counts as not fulfilled; `check_answers` finds it early.
    """
    if not prediction.strip() or not answers:
        return 0.0
    return sum(_fulfilled(prediction, text) for text in answers) / len(answers)


def _fulfilled(prediction: str, text: str) -> bool:
    try:
        return constraint(text).fulfilled(prediction)
    except DataError:
        return False


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.casefold())


def place_of(phrase: str, text: str) -> int | None:
    """Index of the word at which a phrase of whole words first begins in a text; None where it does not occur."""
    wanted, given = words(phrase), words(text)
    places = range(len(given) - len(wanted) + 1)
    return next((place for place in places if given[place : place + len(wanted)] == wanted), None)


def _case(reply: str, value: str) -> bool:
    letters = [letter for letter in reply if letter.isalpha()]
    return bool(letters) and reply == (reply.upper() if value == "upper" else reply.lower())


def _starts_with(reply: str, value: str) -> bool:
    wanted = words(value)
    return words(reply)[: len(wanted)] == wanted


def _ends_with(reply: str, value: str) -> bool:
    wanted = words(value)
    return words(reply)[-len(wanted) :] == wanted


def _json_list(reply: str, value: str) -> bool:
    """A JSON list of that many entries and nothing else."""
    try:
        found = json.loads(reply)
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(found, list) and len(found) == int(value)


def _order(reply: str, value: str) -> bool:
    """All the phrases occur, each first one after that of the phrase before it."""
    places = [place_of(phrase, reply) for phrase in _ORDER.split(value)]
    known = [place for place in places if place is not None]
    return len(known) == len(places) and all(first < second for first, second in pairwise(known))


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "min_words": lambda reply, value: len(words(reply)) >= int(value),
    "max_words": lambda reply, value: len(words(reply)) <= int(value),
    "sentences": lambda reply, value: len(_SENTENCE_END.findall(reply)) == int(value),
    "items": lambda reply, value: len(_ITEM.findall(reply)) == int(value),
    "json_list": _json_list,
    "case": _case,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "include": lambda reply, value: place_of(value, reply) is not None,
    "avoid": lambda reply, value: place_of(value, reply) is None,
    "order": _order,
}
_COUNTS = ("min_words", "max_words", "sentences", "items", "json_list")
_TEXTS = ("starts_with", "ends_with", "include", "avoid", "order")
NAMES = tuple(_CHECKS)
