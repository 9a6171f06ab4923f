"""How the releases of general suites score a reply, to the letter: the `compat` score of a suite's rows.

Sources: MME's calculation.py; MMMU's eval_utils.py; MathVista's calculate_score.py; LLaVA's eval_science_qa.py and
convert_seed_for_submission.py; OpenCompass' rule for replies that need no language model (MMBench); CoIN's OCR-VQA.
Three differences, where the release uses something that is not available here: MMMU guesses a letter at random where
it finds none (here that is wrong); MathVista and MMBench ask a language model for the answer in a reply (here the reply
itself is read by the rule that follows). POPE's rule is part of its figures (`suite_figures`); HallusionBench is
read by a language model only and has no rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rapidfuzz.distance.Levenshtein import distance as levenshtein

from components.metrics.choice import Options, options_in

SuiteRule = Callable[[str, Sequence[str], str, str], float]  # (prediction, answers, prompt, metric) -> 0..1

_PLACE_MARKS = (",", ".", "!", "?", ";", ":", "'")
_STATED = re.compile(r"The answer is ([A-Z]).")
_COMMA_NUMBER = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE_NUMBER = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_CONCLUSIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MARKS_AS_SPACE = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def mme(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """The reply in lower case when it is yes or no, else "yes" and then "no" among its first four letters."""
    reply = prediction.strip().lower()
    start = reply if reply in ("yes", "no") else reply[:4]
    said = next((word for word in ("yes", "no") if word in start), "other")
    return float(said in [answer.lower() for answer in answers])


def mmmu(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """A choice's last letter in brackets, else the last between spaces, else the last of the options' words."""
    if metric != "choice":
        return float(_mmmu_open(prediction, answers))
    return float(_mmmu_letter(prediction, options_in(prompt)) in answers[:1])


def mathvista(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """The reply as the extracted answer: a choice is the option with the least edit distance, a number is rounded.

    Of free answers, one without decimals is a whole number (a reply's decimals are cut), others are rounded to the
    decimals of the reference, which the reader writes with the question's `precision`.
    """
    reply = prediction.strip()
    if metric == "choice":
        options = options_in(prompt) or {answers[0]: answers[-1]}
        marked = re.findall(r"\(([a-zA-Z])\)", reply)
        letter = marked[0].upper() if marked else reply
        if letter not in options:
            distances = {one: levenshtein(letter, words) for one, words in options.items()}
            letter = min(distances, key=distances.__getitem__)  # the first of equals
        return float(letter == answers[0])
    wanted = answers[0]
    if not re.fullmatch(r"-?\d+(\.\d+)?", wanted):
        return float(reply == wanted)
    try:
        value = float(reply)
        decimals = len(wanted.partition(".")[2])
        return float(int(value) == int(wanted) if not decimals else round(value, decimals) == float(wanted))
    except (ValueError, OverflowError):
        return 0.0


def scienceqa(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """LLaVA's: the reply is one of A to E, or begins with one and ". ", or says "The answer is X" exactly once."""
    letters = "ABCDE"
    if len(prediction) == 1 and prediction in letters:
        letter = prediction
    elif len(prediction) >= 3 and prediction[0] in letters and prediction[1:3] == ". ":
        letter = prediction[0]
    else:
        stated = _STATED.findall(prediction)
        letter = stated[0] if len(stated) == 1 else ""
    return float(letter == answers[0])


def letter_alone(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """LLaVA's for SEED-Bench: the reply is the letter, character by character."""
    return float(prediction == answers[0])


def mmbench(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """OpenCompass' rule before it asks a language model: just one letter among the words, else one option's words."""
    options = options_in(prompt) or {answers[0]: answers[-1]}
    if any(refusal in prediction for refusal in _REFUSALS):
        return 0.0
    words = prediction.translate(_MARKS_AS_SPACE).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) != 1:
        letters = [letter for letter, text in options.items() if text.lower() in prediction.lower()]
    return float(letters == [answers[0]])


def ocrvqa(prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float:
    """CoIN's: equal in lower case; a reply that holds "Unanswerable" is wrong."""
    return float("Unanswerable" not in prediction and prediction.lower() == answers[0].lower())


SUITE_RULES: dict[str, SuiteRule] = {
    "mme": mme,
    "mme-release": mme,
    "mmbench": mmbench,
    "seed-bench": letter_alone,
    "seed-bench-2-plus": letter_alone,
    "mmmu": mmmu,
    "mathvista": mathvista,
    "scienceqa-test": scienceqa,
    "ocr-vqa-test": ocrvqa,
}


def suite_score(suite: str, prediction: str, answers: Sequence[str], prompt: str, metric: str) -> float | None:
    """0..1: a row of a published suite as its release reads it; None where it has no rule (see above)."""
    rule = SUITE_RULES.get(suite)
    return None if rule is None or not answers else rule(prediction, answers, prompt, metric)


def _mmmu_letter(reply: str, options: Options) -> str | None:
    for mark in _PLACE_MARKS:
        reply = reply.strip(mark)
    reply = f" {reply} "
    for form in ("({})", " {} "):
        places = {letter: reply.rfind(form.format(letter)) for letter in options}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=places.__getitem__)
    if len(reply.split()) <= 5:
        return None
    places = {letter: reply.lower().rfind(words.lower()) for letter, words in options.items()}
    return max(places, key=places.__getitem__) if max(places.values(), default=-1) >= 0 else None


def _mmmu_open(reply: str, answers: Sequence[str]) -> bool:
    """One of the reply's key parts holds an answer's text, or a number of theirs rounds to an answer's two decimals."""
    wanted = [form for answer in answers for form in _mmmu_forms(answer)]
    parts = _mmmu_parts(reply)
    numbers = [number for part in parts for find in _MMMU_NUMBERS for number in find.findall(part)]
    for given in (form for text in (*parts, *numbers) for form in _mmmu_forms(text)):
        if isinstance(given, str):
            if any(isinstance(form, str) and form in given for form in wanted):
                return True
        elif given in wanted:
            return True
    return False


_MMMU_NUMBERS = (_COMMA_NUMBER, _SCIENTIFIC, _SIMPLE_NUMBER)


def _mmmu_parts(reply: str) -> list[str]:
    """Of each line the shortest text after a word that concludes; the whole reply when there is none.

    The released split at sentences looks for a capital letter in a text that is in lower case already, so lines are
    all that it ever separates. "=" concludes in the last line only.
    """
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        cues = (*_CONCLUSIONS, "=") if number == len(lines) else _CONCLUSIONS
        shortest = ""
        for tail in (line.split(cue)[-1].strip() for cue in cues if cue in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in (*_PLACE_MARKS, ":"):
            parts.append(shortest)
    return parts or [reply]


def _mmmu_forms(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
