"""What a preparation says of texts: names of special tokens, and answers that are longer than replies may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from components.data.rows import Row
from components.data.texts import TextFacts, special_tokens
from pipelines.prepare import Prepare, prepare
from tests.unit.sample_rows import picture, row


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        (row("What?", "a ball"), set()),
        (row("<image>\nWhat?", "a ball", image=picture((1, 2, 3))), set()),
        (row("Hi", "ho", "<image>\nWhat?", "a ball", image=picture((1, 2, 3))), set()),
        (row("<image>\nWhat?", "the <image> tag", image=picture((1, 2, 3))), {"<image>"}),
        (row("Strike <s>this</s>", "a <b>bold</b> <|im_end|>"), {"<s>", "</s>", "<|im_end|>"}),
        (
            row("[INST] no [/INST]", "<|reserved_special_token_7|>"),
            {"[INST]", "[/INST]", "<|reserved_special_token_7|>"},
        ),
        (row("a < b and c > d", "x|y"), set()),
    ],
)
def test_names_of_special_tokens_are_found(sample: Row, found: set[str]) -> None:
    assert special_tokens(sample) == found


def test_facts_count_rows_not_names() -> None:
    facts = TextFacts(max_new_tokens=4)
    for sample in (
        row("<s><s>", "<s> and </s>"),
        row("plain", "x" * 16),
        row("plain", "x" * 17),
        row("plain", "y" * 90),
    ):
        facts.add(sample)
    assert (facts.special_rows, facts.special) == (1, {"<s>": 1, "</s>": 1})
    assert (facts.long_answers, facts.longest) == (2, 90)
    first, second = facts.remarks
    assert first.startswith("1 of 4 rows have names of special tokens in their texts (</s> 1, <s> 1)")
    assert second.startswith("2 of 4 answers look longer than max_new_tokens = 4")
    assert TextFacts(max_new_tokens=4).remarks == []


def test_prepare_says_both(tmp_path: Path) -> None:
    answers = {"train": "yes<|im_end|> no", "test": "a long sentence about many things " * 8}
    for part, answer in answers.items():
        turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": answer}]
        rows = [{"id": str(number), "conversations": turns} for number in range(3)]
        (tmp_path / f"{part}.json").write_text(json.dumps(rows))
    (tmp_path / "s.toml").write_text(
        'name = "s"\n[[task]]\nname = "a"\ntrain = "train.json"\ntest = "test.json"\nmetric = "exact"\n'
        "max_new_tokens = 8\n"
    )
    console = Console(record=True, width=400)
    assert prepare(Prepare(stream=str(tmp_path / "s.toml"), out=tmp_path / "out", overlaps=False), console) == 0
    said = console.export_text()
    assert "a train: 3 of 3 rows have names of special tokens in their texts (<|im_end|> 3)" in said
    assert "a test: 3 of 3 answers look longer than max_new_tokens = 8" in said
    train, test = json.loads((tmp_path / "out" / "report.json").read_text())["splits"]
    assert train["texts"]["special"] == {"<|im_end|>": 3}
    assert (test["texts"]["max_new_tokens"], test["texts"]["long_answers"]) == (8, 3)
    assert "&lt;|im_end|&gt; 3" in (tmp_path / "out" / "report.html").read_text()


def test_prepare_counts_rows_that_are_too_long_for_a_model(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "yes"}]
    longer = [turns[0], {"from": "gpt", "value": "0" * 300}]
    for part, number in (("train", 2), ("test", 1)):
        rows = [{"id": str(place), "conversations": longer if place < number else turns} for place in range(4)]
        (tmp_path / f"{part}.json").write_text(json.dumps(rows))
    (tmp_path / "s.toml").write_text(
        'name = "s"\n[[task]]\nname = "a"\ntrain = "train.json"\ntest = "test.json"\nmetric = "exact"\n'
        "max_new_tokens = 8\n"
    )
    console = Console(record=True, width=400)
    named = {
        "backbone": "pocket",
        "max_length": 200,
    }  # a digit is a token, and a test row's answer is not in its prompt
    command = Prepare(stream=str(tmp_path / "s.toml"), out=tmp_path / "out", overlaps=False, **named)  # type: ignore[arg-type]
    assert prepare(command, console) == 0
    said = console.export_text()
    for sentence in (
        "2 of 4 rows of a train take more than 200 tokens",
        "0 of 4 rows of a test take more than 200 tokens",
    ):
        assert f"With pocket, {sentence}" in said
        assert sentence in (tmp_path / "out" / "report.json").read_text()
        assert sentence in (tmp_path / "out" / "report.html").read_text()
