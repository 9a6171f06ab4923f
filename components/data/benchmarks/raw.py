"""One item of a release before and after its picture was opened: `RawItem`, and the pure function that checks it.

`check_item` depends on nothing but its arguments and the picture file, so items may be checked in any order, by
threads or on other machines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from components.data.benchmarks.spec import Boxes, Side, TaskSpec
from components.data.formats.items import require_scorable, with_placeholders
from components.data.formats.pictures import Orientation, Picture, encoded_sheet, picture_path, proved, read_picture
from components.data.problems import ItemError, Problem
from components.data.rows import Row, Turn, plain_instruction

Size = tuple[int, int]

BOX_TOLERANCE = 0.01  # of the frame: releases round to two or three decimals
_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawItem:
    """What an annotation says of one row; no picture has been opened yet."""

    item_id: str
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    file: str = ""
    """Annotation file below the root, and `number` the item in it, from 1: `parsed` fills in both."""
    number: int = 0
    images: tuple[str, ...] = ()
    """Paths below the root where the picture may be; the first that exists counts. Empty for a row without one."""
    choices: tuple[str, ...] = ()
    """Paths of pictures to choose from; they are put below the picture, from left to right."""
    data: bytes | None = None
    """The encoded picture, of a release that holds pictures inside its tables."""
    stated: Size | None = None
    """Width and height of the picture, where the annotation states them."""
    metric: str = ""
    """Of a release whose rows are scored differently: this row's metric instead of the task's."""
    note: tuple[str, str] | None = None
    """A kind and a sentence for the report about this row, which is kept."""
    repeated: bool = False
    """The id was used before in a release whose ids name pictures; this row got a new one."""


@dataclass(frozen=True, kw_only=True)
class SplitContext:
    """What the items of one split have in common: where they come from and the split that they become."""

    root: Path
    task: str
    side: Side
    metric: str
    boxes: Boxes
    orientation: Orientation = "apply"

    @classmethod
    def of(cls, root: Path, task: TaskSpec, side: Side, orientation: Orientation = "apply") -> SplitContext:
        return cls(root=root, task=task.name, side=side, metric=task.metric, boxes=task.boxes, orientation=orientation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A row that passed, what is odd about it, and its keys: digests of the picture with each question."""

    row: Row
    file: str
    number: int
    notes: tuple[Problem, ...]
    keys: tuple[bytes, ...]
    picture: tuple[bytes, str] | None
    """A digest of the picture's bytes and its file below the root; None without a file."""
    done: tuple[str, ...] = ()
    """What is done to the picture: keys of `quality.checks.DONE`."""


def parsed(
    file: str,
    items: Iterable[tuple[int, object | ItemError]],
    parse: Callable[[int, dict[str, object]], Iterable[RawItem | ItemError]],
) -> Iterator[RawItem | Problem]:
    """What `parse` makes of each numbered object of a file; an item, or part of one, that it refuses is a `Problem`."""
    for number, item in items:
        try:
            if isinstance(item, ItemError):
                raise item
            if not isinstance(item, dict):
                raise ItemError("not an object", f"an item must be a JSON object, this is {item!r:.60}")
            made = list(parse(number, item))
        except ItemError as error:
            made = [error]
        for one in made:
            yield one.at(file, number) if isinstance(one, ItemError) else replace(one, file=file, number=number)


def question_and_answer(question: str, answer: str) -> tuple[Turn, ...]:
    """A conversation of one question."""
    return (Turn(speaker="human", text=question), Turn(speaker="gpt", text=answer))


def check_item(item: RawItem, context: SplitContext) -> Checked | Problem:
    """Open the item's picture and build its row, or say what is wrong with it."""
    try:
        shown, name = _picture(item, context)
        turns = with_placeholders(list(item.turns), 0 if shown is None else 1)
        if context.side == "test":
            require_scorable(item.metric or context.metric, item.answers)
    except ItemError as error:
        return error.at(item.file, item.number)
    row = Row(
        sample_id=item.item_id,
        task=context.task,
        split=context.side,
        turns=turns,
        answers=item.answers,
        metric=item.metric or context.metric,
        source=f"{item.file}#{item.number}",
        image=shown.data if shown else None,
        width=shown.size[0] if shown else None,
        height=shown.size[1] if shown else None,
    )
    notes = _notes(item, context, shown.size if shown else None)
    picture = (hashlib.sha256(shown.data).digest()[:8], name) if shown is not None and name else None
    keys = question_keys(row)
    done = shown.done if shown else ()
    return Checked(row=row, file=item.file, number=item.number, notes=notes, keys=keys, picture=picture, done=done)


def question_keys(row: Row) -> tuple[bytes, ...]:
    """One digest per question of the row: of its picture's bytes and the words asked, case and spaces aside."""
    picture = hashlib.sha256(row.image or b"").digest()
    asked = [plain_instruction(turn.text) for turn in row.turns if turn.speaker == "human"]
    return tuple(hashlib.sha256(picture + " ".join(text.casefold().split()).encode()).digest()[:16] for text in asked)


def _picture(item: RawItem, context: SplitContext) -> tuple[Picture | None, str]:
    """The picture and its file below the root (empty for a picture without its own file)."""
    if item.data is not None:
        return proved(item.data, f"of item {item.item_id}", context.orientation), ""
    if not item.images:
        return None, ""
    path = _first_there(context.root, item.images)
    picture = read_picture(path, item.images[0], context.orientation)
    if item.choices:
        names = [(picture_path(context.root, name), name) for name in item.choices]
        choices = [read_picture(path, name, context.orientation).data for path, name in names]
        data, size = encoded_sheet(picture.data, choices)
        picture = replace(picture, data=data, size=size)
    return picture, path.relative_to(context.root.resolve()).as_posix()


def _first_there(root: Path, names: tuple[str, ...]) -> Path:
    """The first of the named files that exists; raises `ItemError` when one leads outside or none is there."""
    missing: ItemError | None = None
    for name in names:
        try:
            return picture_path(root, name)
        except ItemError as error:
            if error.kind != "missing image":
                raise
            missing = missing or error
    assert missing is not None
    raise missing


def _notes(item: RawItem, context: SplitContext, size: Size | None) -> tuple[Problem, ...]:
    notes: tuple[Problem, ...] = ()
    if item.note is not None:
        kind, detail = item.note
        notes = (Problem(kind=kind, file=item.file, row=item.number, detail=detail),)
    if size is None:
        return notes
    return (*notes, *_wrong_size(item, size), *(_box_outside(item, context.boxes, size) if context.boxes else ()))


def _wrong_size(item: RawItem, size: Size) -> Iterator[Problem]:
    """A picture that is larger or smaller than its annotation says."""
    if item.stated is not None and item.stated != size:
        stated = " x ".join(map(str, item.stated))
        detail = f"the picture has {size[0]} x {size[1]} pixels, the annotation says {stated}"
        yield Problem(kind="size differs", file=item.file, row=item.number, detail=detail)


def _box_outside(item: RawItem, boxes: Boxes, size: Size) -> tuple[Problem, ...]:
    texts = dict.fromkeys([*(turn.text for turn in item.turns), *item.answers])
    low, high = _frame(boxes, size)
    for match in (match for text in texts for match in _BOX.finditer(text)):
        x1, y1, x2, y2 = (float(group) for group in match.groups())
        if not (low[0] <= x1 <= x2 <= high[0] and low[1] <= y1 <= y2 <= high[1]):
            detail = f"the box {match.group()} leaves the picture of {size[0]} x {size[1]} pixels or is turned over"
            return (Problem(kind="box outside", file=item.file, row=item.number, detail=detail),)
    return ()


def _frame(boxes: Boxes, size: Size) -> tuple[tuple[float, float], tuple[float, float]]:
    """Smallest and largest x and y inside the picture, in the frame that boxes are written in."""
    side = max(size)
    margins = [(side - length) / (2 * side) if boxes == "square" else 0.0 for length in size]
    low = (margins[0] - BOX_TOLERANCE, margins[1] - BOX_TOLERANCE)
    return low, (1 - low[0], 1 - low[1])
