"""Per-sample metrics of general suites: multiple choice with the letter looked for, and composed constraints."""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.data.constraints import constraint
from components.errors import DataError

_WHOLE_LETTER = re.compile(r"\(?([A-Z])(?:[).:](?:\s.*)?)?\.?", re.DOTALL)
_NAMED_LETTER = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-Z])\b(?!')", re.IGNORECASE)
_MARKED_LETTER = re.compile(r"(?<!\w)\(([A-Z])\)")
_FINAL_LETTER = re.compile(r"(?<![\w'])([A-Z])\s*[.)]?\s*$")


def choice_letter(reply: str) -> str | None:
    """The letter that a reply to a multiple-choice question chooses, or None.

    In this order: the reply is a letter, or begins with one and a mark ("B", "(B)", "B. a dog"); it names its answer
    ("The answer is B"); it holds just one letter in brackets; it ends with a letter. "A dog" begins with a word.
    """
    text = reply.strip()
    if found := _WHOLE_LETTER.fullmatch(text):
        return found.group(1)
    named = _NAMED_LETTER.findall(text)
    if named and named[0].isupper():
        return named[0]
    marked = set(_MARKED_LETTER.findall(text))
    if marked:
        return marked.pop() if len(marked) == 1 else None
    found = _FINAL_LETTER.search(text)
    return found.group(1) if found else None


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 when the reply chooses the right letter, or is the right option's words.

    `answers`: the letter, and after it the words of that option (more wordings are allowed). Sources: the released
    scripts of MMBench, MMMU and ScienceQA look for a letter in like ways and guess where there is none; nothing is
    guessed here.
    """
    letters = [answer for answer in answers if re.fullmatch(r"[A-Z]", answer)]
    letter = choice_letter(prediction)
    if letter is not None:
        return float(letter in letters)
    given = _plain(prediction)
    return float(bool(given) and any(given == _plain(answer) for answer in answers))


def constraints(prediction: str, answers: Sequence[str]) -> float:
    """The share of constraints that the reply fulfils; `answers` are the constraints (components.data.constraints).

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


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
