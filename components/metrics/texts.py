"""Metrics of free text: ROUGE-L, edit ratio, SARI, and the parts of an answer. Each in 0..1, each for one row.

ROUGE-L is PyPI `rouge`'s and the edit ratio `rapidfuzz`'s, because TRACE's figures come from them. SARI follows Xu et
al. (2016) as Hugging Face's `evaluate` computes it, with mteval's 13a tokens.
"""

from __future__ import annotations

import html
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from rapidfuzz import fuzz
from rouge import Rouge

from components.metrics.choice import chosen_letter, options_in

SARI_ORDER = 4  # n-grams of up to four words
_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
LEADING_LETTER = re.compile(r"(?:Answer:\s*)?\(?([A-Z])\b")
# mteval-v13a: marks stand alone, periods and commas unless between digits, a dash after a digit.
_TOKEN_RULES = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """The F value of PyPI rouge's "rouge-l" (sentences end at periods; words count once), best over the answers.

    The answer is its hypothesis and the reply its reference, as TRACE calls it; where sentences share words in another
    order, the other way round gives another value.
    """
    return max((_rouge_l(prediction, answer) for answer in answers), default=0.0)


def edit_ratio(prediction: str, answers: Sequence[str]) -> float:
    """1 - edit distance / both lengths, where a substitution costs 2, best over the answers; for lines of code.

    The placeholders of Py150 are written out on both sides: <NUM_LIT> is 0, <STR_LIT> empty, <STR_LIT:x> is x.
    """
    given = _with_literals(prediction)
    return max((_ratio(given, _with_literals(answer)) for answer in answers), default=0.0)


def sari(prediction: str, answers: Sequence[str], prompt: str = "") -> float:
    """Of a simplification: how well it keeps, deletes and adds n-grams of `prompt`, the text it was asked to simplify.

    0 for an empty reply, where the published metric still rewards what was deleted.
    """
    if not prediction.strip() or not answers:
        return 0.0
    source, given = _tokens(prompt), _tokens(prediction)
    references = [_tokens(answer) for answer in answers]
    orders = [
        _sari_parts(
            _ngrams(source, order), _ngrams(given, order), [_ngrams(reference, order) for reference in references]
        )
        for order in range(1, SARI_ORDER + 1)
    ]
    return sum(sum(parts) for parts in orders) / (3 * SARI_ORDER)


def leading_letter(prediction: str, answers: Sequence[str], prompt: str = "") -> float:
    """1 when the reply chooses the letter that an answer begins with; what the answer says then does not count."""
    letters = {found[1] for answer in answers if (found := LEADING_LETTER.match(answer.strip()))}
    head = LEADING_LETTER.match(prediction.strip())
    letter = chosen_letter(prediction, options_in(prompt))
    if letter is None and head is not None:
        letter = head[1]
    return float(letter is not None and letter in letters)


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 when an answer occurs in the reply, in whole words; case, repeated spaces and a final period do not count."""
    given = " ".join(prediction.casefold().split())
    wanted = [" ".join(answer.casefold().split()).removesuffix(".").rstrip() for answer in answers]
    return float(bool(given) and any(_whole(one).search(given) is not None for one in wanted if one))


def formula(prediction: str, answers: Sequence[str]) -> float:
    """1 when an answer occurs in the reply with all white space removed; case counts. For formulas in LaTeX."""
    given = "".join(prediction.split())
    wanted = ["".join(answer.split()) for answer in answers]
    return float(bool(given) and any(one in given for one in wanted if one))


def _rouge_l(prediction: str, answer: str) -> float:
    if not prediction.replace(".", "").strip() or not answer.replace(".", "").strip():
        return 0.0
    # The package walks back through its table by recursion, one level a word.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 2 * (len(prediction.split()) + len(answer.split())) + 100)
    try:
        found = cast("list[dict[str, dict[str, float]]]", _rouge().get_scores(answer, prediction))  # TRACE's order
    finally:
        sys.setrecursionlimit(limit)
    return min(1.0, found[0]["rouge-l"]["f"])


@lru_cache(maxsize=1)
def _rouge() -> Rouge:
    return Rouge(metrics=["rouge-l"])


def _with_literals(code: str) -> str:
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _LITERAL.sub(lambda match: match[1], code)


def _ratio(given: str, wanted: str) -> float:
    return fuzz.ratio(given, wanted) / 100.0 if given.strip() and wanted.strip() else 0.0


def _tokens(text: str) -> list[str]:
    """The text's 13a tokens in lower case."""
    line = text.lower().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in line:
        for name in ("&quot;", "&amp;", "&lt;", "&gt;"):
            line = line.replace(name, html.unescape(name))
    line = f" {line} "
    for pattern, form in _TOKEN_RULES:
        line = pattern.sub(form, line)
    return line.split()


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + order]) for at in range(len(tokens) - order + 1))


Grams = Counter[tuple[str, ...]]


def _sari_parts(source: Grams, given: Grams, references: Sequence[Grams]) -> tuple[float, float, float]:
    """F of what was kept, precision of what was deleted, F of what was added; 1 where there was nothing to do."""
    several = len(references)
    wanted: Grams = sum(references, Counter())
    had: Grams = Counter({gram: count * several for gram, count in source.items()})
    has: Grams = Counter({gram: count * several for gram, count in given.items()})
    kept, to_keep = had & has, had & wanted
    rightly_kept = kept & wanted
    precision = sum(rightly_kept[gram] / kept[gram] for gram in rightly_kept) / len(kept) if kept else 1.0
    recall = rightly_kept.total() / to_keep.total() if to_keep else 1.0
    deleted = had - has
    rightly_deleted = deleted - wanted
    deleting = sum(rightly_deleted[gram] / deleted[gram] for gram in rightly_deleted) / len(deleted) if deleted else 1.0
    added, to_add = given.keys() - source.keys(), wanted.keys() - source.keys()
    rightly_added = len(added & wanted.keys())
    adding = _f1(
        rightly_added / len(added) if added else 1.0,
        rightly_added / len(to_add) if to_add else 1.0,
    )
    return _f1(precision, recall), deleting, adding


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision > 0 or recall > 0 else 0.0


@lru_cache(maxsize=4096)
def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")
