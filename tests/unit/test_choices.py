"""What a reply to a multiple-choice question chooses: every common style alike, and nothing where nothing is chosen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.metrics import score
from components.metrics.choice import chosen_letter, options_in

LETTER = "Answer with the option's letter from the given choices directly."
QUESTION = f"Which is it?\nA. a cat\nB. a dog\nC. a hot dog\nD. hepatitis B\n{LETTER}"
OPTIONS = options_in(QUESTION)

# One choice in the styles of models: tuned on letters, on chat, on explanations, on markdown.
STYLES = [
    "{letter}",
    "{small}",
    "({letter})",
    "{letter}.",
    "{letter})",
    "**{letter}**",
    "[{letter}]",
    "{letter}. {words}",
    "({letter}) {words}",
    "{letter}: {words}.",
    "{letter} - {words}",
    "{letter}, {words}",
    "{words}",
    "{words}.",
    "The answer is {letter}.",
    "The answer is {small}.",
    "The answer is ({letter}) {words}.",
    "The correct answer is: {letter}",
    "Answer: {letter}",
    "The correct option is {letter}.",
    "Option {letter} is correct.",
    "I choose {letter} here.",
    "It must be {letter}.",
    "The picture shows {words}.",
    "In this picture I can see {words}, which is rather large.",
    "Final Answer: $\\boxed{{{letter}}}$",
    "<answer>{letter}</answer>",
    "Let us look closely. There is much to see.\n\nThe answer is {letter}.",
    "{letter}\n\nBecause that is what the picture shows.",
    "Because that is what the picture shows.\n{letter}",
    "Option {other} is wrong, so option {letter}.",
    "Is the answer {other}? No: the answer is {letter}.",
    "It is not {other_words}, it is {words}.",
    "The answer is {letter}, as option {other} is not there.",
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("letter", "ABCD")
def test_a_style_is_no_change_of_ability(style: str, letter: str) -> None:
    other = "B" if letter != "B" else "A"
    reply = style.format(
        letter=letter, small=letter.lower(), words=OPTIONS[letter], other=other, other_words=OPTIONS[other]
    )
    assert chosen_letter(reply, OPTIONS) == letter
    assert score("choice", reply, [letter, OPTIONS[letter]], QUESTION) == 1.0
    assert score("choice", reply, [other, OPTIONS[other]], QUESTION) == 0.0


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n",
        "Either (A) or (C).",
        "B or C",
        "a cat or a dog",
        "an answer a child gives",
        "It's a trap",
        "None of them.",
        "I do not know.",
        "The answer is E.",
        "E",
        "It is not a dog.",
        "catalogue",
        "Not B.",
        "The answer is not B.",
        "The answer cannot be B",
        "I would not choose option (B)",
        "It can't be a dog.",
        "(B) is incorrect",
        "B is not correct.",
        "Anything but B",
        "A, B",
        "A B C D",
        "A\nB\nC\nD",
        "(A), (B)",
        "A/B",
    ],
)
def test_nothing_is_guessed(reply: str) -> None:
    assert chosen_letter(reply, OPTIONS) is None
    assert all(score("choice", reply, [letter, words], QUESTION) == 0.0 for letter, words in OPTIONS.items())


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A dog", "B"),  # an article
        ("Answer: A dog", "B"),
        ("answer\nA cat runs. The answer is B.", "B"),  # the last statement
        ("The patient has hepatitis B", "D"),  # a letter inside an option's words
        ("a hot dog", "C"),  # the longer option
        ("The painting of the dog was made by somebody.", "B"),
        ("A is wrong, so B.", "B"),
        ("Not A. B.", "B"),
        ("The answer is not A but B.", "B"),
        ("A is incorrect. C is incorrect. D is not there. It must be B.", "B"),
        ("Neither A nor C nor D, so B", "B"),
        ("B, not A", "B"),
        ("LECTURE: I want B. SOLUTION: it is so.\n The answer is C.", "C"),
    ],
)
def test_traps(reply: str, letter: str) -> None:
    assert chosen_letter(reply, OPTIONS) == letter


def test_numbers_are_whole() -> None:
    options = options_in("How many?\nA. 3\nB. 30\nC. 3.5\nD. -3\nE. 1,300")
    replies = {"There are 3.": "A", "30 of them": "B", "It is 3.5 m": "C", "It is -3": "D", "1,300 people": "E"}
    assert {reply: chosen_letter(reply, options) for reply in replies} == replies


@pytest.mark.parametrize("form", ["A. {}\nB. {}", "(A) {}\n(B) {}", "A) {}\nB) {}", "A: {}\nB: {}"])
def test_options_in_every_form_of_a_list(form: str) -> None:
    """The last list counts, and letters that do not follow each other are no list."""
    question = (
        "Read:\nA. not this\nThen answer.\nC. nor this\n" + form.format("one thing", "two things") + "\nHint: go."
    )
    assert options_in(question) == {"A": "one thing", "B": "two things"}
    assert options_in(f"{question}\nThe text is by\nA. Smith") == options_in(question)
    assert options_in(question.replace("\n", "\r\n")) == options_in(question)
    assert options_in("Is it so? Answer yes or no.") == {}


def test_an_article_before_a_number_or_a_capital_is_no_letter() -> None:
    options = options_in(
        "Which is colder?\nA. a 2-litre pot at 30 degrees\nB. a 2-litre pot at 20 degrees\nC. a U-shaped pipe"
    )
    for letter, words in options.items():
        assert chosen_letter(f"The answer is {words}", options) == letter
    assert chosen_letter("The answer is A\nsome more words", options) == "A"


def test_options_of_several_lines() -> None:
    places = [
        "This place has:\nmuch rain\nrich soil",
        "This place has:\nlittle rain\nthin soil",
        "This place has:\nsnow",
    ]
    listed = [f"{letter}. {words}" for letter, words in zip("ABC", places, strict=True)]
    options = options_in("\n".join(["Which is a desert?", *listed, "Answer with the letter."]))
    assert list(options.values()) == [*places[:2], "This place has:"]
    for letter, words in zip("ABC", places, strict=True):
        assert chosen_letter(f"The answer is {words}", options) == letter


def test_options_that_differ_in_case_alone() -> None:
    options = {"A": "Dear Ann,", "B": "dear Ann,", "C": "Dog"}
    for letter, words in options.items():
        assert chosen_letter(words, options) == chosen_letter(f"The answer is {words}", options) == letter
    assert chosen_letter("DEAR ANN,", options) is None
    prompt = "Which is right?\nA. Dear Ann,\nB. dear Ann,"
    assert [score("choice", words, ["A", "Dear Ann,"], prompt) for words in ("Dear Ann,", "dear Ann,")] == [1.0, 0.0]
    assert chosen_letter("the dog says Dear Ann,", options) is None


def test_without_a_question_words_count_as_the_whole_reply_only() -> None:
    assert score("choice", "A dog.", ["B", "a dog"]) == 1.0
    assert score("choice", "It is a dog.", ["B", "a dog"]) == 0.0
    assert score("choice", "It is a dog.", ["B", "a dog"], QUESTION) == 1.0
    assert score("choice", "a dog", ["a dog"], QUESTION) == 1.0  # an answer without its letter


PIECES = [
    "A",
    "B",
    "(C)",
    "a",
    "dog",
    "hot",
    "cat",
    "the answer is",
    "Answer:",
    "not",
    ".",
    ",",
    "\n",
    "option",
    "**",
    "is",
    "correct",
    "or",
]


@given(reply=st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
def test_any_reply_chooses_one_of_the_options_or_none(reply: str) -> None:
    assert chosen_letter(reply, OPTIONS) in {None, *OPTIONS}


def test_words_that_no_other_option_shares_are_found_in_any_sentence() -> None:
    """Against a loop that looks for each option's words one by one."""
    chance = random.Random(0)
    things = ["red car", "blue car", "tree", "old tree", "river", "bank"]
    for _ in range(500):
        chosen = chance.sample(things, 4)
        options = dict(zip("ABCD", chosen, strict=True))
        said = chance.sample(things, chance.randint(1, 2))
        reply = "one can see " + " beside ".join(said) + " there"
        found = {letter for letter, words in options.items() if f" {words} " in f" {reply} "}
        found -= {one for one in found for two in found if one != two and options[one] in options[two]}
        # "tree" beside "old tree" stands for itself once more
        alone = [
            one
            for one, words in options.items()
            if reply.split().count(words) > sum(words in other for other in said if other != words)
        ]
        expected = found | {one for one in alone if options[one] in said}
        assert chosen_letter(reply, options) == (expected.pop() if len(expected) == 1 else None)
