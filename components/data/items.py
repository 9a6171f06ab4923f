"""Files of instruction data item by item: never loaded whole, each item checked and turned into a `Row`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from components.data.constraints import constraint
from components.data.layouts import Item, as_llava
from components.data.pictures import picture_path, read_picture
from components.data.reports import ItemError
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.errors import DataError

# The keys of evaluation's SCORERS; a test compares.
METRICS = ("exact", "relaxed", "anls", "iou", "yes_no", "recall", "choice", "constraints")
_CHUNK = 1 << 20  # characters read at a time from a JSON list
_LARGEST_ITEM = 1 << 26  # characters; a longer "item" means broken JSON
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped half of a character beyond 16 bits; whole ones come in pairs
_BOX = re.compile(r"\[" + r"\s*,\s*".join([r"\s*(\d*\.?\d+)\s*"] * 4) + r"\]")
_LETTER = re.compile(r"[A-Z]")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def iter_items(path: Path) -> Iterator[tuple[int, object | ItemError]]:
    """Number (from 1) and parsed value of every item of a JSON list or JSONL file, or why it cannot be parsed.

    Memory stays at one item. An item whose text is not UTF-8 is a fault of that item. Raises `DataError` when the file
    cannot be opened.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            yield from _list_items(file) if first == "[" else _lines(file, first)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _lines(file: TextIO, first: str) -> Iterator[tuple[int, object | ItemError]]:
    number = 0
    for number, line in enumerate(file, start=1):
        text = first + line if number == 1 else line
        if not text.strip():
            continue
        try:
            yield number, _readable(text, json.loads(text))
        except json.JSONDecodeError as error:
            yield number, _stray_byte(text) or ItemError("broken JSON", f"the line is not JSON ({error.msg})")
    if number == 0 and first:
        yield 1, ItemError("broken JSON", "the line is not JSON")


def _list_items(file: TextIO) -> Iterator[tuple[int, object | ItemError]]:
    """The items of a list whose opening bracket was read already."""
    decoder, buffer, size, number = json.JSONDecoder(), "", _CHUNK, 1
    while True:
        buffer = buffer.lstrip(" \t\r\n" if number == 1 else " \t\r\n,")
        if buffer.startswith("]"):
            return
        try:
            if not buffer:
                raise json.JSONDecodeError("unexpected end of the file", buffer, 0)
            value, end = decoder.raw_decode(buffer)
        except json.JSONDecodeError as error:
            more = file.read(size)
            if not more or len(buffer) > _LARGEST_ITEM:
                broken = ItemError("broken JSON", f"the list is not JSON from here on ({error.msg})")
                yield number, _stray_byte(buffer) or broken
                return
            buffer, size = buffer + more, size * 2  # doubling keeps retries on one long item linear
            continue
        yield number, _readable(buffer[:end], value)
        buffer, size, number = buffer[end:], _CHUNK, number + 1


def _readable(text: str, value: object) -> object | ItemError:
    """`value`, which was parsed from `text`, or why it cannot be written as UTF-8."""
    if (stray := _stray_byte(text)) is not None:
        return stray
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return ItemError("not UTF-8", "the item holds half of an escaped character, which is no text")
    return value


def _stray_byte(text: str) -> ItemError | None:
    """What is wrong with a text whose bytes were not all UTF-8 (they were read as halves of characters)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00  # as "surrogateescape" puts it
        return ItemError("not UTF-8", f"the item holds the byte 0x{byte:02x}, which is not UTF-8 text")
    return None


@dataclass(kw_only=True)
class ItemReader:
    """Turns items of one file into rows; remembers the ids it has seen."""

    task: str
    split: str
    metric: str
    image_root: Path | None
    source: str
    seen: dict[str, int] = field(default_factory=dict)

    def row(self, number: int, item: object) -> Row:
        """The row that item `number` holds; raises `ItemError` naming the first thing wrong with it."""
        if isinstance(item, ItemError):
            raise item
        if not isinstance(item, dict):
            raise ItemError("not an object", f"an item must be a JSON object, this is {_kind(item)}")
        item = as_llava(item, number)
        sample_id = self._sample_id(number, item)
        turns = conversation(item)
        answers = _answers(item, turns, self.metric)
        image, width, height = self._image(item)
        return Row(
            sample_id=sample_id,
            task=self.task,
            split=self.split,
            turns=with_placeholder(turns, has_image=image is not None),
            answers=answers,
            metric=self.metric,
            source=f"{self.source}#{number}",
            image=image,
            width=width,
            height=height,
        )

    def _sample_id(self, number: int, item: Item) -> str:
        given = item.get("id")
        if given is None:
            raise ItemError("missing field", 'the field "id" is missing')
        if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
            raise ItemError("wrong field", f'"id" must be a text or a whole number, this is {_kind(given)}')
        sample_id = str(given)
        if sample_id in self.seen:
            raise ItemError("duplicate id", f"the id {sample_id!r} was used in row {self.seen[sample_id]} already")
        self.seen[sample_id] = number
        return sample_id

    def _image(self, item: Item) -> tuple[bytes | None, int | None, int | None]:
        name = item.get("image")
        if name is None:
            return None, None, None
        if not isinstance(name, str) or not name:
            raise ItemError("wrong field", f'"image" must be one path as text, this is {_kind(name)}')
        if self.image_root is None:
            raise ItemError("no image folder", f'the row names the image {name} but its task has no "images" folder')
        data, (width, height) = read_picture(picture_path(self.image_root, name), name)
        return data, width, height


def conversation(item: Item) -> list[Turn]:
    """Human and gpt by turns, human first, gpt last, nothing empty; raises `ItemError`."""
    given = item.get("conversations")
    if given is None:
        raise ItemError("missing field", 'the field "conversations" is missing')
    if not isinstance(given, list) or not given:
        raise ItemError("wrong field", '"conversations" must be a list with at least one question and answer')
    turns: list[Turn] = []
    for index, turn in enumerate(given):
        wanted = "gpt" if index % 2 else "human"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ItemError("missing field", f'turn {index + 1} needs "from" and a text in "value"')
        if turn.get("from") != wanted:
            raise ItemError(
                "wrong speaker order", f"turn {index + 1} is from {turn.get('from')!r}, expected {wanted!r}"
            )
        if not turn["value"].replace(IMAGE_TOKEN, "").strip():
            what = "answer" if wanted == "gpt" else "question"
            raise ItemError(f"empty {what}", f"turn {index + 1} is an empty {what}")
        turns.append(Turn(speaker=wanted, text=turn["value"]))
    if len(turns) % 2:
        raise ItemError("wrong speaker order", "the last turn is from 'human'; a row must end with an answer of 'gpt'")
    return turns


def _answers(item: Item, turns: list[Turn], metric: str) -> tuple[str, ...]:
    """The accepted answers: the item's own or the last turn; in the form that `metric` can score."""
    given = item.get("answers")
    if given is None:
        answers = (turns[-1].text.strip(),)
    elif isinstance(given, list) and given and all(isinstance(answer, str) for answer in given):
        answers = tuple(answer.strip() for answer in given)
    else:
        raise ItemError("empty answer", '"answers" must be a list with at least one text')
    if not all(answers):
        raise ItemError("empty answer", "an accepted answer is empty")
    check_fit(metric, answers)
    return answers


def check_fit(metric: str, answers: tuple[str, ...]) -> None:
    """Raise `ItemError` when no prediction could score on these answers under `metric`."""
    if metric == "yes_no" and not any(_YES_NO.search(answer) for answer in answers):
        raise ItemError("answer does not fit", f"the metric yes_no needs yes or no, the answer is {answers[0]!r}")
    if metric == "iou" and not any(_is_box(answer) for answer in answers):
        raise ItemError("answer does not fit", f"the metric iou needs [x1,y1,x2,y2], the answer is {answers[0]!r}")
    if metric == "choice" and not any(_LETTER.fullmatch(answer) for answer in answers):
        raise ItemError("answer does not fit", f"the metric choice needs a letter, the answer is {answers[0]!r}")
    if metric == "constraints":
        try:
            for answer in answers:
                constraint(answer)
        except DataError as error:
            raise ItemError("answer does not fit", str(error).rstrip(".")) from error


def _is_box(answer: str) -> bool:
    match = _BOX.search(answer)
    if match is None:
        return False
    x1, y1, x2, y2 = map(float, match.groups())
    return x1 < x2 and y1 < y2


def with_placeholder(turns: list[Turn], *, has_image: bool) -> tuple[Turn, ...]:
    """The turns with one placeholder at the very start when there is a picture, and none when there is not.

    Raises `ItemError` when the turns ask for a picture that is not there, or for several.
    """
    count = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
    if count > 1:
        raise ItemError("too many images", f"the turns hold {count} {IMAGE_TOKEN} placeholders; a row has one picture")
    if count and not has_image:
        raise ItemError("missing field", f'the turns hold {IMAGE_TOKEN} but the field "image" is missing')
    plain = [Turn(speaker=turn.speaker, text=turn.text.replace(IMAGE_TOKEN, "").strip()) for turn in turns]
    if has_image:
        plain[0] = Turn(speaker="human", text=f"{IMAGE_TOKEN}\n{plain[0].text}")
    return tuple(plain)


def _kind(value: object) -> str:
    names = {"NoneType": "null", "bool": "true or false", "int": "a number", "float": "a number", "str": "a text"}
    return names.get(type(value).__name__, "a list" if isinstance(value, list) else "an object")
