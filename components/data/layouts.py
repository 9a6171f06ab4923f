"""Other common layouts of instruction data, item by item, as LLaVA's: what each calls turns, speakers and pictures.

| layout | turns | speakers | picture |
|---|---|---|---|
| LLaVA | `conversations` of `from`, `value` | human, gpt | `image` |
| ShareGPT | the same | also user, assistant, model | `images`, a list |
| OpenAI, ms-swift | `messages` of `role`, `content` | user, assistant | `images`; its place a part of `content` |
| alpaca | `instruction`, `input`, `output`; earlier turns in `history` | | `images` |
| older ms-swift | `query`, `response`; earlier turns in `history` | | `images` |

Nothing is guessed: a system text or a second picture, which a row cannot hold, is named and the item left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.data.reports import ItemError
from components.data.rows import IMAGE_TOKEN

Item = dict[str, object]

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "chatgpt": "gpt"}
_PAIRS = (("instruction", "output"), ("query", "response"))


def as_llava(item: Item, number: int) -> Item:
    """The item under LLaVA's names; one in LLaVA's own layout comes back as it is, right or wrong.

    Items of other layouts seldom have an `id`: theirs is then "row-NUMBER". Raises `ItemError` for what a row cannot
    hold.
    """
    if "image" in item or not _is_other(item):
        return item
    system, turns = _turns(item)
    if system.strip():
        raise ItemError("system text", f"the item has the system text {system.strip()!r:.60}, which a row cannot hold")
    llava: Item = {"id": item.get("id", f"row-{number}"), "conversations": turns}
    if (image := _image(item)) is not None:
        llava["image"] = image
    if "answers" in item:
        llava["answers"] = item["answers"]
    return llava


def _is_other(item: Item) -> bool:
    """Whether the item has names that LLaVA's layout has not."""
    if "conversations" not in item:
        return "messages" in item or any(question in item for question, _ in _PAIRS)
    turns = item["conversations"]
    spoken = [turn.get("from") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    names = {name for name in spoken if isinstance(name, str)}
    return "images" in item or bool(names & (_SPEAKERS.keys() | {"system"}) - {"human", "gpt"})


def _turns(item: Item) -> tuple[str, list[Item]]:
    """The system text and the turns in LLaVA's form."""
    system = str(item.get("system") or "")
    for field, speaker, content in (("conversations", "from", "value"), ("messages", "role", "content")):
        if field in item:
            return _spoken(_list(item[field], field), speaker, content, system)
    question, answer = next((names for names in _PAIRS if names[0] in item), _PAIRS[0])
    asked = [_text(item.get(question), question), _text(item.get("input") or "", "input")]
    pairs = [*_list(item.get("history") or [], "history"), ["\n".join(filter(None, asked)), item.get(answer)]]
    turns: list[Item] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ItemError("wrong field", '"history" must be a list of pairs of a question and an answer')
        turns.append({"from": "human", "value": _text(pair[0], question)})
        turns.append({"from": "gpt", "value": _text(pair[1], answer)})
    return system, turns


def _spoken(given: Sequence[object], speaker: str, content: str, system: str) -> tuple[str, list[Item]]:
    turns: list[Item] = []
    for index, turn in enumerate(given, start=1):
        if not isinstance(turn, dict):
            raise ItemError("wrong field", f"turn {index} must be an object with {speaker!r} and {content!r}")
        name, text = turn.get(speaker), _text(turn.get(content), content)
        if name == "system":
            system += text
        else:
            turns.append({"from": _SPEAKERS.get(str(name), name), "value": text})
    return system, turns


def _text(value: object, name: str) -> str:
    """A text, or the parts of one that OpenAI's layout allows: a picture becomes its placeholder."""
    if isinstance(value, list):
        return "\n".join(_part(part) for part in value)
    if not isinstance(value, str):
        raise ItemError("missing field", f"the field {name!r} needs a text")
    return value


def _part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text":
        return _text(part.get("text"), "text")
    if kind in ("image", "image_url"):
        return IMAGE_TOKEN
    raise ItemError("wrong field", f"a part of a message must be a text or an image, this one is {kind!r}")


def _image(item: Item) -> object:
    """The item's one picture, its path or its bytes, or None."""
    images = item.get("images")
    named = images if isinstance(images, list) else [] if images is None else [images]
    if not named:
        return None
    if len(named) > 1:
        raise ItemError("too many images", f"the item names {len(named)} pictures; a row has one")
    first = named[0]
    return first.get("path") if isinstance(first, dict) and first.get("bytes") is None else first


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise ItemError("wrong field", f"{name!r} must be a list")
    return value
