"""Forms of answers, and the answer inside a reply of another form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.metrics import score
from components.metrics.answer_format import Form, FormRepair, form_of, obeys

ANIMALS = FormRepair.of([["cat"], ["black cat"], ["dog", "hound"], ["No parking"]])
CHOICES = "What is it?\nA. A cat\nB. a dog\nC. a black cat\nAnswer with the option's letter from the given choices."


@pytest.mark.parametrize(
    ("metric", "answers", "form"),
    [
        ("exact", ["B"], "letter"),
        ("anls", ["B"], "phrase"),  # a document may well say B
        ("exact", ["yes"], "yes_no"),
        ("yes_no", ["Yes, it is."], "yes_no"),
        ("relaxed", ["12.5%"], "number"),
        ("exact", ["1,234"], "number"),
        ("exact", ["12", "twelve"], "phrase"),
        ("iou", ["[0.1,0.2,0.3,0.4]"], "box"),
        ("exact", ["Castle."], "phrase"),
        ("recall", ["cat, dog"], "text"),
    ],
)
def test_the_form_a_row_asks_for(metric: str, answers: list[str], form: Form) -> None:
    assert form_of(metric, answers) == form


@pytest.mark.parametrize(
    ("form", "reply", "well_formed"),
    [
        ("letter", "B", True),
        ("letter", "(B).", False),
        ("letter", "B.", True),
        ("letter", "a dog", False),
        ("yes_no", "Yes.", True),
        ("yes_no", "Yes, there is", False),
        ("number", "$ 1,200", True),
        ("number", "12 %.", True),
        ("number", "twelve", False),
        ("box", "[0.1, 0.2,.3,1]", True),
        ("box", "0.1,0.2,0.3,1", False),
        ("box", "[0.1,0.2,0.3,1] is the box", False),
        ("phrase", "a black and white cat", True),
        ("phrase", "a black and white cat there", False),
        ("phrase", "cat\ndog", False),
        ("text", "A long caption of anything at all, with words.", True),
        ("text", " ", False),
        ("phrase", "", False),
    ],
)
def test_a_reply_obeys_its_form(form: Form, reply: str, well_formed: bool) -> None:
    assert obeys(form, reply, ["cat"]) is well_formed


@pytest.mark.parametrize(
    ("form", "reply", "answer"),
    [
        ("letter", "The answer is (B) a dog", "B"),
        ("letter", "A. it is A cat", "A"),
        ("letter", "I think B", "B"),
        ("letter", "It is a black cat.", "C"),
        ("letter", "B or C", "B or C"),  # undecided: left as it is
        ("letter", "a bird", "a bird"),
        ("yes_no", "No, that is not true", "no"),
        ("yes_no", "That is true.", "yes"),
        ("yes_no", "maybe", "maybe"),
        ("number", "There are 7 cats", "7"),
        ("number", "From 3 and 4 the sum is 7.", "7"),
        ("number", "Three cats", "3"),
        ("number", "3 or 4", "3 or 4"),
        ("box", "x1=0.1 y1=0.2 x2=0.3 y2=0.4", "[0.1,0.2,0.3,0.4]"),
        ("box", "0.1, 0.2, 0.3", "0.1, 0.2, 0.3"),
        ("box", "(0.1, 0.2) to (0.3, 0.4)", "[0.1,0.2,0.3,0.4]"),
        ("phrase", "This is a Black Cat.", "black cat"),
        ("phrase", "a hound, not a cat", "hound"),
        ("phrase", "a catfish", "a catfish"),
    ],
)
def test_the_answer_in_a_malformed_reply(form: Form, reply: str, answer: str) -> None:
    assert ANIMALS.repaired(form, CHOICES, reply) == answer


def test_a_repaired_score_knows_only_what_the_reply_says_first() -> None:
    long = "In this picture I can see a {} and perhaps a {} too"
    assert ANIMALS.score("exact", "", long.format("hound", "cat"), ["dog", "hound"]) == 1.0
    assert ANIMALS.score("exact", "", long.format("cat", "hound"), ["dog", "hound"]) == 0.0
    assert ANIMALS.score("exact", "", "cat dog", ["dog"]) == 0.0  # well-formed and wrong stays wrong
    assert ANIMALS.score("recall", "", "a cat and a dog", ["cat", "dog"]) == 1.0


ROWS = st.sampled_from(
    [
        ("exact", ["B"]),
        ("exact", ["dog", "hound"]),
        ("relaxed", ["12.5"]),
        ("iou", ["[0.1,0.2,0.3,0.4]"]),
        ("yes_no", ["no"]),
        ("anls", ["No parking"]),
        ("recall", ["cat", "dog"]),
    ]
)
REPLIES = st.text(max_size=60) | st.lists(
    st.sampled_from(["the", "answer", "is", "B", "A.", "cat", "dog", "no", "12.5", "0.1", "[", "]", ",", "\n"]),
    max_size=9,
).map(" ".join)


@given(row=ROWS, reply=REPLIES)
def test_repair_never_lowers_a_score_and_leaves_the_well_formed_alone(row: tuple[str, list[str]], reply: str) -> None:
    metric, answers = row
    strict, repaired = score(metric, reply, answers), ANIMALS.score(metric, CHOICES, reply, answers)
    assert strict <= repaired <= 1.0
    if obeys(form_of(metric, answers), reply, answers):
        assert repaired == strict


@given(row=ROWS)
def test_a_reference_has_its_own_form(row: tuple[str, list[str]]) -> None:
    metric, answers = row
    assert all(obeys(form_of(metric, answers), answer, answers) for answer in answers)
