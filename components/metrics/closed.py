"""The options of a row whose answer is one of a few: a list in its question, letters that it names, yes and no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from components.metrics.choice import is_letter, options_in
from components.metrics.scorers import normalise
from components.metrics.texts import LEADING_LETTER

PAIRS = (("yes", "no"), ("true", "false"))
_NAMED = re.compile(  # "A, B, C or D", but not of "A, B or AB"
    r"(?<![\w.])[A-Z](?:(?:, ?| or | and |, or |, and )[A-Z])+(?![\w'’])(?!,? (?:or|and) [A-Z]{2})"
)
_FIRST_WORD = re.compile(r"\w+")


def options_of(metric: str, question: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The texts of which one is the answer, at least two, in the order of the question; empty for an open question.

    They are written as the row's first accepted answer is: letters where it is a letter, the options' words where it is
    one option's words, and yes and no (or true and false) in its case. A list has one option a line (`options_in`).
    Where no option is an accepted answer, the question counts as open.
    """
    first = answers[0].strip() if answers else ""
    listed = options_in(question)
    letter = _letter(metric, first)
    if len(listed) > 1:
        if letter in listed:
            return tuple(listed)
        words = tuple(listed.values())
        # Options of the same words could not be told apart.
        known = {normalise(option) for option in words}
        return words if normalise(first) in known and len(known) == len(words) else ()
    letters = _letters_named(question)
    if letter in letters:
        return letters
    return _pair(metric, first, answers)


def _letter(metric: str, answer: str) -> str | None:
    """The letter that an accepted answer is, or begins with where the metric looks at no more."""
    if metric == "leading_letter":
        head = LEADING_LETTER.match(answer)
        return None if head is None else head[1]
    bare = answer.removesuffix(".")
    return bare if is_letter(bare) else None


@lru_cache(maxsize=256)
def _letters_named(question: str) -> tuple[str, ...]:
    """Letters from A that a sentence names in a row; the last such sentence counts."""
    for match in reversed(list(_NAMED.finditer(question))):
        letters = tuple(re.findall(r"[A-Z]", match[0]))
        if letters == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]):
            return letters
    return ()


def _pair(metric: str, first: str, answers: Sequence[str]) -> tuple[str, ...]:
    found = _FIRST_WORD.search(first)
    if found is None:
        return ()
    word = found[0]
    for pair in PAIRS:
        whole = all(normalise(answer) in pair for answer in answers)
        if (whole or (metric == "yes_no" and pair == PAIRS[0])) and word.casefold() in pair:
            return tuple(map(str.upper if word.isupper() else str.title if word[0].isupper() else str.lower, pair))
    return ()
