"""Per-sample metrics, by cases and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import ConfigError, DataError
from components.data.formats.items import require_scorable
from components.data.problems import ItemError
from components.metrics import SCORERS, check_answers, score
from components.metrics.scorers import box_iou, levenshtein, parse_box

TEXT = st.text(max_size=30)
COORDINATE = st.integers(0, 100).map(lambda value: value / 100)

CASES = [
    ("exact", "Blue", ["blue"], 1.0),
    ("exact", "  dark \n blue. ", ["Dark blue"], 1.0),
    ("exact", "dark blue", ["blue"], 0.0),
    ("exact", "B", ["A", "B."], 1.0),
    ("number", "1.5e3", ["1500"], 1.0),
    ("number", "1.5e3", ["1.5"], 0.0),
    ("number", "It is 2E-2.", ["0.02"], 1.0),
    ("number", "3em", ["3"], 1.0),
    ("exact", ".", ["."], 0.0),  # nothing is left to compare
    ("relaxed", "104.9", ["100"], 1.0),
    ("relaxed", "105.1", ["100"], 0.0),
    ("relaxed", "95.1", ["100"], 1.0),
    ("relaxed", "94.9", ["100"], 0.0),
    ("relaxed", "1,234", ["1234"], 1.0),
    ("relaxed", "1,23", ["123"], 0.0),  # not a thousands separator
    ("relaxed", "12%", ["12"], 1.0),
    ("relaxed", "12 %", ["0.12"], 1.0),
    ("relaxed", "12", ["12.0%"], 1.0),
    ("relaxed", "-5", ["5"], 0.0),
    ("relaxed", "\N{MINUS SIGN}5", ["-5.0"], 1.0),
    ("relaxed", "0", ["0.0"], 1.0),
    ("relaxed", "0.001", ["0"], 0.0),
    ("relaxed", "Red.", ["red"], 1.0),
    ("relaxed", "red", ["reds"], 0.0),
    ("relaxed", "1e999", ["1e999"], 1.0),  # equal text, though not a finite number
    ("relaxed", "nan", ["1"], 0.0),
    ("anls", "Paris", ["paris"], 1.0),
    ("anls", "Pariss", ["paris"], 1 - 1 / 6),
    ("anls", "abcd", ["abxy"], 0.0),  # distance exactly one half
    ("anls", "abcd", ["abcx", "abcd"], 1.0),
    ("iou", "[0.00,0.00,0.50,0.50]", ["[0.00,0.00,0.50,0.50]"], 1.0),
    ("iou", "The box is [0.0, 0.0, 0.5, 0.5].", ["[0.00,0.00,0.50,0.60]"], 1.0),
    ("iou", "[0,0,1,0.5]", ["[0,0,1,1]"], 0.0),  # exactly one half
    ("iou", "[0.5,0.5,0.1,0.1]", ["[0.1,0.1,0.5,0.5]"], 0.0),  # no area
    ("iou", "0,0,1,1", ["[0,0,1,1]"], 0.0),
    ("yes_no", "Yes, it is.", ["yes"], 1.0),
    ("yes_no", "no", ["Yes"], 0.0),
    ("yes_no", "I cannot say", ["no"], 0.0),
    ("yes_no", "nothing", ["no"], 0.0),
    ("recall", "A dog and two cats", ["cat", "dog"], 1.0),
    ("recall", "a dog", ["cat", "dog"], 0.5),
    ("recall", "a dog", ["cat, dog, hot dog, tree"], 0.25),
    ("recall", "catalogue", ["cat"], 0.0),
    ("recall", "red hearts, hot dog", ["red heart", "hot dog", "hot dog"], 1.0),
    ("choice", "B", ["B", "a dog"], 1.0),
    ("choice", "(B)", ["B"], 1.0),
    ("choice", "B. A dog, not a cat.", ["B"], 1.0),
    ("choice", "The answer is B, as A is blue.", ["B"], 1.0),
    ("choice", "I choose (C) here.", ["C"], 1.0),
    ("choice", "Either (A) or (C).", ["C"], 0.0),  # no choice
    ("choice", "It must be D.", ["D"], 1.0),
    ("choice", "A dog", ["B", "a dog"], 1.0),  # an article and not the letter
    ("choice", "A dog", ["A", "a cat"], 0.0),
    ("choice", "b", ["B", "a dog"], 1.0),
    ("choice", "an answer a child gives", ["A"], 0.0),
    ("choice", "C", ["B", "C"], 1.0),  # two letters are right
    ("constraints", "The cat sat.", ["starts_with: the", "max_words: 2", "include: cat", "avoid: dog"], 0.75),
    ("constraints", "anything", ["rhymes: yes"], 0.0),  # no such constraint
    ("recall", "boxes", ["box"], 1.0),
    ("recall", "box", ["boxes"], 1.0),
]


@pytest.mark.parametrize(("metric", "prediction", "answers", "expected"), CASES)
def test_cases(metric: str, prediction: str, answers: list[str], expected: float) -> None:
    assert score(metric, prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize("metric", SCORERS)
@settings(deadline=None)  # a garbage collection may fall into one example
@given(prediction=TEXT, answers=st.lists(TEXT, max_size=3))
def test_any_text_scores_between_0_and_1(metric: str, prediction: str, answers: list[str]) -> None:
    value = score(metric, prediction, answers)
    assert isinstance(value, float)
    assert 0.0 <= value <= 1.0
    assert score(metric, "", answers) == score(metric, " \n", answers) == score(metric, prediction, []) == 0.0


@pytest.mark.parametrize("metric", ["exact", "relaxed", "anls"])
@given(answer=st.text(alphabet="abcXYZ 019%-,", min_size=1).filter(lambda text: text.strip() != ""))
def test_the_answer_itself_is_right(metric: str, answer: str) -> None:
    assert score(metric, answer, ["something else", answer]) == 1.0


@given(value=st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-3), share=st.floats(0, 0.2))
def test_relaxed_means_5_percent(value: float, share: float) -> None:
    if abs(share - 0.05) > 1e-6:
        assert score("relaxed", f"{value * (1 + share):.12f}", [f"{value:.12f}"]) == float(share < 0.05)


@given(x1=COORDINATE, y1=COORDINATE, x2=COORDINATE, y2=COORDINATE)
def test_boxes_round_trip(x1: float, y1: float, x2: float, y2: float) -> None:
    text = f"[{x1:.2f},{y1:.2f},{x2:.2f},{y2:.2f}]"
    if x1 < x2 and y1 < y2:
        assert parse_box(text) == (x1, y1, x2, y2)
        assert score("iou", text, [text]) == 1.0
        assert box_iou((x1, y1, x2, y2), (x1, y1, x2, y2)) == pytest.approx(1.0)
    else:
        assert parse_box(text) is None


def test_box_iou_by_hand() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0


@given(first=TEXT, second=TEXT, third=TEXT)
def test_levenshtein_is_a_distance(first: str, second: str, third: str) -> None:
    assert levenshtein(first, first) == 0
    assert levenshtein(first, second) == levenshtein(second, first)
    assert levenshtein(first, third) <= levenshtein(first, second) + levenshtein(second, third)
    assert levenshtein("kitten", "sitting") == 3


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="no metric 'bleu'; allowed are exact, relaxed"):
        score("bleu", "a", ["a"])


@pytest.mark.parametrize(
    ("metric", "answers"),
    [
        ("exact", []),
        ("exact", [""]),
        ("exact", [" "]),
        ("exact", ["."]),  # nothing is left to compare
        ("recall", [", ,"]),
        ("iou", ["[0,0,0,1]", "x"]),
        ("yes_no", ["maybe"]),
        ("choice", ["a"]),
        ("choice", ["a dog"]),  # its letter is missing, and most replies are letters
        ("leading_letter", ["the first"]),
        ("constraints", []),
        ("constraints", ["max_words: few"]),
        ("constraints", ["include: x", "case: title"]),
    ],
)
def test_references_that_cannot_score(metric: str, answers: list[str]) -> None:
    with pytest.raises(DataError):
        check_answers(metric, answers)
    assert metric in ("choice", "constraints") or all(score(metric, one, answers) == 0.0 for one in answers)
    with pytest.raises(ItemError, match=r"metric|constraint"):
        require_scorable(metric, tuple(answers))


@pytest.mark.parametrize(
    ("metric", "answers"),
    [
        ("exact", ["a"]),
        ("exact", ["", "a"]),
        ("iou", ["[0,0,1,1]"]),
        ("iou", ["[-0.1,0,1,1]"]),
        ("iou", ["[ +0.1, 0.2, 0.5, 0.6 ]"]),
        ("yes_no", ["Yes."]),
        ("choice", ["B", "a dog"]),
        ("leading_letter", ["(B) because"]),
        ("sari", ["short"]),
        ("caption", ["a dog"]),
    ],
)
def test_references_that_can_score(metric: str, answers: list[str]) -> None:
    check_answers(metric, answers)
    require_scorable(metric, tuple(answers))
    assert max(score(metric, one, answers, "long") for one in answers) == 1.0


def test_an_accented_letter_is_one_character_or_two() -> None:
    """A tokenizer that normalises (Qwen's: NFC) cannot reply in the answer's own bytes; both are the same word."""
    assert score("exact", "\u00c5ngstr\u00f6m", ["A\u030angstro\u0308m"]) == 1.0
    assert score("exact", "Angstrom", ["A\u030angstro\u0308m"]) == 0.0
