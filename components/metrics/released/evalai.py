"""VQA soft accuracy with ten human answers, as TextVQA's and VQAv2's evaluation servers compute it.

Both sides pass one answer processor (lower case, punctuation, number words, articles, contractions) and are then
compared as text. The rules here are those of the processor that Pythia/MMF, LLaVA and CoIN share, oddities included;
the comments name them, because a published figure depends on each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NUM_ANSWERS = 10
_FULL_SCORE = 3  # so many agreeing people make an answer entirely right

_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'  # commas and question marks are gone before
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the released code passes a flag of this value where `re` expects a count
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}
# Words whose apostrophes are restored when exactly one is missing. The released list lacks she'd, he'll and others.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()  # noqa: SIM905  (a hundred quoted words would be harder to read)


def _misspellings(word: str) -> list[str]:
    """The word with each of its apostrophes left out, one at a time."""
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_RESTORED = {wrong: word for word in _CONTRACTIONS for wrong in _misspellings(word)}
_RESTORED["somebody'd"] = "somebodyd"  # the released list has this one the wrong way round


def processed(answer: str) -> str:
    """An answer in the form that soft accuracy compares; may be empty (for "the", say).

    "The dog's 2 bowls." becomes "dog 's 2 bowls", "ice-cream, sir" "ice cream sir", "dont" "don't", "None" "0".
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark that touches a space anywhere in the text vanishes everywhere in it; any other becomes a space."""
    touching = {mark for mark in _PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in touching else " " for mark in _PUNCTUATION})
    return _PERIOD.sub("", text, count=_MOST_PERIODS)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """0..1: the mean over the ten ways to leave one person out of min(1, agreeing others / 3).

    Needs exactly `NUM_ANSWERS` answers. 1, 2, 3, 4 agreeing people give 0.3, 0.6, 0.9, 1.
    """
    if len(answers) != NUM_ANSWERS:
        raise ValueError(f"Soft accuracy needs {NUM_ANSWERS} answers, {len(answers)} were given.")
    given = processed(prediction)
    agrees = [processed(answer) == given for answer in answers]
    return sum(min(1.0, (sum(agrees) - own) / _FULL_SCORE) for own in agrees) / NUM_ANSWERS
