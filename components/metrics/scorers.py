"""Per-sample metrics: pure functions `(prediction, answers) -> score` in 0..1, and the table that names them.

The best of several accepted answers counts (except for `recall` and `constraints`, whose answers are lists to be
fulfilled). An empty prediction is always 0. Averages over samples, times 100, are the cells of the score matrix.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from rapidfuzz.distance.Levenshtein import distance as levenshtein

from components.core.errors import ConfigError, DataError
from components.metrics.captions import caption
from components.metrics.choice import choice, is_letter
from components.metrics.constraints import constraint, constraints
from components.metrics.texts import LEADING_LETTER, contains, edit_ratio, formula, leading_letter, rouge_l, sari

Scorer = Callable[[str, Sequence[str]], float]
Box = tuple[float, float, float, float]

RELAXED_TOLERANCE = 0.05  # ChartQA: a number may be off by 5 % of the reference
ANLS_THRESHOLD = 0.5  # DocVQA: at this normalised distance or above, an answer is wrong
IOU_THRESHOLD = 0.5  # grounding (REC): overlap must exceed it

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d{1,3})?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
_DECIMAL = r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_BOX = re.compile(r"\[" + ",".join([_DECIMAL] * 4) + r"\]")
_WORD = re.compile(r"\w+")
_FREE_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<!\d)[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\w))?|\.\d+)(?![\d])"
)
NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER_CUE = re.compile(
    r"\b(?:answer|result|total|value)\b(?:\s+(?:is|are|was|equals))?\s*[:=]?|=|\bequals\b", re.IGNORECASE
)


def normalise(text: str) -> str:
    """Lower case, single spaces, no final period, one form of each character: what `exact` compares.

    Tokenizers such as Qwen's write "A" with a ring as one character, whichever way the answer was written (NFC).
    """
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split()).removesuffix(".").rstrip()


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 when the normalised prediction equals a normalised answer."""
    given = normalise(prediction)
    return float(bool(given) and any(given == normalise(answer) for answer in answers))


def relaxed(prediction: str, answers: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy: numbers within 5 % of the reference, everything else exact.

    "1,234" is 1234. A percent sign leaves the scale open, so "12%" is right for "12" and for "0.12". A reference
    of 0 must be met exactly. Years are numbers too, as in the published metric.
    """
    if exact(prediction, answers):
        return 1.0
    given = _number_readings(prediction)
    targets = [target for answer in answers for target in _number_readings(answer)]
    return float(any(abs(value - target) <= RELAXED_TOLERANCE * abs(target) for value in given for target in targets))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one sample: 1 - distance / longer length, 0 below one half.

    Best over the answers; case and repeated spaces do not count. Source: the DocVQA / ST-VQA challenge metric.
    """
    given = " ".join(prediction.casefold().split())
    return max((_similarity(given, " ".join(answer.casefold().split())) for answer in answers), default=0.0)


def iou(prediction: str, answers: Sequence[str]) -> float:
    """1 when the first box "[x1,y1,x2,y2]" in the prediction overlaps an answer's box by more than one half.

    Text without a valid box (x1 < x2, y1 < y2) scores 0, on either side; `check_answers` finds such references early.
    """
    given = parse_box(prediction)
    targets = [box for box in map(parse_box, answers) if box is not None]
    return float(given is not None and any(box_iou(given, target) > IOU_THRESHOLD for target in targets))


def yes_no(prediction: str, answers: Sequence[str]) -> float:
    """1 when the first "yes" or "no" of the prediction is the first one of an answer; no such word scores 0."""
    given = _first_yes_no(prediction)
    return float(given is not None and any(given == _first_yes_no(answer) for answer in answers))


def recall(prediction: str, answers: Sequence[str]) -> float:
    """Share of the named objects that the prediction names, as whole words; a plural -s or -es is allowed.

    `answers` list the objects: one each, or several in one answer with commas between them.
    """
    given = _words(prediction)
    objects = {words for answer in answers for name in answer.split(",") if (words := tuple(_words(name)))}
    if not objects:
        return 0.0
    return sum(_names(given, words) for words in objects) / len(objects)


def number(prediction: str, answers: Sequence[str]) -> float:
    """1 when the number that the reply gives equals an answer, rounded to the answer's decimals.

    The reply's number is what follows its last "answer is", "=" or the like, else its last number: "So 7 - 3 is 4." is
    4. A reply without digits may use words up to twelve. "0.50" for "0.5", "1,200" for "1200" and "12%" for "12" are
    right. An answer that is a list of numbers must be met by as many numbers in this order; any other as in `contains`.
    """
    return float(any(_gives_number(prediction, answer) for answer in answers))


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "relaxed": relaxed,
    "anls": anls,
    "iou": iou,
    "yes_no": yes_no,
    "recall": recall,
    "choice": choice,
    "constraints": constraints,
    "number": number,
    "contains": contains,
    "formula": formula,
    "leading_letter": leading_letter,
    "rouge_l": rouge_l,
    "edit": edit_ratio,
    "sari": sari,
    "caption": caption,
}
# Metrics that look at the question, too: its options, or the text that was to be simplified.
WITH_QUESTION: dict[str, Callable[[str, Sequence[str], str], float]] = {
    "choice": choice,
    "leading_letter": leading_letter,
    "sari": sari,
}


def score(metric: str, prediction: str, answers: Sequence[str], prompt: str = "") -> float:
    """0..1: one prediction under the metric named in its row; raises `ConfigError` for an unknown one.

    `prompt` is the row's instruction; without it, metrics of `WITH_QUESTION` know less than they could.
    """
    if metric in WITH_QUESTION:
        return WITH_QUESTION[metric](prediction, answers, prompt)
    return scorer(metric)(prediction, answers)


def scorer(metric: str) -> Scorer:
    """The function behind a metric's name; raises `ConfigError` for an unknown one."""
    if metric not in SCORERS:
        raise ConfigError(f"There is no metric {metric!r}; allowed are {', '.join(SCORERS)}.")
    return SCORERS[metric]


_FREE_TEXT = ("rouge_l", "edit", "sari", "caption")  # any text can be met, and scoring it takes milliseconds
_NEEDS = {  # what an answer must hold, where that is more than a text
    "iou": "a box '[x1,y1,x2,y2]' with x1 < x2 and y1 < y2",
    "yes_no": "'yes' or 'no'",
    "choice": "the capital letter of an option",
    "leading_letter": "a capital letter at its beginning",
    "recall": "the name of an object",
}


def check_answers(metric: str, answers: Sequence[str]) -> None:
    """Raise `DataError` unless a reply in the form that the metric asks for could score on these accepted answers.

    One of several is enough, except for `constraints`, each of which must be readable. Raises `ConfigError` for an
    unknown metric.
    """
    if metric == "constraints":
        for answer in answers:
            constraint(answer)
    if not any(_can_be_met(metric, answer) for answer in answers):
        needs = _NEEDS.get(metric, "a text that is not empty")
        raise DataError(f"the metric {metric} needs {needs} as an answer, given: {', '.join(map(repr, answers))}.")


def _can_be_met(metric: str, answer: str) -> bool:
    """Whether some reply scores on this answer alone; for most metrics the answer itself does, if any does."""
    own = scorer(metric)
    if metric == "choice":
        return is_letter(answer)  # an option's words are accepted too, but only beside its letter
    if metric == "leading_letter":
        return LEADING_LETTER.match(answer.strip()) is not None
    if metric == "constraints" or metric in _FREE_TEXT:
        return bool(answer.strip())
    return own(answer, [answer]) > 0.0


def parse_box(text: str) -> Box | None:
    """The first "[x1,y1,x2,y2]" in a text, or None when there is none or it has no area."""
    match = _BOX.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = (float(group) for group in match.groups())
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 and all(map(math.isfinite, (x1, y1, x2, y2))) else None


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2) in the same units; both need an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    # Boxes far from the unit square can overflow to inf or underflow to 0; those have no meaningful overlap.
    union = areas - overlap
    return overlap / union if math.isfinite(union) and union > 0 else 0.0


def _similarity(given: str, target: str) -> float:
    if not given or not target:
        return 0.0
    distance = levenshtein(given, target) / max(len(given), len(target))
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def _number_readings(text: str) -> list[float]:
    """The values a text may stand for: none, one, or two when a percent sign leaves the scale open."""
    text = normalise(text).replace("\N{MINUS SIGN}", "-")
    percent = text.endswith("%")
    text = text.removesuffix("%").rstrip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if not _NUMBER.fullmatch(text):
        return []
    value = float(text)
    if not math.isfinite(value):
        return []
    return [value, value / 100] if percent else [value]


def _gives_number(reply: str, answer: str) -> bool:
    wanted = _FREE_NUMBER.findall(answer.replace("\N{MINUS SIGN}", "-"))
    if not wanted or re.sub(r"[\s\[\](),%$€£+-]", "", _FREE_NUMBER.sub("", answer)):
        return bool(contains(reply, [answer]))
    text = reply.replace("\N{MINUS SIGN}", "-")
    found = [(match.start(), match[0]) for match in _FREE_NUMBER.finditer(text)]
    if found:
        cues = [match.end() for match in _NUMBER_CUE.finditer(text) if match.end() <= found[-1][0]]
        after = [word for start, word in found if start >= cues[-1]] if cues else []
        given = after[: len(wanted)] if after else [word for _, word in found[-len(wanted) :]]
    else:
        given = [str(NUMERALS.index(word)) for word in _words(text) if word in NUMERALS][: len(wanted)]
    return len(given) == len(wanted) and all(map(_rounds_to, given, wanted))


def _rounds_to(given: str, wanted: str) -> bool:
    target = wanted.replace(",", "")
    decimals = len(target.partition(".")[2])
    try:
        return round(Decimal(given.replace(",", "")), decimals) == Decimal(target)
    except InvalidOperation:  # of absurd length
        return given == wanted


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _first_yes_no(text: str) -> str | None:
    return next((word for word in _words(text) if word in ("yes", "no")), None)


def _names(given: list[str], words: tuple[str, ...]) -> bool:
    """Whether `words` occur in a row in `given`; the last one may carry a plural ending on either side."""
    *head, last = words
    endings = {last, last + "s", last + "es", last.removesuffix("s"), last.removesuffix("es")} - {""}
    size = len(words)
    return any(
        given[at : at + size - 1] == head and given[at + size - 1] in endings for at in range(len(given) - size + 1)
    )
