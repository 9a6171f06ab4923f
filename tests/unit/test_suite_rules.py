"""How suites' releases read replies: naive second writings on adversarial strings, and cases by hand."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.suite import Scoring
from components.data.suites.catalogue import SUITES
from components.evaluation.predictions import Prediction
from components.evaluation.suite_figures import FIGURES, figures
from components.metrics import score
from components.metrics.released.suites import SUITE_RULES, suite_score
from tests.unit import released_rules_too as naive

QUESTION = "Who made it?\nA. Monet\nB. Georges Seurat\nC. A. Warhol\nAnswer with the letter."
OPTIONS = {"A": "Monet", "B": "Georges Seurat", "C": "A. Warhol"}
PIECES = [
    *"ABC .,()'",
    " A ",
    "(B)",
    "Monet",
    "georges seurat",
    "A. Warhol",
    "The answer is B.",
    "the",
    "by",
    "yes",
    "No",
    "no",
    "not",
]


def texts(seed: str, count: int = 3000) -> list[str]:
    chance = random.Random(seed)
    return [chance.choice(["", " "]).join(chance.choices(PIECES, k=chance.randint(0, 9))) for _ in range(count)]


def test_mme_reads_four_letters() -> None:
    for reply in [*texts("mme"), 'the image shows a sign that says "no smoking."', "Not yes", "Yes.", "no", "N o"]:
        for answer in ("yes", "no"):
            assert suite_score("mme", reply, [answer], "q", "yes_no") == naive.four_letters(reply, answer)
    assert suite_score("mme", 'a wall that says "no"', ["no"], "q", "yes_no") == 0.0
    assert score("yes_no", 'a wall that says "no"', ["no"]) == 1.0


def test_mmmu_chooses_as_released_but_never_guesses() -> None:
    seen = set()
    for reply in texts("mmmu"):
        chosen = naive.mmmu_letter(reply, OPTIONS)
        seen.add(chosen)
        for letter, words in OPTIONS.items():
            assert suite_score("mmmu", reply, [letter, words], QUESTION, "choice") == float(chosen == letter), reply
    assert seen == {None, "A", "B", "C"}


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("The value is 24.704 V", ["24.7"], 1.0),  # the released script rounds both to two decimals
        ("so it is 1,200", ["1200"], 1.0),
        ("The capital is Rome of course", ["rome"], 1.0),
        ("The capital is Paris of course", ["paris"], 0.0),  # "is " ends Paris, too, and what follows is its answer
        ("x = 5", ["5"], 1.0),
        ("y = 6, x = 5", ["6"], 0.0),
        ("y = 6\nx = 5", ["6"], 0.0),  # "=" concludes in the last line only
        ("y = 6\nx 5", ["6"], 1.0),  # nothing concludes, so the whole reply does
        ("It is a b", ["b"], 1.0),  # one letter needs a space on a side
        ("cab", ["b"], 0.0),
        ("2e3", ["2000"], 1.0),
        ("", ["5"], 0.0),
    ],
)
def test_mmmus_open_questions(reply: str, answers: list[str], expected: float) -> None:
    assert suite_score("mmmu", reply, answers, "How many?", "number") == expected


@pytest.mark.parametrize(
    ("reply", "answers", "metric", "expected"),
    [
        ("(B) whatever", ["B", "Georges Seurat"], "choice", 1.0),
        ("(b)", ["B", "Georges Seurat"], "choice", 1.0),
        ("B", ["B", "Georges Seurat"], "choice", 1.0),
        ("Seurat", ["B", "Georges Seurat"], "choice", 0.0),  # one edit nearer to Monet
        ("Georges Seurats", ["B", "Georges Seurat"], "choice", 1.0),
        ("1.24", ["1.2"], "number", 1.0),
        ("1.26", ["1.2"], "number", 0.0),
        ("3.9", ["3"], "number", 1.0),  # a whole number's decimals are cut
        ("about 3", ["3"], "number", 0.0),
        ("1e400", ["3"], "number", 0.0),
        ("[1, 2]", ["[1, 2]"], "number", 1.0),
        ("[1,2]", ["[1, 2]"], "number", 0.0),
    ],
)
def test_mathvista_rounds_the_extracted_answer(reply: str, answers: list[str], metric: str, expected: float) -> None:
    assert suite_score("mathvista", reply, answers, QUESTION, metric) == expected


def test_llavas_scienceqa() -> None:
    for reply in [*texts("science"), "A", "B. x", "The answer is B", "The answer is B.\nThe answer is B.", "C.", "F"]:
        for letter in "ABC":
            found = suite_score("scienceqa-test", reply, [letter], QUESTION, "choice")
            assert found == float(naive.llava_science(reply) == letter), reply


@pytest.mark.parametrize(
    ("reply", "right"),
    [("B", True), ("(B).", True), ("It is B!", True), ("georges seurat did", True), ("A or B", False), ("no", False)],
)
def test_mmbench_before_a_language_model(reply: str, right: bool) -> None:
    assert suite_score("mmbench", reply, ["B", "Georges Seurat"], QUESTION, "choice") == float(right)


def test_the_rest() -> None:
    assert suite_score("seed-bench", "B", ["B", "x"], QUESTION, "choice") == 1.0
    assert suite_score("seed-bench", "B.", ["B", "x"], QUESTION, "choice") == 0.0
    assert suite_score("ocr-vqa-test", "A. Writer", ["a. writer"], "q", "exact") == 1.0
    assert suite_score("ocr-vqa-test", "A. Writer.", ["a. writer"], "q", "exact") == 0.0
    assert suite_score("hallusion-bench", "yes", ["yes"], "q", "yes_no") is None
    assert suite_score("my-suite", "yes", ["yes"], "q", "yes_no") is None
    assert set(SUITE_RULES) <= set(SUITES)


@given(reply=st.text(max_size=40))
def test_any_reply_can_be_read(reply: str) -> None:
    for suite in SUITE_RULES:
        for answers, metric in ((["B", "Georges Seurat"], "choice"), (["1.5"], "number"), (["yes"], "yes_no")):
            assert suite_score(suite, reply, answers, QUESTION, metric) in (0.0, 1.0)


def test_figures_tell_the_released_reading_besides() -> None:
    """One of two right by ours, both by the release; of the row with a picture ours is right."""
    rows = [
        Prediction(after="", task="a", sample_id="a/picture/1", score=1.0, compat_score=1.0),
        Prediction(after="", task="a", sample_id="a/text/2", score=0.0, compat_score=1.0),
    ]
    found = figures("pictured", rows)
    assert found == {"score": 50.0, "with a picture": 100.0, "compat": 100.0, "compat with a picture": 100.0}
    assert "compat" not in figures("mean", [*rows, Prediction(after="", task="a", sample_id="a/text/3", score=1.0)])
    assert set(FIGURES) == set(get_args(Scoring))


NUMBERS = [
    ("4", "4", 1.0),
    ("So 7 - 3 is 4.", "4", 1.0),
    ("The answer is 0.50", "0.5", 1.0),
    ("1,200", "1200", 1.0),
    ("0.546", "0.55", 1.0),
    ("0.54", "0.50", 0.0),  # two decimals are asked
    ("[2007, 2008]", "[2007, 2008]", 1.0),
    ("between 2007 and 2008", "[2007, 2008]", 1.0),
    ("between 2008 and 2007", "[2007, 2008]", 0.0),
    ("12%", "12", 1.0),
    ("It is 12 because 3*4=12 and so on", "12", 1.0),
    ("Answer: 42 km. It took 3 hours.", "42", 1.0),
    ("The total is 10, so the answer is 7", "7", 1.0),
    ("-5", "5", 0.0),
    ("\N{MINUS SIGN}5", "-5", 1.0),
    ("three of them", "3", 1.0),
    ("2008-2009", "2009", 1.0),
    ("15", "5", 0.0),
    ("5.5", "5", 0.0),
    ("no number", "5", 0.0),
    ("It is red.", "red", 1.0),  # a word is looked for in the reply
    ("It is reddish.", "red", 0.0),
    ("The voltage is 5 V", "5 V", 1.0),
    ("9" * 5000, "5", 0.0),
]


@pytest.mark.parametrize(("reply", "answer", "expected"), NUMBERS)
def test_free_numbers(reply: str, answer: str, expected: float) -> None:
    assert score("number", reply, [answer]) == expected
    assert score("number", reply, ["something else", answer]) == expected


@given(value=st.decimals(-1000, 1000, places=4), decimals=st.integers(0, 3))
def test_a_number_in_any_sentence_rounds_to_the_answers_decimals(value: object, decimals: int) -> None:
    wanted = f"{value:.{decimals}f}"  # type: ignore[str-format]
    for form in ("{}", "The answer is {}.", "x = {}", "I counted 3 and 4, so it is {}"):
        assert score("number", form.format(value), [wanted]) == 1.0
