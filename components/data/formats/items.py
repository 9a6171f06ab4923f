"""Items of instruction data, each checked and turned into a `Row`."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from components.core.errors import DataError
from components.core.location import Location
from components.data.formats.fields import Item
from components.data.formats.json_items import Numbered
from components.data.formats.layouts import as_llava, turn_weight, unread
from components.data.formats.pictures import Orientation, Picture, picture_of, proved
from components.data.formats.seen_ids import SeenIds
from components.data.problems import ItemError
from components.data.rows import IMAGE_TOKEN, Row, RowPicture, Turn
from components.metrics import check_answers

Ids = Literal["refuse", "renew", "auto"]
_UNREAD = "\0unread"  # a name that no file has for the fields of an item that mean nothing


def distinct_items(
    items: Iterable[Numbered],
    where: Callable[[int], str] = "row {}".format,
    *,
    ids: Ids = "refuse",
    renewed: Callable[[], None] = lambda: None,
) -> Iterator[Numbered]:
    """The same items, under LLaVA's names where they have them; an id that was used before is an error or renewed.

    A renewed id ends in "~" and a number, as in the published benchmarks, and `renewed` is called. With "auto", items
    whose content differs from the earlier one are renewed, and the same item again is an error. `where` says where the
    item of a number was found. Memory: 16 bytes for each item, twice as many with "auto".
    """
    seen, said = SeenIds(), SeenIds()
    times: dict[str, int] = {}  # of ids that were used before
    for number, item in items:
        if not isinstance(item, dict):
            yield number, item
            continue
        try:
            llava = as_llava(item, number)
            sample_id = given = _sample_id(llava)
        except ItemError as error:
            yield number, error
            continue
        first = seen.first_use(given, number)
        again = None if ids != "auto" else said.first_use(_content(item), number)
        if first is not None and (ids == "refuse" or again is not None):
            detail = f"the id {given!r} was used in {where(first if again is None else again)} already"
            yield number, ItemError("duplicate id", detail if again is None else f"{detail}, by the same row")
            continue
        if first is not None:
            renewed()
        while first is not None:  # the new id may occur in the file too
            times[given] = times.get(given, 1) + 1
            sample_id = f"{given}~{times[given]}"
            first = seen.first_use(sample_id, number)
        yield number, {**llava, "id": sample_id, _UNREAD: unread(item)}


def _content(item: Item) -> str:
    """A text that is equal for equal items."""

    def short(value: object) -> str:
        return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)

    return json.dumps(item, sort_keys=True, default=short)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadItem:
    """What became of one item."""

    number: int
    found: Row | ItemError
    unread: tuple[str, ...] = ()
    """Its fields that are ignored."""
    picture: tuple[str, ...] = ()
    """What was done to its pictures: keys of `quality.checks.DONE`."""


@dataclass(frozen=True, kw_only=True)
class ItemReader:
    """Turns items of one file into rows, each independently: in any order, by threads or on other machines."""

    task: str
    split: str
    metric: str
    image_root: Location | None
    source: str
    orientation: Orientation = "apply"

    def read(self, numbered: Numbered) -> ReadItem:
        """The item's row, or what is wrong with it."""
        number, item = numbered
        try:
            row, picture = self._row(number, item)
        except ItemError as error:
            return ReadItem(number=number, found=error)
        names = item.get(_UNREAD) if isinstance(item, dict) else None
        return ReadItem(number=number, found=row, unread=tuple(names or ()), picture=picture)

    def row(self, number: int, item: object) -> Row:
        """The row that item `number` holds; raises `ItemError` naming the first thing wrong with it."""
        return self._row(number, item)[0]

    def _row(self, number: int, item: object) -> tuple[Row, tuple[str, ...]]:
        if isinstance(item, ItemError):
            raise item
        if not isinstance(item, dict):
            raise ItemError("not an object", f"an item must be a JSON object, this is {_kind(item)}")
        if _UNREAD not in item:  # `distinct_items` has done it
            item = as_llava(item, number)
        sample_id = _sample_id(item)
        turns = conversation(item)
        if self.split == "train" and not any(turn.weight for turn in turns if turn.speaker == "gpt"):
            raise ItemError("nothing to learn", "the weight of every answer is 0")
        answers = _answers(item, turns, self.metric)
        pictures = self._pictures(item)
        first = pictures[0] if pictures else None
        row = Row(
            sample_id=sample_id,
            task=self.task,
            split=self.split,
            turns=with_placeholders(turns, len(pictures)),
            answers=answers,
            metric=self.metric,
            source=f"{self.source}#{number}",
            image=first.data if first else None,
            width=first.size[0] if first else None,
            height=first.size[1] if first else None,
            more_images=tuple(RowPicture(each.data, *each.size) for each in pictures[1:]),
        )
        return row, tuple(dict.fromkeys(done for each in pictures for done in each.done))

    def _pictures(self, item: Item) -> list[Picture]:
        given = item.get("image")
        if given is None:
            return []
        return [self._picture(item, image) for image in (given if isinstance(given, list) else [given])]

    def _picture(self, item: Item, image: object) -> Picture:
        if isinstance(image, dict):  # as Hugging Face's tables write pictures: their bytes, or else their path
            data = image.get("bytes")
            if data is not None and not isinstance(data, bytes):
                raise ItemError("wrong field", f'"bytes" of "image" must be the encoded picture, this is {_kind(data)}')
            image = image.get("path") if data is None else data
        if isinstance(image, bytes):
            return proved(image, f"of the item {_sample_id(item)!r}", self.orientation)
        if not isinstance(image, str):
            raise ItemError("wrong field", f'"image" must be a path as text, or a list of them; this is {_kind(image)}')
        if not image.strip():
            raise ItemError("wrong field", '"image" is an empty text; give a path, or null for a row without a picture')
        if image.startswith("data:"):
            return proved(_unpacked(image), f"of the item {_sample_id(item)!r}", self.orientation)
        if self.image_root is None:
            raise ItemError("no image folder", f'the row names the image {image} but its task has no "images" folder')
        return picture_of(self.image_root, image, self.orientation)


def _unpacked(uri: str) -> bytes:
    """The picture inside a data URI."""
    head, _, body = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise ItemError("broken image", f"the image {uri[:40]!r}... cannot be unpacked ({error})") from error


def _sample_id(item: Item) -> str:
    given = item.get("id", item.get("sample_id"))  # LLaVA-NeXT-Interleave's name
    if given is None:
        raise ItemError("missing field", 'the field "id" is missing')
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise ItemError("wrong field", f'"id" must be a text or a whole number, this is {_kind(given)}')
    return str(given)


def conversation(item: Item) -> list[Turn]:
    """The turns: human and gpt in alternation, human first, gpt last, none empty; raises `ItemError`."""
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
        weight = turn_weight(turn, index + 1, wanted)
        turns.append(Turn(speaker=wanted, text=turn["value"], weight=weight))
    if len(turns) % 2:
        raise ItemError("wrong speaker order", "the last turn is from 'human'; a row must end with an answer of 'gpt'")
    return turns


def _answers(item: Item, turns: list[Turn], metric: str) -> tuple[str, ...]:
    """The accepted answers, the item's own or the last turn, in a form that `metric` can score."""
    given = item.get("answers")
    if given is None:
        answers = (turns[-1].text.strip(),)
    elif isinstance(given, list) and given and all(isinstance(answer, str) for answer in given):
        answers = tuple(answer.strip() for answer in given)
    else:
        raise ItemError("empty answer", '"answers" must be a list with at least one text')
    if not all(answers):
        raise ItemError("empty answer", "an accepted answer is empty")
    if any(IMAGE_TOKEN in answer for answer in answers):
        raise ItemError("picture in an answer", f"an accepted answer holds {IMAGE_TOKEN}, which no reply can")
    require_scorable(metric, answers)
    return answers


def require_scorable(metric: str, answers: tuple[str, ...]) -> None:
    """Raise `ItemError` when no reply could score on these answers under `metric`."""
    try:
        check_answers(metric, answers)
    except DataError as error:
        raise ItemError("answer does not fit", str(error).rstrip(".")) from error


def with_placeholders(turns: list[Turn], pictures: int) -> tuple[Turn, ...]:
    """The turns, stripped, with one placeholder for each picture.

    Without any, the first question gets them all at its start, one a line. As in LLaVA's released code, the placeholder
    of a single picture is moved to the start of the question in which it stands; those of several stay where they are.
    Raises `ItemError` when there are more or fewer than pictures, or when an answer shows one.
    """
    counts = [turn.text.count(IMAGE_TOKEN) for turn in turns]
    for index, (turn, count) in enumerate(zip(turns, counts, strict=True), start=1):
        if count and turn.speaker == "gpt":
            raise ItemError("picture in an answer", f"turn {index} is an answer that holds {IMAGE_TOKEN}")
    if any(counts) and not pictures:
        raise ItemError("missing field", f'the turns hold {IMAGE_TOKEN} but the field "image" is missing')
    if any(counts) and sum(counts) != pictures:
        found = f"{sum(counts)} {IMAGE_TOKEN} {'placeholder' if sum(counts) == 1 else 'placeholders'}"
        raise ItemError(
            "placeholders", f"the turns hold {found} for {pictures} {'picture' if pictures == 1 else 'pictures'}"
        )
    if pictures > 1 and any(counts):
        return tuple(replace(turn, text=turn.text.strip()) for turn in turns)
    plain = [replace(turn, text=turn.text.replace(IMAGE_TOKEN, "").strip()) for turn in turns]
    shown = next((at for at, count in enumerate(counts) if count), 0)
    plain[shown] = replace(plain[shown], text=f"{IMAGE_TOKEN}\n" * pictures + plain[shown].text)
    return tuple(plain)


def _kind(value: object) -> str:
    names = {"NoneType": "null", "bool": "true or false", "int": "a number", "float": "a number", "str": "a text"}
    return names.get(type(value).__name__, "a list" if isinstance(value, list) else "an object")
