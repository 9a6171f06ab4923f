"""Items of instruction data, each checked and turned into a `Row`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from components.data.constraints import constraint
from components.data.json_items import Numbered
from components.data.layouts import Item, as_llava
from components.data.pictures import decoded, picture_of
from components.data.reports import ItemError
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.data.seen_ids import SeenIds
from components.data.storage import Location
from components.errors import DataError

# The keys of evaluation's SCORERS; a test compares.
METRICS = ("exact", "relaxed", "anls", "iou", "yes_no", "recall", "choice", "constraints")
_BOX = re.compile(r"\[" + r"\s*,\s*".join([r"\s*(\d*\.?\d+)\s*"] * 4) + r"\]")
_LETTER = re.compile(r"[A-Z]")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def distinct_items(items: Iterable[Numbered], place: Callable[[int], str] = "row {}".format) -> Iterator[Numbered]:
    """The same items, under LLaVA's names where they have them; one with an id that was used before is an error.

    `place` names where an item of a number was found.
    """
    seen = SeenIds()
    for number, item in items:
        if not isinstance(item, dict):
            yield number, item
            continue
        try:
            llava = as_llava(item, number)
            sample_id = _sample_id(llava)
        except ItemError as error:
            yield number, error
            continue
        first = seen.first_use(sample_id, number)
        if first is not None:
            yield number, ItemError("duplicate id", f"the id {sample_id!r} was used in {place(first)} already")
        else:
            yield number, llava


@dataclass(frozen=True, kw_only=True)
class ItemReader:
    """Turns items of one file into rows, each by itself: in any order, by threads or on other machines."""

    task: str
    split: str
    metric: str
    image_root: Location | None
    source: str

    def read(self, numbered: Numbered) -> tuple[int, Row | ItemError]:
        """The item's number with its row, or with what is wrong with it."""
        number, item = numbered
        try:
            return number, self.row(number, item)
        except ItemError as error:
            return number, error

    def row(self, number: int, item: object) -> Row:
        """The row that item `number` holds; raises `ItemError` naming the first thing wrong with it."""
        if isinstance(item, ItemError):
            raise item
        if not isinstance(item, dict):
            raise ItemError("not an object", f"an item must be a JSON object, this is {_kind(item)}")
        item = as_llava(item, number)
        sample_id = _sample_id(item)
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

    def _image(self, item: Item) -> tuple[bytes | None, int | None, int | None]:
        image = item.get("image")
        if image is None:
            return None, None, None
        if isinstance(image, dict):  # as Hugging Face's tables write pictures: their bytes, or else their path
            data = image.get("bytes")
            if data is not None and not isinstance(data, bytes):
                raise ItemError("wrong field", f'"bytes" of "image" must be the encoded picture, this is {_kind(data)}')
            image = image.get("path") if data is None else data
        if isinstance(image, bytes):
            with decoded(image, f"of the item {_sample_id(item)!r}") as picture:
                return image, *picture.size
        if not isinstance(image, str) or not image:
            raise ItemError("wrong field", f'"image" must be one path as text, this is {_kind(image)}')
        if self.image_root is None:
            raise ItemError("no image folder", f'the row names the image {image} but its task has no "images" folder')
        data, (width, height) = picture_of(self.image_root, image)
        return data, width, height


def _sample_id(item: Item) -> str:
    given = item.get("id")
    if given is None:
        raise ItemError("missing field", 'the field "id" is missing')
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise ItemError("wrong field", f'"id" must be a text or a whole number, this is {_kind(given)}')
    return str(given)


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
