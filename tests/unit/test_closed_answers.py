"""Which rows have options, and how these are written: by the question's own list, letters or words."""

from __future__ import annotations

import pytest

from components.metrics.closed import options_of

LIST = "What is it?\nA. a dog\nB. Cats\nC. 12\nReply with the letter of the right choice."


@pytest.mark.parametrize(
    ("metric", "question", "answers", "options"),
    [
        ("exact", LIST, ["B"], ("A", "B", "C")),
        ("choice", LIST, ["B", "Cats"], ("A", "B", "C")),
        ("leading_letter", LIST, ["C. because there are 12"], ("A", "B", "C")),
        ("exact", LIST, ["cats"], ("a dog", "Cats", "12")),
        ("exact", LIST, ["D"], ()),  # no option is right
        ("exact", "Pick one.\n(A) red\n(B) Red\n(C) blue", ["red"], ()),  # two options of the same words
        ("exact", "Which is green? Choose A, B, C or D.", ["C"], ("A", "B", "C", "D")),
        ("exact", "Choose A or B.", ["C"], ()),
        ("exact", "Is the blood of type A, B or AB?", ["A"], ()),  # two of three are no list
        ("exact", LIST.replace("\n", "\r\n"), ["cats"], ("a dog", "Cats", "12")),
        ("exact", f"{LIST}\nThe text is by\nA. Smith.", ["B"], ("A", "B", "C")),  # one letter is no list
        ("exact", "Who drew B, C or D?", ["B"], ()),  # no list from A
        ("exact", "Who signed with A?", ["A"], ()),
        ("yes_no", "Is there a dog?", ["yes"], ("yes", "no")),
        ("yes_no", "Is there a dog?", ["No, there is a cat."], ("Yes", "No")),
        ("exact", "Is there a dog?", ["No", "no"], ("Yes", "No")),
        ("exact", "True or false?", ["false"], ("true", "false")),
        ("exact", "Is there a dog?", ["no", "none"], ()),  # "none" is no option
        ("exact", "What is it?", ["dog"], ()),
        ("anls", "What is written under Number?", ["21"], ()),
        ("exact", "What is it?", [], ()),
    ],
)
def test_options_are_those_of_the_question_in_the_form_of_the_answer(
    metric: str, question: str, answers: list[str], options: tuple[str, ...]
) -> None:
    assert options_of(metric, question, answers) == options
