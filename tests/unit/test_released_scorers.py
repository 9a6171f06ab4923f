"""Scores of released benchmarks: hand-worked cases, a naive second writing of CoIN's rules, and properties."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import ConfigError, DataError
from components.metrics import score
from components.metrics.released.evalai import processed, soft_accuracy
from components.metrics.released.tasks import (
    COAST,
    COIN,
    MODES,
    RELEASED,
    compat_row_score,
    is_caption_task,
    released_task,
)
from tests.unit import released_rules

Record = dict[str, Any]


def score_item(task: str, reply: str, record: Record, mode: str) -> float:
    return RELEASED[released_task(task)].of(mode)(reply, record)


def ten(**counts: int) -> Record:
    """A TextVQA record with so many people giving each answer; "nothing in common" fills up to ten."""
    answers = [answer for answer, count in counts.items() for _ in range(count)]
    return {"answers": answers + [f"other{index}" for index in range(10 - len(answers))]}


PROBLEM = {"choices": ["a dog", "a cat", "Ice"], "answer": 1}
CASTLE = {"question_id": 3, "answer": "Castle"}
BLUE = {"answer": "blue", "isBalanced": True}
BOX = {"answer_bbox": "[0.10,0.10,0.50,0.97]", "size": [640, 480]}
HALF = {"answer_bbox": "[0.00,0.00,1.00,0.50]", "size": [333, 500]}
PEOPLE = ten(blue=4, navy=2)

# task, reply, reference, compat, fixed
CASES: list[tuple[str, str, Record, float, float]] = [
    # ScienceQA: a letter alone, "X. ...", or the first one-character word in upper case
    ("ScienceQA", "B", PROBLEM, 1, 1),
    ("ScienceQA", "B. a cat", PROBLEM, 1, 1),
    ("ScienceQA", "b", PROBLEM, 1, 1),
    ("ScienceQA", "(B)", PROBLEM, 1, 1),
    ("ScienceQA", "A", PROBLEM, 0, 0),
    ("ScienceQA", "F", PROBLEM, 0, 0),
    ("ScienceQA", "", PROBLEM, 0, 0),
    ("ScienceQA", "FAILED", PROBLEM, 0, 0),
    ("ScienceQA", "The answer is B.", PROBLEM, 1, 1),
    ("ScienceQA", "I think the answer is B", PROBLEM, 0, 1),  # the first one-character word is I
    ("ScienceQA", "the cat and b", PROBLEM, 1, 1),
    ("ScienceQA", "The answer is a cat.", PROBLEM, 0, 1),
    ("ScienceQA", "The answer is a dog.", PROBLEM, 0, 0),
    ("ScienceQA", "Cat.", {**PROBLEM, "answer": 2}, 0, 0),
    ("ScienceQA", "A cat.", PROBLEM, 0, 1),  # read as letter A; it is choice B's text
    ("ScienceQA", "ice", {**PROBLEM, "answer": 2}, 0, 1),
    ("ScienceQA", "A dog", {**PROBLEM, "answer": 0}, 1, 1),
    ("ScienceQA", "a bird", {**PROBLEM, "answer": 0}, 1, 0),
    ("ScienceQA", "B", {"answer": "B"}, 1, 1),  # a record of CoIN's own test.json
    # TextVQA: ten people, leave one out, min(1, agreeing / 3)
    ("TextVQA", "blue", ten(blue=1), 0.3, 0.3),  # nine of ten ways leave 1 of 3: 9 * 1/3 / 10
    ("TextVQA", "blue", ten(blue=2), 0.6, 0.6),  # (8 * 2/3 + 2 * 1/3) / 10
    ("TextVQA", "blue", ten(blue=3), 0.9, 0.9),  # (7 * 1 + 3 * 2/3) / 10
    ("TextVQA", "The Blue.", ten(blue=4), 1, 1),
    ("TextVQA", "red", ten(blue=4), 0, 0),
    ("TextVQA", "two", ten(**{"2": 4}), 1, 1),
    ("TextVQA", "dont", ten(**{"don't": 4}), 1, 1),
    ("TextVQA", "", ten(the=4), 1, 0),  # the article vanishes and nothing is left to differ
    ("TextVQA", "a", ten(the=4), 1, 1),
    # ImageNet: either within the other, letter case counting
    ("ImageNet", "Castle", CASTLE, 1, 1),
    ("ImageNet", "Castle.", CASTLE, 1, 1),
    ("ImageNet", "It is a Castle on a hill", CASTLE, 1, 0),
    ("ImageNet", "Cas", CASTLE, 1, 0),
    ("ImageNet", "", CASTLE, 1, 0),
    ("ImageNet", "castle", CASTLE, 0, 1),
    ("ImageNet", "Tower", CASTLE, 0, 0),
    # GQA: final periods, case and one leading space of the reply do not count; the answer is taken as it is
    ("GQA", "Blue", BLUE, 1, 1),
    ("GQA", " blue...", BLUE, 1, 0),
    ("GQA", "  blue", BLUE, 0, 1),
    ("GQA", "blue. ", BLUE, 0, 1),
    ("GQA", "Blue", {**BLUE, "answer": "Blue"}, 0, 1),
    ("GQA", "light blue", BLUE, 0, 0),
    ("GQA", "", BLUE, 0, 0),
    # VizWiz and VQAv2: equality with one answer, though ten exist
    ("VizWiz", "UNANSWERABLE", {"answer": "unanswerable"}, 1, 1),
    ("VizWiz", "unanswerable.", {"answer": "unanswerable"}, 0, 1),
    ("VizWiz", "navy", {"answer": "blue", **PEOPLE}, 0, 0.6),
    ("VizWiz", "navy", {"answer": "blue", "answers": [{"answer": one} for one in PEOPLE["answers"]]}, 0, 0.6),
    ("VQAv2", "Blue", {"answer": "blue", **PEOPLE}, 1, 1),
    ("VQAv2", "navy", {"answer": "blue", **PEOPLE}, 0, 0.6),
    ("VQAv2", "the blue", {"answer": "blue"}, 0, 1),
    ("VQAv2", "", {"answer": ""}, 1, 0),
    # OCRVQA: lower case on both sides; "Unanswerable" anywhere is skipped, which counts as wrong
    ("OCRVQA", "Law", {"answer": "law"}, 1, 1),
    ("OCRVQA", "Law.", {"answer": "law"}, 0, 1),
    ("OCRVQA", "Unanswerable", {"answer": "Unanswerable"}, 0, 1),
    ("OCRVQA", "unanswerable", {"answer": "Unanswerable"}, 1, 1),
    # Grounding: the reply without brackets also loses its first and last character
    ("Grounding", "[0.10,0.10,0.50,0.97]", BOX, 1, 1),
    ("Grounding", " [0.10,0.10,0.50,0.97]", BOX, 1, 1),
    ("Grounding", "[0.10,0.10,0.50,0.57]", BOX, 0, 1),  # y2 becomes 0.5: 0.4 / 0.87 < 1/2, whole 0.47 / 0.87 > 1/2
    ("Grounding", "[1.00,0.00,2.00,1.00]", {**BOX, "answer_bbox": "[0.00,0.00,2.00,1.00]"}, 1, 0),  # x1 becomes .00
    ("Grounding", "  [1.00,0.00,2.00,1.00]", {**BOX, "answer_bbox": "[1.00,0.00,2.00,1.00]"}, 1, 1),  # a space is cut
    ("Grounding", " [1.00,0.00,2.00,1.00]", {**BOX, "answer_bbox": "[1.00,0.00,2.00,1.00]"}, 0, 1),
    ("Grounding", "(0.10,0.10,0.50,0.97)", BOX, 1, 0),  # any two characters will do
    ("Grounding", "0.10,0.10,0.50,0.97", BOX, 1, 1),
    ("Grounding", "The box is [0.10,0.10,0.50,0.97]", BOX, 0, 1),
    ("Grounding", "[0.10,0.10,0.50]", BOX, 0, 0),
    ("Grounding", "[0.50,0.97,0.10,0.10]", BOX, 0, 0),
    ("Grounding", "[0.10,0.10,nan,0.970]", BOX, 0, 0),
    ("Grounding", "", BOX, 0, 0),
    # COAST has no released script: one metric for both modes, but for ChartQA's percents and separators
    ("chartqa", "104", {"answers": ["100"]}, 1, 1),
    ("chartqa", "106", {"answer": "100"}, 0, 0),
    ("docvqa", "Pariss", {"answers": ["London", "Paris"]}, 1 - 1 / 6, 1 - 1 / 6),
    ("iconqa", "Choice A.", {"answer": "choice a"}, 1, 1),
    ("medicalqa", "yes", {"answers": ["no"]}, 0, 0),
    ("PathVQA", "Yes", {"answer": "yes"}, 1, 1),
]


@pytest.mark.parametrize(("task", "reply", "reference", "compat", "fixed"), CASES)
def test_cases(task: str, reply: str, reference: Record, compat: float, fixed: float) -> None:
    assert score_item(task, reply, reference, "compat") == pytest.approx(compat)
    assert score_item(task, reply, reference, "fixed") == pytest.approx(fixed)


PROCESSED = [
    ("The dog's 2 bowls.", "dog 's 2 bowls"),
    ("twenty-one, sir", "twenty 1 sir"),
    ("well-known - really", "wellknown really"),  # one dash touches a space: all vanish
    ("1,234.50", "1234.50"),
    ("U.S.A. v1.5.", "usa v1.5"),
    ("None of TEN", "0 of 10"),
    ("shouldnt've an apple", "shouldn't've apple"),
    ("somebody'd", "somebodyd"),
    ("Im", "im"),  # the list holds it in upper case only
    ("." * 40, "." * 8),  # no more than 32 periods go
    ("what?\n\tnow", "what now"),
]


@pytest.mark.parametrize(("answer", "expected"), PROCESSED)
def test_answers_are_processed(answer: str, expected: str) -> None:
    assert processed(answer) == released_rules.plain(answer) == expected


REFERENCES: dict[str, list[Record]] = {
    "scienceqa": [{"choices": [f"c{at}" for at in range(size)], "answer": size - 1} for size in range(1, 6)],
    "textvqa": [ten(blue=3, the=2, **{"2": 3}), ten(**{"don't": 2, "dont": 2, "well-known": 4}), ten(**{"u.s.": 5})],
    "imagenet": [CASTLE, {"answer": "Great Dane"}, {"answer": "dane"}],
    "gqa": [BLUE, {"answer": "no"}, {"answer": "Yes"}, {"answer": ""}],
    "vizwiz": [{"answer": "unanswerable"}, {"answer": "straße 5"}],
    "grounding": [BOX, HALF, {"answer_bbox": "[0.97,0.25,1.00,0.75]", "size": [7, 640]}],
    "vqav2": [{"answer": "2"}, {"answer": "İstanbul"}],
    "ocrvqa": [{"answer": "Unanswerable"}, {"answer": "J. R. R. Tolkien"}],
}
PIECES = [
    *"ABCDEFabz. ,()[]'_-/?!\n\t",
    "A. ",
    "the ",
    "a ",
    "'s",
    "2",
    "two",
    "none",
    "dont",
    "mightn'tve",
    "0.5",
    "1e9",
]
PIECES += [
    "...",
    "  ",
    "Unanswerable",
    "unanswerable",
    "Castle",
    "ß",
    "İ",
    "\u00a0",
    "\u0660",
    "ten.",
    "1.",
    ".5",
    "nan",
    "inf",
]


def replies(record: Record, chance: random.Random) -> str:
    """A reply near the reference or near a rule's edge: its own text cut, doubled, re-cased, or pieces put together."""
    texts = [value for value in record.values() if isinstance(value, str)]
    texts += [value for values in record.values() if isinstance(values, list) for value in map(str, values)]
    text = chance.choice([*texts, "".join(chance.choices(PIECES, k=chance.randint(0, 4)))])
    if "answer_bbox" in record and chance.random() < 0.7:
        box = [value + chance.choice([0, 0, 0.01, -0.02, 0.1]) for value in map(float, texts[0][1:-1].split(","))]
        text = "[" + ",".join(f"{value:.2f}" for value in box) + "]"
    for _ in range(chance.randint(0, 3)):
        at = chance.randint(0, len(text))
        piece = chance.choice(PIECES)
        text = chance.choice(
            [text[:at] + piece + text[at:], text[:at] + text[at + 1 :], text.upper(), text.lower(), text]
        )
    return text


@pytest.mark.parametrize("task", COIN)
def test_compat_is_what_the_naive_rules_say(task: str) -> None:
    chance = random.Random(task)
    seen = {0.0: 0, 1.0: 0}
    for _ in range(6000):
        record = chance.choice(REFERENCES[task])
        reply = replies(record, chance)
        value = score_item(task, reply, record, "compat")
        assert value == released_rules.item(task, reply, record), (reply, record)
        seen[value] = seen.get(value, 0) + 1
    assert min(seen[0.0], seen[1.0]) > 100  # both outcomes were tried


@pytest.mark.parametrize("task", COIN)
@settings(max_examples=300)
@given(data=st.data())
def test_compat_is_what_the_naive_rules_say_of_any_text(task: str, data: st.DataObject) -> None:
    reply = data.draw(st.text(max_size=20) | st.text(alphabet="ABab.,[]()'019 -\n", max_size=25))
    record = data.draw(st.sampled_from(REFERENCES[task]))
    assert score_item(task, reply, record, "compat") == released_rules.item(task, reply, record)


@given(answer=st.text(max_size=40) | st.text(alphabet="ab.?,;-' 's\t\n1two", max_size=40))
def test_the_answer_processor_is_the_naive_one(answer: str) -> None:
    assert processed(answer) == released_rules.plain(answer)


NUMBER = st.floats(allow_nan=True, allow_infinity=True, width=32).map(repr) | st.decimals(-2, 2, places=2).map(str)


@given(numbers=st.lists(NUMBER, min_size=3, max_size=5), brackets=st.sampled_from(["[]", "()", "  ", "xx"]))
def test_any_numbers_as_a_box(numbers: list[str], brackets: str) -> None:
    reply = brackets[0] + ",".join(numbers) + brackets[1]
    for record in REFERENCES["grounding"]:
        assert score_item("Grounding", reply, record, "compat") == released_rules.box(reply, record)
        assert score_item("Grounding", reply, record, "fixed") == score(
            "iou", f"[{reply.strip('[] ')}]", [record["answer_bbox"]]
        )


COAST_REFERENCES = [{"answers": ["12%", "Paris"]}, {"answer": "no"}]
# What every rule of the benchmarks that are named with their tasks can read.
ANY_REFERENCES = [
    {"answer": answer, "answers": [answer], "prompt": "Is B so?", "text": "Which states?", "image": image}
    for answer, image in (("B\nBecause", "AI2D_1.png"), ("no, yes", "map.png"))
]


def references_of(task: str) -> list[Record]:
    return ANY_REFERENCES if "/" in task else REFERENCES.get(task, COAST_REFERENCES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", RELEASED)
@given(reply=st.text(max_size=30))
def test_every_score_is_between_0_and_1(task: str, mode: str, reply: str) -> None:
    if mode == "compat" and is_caption_task(task):
        return  # no rule for rows
    for record in references_of(task):
        value = score_item(task, reply, record, mode)
        assert isinstance(value, float)
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("task", RELEASED)
def test_fixed_never_rewards_silence(task: str) -> None:
    for record in references_of(task):
        assert score_item(task, "", record, "fixed") == score_item(task, " \n", record, "fixed") == 0.0


@pytest.mark.parametrize("task", [task for task in COAST if task != "chartqa"])
@given(reply=st.sampled_from(["12", "0.12", "pari", "Paris.", "no", "No.", ""]) | st.text(max_size=10))
def test_coast_has_one_metric_in_both_modes(task: str, reply: str) -> None:
    for record in COAST_REFERENCES:
        assert score_item(task, reply, record, "compat") == score_item(task, reply, record, "fixed")


@given(answers=st.lists(st.sampled_from(["blue", "Navy", "2", "two", "the"]), min_size=10, max_size=10), data=st.data())
def test_soft_accuracy_does_not_depend_on_the_order_of_people(answers: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(answers))
    assert soft_accuracy("two", shuffled) == pytest.approx(soft_accuracy("2", answers))


BROKEN: list[tuple[str, Record, str]] = [
    ("scienceqa", {"choices": ["x"], "answer": 1}, '"answer" of a problem'),
    ("scienceqa", {"choices": ["x"] * 7, "answer": 6}, "at most 5"),
    ("scienceqa", {"answer": 0}, '"choices" of a reference must be a list'),
    ("textvqa", {"answer": "x"}, '"answers" of a reference must be a list, given: nothing'),
    ("textvqa", {"answers": ["x"] * 9}, "must hold 10 answers, given: 9"),
    ("vqav2", {"answer": 2}, '"answer" of a reference must be text, given: 2'),
    ("grounding", {"answer_bbox": "[0,0,1]"}, "must be '\\[x1,y1,x2,y2\\]'"),
    ("grounding", {"answer_bbox": "[0,0,1,1]", "size": [0, 4]}, "must be \\[width, height\\]"),
    ("docvqa", {"answers": []}, '"answers" of a reference must be a list of text'),
]


@pytest.mark.parametrize(("task", "reference", "words"), BROKEN)
def test_references_that_no_rule_can_read(task: str, reference: Record, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score_item(task, "x", reference, "compat")


def test_people_as_objects_must_carry_their_answer() -> None:
    with pytest.raises(DataError, match="must be text or hold the text"):
        score_item("vizwiz", "x", {"answer": "x", "answers": [{"answer_confidence": "yes"}] * 10}, "fixed")


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"no released task 'coco'; allowed are scienceqa, .*, pathvqa"):
        score_item("coco", "x", {"answer": "x"}, "compat")
    with pytest.raises(ConfigError, match="no scoring mode 'strict'; allowed are compat and fixed"):
        score_item("gqa", "x", {"answer": "x"}, "strict")


def test_scoring_needs_neither_torch_nor_ray() -> None:
    code = "import sys, components.metrics; print({'torch', 'ray', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "expected"),
    [
        ("imagenet", "", ["castle"], 1.0),  # the released script's two-way substring
        ("grounding", "[0.10,0.20,0.30,0.97]", ["[0.10,0.20,0.30,0.40]"], 0.0),
        ("scienceqa", "B. a dog", ["B"], 1.0),
        ("vqav2", "YES", ["yes"], 1.0),
        ("textvqa", "stop", ["stop"], None),  # ten people's answers are needed
        ("textvqa", "stop", ["stop"] * 10, 1.0),
        ("docvqa", "Total", ["total", "sum"], 1.0),
        ("pathvqa", "yes", ["yes"], 1.0),
        ("shop", "yes", ["yes"], None),
        ("scienceqa", "B", ["a dog"], None),  # no answer of that release
    ],
)
def test_a_row_by_the_rule_of_its_tasks_release(
    task: str, prediction: str, answers: list[str], expected: float | None
) -> None:
    assert compat_row_score(task, prediction, answers) == expected
