"""LLaVA-format lists, as CoIN, UCIT and MLLM-CL publish their tasks: one JSON list per task and split.

A training item has `id` or `question_id`, `image` (a path, or nothing for text alone) and `conversations`, several
turns allowed. A test item has `question_id`, `image`, `text` and `answer`; CoIN's grounding also has `answer_bbox`,
which is the reference, and `size`, the picture's width and height; some lists write test items like
training items.

Ids of training lists often name the picture, not the row (UCIT: 20,559 ids for 40,000 VizWiz rows). There, a repeated
id gets "~" and a number appended. In test lists predictions are joined by id, so a repeated one is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import answers_of, id_of, text_of
from components.data.benchmarks.spec import Side
from components.data.formats.items import conversation
from components.data.formats.json_items import iter_items
from components.data.problems import ItemError, Problem
from components.data.rows import Turn

_ANSWERS = ("answer_bbox", "answers", "answer", "label")
_BOX_LIST = 4


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The accepted answers of a test item that are stored apart from it, and a note about them (kind, text)."""

    answers: tuple[str, ...]
    note: tuple[str, str] | None = None


def list_items(
    root: Path,
    file: str,
    side: Side,
    candidates: Callable[[str], Sequence[str]],
    references: Callable[[int, str], Reference] | None = None,
    metric_of: Callable[[dict[str, object]], str] | None = None,
) -> Iterator[RawItem | Problem]:
    """The items of one list. `candidates` gives the paths below the root where a named picture may be.

    `references` finds the accepted answers of a test item by its number and its picture, if they are kept apart;
    `metric_of` an item's metric, where a task's items are scored differently.
    """
    times: Counter[str] = Counter()

    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
        given = id_of(item, "id", "question_id")
        turns, answers = _turns_and_answers(item)
        image = item.get("image")
        if image is not None and (not isinstance(image, str) or not image.strip()):
            raise ItemError("wrong field", f'"image" must be one path as text, this is {image!r:.60}')
        note: tuple[str, str] | None = None
        if references is not None:
            found = references(number, image or "")
            answers, note = found.answers, found.note
        times[given] += 1
        again = side == "train" and times[given] > 1
        yield RawItem(
            item_id=f"{given}~{times[given]}" if again else given,
            turns=turns,
            answers=answers,
            images=tuple(candidates(image)) if image is not None else (),
            stated=_stated_size(item),
            repeated=again,
            metric=metric_of(item) if metric_of is not None else "",
            note=note,
        )

    return parsed(file, iter_items(root / file), parse)


def _stated_size(item: dict[str, object]) -> tuple[int, int] | None:
    """Width and height as the item states them, as `size` or by name; None unless both are whole numbers."""
    size = item.get("size", [item.get("width"), item.get("height")])
    if not isinstance(size, list) or len(size) != len(("width", "height")):
        return None
    sides = [side for side in size if isinstance(side, int) and not isinstance(side, bool)]
    return (sides[0], sides[1]) if len(sides) == len(size) else None


def _turns_and_answers(item: dict[str, object]) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    named = [key for key in _ANSWERS if item.get(key) is not None]
    if item.get("conversations") is not None:
        turns = tuple(conversation(item))
        return turns, _accepted(item, named[0]) if named else (turns[-1].text.strip(),)
    question = text_of(item, "text")
    answers = _accepted(item, named[0] if named else "answer")
    return question_and_answer(question, answers[0]), answers


def _accepted(item: dict[str, object], key: str) -> tuple[str, ...]:
    """The accepted answers; a box may be a list of four numbers instead of a text."""
    value = item.get(key)
    if key == "answer_bbox" and isinstance(value, list) and len(value) == _BOX_LIST:
        numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
        if len(numbers) == _BOX_LIST:
            return (f"[{','.join(str(number) for number in numbers)}]",)
    return answers_of(item, key)
