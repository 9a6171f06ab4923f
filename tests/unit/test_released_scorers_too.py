"""MLLM-CL's, TRACE's, UCIT's and ChartQA's rules: cases by hand, and a naive second writing on adversarial strings."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import ConfigError, DataError
from components.metrics import score
from components.metrics.released.tasks import (
    RELEASED,
    compat_row_score,
    compat_task_figures,
    is_caption_task,
    released_task,
)
from tests.unit import released_rules_too as naive

Record = dict[str, Any]


def score_item(task: str, reply: str, record: Record, mode: str) -> float:
    return RELEASED[released_task(task)].of(mode)(reply, record)


FORMULA = "Handwritten Mathematical Expression Recognition"
AI2D: Record = {"image": "images/AI2D_3.png", "text": "Which?", "answer": "B"}
STATES: Record = {"image": "MapQA_1.png", "text": "Which states are red?", "answer": "Ohio, Utah"}
MAP: Record = {"image": "MapQA_1.png", "text": "Is Ohio red?", "answer": "Yes"}

CASES: list[tuple[str, str, Record, float, float]] = [
    # remote sensing, driving: words inside the reply, with a border for answers of one word
    ("mllm-dcl/remote-sensing", "Yes, there is.", {"answer": "yes"}, 1, 0),
    ("mllm-dcl/remote-sensing", "nothing here", {"answer": "no"}, 0, 0),
    ("mllm-dcl/remote-sensing", "there is none", {"answer": "no"}, 1, 0),
    ("mllm-dcl/remote-sensing", "Yes.", {"answer": "yes"}, 1, 1),
    ("mllm-dcl/driving", "The car is going ahead.", {"answer": "Going ahead."}, 1, 0),
    ("mllm-dcl/driving", "Unanswerable, going ahead", {"answer": "going ahead"}, 0, 0),
    ("mllm-dcl/medical", "It is an adenocarcinoma", {"answer": "carcinoma"}, 1, 0),
    ("mllm-dcl/finance", "B. ", {"answer": "b"}, 1, 1),
    ("mllm-dcl/finance", "b", {"answer": "B."}, 0, 1),
    ("mllm-dcl/science", "b", AI2D, 1, 1),
    ("mllm-dcl/science", "B.", AI2D, 0, 1),
    ("mllm-dcl/science", "Utah,Ohio", STATES, 0.5, 1),
    ("mllm-dcl/science", "ohio, utah", STATES, 1, 1),
    ("mllm-dcl/science", "yesterday", MAP, 1, 0),
    ("mllm-dcl/science", "Yes, it is.", MAP, 1, 1),
    ("mllm-acl/ocr", "The sign says HELLO", {"answer": ["hello", "hallo"]}, 1, 1),
    ("mllm-acl/ocr", "othello", {"answer": "hello"}, 1, 0),
    ("mllm-acl/ocr", "x ^ 2+ 1", {"answer": "x^2", "answer_type": FORMULA}, 1, 1),
    ("mllm-acl/ocr", "X^2", {"answer": "x^2", "answer_type": FORMULA}, 0, 0),
    ("mllm-acl/perception", "( A ).", {"answer": "(A)"}, 1, 0),
    ("trace/fomc", "A", {"answer": "A"}, 1, 1),
    ("trace/fomc", "a.", {"answer": "A"}, 0, 1),
    ("trace/scienceqa", "Both", {"answer": "B\nBecause"}, 1, 0),
    ("trace/scienceqa", "The answer is B.", {"answer": "B\nBecause"}, 0, 1),
    ("trace/scienceqa", "B\nBecause it is so.", {"answer": "B\nBecause"}, 1, 1),
    ("trace/py150", "x = <NUM_LIT>", {"answer": "x = 0"}, 1, 1),
    ("trace/py150", "abcd", {"answer": "abxy"}, 0.5, 0.5),
    ("trace/py150", "abc", {"answer": "abd"}, 0.67, 2 / 3),
    ("trace/py150", "print(<STR_LIT:hi>)", {"answer": "print(hi)"}, 1, 1),
    ("ucit/iconqa", "a Dog", {"answer": "A dog"}, 1, 1),
    ("ucit/iconqa", "A dog.", {"answer": "A dog"}, 0, 1),
    # ChartQA: what real labels and replies differ in, all of it one way
    ("chartqa", "72%", {"answer": "72"}, 0, 1),
    ("chartqa", "0.72%", {"answer": "0.72"}, 0, 1),
    ("chartqa", "977,633", {"answer": "977633"}, 0, 1),
    ("chartqa", "Blue.", {"answer": "Blue"}, 0, 1),
    ("chartqa", "0.0", {"answer": "0"}, 0, 1),
    ("chartqa", "104", {"answer": "100"}, 1, 1),
    ("chartqa", "95%", {"answer": "100%"}, 0, 1),  # 0.05 and a rounding error more
    ("chartqa", "BLUE", {"answers": ["red", "blue"]}, 1, 1),
]


@pytest.mark.parametrize(("task", "reply", "record", "compat", "fixed"), CASES)
def test_cases(task: str, reply: str, record: Record, compat: float, fixed: float) -> None:
    assert score_item(task, reply, record, "compat") == pytest.approx(compat)
    assert score_item(task, reply, record, "fixed") == pytest.approx(fixed)


REFERENCES: dict[str, list[Record]] = {
    "mllm-dcl/remote-sensing": [{"answer": "Yes"}, {"answer": "no."}, {"answer": "2.5"}, {"answer": "a road, left"}],
    "mllm-dcl/driving": [{"answer": "Going ahead."}, {"answer": "no"}, {"answer": "u.s"}],
    "mllm-dcl/medical": [{"answer": "Carcinoma"}, {"answer": "no"}],
    "mllm-dcl/finance": [{"answer": "A"}, {"answer": "true"}, {"answer": "b c"}],
    "mllm-dcl/science": [AI2D, STATES, MAP, {**AI2D, "image": "SciVerse_9.jpg"}, {**STATES, "answer": "a,,b"}],
    "mllm-acl/ocr": [{"answer": ["Hello", "9 a"]}, {"answer": "x ^2", "answer_type": FORMULA}],
    "mllm-acl/perception": [{"answer": "(A)"}, {"answer": " B. c\n"}],
    "trace/fomc": [{"answer": "A"}, {"answer": "3.5"}],
    "trace/scienceqa": [{"answer": "A\nBecause"}, {"answer": "D"}],
    "ucit/iconqa": [{"answer": "Straße"}, {"answer": "A dog"}],
    "chartqa": [
        {"answer": "12%"},
        {"answer": "0"},
        {"answers": ["100", "Paris"]},
        {"answer": "-3.5"},
        {"answer": "nan"},
    ],
}
PIECES = [
    *"ABab. ,%()\n-01",
    "  ",
    "yes",
    "no",
    "Unanswerable",
    "ohio",
    " utah",
    "1e2",
    "95",
    "105",
    "İ",
    "ß",
    "nan",
    "inf",
    "_",
]


@pytest.mark.parametrize("task", REFERENCES)
def test_compat_is_what_the_naive_rules_say(task: str) -> None:
    chance = random.Random(task)
    seen = {0.0: 0, 1.0: 0}
    for _ in range(4000):
        record = chance.choice(REFERENCES[task])
        answer = record["answer"] if "answer" in record else record["answers"]
        text = answer if isinstance(answer, str) else chance.choice(answer)
        reply = chance.choice([text, text.lower(), text.upper(), text[1:], "".join(chance.choices(PIECES, k=3))])
        for _ in range(chance.randint(0, 2)):
            at = chance.randint(0, len(reply))
            reply = reply[:at] + chance.choice(PIECES) + reply[at:]
        value = score_item(task, reply, record, "compat")
        assert value == naive.item(task, reply, record), (reply, record)
        seen[value] = seen.get(value, 0) + 1
    assert min(seen[0.0], seen[1.0]) > 100  # both outcomes were tried


@pytest.mark.parametrize("task", REFERENCES)
@given(reply=st.text(max_size=20) | st.text(alphabet="ABab.,%()019 -\n", max_size=20))
def test_compat_is_what_the_naive_rules_say_of_any_text(task: str, reply: str) -> None:
    for record in REFERENCES[task]:
        assert score_item(task, reply, record, "compat") == naive.item(task, reply, record)


SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "a b", ".", ". ", "the", "  "]), max_size=12).map(" ".join)


@given(reply=SENTENCES, answer=SENTENCES)
def test_rouge_is_that_of_the_package(reply: str, answer: str) -> None:
    value = score("rouge_l", reply, [answer])
    if reply.replace(".", "").strip() and answer.replace(".", "").strip():
        assert value == pytest.approx(min(1.0, naive.rouge_sentences(answer, reply)), abs=1e-6)
    else:
        assert value == 0.0


def test_rouge_of_texts_that_recursion_alone_could_not_walk() -> None:
    long = "w v " * 1500
    assert score("rouge_l", long, ["w x " * 200]) == pytest.approx(0.5, abs=1e-6)  # both know two words and share one


@given(reply=st.text(alphabet="abc =\n", max_size=20), answer=st.text(alphabet="abc =\n", max_size=20))
def test_the_edit_ratio_is_that_of_common_subsequences(reply: str, answer: str) -> None:
    value = score("edit", reply, [answer])
    assert value == pytest.approx(naive.edit_percent(reply, answer) / 100 if reply.strip() and answer.strip() else 0.0)
    assert score_item("trace/py150", reply, {"answer": answer}, "compat") == round(100 * value) / 100


def test_sari_is_that_of_hugging_face() -> None:
    """The documented example of its metric."""
    source = "About 95 species are currently accepted ."
    references = [
        "About 95 species are currently known .",
        "About 95 species are now accepted .",
        "95 species are now accepted .",
    ]
    assert 100 * score("sari", "About 95 you now get in .", references, source) == pytest.approx(26.953601953601954)


def test_sari_by_hand() -> None:
    """Kept, deleted, added of each order; where there was nothing to do, that is 1."""
    whole = [
        # order 1: source a b c, reply a d, reference a c d
        ((2 * 1 * 0.5 / 1.5) + 1 / 2 + 1.0) / 3,  # deleted b and c, b rightly; added d, all that was to add
        # order 2: source ab bc, reply ad, reference ac cd: nothing to keep; both rightly deleted; ad wrongly added
        (1.0 + 1.0 + 0.0) / 3,
        # order 3: source abc, reply none, reference acd: nothing to keep, abc rightly deleted, acd missed
        (1.0 + 1.0 + 0.0) / 3,
        # order 4: nothing anywhere
        1.0,
    ]
    assert score("sari", "a d", ["a c d"], "a b c") == pytest.approx(sum(whole) / 4)


def test_captions_are_scored_as_whole_files() -> None:
    assert is_caption_task("ucit/flickr30k")
    assert not is_caption_task("ucit/iconqa")
    with pytest.raises(ConfigError, match="belongs to a whole file"):
        score_item("ucit/flickr30k", "a dog", {"answers": ["a dog"]}, "compat")
    assert score_item("ucit/flickr30k", "a dog runs", {"answers": ["a dog runs."]}, "fixed") == pytest.approx(1.0)
    assert compat_row_score("flickr30k", "a dog", ["a dog"], stream="ucit") is None
    assert compat_task_figures("flickr30k", ["a dog runs"], [["a dog", "dog runs"]], stream="coin") == {}


@pytest.mark.parametrize(
    ("stream", "task", "reply", "answers", "metric", "expected"),
    [
        ("mllm-dcl", "medical", "It is a tumor", ["tumor"], "exact", 1.0),
        ("mllm-dcl", "science", "B.", ["B"], "exact", 0.0),
        ("mllm-dcl", "science", "utah", ["utah,ohio"], "recall", 0.5),
        ("mllm-dcl", "science", "yesterday", ["yes"], "contains", 1.0),
        ("mllm-acl", "ocr", "HELLO you", ["hi", "hello"], "contains", 1.0),
        ("mllm-acl", "ocr", "x ^ 2", ["x^2"], "formula", 1.0),
        ("mllm-acl", "math", "2", ["2"], "exact", None),
        ("ucit", "iconqa", "a dog.", ["A dog"], "exact", 0.0),  # not COAST's iconqa, which drops the period
        ("coast-domain", "iconqa", "a dog.", ["A dog"], "exact", 1.0),
        ("trace", "scienceqa", "Both", ["B\nBecause"], "leading_letter", 1.0),
        ("coin-alphabetical", "scienceqa", "B. x", ["B"], "exact", 1.0),
        ("ucitlike", "flickr30k", "B", ["B"], "exact", None),
    ],
)
def test_a_row_by_its_streams_release(
    stream: str, task: str, reply: str, answers: list[str], metric: str, expected: float | None
) -> None:
    prompt = "Which states are red?" if metric == "recall" else "What is it?"
    assert compat_row_score(task, reply, answers, stream=stream, prompt=prompt, metric=metric) == expected


def test_a_reference_without_what_the_rule_needs() -> None:
    with pytest.raises(DataError, match='"image" of a reference must be text, given: nothing'):
        score_item("mllm-dcl/science", "B", {"answer": "B"}, "compat")
