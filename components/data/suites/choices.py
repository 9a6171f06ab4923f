"""Multiple-choice questions as prompts, the same way for every suite that has them."""

from __future__ import annotations

from collections.abc import Sequence

from components.data.benchmarks.catalogue import LETTER
from components.data.benchmarks.release import LETTERS
from components.data.problems import ItemError


def lettered(question: str, options: Sequence[str], answer: int) -> tuple[str, tuple[str, ...]]:
    """The prompt (LLaVA-1.5's wording), and what is accepted: the letter, and the right option's words.

    `answer` counts from 0. Raises `ItemError` when that is not an option, or when there are too many options.
    """
    if not 0 <= answer < len(options) <= len(LETTERS):
        raise ItemError("wrong field", f"the answer must be one of 1 to {len(LETTERS)} options, it is {answer + 1}")
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join((question, *listed, LETTER)), (LETTERS[answer], *filter(None, [options[answer].strip()]))


def letter_index(letter: str) -> int:
    """The position of a letter, from 0; raises `ItemError`."""
    if len(letter) != 1 or letter not in LETTERS:
        raise ItemError("wrong field", f"the answer must be a letter up to {LETTERS[-1]}, this is {letter!r:.60}")
    return LETTERS.index(letter)
