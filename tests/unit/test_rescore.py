"""Whole result files: the released layouts, the pairing rules of both modes, the command line, and every bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from in_process import ran

from components.core.errors import ConfigError, DataError
from components.evaluation.released_files import Annotation, ReleasedReply, read_replies
from components.evaluation.rescoring import FileScore, read_annotations, score_file
from components.metrics.released.tasks import COIN
from pipelines.rescore import main
from tests.unit import released_rules

Record = dict[str, Any]

TEN = ["blue"] * 3 + ["navy"] * 2 + [f"other {index}" for index in range(5)]
BOX = {"answer_bbox": "[0.10,0.10,0.50,0.57]", "size": [640, 480]}
# Per task: the JSON of its annotation file, replies as (question_id, text), and the sums of scores in both modes.
FILES: dict[str, tuple[Any, list[tuple[str | int, str]], float, float]] = {
    # blue 0.9, navy 0.6; ids are compared as text
    "TextVQA": (
        {"data": [{"question_id": at, "answers": TEN} for at in (1, 2)]},
        [("1", "Blue"), (2, "navy")],
        1.5,
        1.5,
    ),
    # the empty reply and the longer one are right for the script only, the small letter in the correct metric only
    "ImageNet": (
        [{"question_id": at, "answer": "Castle"} for at in range(4)],
        [(0, "Castle."), (1, ""), (2, "a Castle"), (3, "castle")],
        3,
        2,
    ),
    "GQA": (
        {
            "7": {"question": "q", "answer": "blue", "isBalanced": True},
            "8": {"question": "q", "answer": "no", "isBalanced": True},
            "9": {"question": "q", "answer": "yes", "isBalanced": False},
        },
        [("7", "Blue."), ("8", "yes"), ("9", "yes")],
        1,
        1,
    ),
    "VizWiz": (
        [{"question_id": 4, "answer": "Tea"}, {"question_id": 5, "answer": "tea"}],
        [(5, "TEA"), (4, "tea.")],
        1,
        2,
    ),
    "Grounding": ([{"question_id": 6, **BOX}], [(6, "[0.10,0.10,0.50,0.37]")], 0, 1),  # .3 instead of .37: 0.20/0.47
    "VQAv2": ([{"question_id": 1, "answer": "blue", "answers": TEN}], [(1, "navy")], 0, 0.6),
    "OCRVQA": ([{"question_id": "b", "answer": "Unanswerable"}], [("b", "Unanswerable")], 0, 1),
    "chartqa": ([{"question_id": 1, "answers": ["100"]}], [(1, "104")], 1, 1),
    "PathVQA": ([{"question_id": 1, "answer": "no"}], [(1, "No.")], 1, 1),
}
SAMPLES = {"GQA": 2}  # the third question is not balanced
PROBLEMS = {str(at): {"choices": ["x", "y"], "answer": at % 2, "question": "q"} for at in range(5)}
SPLITS = {"train": ["4"], "test": ["0", "1", "2", "3"]}


def lines(pairs: list[tuple[str | int, str]]) -> str:
    return "".join(json.dumps({"question_id": key, "text": text, "prompt": "q"}) + "\n" for key, text in pairs)


def rescore(folder: Path, task: str, mode: str, *options: str) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, and stderr of the command run on `predictions.jsonl` of a folder."""
    given = ("--task", task, "--mode", mode, *options, "--predictions", str(folder / "predictions.jsonl"))
    done = ran(main, *given)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("task", FILES)
def test_every_released_layout_scores_in_both_modes(tmp_path: Path, task: str) -> None:
    content, pairs, compat, fixed = FILES[task]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "predictions.jsonl").write_text(lines(pairs))
    annotations = read_annotations(task, tmp_path / "annotations.json", None, None)
    predictions = read_replies(tmp_path / "predictions.jsonl")
    for mode, expected in (("compat", compat), ("fixed", fixed)):
        result = score_file(task, annotations, predictions, mode)
        assert (result.samples, result.correct) == (SAMPLES.get(task, len(pairs)), pytest.approx(expected))
        assert result.accuracy == pytest.approx(100 * expected / result.samples)


@pytest.fixture
def science(tmp_path: Path) -> Path:
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "splits.json").write_text(json.dumps(SPLITS))
    return tmp_path


def science_options(folder: Path) -> list[str]:
    return ["--problems", str(folder / "problems.json"), "--splits", str(folder / "splits.json")]


def test_scienceqa_counts_the_whole_split(science: Path) -> None:
    # right, wrong, the later of two replies (right), none for problem 3; problem 4 is of another split, id 0 is no "0"
    pairs = [("0", "A"), ("1", "A"), ("2", "B"), ("2", "a"), ("4", "A"), (0, "B")]
    (science / "predictions.jsonl").write_text(lines(pairs))
    code, shown, _ = rescore(science, "ScienceQA", "compat", *science_options(science))
    assert code == 0
    expected = {"task": "scienceqa", "mode": "compat", "samples": 4, "correct": 2.0, "accuracy": 50.0}
    assert json.loads(shown[-1]) == expected
    assert shown[0] == "scienceqa, compat: 2.00 of 4 right, 50.00%"
    assert "  Problems of the split without a reply, counted as wrong: 1." in shown
    assert "  Replies left out for a later one with the same id: 1." in shown
    assert any(line.startswith("scienceqa, fixed: not scored. 2 replies have the question_id '0'") for line in shown)
    code, _, said = rescore(science, "ScienceQA", "fixed", *science_options(science))
    assert (code, said.count("\n")) == (1, 1)


def test_the_command_prints_both_modes_and_json_last(tmp_path: Path) -> None:
    content, pairs, _, _ = FILES["ImageNet"]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "predictions.jsonl").write_text(lines(pairs))
    for mode, correct, other in (("compat", 3.0, "imagenet, fixed: 2.00 of 4 right, 50.00%"), ("fixed", 2.0, "75.00%")):
        code, shown, _ = rescore(tmp_path, "imagenet", mode, "--annotations", str(tmp_path / "annotations.json"))
        record = {"task": "imagenet", "mode": mode, "samples": 4, "correct": correct, "accuracy": 25 * correct}
        assert (code, json.loads(shown[-1])) == (0, record)
        assert any(other in line for line in shown[:-1])


def test_records_that_repeat_an_id_are_told() -> None:
    """The released script keeps the last of them, which may be another question's."""
    records = [Annotation(question_id=key, reference={"answer": answer}) for key, answer in ((1, "a"), (1, "b"))]
    result = score_file("ocrvqa", records, [ReleasedReply(line=1, question_id=1, text="a")], "compat")
    assert (result.correct, result.notes[0]) == (0.0, "Records left out for a later one with the same id: 1.")


def test_two_decimals_are_those_of_the_released_scripts() -> None:
    """100 * 201 / 4000 and 201 / 4000 * 100 round apart; each task prints the form of its own script."""
    shown = {task: f"{FileScore(task=task, mode='compat', samples=4000, correct=201).accuracy:.2f}" for task in COIN}
    assert shown["imagenet"] == f"{100.0 * 201 / 4000:.2f}" == "5.03"
    assert shown["gqa"] == f"{201 / 4000 * 100:.2f}"


def random_files(task: str, chance: random.Random) -> tuple[Any, list[Record]]:
    """A small annotation file and replies with gaps, repeats, strangers and ids of both kinds."""
    one = {
        "scienceqa": lambda: {"choices": ["x", "y", "z"], "answer": chance.randint(0, 2)},
        "textvqa": lambda: {"answers": chance.choices(["blue", "A", "two"], k=10)},
        "gqa": lambda: {"answer": chance.choice(["a", "b"]), "isBalanced": chance.random() < 0.7},
        "grounding": lambda: {"answer_bbox": chance.choice(["[0,0,1,1]", "[0.00,0.00,0.50,1.00]"]), "size": [3, 4]},
    }.get(task, lambda: {"answer": chance.choice(["A", "b", "two"])})
    ids: list[str | int] = [str(at) for at in range(5)] if task in ("gqa", "scienceqa") else [0, 1, 2, "3", "4"]
    records = [{"question_id": key, **one()} for key in ids[: chance.randint(1, 5)]]
    texts = ["A", "B. x", "b", "", "2", "blue", "[0,0,1,1]", "[[0.00,0.00,0.50,1.00]]", "Unanswerable"]
    known = [record["question_id"] for record in records]
    asked = [key for key in known if chance.random() < 0.8] + chance.choices(
        [*known, 0, "0", "stranger"], k=chance.choice([0, 0, 2])
    )
    replies = [{"question_id": key, "text": chance.choice(texts)} for key in asked]
    if task == "scienceqa":
        return ({record["question_id"]: record for record in records}, known), replies
    if task == "gqa":
        return {record["question_id"]: record for record in records}, replies
    return [*records, *chance.choices(records, k=chance.choice([0, 0, 1]))], replies


@pytest.mark.parametrize("task", COIN)
def test_compat_pairs_as_the_naive_rules_do(task: str) -> None:
    chance = random.Random(task)
    outcomes = {True: 0, False: 0}
    for _ in range(1500):
        content, replies = random_files(task, chance)
        if not replies:
            continue
        records = content[0] if task == "scienceqa" else content
        listed = list(records.values()) if isinstance(records, dict) else records
        annotations = [Annotation(question_id=record["question_id"], reference=record) for record in listed]
        predictions = [ReleasedReply(line=at, **reply) for at, reply in enumerate(replies, start=1)]
        try:
            expected = released_rules.file(task, content, replies)
        except released_rules.ScriptStops:
            with pytest.raises(DataError):
                score_file(task, annotations, predictions, "compat")
            outcomes[False] += 1
        else:
            result = score_file(task, annotations, predictions, "compat")
            assert (result.samples, result.correct) == expected, (content, replies)
            outcomes[True] += 1
    assert outcomes[True] > 300
    assert outcomes[False] > 50 or task == "scienceqa"  # whose script takes anything


TEXT_ID = lines([("1", "a")])
GOOD = lines([(1, "a")])
LIST = json.dumps([{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "b"}])
BAD: list[tuple[str, str, str, str, str]] = [
    ("broken line", "ocrvqa", LIST, GOOD + '{"question_id": 2, "te\n', "predictions.jsonl line 2 is not JSON"),
    ("blank line", "ocrvqa", LIST, GOOD + "\n" + GOOD, "predictions.jsonl line 2 is not JSON"),
    ("no object", "ocrvqa", LIST, "[1]\n", "line 1 must be a JSON object, given: [1]"),
    ("no id", "ocrvqa", LIST, '{"text": "a"}\n', 'line 1: "question_id" must be text or a whole number'),
    ("id of a wrong kind", "ocrvqa", LIST, '{"question_id": true, "text": "a"}\n', "given: True"),
    ("no text", "ocrvqa", LIST, '{"question_id": 1, "text": null}\n', 'line 1: "text" must be the reply as text'),
    ("no replies", "ocrvqa", LIST, "", "predictions.jsonl contains no predictions"),
    ("huge number", "ocrvqa", LIST, f'{{"question_id": {"9" * 5000}}}\n', "line 1 is JSON with a number too long"),
    ("deep brackets", "ocrvqa", "[" * 100_000, GOOD, "annotations.json is JSON with a number too long"),
    ("stranger", "ocrvqa", LIST, TEXT_ID, "Line 1 of the replies: question_id '1' is in no annotation"),
    ("no list", "ocrvqa", '"x"', GOOD, "annotations.json record 1 must be a JSON object, given: 'x'"),
    ("empty list", "ocrvqa", "[]", GOOD, "annotations.json must be a list of records that is not empty, given: []"),
    ("record without id", "ocrvqa", '[{"answer": "a"}]', GOOD, 'Record 1 of the annotations needs a "question_id"'),
    ("record without answer", "ocrvqa", '[{"question_id": 1}]', GOOD, 'Question 1: "answer" of a reference'),
    ("other layout", "textvqa", LIST, GOOD, "annotations.json must be a JSON object"),
    ("no data", "textvqa", "{}", GOOD, 'the list "data" of '),
    ("no questions", "gqa", "{}", TEXT_ID, "There is nothing to score: 0 records and 1 replies"),
    ("no balance", "gqa", '{"1": {"answer": "a"}}', TEXT_ID, '"isBalanced" must be true or false'),
    ("none balanced", "gqa", '{"1": {"answer": "a", "isBalanced": false}}', TEXT_ID, "No reply is left to score"),
    ("more replies than records", "imagenet", LIST, GOOD * 3, "There are 3 replies to 2 records"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "annotations", "predictions", "words"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD]
)
def test_bad_files_are_named(tmp_path: Path, task: str, annotations: str, predictions: str, words: str) -> None:
    (tmp_path / "annotations.json").write_text(annotations)
    (tmp_path / "predictions.jsonl").write_text(predictions)
    with pytest.raises(DataError) as caught:
        score_file(
            task,
            read_annotations(task, tmp_path / "annotations.json", None, None),
            read_replies(tmp_path / "predictions.jsonl"),
            "compat",
        )
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("records", "replies", "words"),
    [
        (["1", "2"], [(1, "a")], "1 of 2 records have no reply (the first is '2'), and only whole files"),
        (["1"], [(1, "a"), ("1", "b")], "2 replies have the question_id '1'; every id must be there once"),
        (["1", "1"], [(1, "a")], "2 records have the question_id '1'"),
        (["1"], [(1, "a"), (2, "b")], "Line 2 of the replies: question_id 2 is in no annotation"),
    ],
)
def test_fixed_needs_one_reply_to_every_record(records: list[str], replies: list[tuple[int, str]], words: str) -> None:
    annotations = [Annotation(question_id=key, reference={"answer": "a"}) for key in records]
    predictions = [
        ReleasedReply(line=at, question_id=key, text=text) for at, (key, text) in enumerate(replies, start=1)
    ]
    for task, mode in (("imagenet", "fixed"), ("iconqa", "fixed"), ("iconqa", "compat")):
        with pytest.raises(DataError) as caught:
            score_file(task, annotations, predictions, mode)
        assert words in str(caught.value)


def test_lines_end_at_line_breaks_only(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(
        '{"question_id": 1, "text": "a\u2028b"}\r\n{"question_id": 2, "text": ""}'.encode()
    )
    assert [(one.line, one.text) for one in read_replies(tmp_path / "p.jsonl")] == [(1, "a\u2028b"), (2, "")]


def test_files_that_cannot_be_read(science: Path) -> None:
    (science / "latin.jsonl").write_bytes(b'{"question_id": 1, "text": "\xe9"}\n')
    (science / "other.json").write_text('{"test": ["0", "77"]}')
    with pytest.raises(DataError, match=r"none.jsonl cannot be read"):
        read_replies(science / "none.jsonl")
    with pytest.raises(DataError, match=r"latin.jsonl is not UTF-8 text"):
        read_replies(science / "latin.jsonl")
    with pytest.raises(DataError, match=r"other.json names '77' in split \"test\""):
        read_annotations("scienceqa", None, science / "problems.json", science / "other.json")
    with pytest.raises(DataError, match='must list the ids of the split "test"'):
        read_annotations("scienceqa", None, science / "problems.json", science / "problems.json")


def test_options_that_do_not_fit_the_task(science: Path) -> None:
    with pytest.raises(ConfigError, match=r"scienceqa is scored from --problems problems.json and --splits"):
        read_annotations("ScienceQA", science / "problems.json", None, None)
    with pytest.raises(ConfigError, match="gqa is scored from --annotations FILE alone"):
        read_annotations("gqa", science / "a.json", science / "problems.json", None)
    (science / "predictions.jsonl").write_text(GOOD)
    code, shown, said = rescore(science, "coco", "compat", "--annotations", "x")
    assert (code, shown) == (1, [])
    assert said.startswith("error: There is no released task 'coco'; allowed are")
