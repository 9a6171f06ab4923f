"""Items of other layouts become LLaVA's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.formats.items import ItemReader
from components.data.formats.layouts import as_llava
from components.data.problems import ItemError

Pairs = list[tuple[str, str]]
WORDS = st.text("abc XYZ?<>{}", min_size=1, max_size=12).filter(str.strip)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


def llava(pairs: Pairs) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": text} for pair in pairs for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]


def other_layouts(pairs: Pairs) -> dict[str, dict[str, object]]:
    *earlier, (question, answer) = pairs
    history = [list(pair) for pair in earlier]
    spoken = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return {
        "sharegpt": {"conversations": [{"from": role, "value": text} for role, text in spoken], "images": ["a.png"]},
        "messages": {"messages": [{"role": role, "content": text} for role, text in spoken], "images": "a.png"},
        "parts": {
            "messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in spoken],
            "images": [{"path": "a.png", "bytes": None}],
        },
        "alpaca": {"instruction": question, "input": "", "output": answer, "history": history, "images": ["a.png"]},
        "swift": {"query": question, "response": answer, "history": history, "images": ["a.png"], "system": ""},
    }


@given(pairs=PAIRS)
def test_every_layout_says_the_same(pairs: Pairs) -> None:
    wanted = {"id": "row-7", "conversations": llava(pairs), "image": "a.png"}
    assert {name: as_llava(item, 7) for name, item in other_layouts(pairs).items()} == dict.fromkeys(
        other_layouts(pairs), wanted
    )


def test_llavas_own_layout_is_left_as_it_is() -> None:
    for item in (
        {"conversations": llava([("q", "a")])},  # without an id it stays a fault
        {"id": 1, "image": "a.png", "conversations": "broken"},
        {"id": 1, "conversations": [{"from": ["human"], "value": "q"}]},
    ):
        assert as_llava(item, 1) is item


def test_alpacas_input_and_own_ids_and_answers_are_kept() -> None:
    item = {
        "id": "x",
        "instruction": "Name it.",
        "input": "the left one",
        "output": "cat",
        "answers": ["cat", "kitten"],
    }
    wanted = {"id": "x", "conversations": llava([("Name it.\nthe left one", "cat")]), "answers": ["cat", "kitten"]}
    assert as_llava(item, 1) == wanted


def test_a_picture_among_the_parts_is_a_placeholder() -> None:
    asked = [{"type": "image"}, {"type": "text", "text": "What?"}]
    item = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "cat"}]}
    assert as_llava(item, 1)["conversations"] == llava([("<image>\nWhat?", "cat")])


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"query": "q", "response": "a", "system": "Be brief."}, "system text"),
        ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]}, "system text"),
        ({"query": "q", "response": "a", "image": "c.png", "images": ["a.png", "b.png"]}, "several layouts"),
        ({"query": "q", "response": "a", "images": ["a.png", None]}, "wrong field"),
        ({"id": "1", "image": ["", "a.png"], "conversations": llava([("q", "a")])}, "wrong field"),
        ({"id": "1", "image": [""], "conversations": llava([("q", "a")])}, "wrong field"),
        ({"query": "q", "response": None}, "missing field"),
        ({"query": "q", "response": "a", "history": ["q"]}, "wrong field"),
        ({"messages": "q"}, "wrong field"),
        ({"messages": ["q"]}, "wrong field"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "wrong field"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "wrong speaker order"),
        ({"instruction": " ", "output": "a"}, "empty question"),
    ],
)
def test_what_a_row_cannot_hold_is_named(item: dict[str, object], kind: str) -> None:
    reader = ItemReader(task="t", split="train", metric="exact", image_root=None, source="f")
    with pytest.raises(ItemError) as error:
        reader.row(1, item)
    assert error.value.kind == kind


def test_a_row_of_another_layout() -> None:
    reader = ItemReader(task="t", split="train", metric="exact", image_root=None, source="f")
    row = reader.row(3, {"instruction": "Name it.", "output": "cat"})
    assert (row.sample_id, row.answers, row.source) == ("row-3", ("cat",), "f#3")
