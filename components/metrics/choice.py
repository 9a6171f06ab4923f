"""Which option a reply to a multiple-choice question chooses, whatever its style.

A model tuned on short answers stops explaining, and one tuned on explanations starts to; neither should look like a
change of ability. So the same choice counts in every common form: the letter alone or marked, a sentence
that states it, or the option's words when no other option's words are there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

Options = Mapping[str, str]  # letter -> words, in the order of the question

_OPTION = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):])[ \t]+(\S.*?)[ \t\r]*$", re.MULTILINE)
_DECORATION = re.compile(r"[*`$#]+|\\(?:boxed|text|mathrm|mathbf)\b|[{}]|</?\w+>")
_WHOLE = re.compile(r"[\"'(\[]{0,3}([A-Za-z])[\"')\].,:;!]*")
_LEADING = re.compile(r"[(\[]?([A-Z])(?:(?:[.):\]]|\s-)(?=\s|$)|\s*\n|,\s(?![A-Z]\b))")
_LAST_LINE = re.compile(r"\n[\"'(\[]{0,3}([A-Z])[\"')\].]{0,3}$")
# "The answer is B", "Answer: (B)", "correct option is B", "I choose B"; then "B is correct".
_CUE = (
    r"(?:\banswer\b(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?|\bcorrect\s+(?:option|choice|one)\s+is"
    r"|\b(?:choose|chose|select|selected|pick|picked|go\s+with))"
)
_STATED = re.compile(
    rf"{_CUE}\s*[:\-–]?\s*(?:(?:option|choice|letter)\s+)?[\"'(\[]{{0,3}}([A-Za-z])(?![\w'’])"
    r"|(?:\b(?:option|choice)\s+)?[\"'(\[]{0,3}\b([A-Z])[\"')\]]{0,3}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b",
    re.IGNORECASE,
)
_TAIL = re.compile(rf"{_CUE}\s*[:\-–]?", re.IGNORECASE)
_MENTIONED = re.compile(
    r"\b(?:option|choice)\s+[\"'(\[]{0,3}([A-Z])(?![\w'’])(?![\"')\]]{0,3}\s+(?:is|are)\s+(?:not|wrong|in))"
)
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Z])[)\]]")
_FINAL = re.compile(r"(?<![\w'’])(?<!\bor )(?<!\band )([A-Z])\s*[.)\]\"']*\s*$")
_LONE = re.compile(r"(?<![\w'’.-])([A-Z])(?![\w'’-])")
_AFTER_LETTER = r"[^\S\n]+(?!(?i:is|because|as|since|and|or|but|for|which|with|so|the|here)\b)"
_ARTICLE = re.compile(rf"{_AFTER_LETTER}[^\W\d_A-Z]")
_SMALL_ARTICLE = re.compile(rf"{_AFTER_LETTER}\w")  # "a 7-kilogram block", "a V-shaped tail"
# What denies the option that follows: "not a dog", "can't be B", "neither (A)", "instead of option C".
_NOT = (
    r"(?:\bnot|\bcannot|n['’]t|\bno|\bneither|\bnor|\brather than|\binstead of|\bexcept(?:\s+for)?"
    r"|\b(?:all|anything|everything)\s+but)\s+(?:(?:be|choose|pick|select)\s+)?(?:an?\s+|the\s+)?"
)
_DENIED = re.compile(rf"{_NOT}$", re.IGNORECASE)
_LETTER_DENIED = re.compile(rf"{_NOT}(?:(?:option|choice|answer|letter)\s+)?[\"'(\[]{{0,3}}$", re.IGNORECASE)
# The same behind a letter.
_DENIED_BEHIND = re.compile(
    r"[\"')\]]{0,3}\s+(?:(?:is|was|are)n['’]t\b|(?:is|was|are|seems|looks)\s+(?:\w+ly\s+)?(?:not|wrong|incorrect|false)\b"
    r"|can(?:not|['’]t)\b|can\s+be\s+(?:ruled|excluded|eliminated)\b)",
    re.IGNORECASE,
)
_BEFORE = 40  # characters that are looked at for a denial
_BETWEEN_LETTERS = re.compile(r"[\s,;:/&.()\[\]\"'!]+|\band\b|\bor\b")
_SIGNS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{RIGHT SINGLE QUOTATION MARK}": "'"})

Span = tuple[int, int]


@lru_cache(maxsize=256)
def options_in(prompt: str) -> Options:
    """The options that a question lists, one a line: "A. words", "(A) words", "A) words" or "A: words".

    Lines between two options are the first one's; nothing tells what is the last one's. Of several lists the last
    counts that has more than one option; letters must follow each other from A. Empty when there are none.
    """
    lists: list[dict[str, str]] = [{}]
    before, end = "", 0
    for match in _OPTION.finditer(prompt):
        letter = match[1] or match[2]
        if letter == "A":
            lists.append({})
        if ord(letter) == ord("A") + len(lists[-1]):
            if lists[-1] and (more := prompt[end : match.start()].strip()):
                lists[-1][before] += f"\n{more}"
            lists[-1][letter] = match[3]
            before, end = letter, match.end()
    return next((found for found in reversed(lists) if len(found) > 1), lists[-1])


def chosen_letter(reply: str, options: Options) -> str | None:
    """The letter of the option that a reply chooses, or None where it chooses none or stays undecided.

    In this order: the reply is a letter; it is an option's words; its last line is a letter; it states its answer (the
    last statement counts); it begins with a letter and a mark; it holds just one letter in brackets; just one option's
    words occur in it; it ends with a letter; it holds just one letter at all. No letter is one that is part of an
    option's words ("hepatitis B"), an article ("a dog", "A dog"), or denied ("not B", "B is wrong"); several letters
    and nothing else choose none. Without `options`, every letter may be one.
    """
    text = _DECORATION.sub(" ", reply.translate(_SIGNS)).strip()
    known = options or dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "")
    whole = _WHOLE.fullmatch(text)
    if whole and (letter := whole[1].upper()) in known:
        return letter
    same = [letter for letter, words in options.items() if words and _plain(words) == _plain(text)]
    if len(same) > 1:
        same = [letter for letter in same if options[letter].strip() == reply.strip()]
    if len(same) == 1:
        return same[0]
    covered = [span for words in options.values() if len(words.split()) > 1 for span in _occurrences(words, text)]

    def letters(pattern: re.Pattern[str]) -> list[str]:
        """The letters found in the text, in order, without articles and parts of an option's words."""
        found: list[str] = []
        for match in pattern.finditer(text):
            at = next(number for number, group in enumerate(match.groups(), start=1) if group)
            letter, (start, end) = match[at], match.span(at)
            inside = any(low <= start and end <= high for low, high in covered)
            article = letter in "aAI" and (_SMALL_ARTICLE if letter == "a" else _ARTICLE).match(text, end)
            small = letter.islower() and not re.match(r"[\"')\]]{0,3}[.,;:!]*(?:\s|$)", text[end:])
            denied = _LETTER_DENIED.search(text[max(0, start - _BEFORE) : start]) or _DENIED_BEHIND.match(text, end)
            if not (inside or article or small or denied):
                found.append(letter.upper())
        return found

    if len(names := set(filter(None, _BETWEEN_LETTERS.split(text)))) > 1 and names <= known.keys():
        return None  # several letters and nothing else
    if stated := letters(_LAST_LINE) or letters(_STATED):
        return stated[-1] if stated[-1] in known else None
    cues = list(_TAIL.finditer(text))
    if cues and (named := _named(text[cues[-1].end() :], options)):
        return named
    leading = _LEADING.match(text)
    if leading and leading[1] in known and not _DENIED_BEHIND.match(text, leading.end(1)):
        return leading[1]
    if mentioned := [letter for letter in letters(_MENTIONED) if letter in known]:
        return mentioned[-1]
    if bracketed := set(letters(_BRACKETED)) & known.keys():
        return bracketed.pop() if len(bracketed) == 1 else None
    if named := _named(text, options):
        return named
    if final := [letter for letter in letters(_FINAL) if letter in known]:
        return final[0]
    lone = (set(letters(_LONE)) - {"I"}) & known.keys()
    return lone.pop() if len(lone) == 1 else None


def is_letter(answer: str) -> bool:
    """Whether an accepted answer is an option's letter, not its words."""
    return re.fullmatch(r"[A-Z]", answer) is not None


def choice(prediction: str, answers: Sequence[str], prompt: str = "") -> float:
    """1 when the reply chooses the right letter, in whatever style (`chosen_letter`).

    `answers`: the letter (or several), and after it the words of that option (more wordings are allowed). `prompt` is
    the question, whose list of options is read; without it, option's words count only when they are the whole reply.
    The released scripts of MMBench, MMMU and ScienceQA look for a letter in like ways, and guess where they find none;
    nothing is guessed here.
    """
    right = list(filter(is_letter, answers))
    options = options_in(prompt)
    letter = chosen_letter(prediction, options)
    if right and options and letter is not None:
        return float(letter in right)
    words = [answer for answer in answers if answer not in right]
    given = _plain(_DECORATION.sub(" ", prediction.translate(_SIGNS)))
    if given and len(given) > 1 and any(given == _plain(one) for one in words):
        return 1.0
    return float(letter is not None and letter in right)


def _named(text: str, options: Options) -> str | None:
    """The one option whose words occur in the text, not denied; None when several do, or none.

    Case counts only where several differ in nothing else.
    """
    spans = {letter: _occurrences(words, text) for letter, words in options.items() if words}
    every = [span for found in spans.values() for span in found]
    named = [
        letter
        for letter, found in spans.items()
        if any(not _within_longer(span, every) and not _DENIED.search(text[: span[0]].casefold()) for span in found)
    ]
    if len(named) > 1 and len({_plain(options[letter]) for letter in named}) == 1:  # "Dear Ann" and "dear Ann"
        named = [letter for letter in named if options[letter] in text]
    return named[0] if len(named) == 1 else None


def _within_longer(span: Span, others: Sequence[Span]) -> bool:
    """Whether a span is inside a longer one: "dog" in "hot dog"."""
    return any(low <= span[0] and span[1] <= high and high - low > span[1] - span[0] for low, high in others)


def _occurrences(words: str, text: str) -> list[Span]:
    """Where an option's words occur in the text as whole words; "3" is not in "3.5", "30" or "-3"."""
    return [match.span() for match in _finder(words).finditer(text)]


@lru_cache(maxsize=4096)
def _finder(words: str) -> re.Pattern[str]:
    plain = _plain(words).split()
    body = r"\s+".join(re.escape(word) for word in plain) or "(?!)"
    before = r"(?<![\w.-])(?<!\d,)" if plain and plain[0][0].isdigit() else r"(?<!\w)"
    return re.compile(rf"{before}{body}(?!\w)(?![.,]\d)", re.IGNORECASE)


def _plain(text: str) -> str:
    """Lower case, single spaces, without quotes around it, a final period, and an article in front of other words."""
    words = " ".join(text.translate(_SIGNS).casefold().split()).strip("\"'").removesuffix(".").rstrip().split(" ")
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)
