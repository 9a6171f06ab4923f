"""Whether a reply has the form its task asks for, and the answer inside a reply that lacks it.

Forgetting may be superficial (the model answers in another task's form) or essential (it no longer knows), as SEFE
names it. Scoring the answer inside a wrongly formed reply separates the two; the share of well-formed replies is
SMoLoRA's MIF. Neither paper's rules were available here: the forms and repairs below are this project's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from components.metrics.choice import chosen_letter, options_in
from components.metrics.scorers import NUMERALS, normalise, score

Form = Literal["letter", "yes_no", "number", "box", "phrase", "text"]

FREE_TEXT = ("recall", "constraints", "contains", "formula", "leading_letter", "rouge_l", "edit", "sari", "caption")
PHRASE_WORDS = 5  # a phrase may have this many words, or as many as the longest accepted answer

_DECIMAL = r"[-+]?(?:\d+(?:[.,]\d+)*|\.\d+)"
_LETTER = re.compile(r"\(?([A-Z])[).:]?")
_NUMBER = re.compile(rf"[$€£]?\s*({_DECIMAL})\s*%?\.?")
_BOX = re.compile(r"\[" + r",".join([r"\s*[-+]?\d*\.?\d+\s*"] * 4) + r"\]")
_SAID_NUMBER = re.compile(rf"(?:\b(?:is|are|was|were|answer|about|equals)|=|:)\s*[$€£]?({_DECIMAL})")
_COORDINATE = re.compile(r"(?<![\w.])[-+]?\d*\.?\d+")
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_MEANT = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_NUMBER_WORD = re.compile(rf"\b({'|'.join(NUMERALS)})\b", re.IGNORECASE)


def form_of(metric: str, answers: Sequence[str]) -> Form:
    """The form that a row asks for, inferred from its metric and accepted answers."""
    plain = [normalise(answer) for answer in answers]
    if metric in FREE_TEXT:
        return "text"
    if metric == "choice":
        return "letter"
    if metric == "iou":
        return "box"
    if metric == "yes_no" or all(answer in ("yes", "no") for answer in plain):
        return "yes_no"
    if metric == "exact" and all(re.fullmatch(r"[A-Z]\.?", answer.strip()) for answer in answers):
        return "letter"
    return "number" if all(_NUMBER.fullmatch(answer.strip()) for answer in answers) else "phrase"


def obeys(form: Form, reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply is an answer of that form and nothing else; an empty one never is."""
    text = reply.strip()
    if not text:
        return False
    match form:
        case "letter":
            return _LETTER.fullmatch(text) is not None
        case "yes_no":
            return normalise(text) in ("yes", "no")
        case "number":
            return _NUMBER.fullmatch(text) is not None
        case "box":
            return _BOX.fullmatch(text) is not None
        case "phrase":
            longest = max(PHRASE_WORDS, *(len(answer.split()) for answer in answers))
            return "\n" not in text and len(text.split()) <= longest
        case "text":
            return True


@dataclass(frozen=True, kw_only=True)
class FormRepair:
    """Finds the answer in replies to one task. `known`: all of the task's answers, the phrases to look for."""

    known: frozenset[str]

    @classmethod
    def of(cls, answers: Iterable[Sequence[str]]) -> FormRepair:
        """From every row's accepted answers."""
        return cls(known=frozenset(normalise(answer) for accepted in answers for answer in accepted) - {""})

    def score(self, metric: str, prompt: str, reply: str, answers: Sequence[str]) -> float:
        """0..1: the better of the reply's score and that of the answer found in it."""
        strict = score(metric, reply, answers, prompt)
        form = form_of(metric, answers)
        if obeys(form, reply, answers):
            return strict
        return max(strict, score(metric, self.repaired(form, prompt, reply), answers, prompt))

    def repaired(self, form: Form, prompt: str, reply: str) -> str:
        """The answer in the asked form that a malformed reply contains; the reply itself when none is found."""
        find = {"letter": _letter, "yes_no": _yes_no, "number": _number, "box": _box, "phrase": self._phrase}
        found = find[form](reply, prompt) if form in find else None
        return reply if found is None else found

    def _phrase(self, reply: str, prompt: str) -> str | None:
        """The known answer that the reply names first, in whole words; the longest of those that begin there.

        The row's own reference is not looked at: a reply that names a wrong answer before the right one stays wrong.
        """
        found = self._any_known.search(normalise(reply))
        return found.group(1) if found else None

    @cached_property
    def _any_known(self) -> re.Pattern[str]:
        longest_first = sorted(self.known, key=lambda answer: (-len(answer), answer))
        return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")


def _letter(reply: str, prompt: str) -> str | None:
    return chosen_letter(reply, options_in(prompt))


def _yes_no(reply: str, prompt: str) -> str | None:
    found = _YES_NO.search(reply)
    return _MEANT[found.group(1).lower()] if found else None


def _number(reply: str, prompt: str) -> str | None:
    """The number that the reply states, else its only one, else its only number word."""
    if said := _SAID_NUMBER.search(reply):
        return said.group(1)
    numbers = re.findall(_DECIMAL, reply)
    if numbers:
        return numbers[0] if len(set(numbers)) == 1 else None
    words = {word.lower() for word in _NUMBER_WORD.findall(reply)}
    return str(NUMERALS.index(words.pop())) if len(words) == 1 else None


def _box(reply: str, prompt: str) -> str | None:
    """The numbers of a reply that holds exactly four, whatever is between them."""
    numbers = _COORDINATE.findall(reply)
    return f"[{','.join(numbers)}]" if len(numbers) == 4 else None
