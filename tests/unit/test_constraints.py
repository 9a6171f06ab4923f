"""Composed constraints: every check by cases, and as properties of any text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import DataError
from components.metrics import score
from components.metrics.constraints import NAMES, Constraint, constraint, place_of, words

WORDS = st.lists(st.sampled_from(["cat", "dog", "tree", "red", "milk", "don't"]), min_size=1, max_size=8)
TEXT = st.text(max_size=40)

CASES = [
    ("min_words: 3", "one two three", True),
    ("min_words: 4", "one two - three", False),  # a dash is no word
    ("max_words: 3", "It's one word", True),
    ("max_words: 1", "one word", False),
    ("sentences: 2", "One. Two!", True),
    ("sentences: 1", "It costs 2.50 euros.", True),
    ("sentences: 1", "no end", False),
    ("items: 2", "- a\n- b", True),
    ("items: 2", "1. a\n2) b", True),
    ("items: 2", "Here:\n* a\n* b\n* c", False),
    ("items: 1", "-a", False),
    ("json_list: 2", '["a", "b"]', True),
    ("json_list: 2", "['a', 'b']", False),
    ("json_list: 2", 'Sure: ["a", "b"]', False),
    ("json_list: 1", '{"a": 1}', False),
    ("case: upper", "A DOG 7!", True),
    ("case: upper", "A dog", False),
    ("case: lower", "7", False),  # without a letter there is no case
    ("starts_with: The cat", "THE CAT, sitting", True),
    ("starts_with: the", "Then", False),
    ("ends_with: good night", "I say good night.", True),
    ("ends_with: night", "good night to you", False),
    ("include: hot dog", "A hot, dog", True),
    ("include: hot", "hotel", False),
    ("avoid: hot", "hotel", True),
    ("avoid: hot", "a HOT day", False),
    ("order: cup > tea > milk", "The cup, then tea and milk", True),
    ("order: cup > tea > milk", "The tea, the cup, the milk", False),
    ("order: cup > tea", "The cup", False),
]


@pytest.mark.parametrize(("text", "reply", "expected"), CASES)
def test_cases(text: str, reply: str, expected: bool) -> None:
    assert constraint(text).fulfilled(reply) is expected
    assert str(constraint(text)) == text


def test_every_check_has_a_case_of_both_kinds() -> None:
    for expected in (True, False):
        assert {text.partition(":")[0] for text, _, wanted in CASES if wanted is expected} == set(NAMES)


@pytest.mark.parametrize(
    "text", ["", "rhyme: yes", "min_words: -1", "items: two", "case: Upper", "include: ", "order: a > ", "json_list:"]
)
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        constraint(text)


@given(reply=TEXT, number=st.integers(1, 10))
def test_one_of_at_least_and_less_holds(reply: str, number: int) -> None:
    least = Constraint(name="min_words", value=str(number)).fulfilled(reply)
    most = Constraint(name="max_words", value=str(number - 1)).fulfilled(reply)
    assert least + most == bool(reply.strip())


@given(reply=TEXT, word=st.sampled_from(["cat", "hot dog"]))
def test_a_word_is_there_or_avoided(reply: str, word: str) -> None:
    both = [Constraint(name=name, value=word).fulfilled(reply) for name in ("include", "avoid")]
    assert sum(both) == bool(reply.strip())


@given(given_words=WORDS)
def test_a_reply_made_for_its_constraints_fulfils_them(given_words: list[str]) -> None:
    count = len(given_words)
    listed = "\n".join(f"- {word}" for word in given_words)
    assert constraint(f"items: {count}").fulfilled(listed)
    assert not constraint(f"items: {count + 1}").fulfilled(listed)
    assert constraint(f"json_list: {count}").fulfilled(json.dumps(given_words))
    text = " ".join(given_words)
    assert constraint(f"starts_with: {given_words[0]}").fulfilled(text)
    assert constraint(f"ends_with: {given_words[-1]}").fulfilled(text + ".")
    distinct = list(dict.fromkeys(given_words))
    assert constraint(f"order: {' > '.join(distinct)}").fulfilled(text)
    assert constraint(f"order: {' > '.join(distinct[::-1])}").fulfilled(text) == (len(distinct) == 1)
    assert constraint("case: upper").fulfilled(text.upper())
    assert words(text) == given_words
    assert place_of(given_words[-1], text) == given_words.index(given_words[-1])


@given(reply=TEXT.filter(lambda text: text.strip() != ""), number=st.integers(0, 3))
def test_the_score_is_the_share(reply: str, number: int) -> None:
    held, missed = "min_words: 0", "min_words: 99"
    assert score("constraints", reply, [held] * number + [missed]) == pytest.approx(number / (number + 1))
