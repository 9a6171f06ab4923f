"""Common layouts of instruction data, converted to LLaVA's item by item: what each calls turns, speakers and pictures.

| layout | turns | speakers | pictures |
|---|---|---|---|
| LLaVA | `conversations` of `from`, `value` | human, gpt | `image`, also a list (LLaVA-NeXT-Interleave) |
| ShareGPT | the same | also user, assistant, model | `images`, a list |
| OpenAI, ms-swift | `messages` of `role`, `content` | user, assistant | `images`, or a part of `content` |
| older ms-swift | `conversation` of `human`, `assistant` | | `images` |
| alpaca | `instruction`, `input`, `output`; earlier turns in `history` | | `images` |
| older ms-swift | `query`, `response`; earlier turns in `history` | | `images` |
| Qwen-VL | as LLaVA or ShareGPT | user, assistant | `<img>PATH</img>` in a question |

`image` and `images` mean the same everywhere: a path, encoded bytes, an object of `bytes` and `path`, or a list of
these. Where two of the fields and the turns name pictures, they name the same ones.

An answer that is only context is marked in its turn: `loss` or `loss_scale` (ms-swift), `weight` (OpenAI), `train` or
`training` (axolotl); false is 0, true 1.

Nothing is guessed and no content is dropped silently: an item with a system text, a video or tools, which a row
cannot hold, is left out and reported. `unread` names all other fields that are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from components.data.formats.fields import (
    CONTENT,
    PAIRS,
    PICTURES,
    SYSTEM,
    TALKS,
    Item,
    check_content,
    filled,
    instead,
)
from components.data.problems import ItemError
from components.data.rows import IMAGE_TOKEN

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "chatgpt": "gpt"}
_SYSTEM_SPEAKERS = ("system", "developer")
_FLAGS = ("weight", "loss", "loss_scale", "train", "training")
_LEARN_QUESTIONS = ("train", "training")  # where true at a question means to learn it
_OTHER_FLAGS = (
    "mask",
    "masked",
    "loss_mask",
    "mask_loss",
    "no_loss",
    "ignore_loss",
    "loss_weight",
    "learn",
    "trainable",
)
_TURN_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "train_detail",
                 "training_detail", *_OTHER_FLAGS, *PICTURES, *CONTENT)  # fmt: skip
_OF_CONTENT = frozenset(_TURN_CONTENT)
_OTHER_SPEAKERS = {*_SPEAKERS, *_SYSTEM_SPEAKERS} - {"human", "gpt"}
_SHOWN = "pictures"  # of a turn that is being read
_TURN_KNOWN = {"from", "role", "value", "content", "human", "assistant", *_FLAGS, *_TURN_CONTENT}
_TAGGED = re.compile(r"<img>(.*?)</img>", re.DOTALL)
# Placeholders that are nothing else, and tags that are placeholders at one end of a question; amid other words they are
# code that a text is about, unless the row has a picture.
_PLACEHOLDERS = re.compile(
    r"<image[_ -]?\d+>|<\|(?:image|video|audio)(?:_\d+|_pad)?\|>|<\|vision_(?:start|end)\|>|<ImageHere>|"
    r"<image_placeholder>|<image_soft_token>|<IMG_CONTEXT>|<(?:video|audio)>\S+</(?:video|audio)>"
)
_PICTURE_TAG = r"</?img\s*/?>|(?-i:(?!<image>))<\s*image\s*/?>|</image>|\[IMG\]"
_TAG = rf"(?:{_PICTURE_TAG}|<img\s[^<>]*>|</?(?:video|audio|speech)>|!\[[^\]]*\]\([^()]+\))"
_PICTURE_TAGS = re.compile(_PICTURE_TAG, re.IGNORECASE)
_AT_END = re.compile(rf"\A\s*{_TAG}|{_TAG}\s*\Z", re.IGNORECASE)


def as_llava(item: Item, number: int) -> Item:
    """The item under LLaVA's names; one in LLaVA's own layout comes back as it is, right or wrong.

    Items of other layouts seldom have an `id`: theirs is then "row-NUMBER". Raises `ItemError` for what a row cannot
    hold.
    """
    talks = _talks(item)
    if len(talks) > 1:
        names = " and ".join(map(repr, talks))
        raise ItemError("several layouts", f"the item has {names}, and only one of them can be the conversation")
    if not talks:
        others = ", ".join(TALKS[1:])
        has = ", ".join(map(repr, item)) or "no field"
        detail = f'the field "conversations" is missing, and so are {others}; the row has {has:.200}'
        raise ItemError("missing field", detail)
    check_content(item, talks[0])
    if talks[0] == "conversations" and _is_own(item):
        return item
    system, turns, pictures = _turns(item, talks[0])
    if system:
        raise ItemError("system text", f"the item has the system text {system!r:.60}, which a row cannot hold")
    llava: Item = {"id": item.get("id", item.get("sample_id", f"row-{number}")), "conversations": turns}
    if images := _named(item, pictures):
        llava["image"] = images[0] if len(images) == 1 else images
    if "answers" in item:
        llava["answers"] = item["answers"]
    return llava


def unread(item: Item) -> list[str]:
    """Fields of an item, or of its turns, that have a value and are ignored."""
    talk = next(iter(_talks(item)), "")
    known = {"id", "sample_id", "answers", talk, *PICTURES, *SYSTEM, *PAIRS.get(talk, ())}
    names = [name for name in item if name not in known and filled(item[name])]
    turns = item.get(talk)
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict):
            names += [f"{name} of a turn" for name in turn if name not in _TURN_KNOWN and filled(turn[name])]
    return list(dict.fromkeys(names))


def turn_weight(turn: Mapping[str, object], index: int, speaker: str) -> float:
    """The weight that the flags of turn `index` give its answer, 1 where there are none; raises `ItemError`."""
    flags = {name: turn[name] for name in _FLAGS if turn.get(name) is not None}
    for name, value in flags.items():
        if not isinstance(value, bool | int | float) or not 0 <= value < math.inf:
            raise ItemError("turn weight", f"{name!r} of turn {index} is {value!r}; it must be true, false or a number")
    if speaker == "human":
        if any(flags.get(name) for name in _LEARN_QUESTIONS):
            raise ItemError("turn weight", f"turn {index} is a question to be learned; only answers are")
        return 1.0
    weights = {float(cast(float, value)) for value in flags.values()}
    if len(weights) > 1:
        given = ", ".join(f"{name} {value!r}" for name, value in flags.items())
        raise ItemError("turn weight", f"turn {index} says {given}, which contradict each other")
    return weights.pop() if weights else 1.0


def _talks(item: Item) -> list[str]:
    """The fields that hold the conversation: those with a value, or else the first that is there."""
    there = [name for name in TALKS if item.get(name) is not None]
    return [name for name in there if filled(item[name])] or there[:1]


def _is_own(item: Item) -> bool:
    """Whether the item is in LLaVA's own layout, or too broken to be in any."""
    if "images" in item or isinstance(item.get("image"), list):
        return False
    turns = item["conversations"]
    if not isinstance(turns, list):
        return True
    return not any(_is_other(turn) for turn in turns if isinstance(turn, dict))


def _is_other(turn: Item) -> bool:
    """Whether a turn has something that LLaVA's turns do not have."""
    name, text = turn.get("from"), turn.get("value")
    if isinstance(name, str) and name in _OTHER_SPEAKERS:
        return True
    if isinstance(text, list) or "role" in turn or "content" in turn:
        return True
    if any(field in _OF_CONTENT and filled(value) for field, value in turn.items()):
        return True
    return isinstance(text, str) and any(tags.search(text) for tags in (_PLACEHOLDERS, _PICTURE_TAGS, _AT_END))


def _turns(item: Item, talk: str) -> tuple[str, list[Item], list[object]]:
    """The system text, the turns in LLaVA's form, and the pictures that they hold."""
    turns = list(_of_pairs(item, talk) if talk in PAIRS else _spoken(_list(item[talk], talk), talk))
    system = [str(turn["value"]) for turn in turns if turn["from"] in _SYSTEM_SPEAKERS]
    turns = [turn for turn in turns if turn["from"] not in _SYSTEM_SPEAKERS]
    pictures: list[object] = []
    pictured = any(filled(item.get(name)) for name in PICTURES)
    for index, turn in enumerate(turns, start=1):
        turn["value"] = _placed(turn, index, pictures, pictured=pictured)
    return "".join(system).strip(), turns, pictures


def _of_pairs(item: Item, question: str) -> Iterator[Item]:
    answer = PAIRS[question][0]
    asked = [item.get(question), item.get("input") if question == "instruction" else None]
    parts = [part for text in asked if filled(text) for part in (text if isinstance(text, list) else [text])]
    for pair in [*_list(item.get("history") or [], "history"), [parts, item.get(answer)]]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ItemError("wrong field", '"history" must be a list of pairs of a question and an answer')
        yield {"from": "human", **_joined(pair[0], question)}
        yield {"from": "gpt", **_joined(pair[1], answer)}


def _spoken(given: Sequence[object], talk: str) -> Iterator[Item]:
    for index, turn in enumerate(given, start=1):
        if not isinstance(turn, dict):
            raise ItemError("wrong field", f"turn {index} of {talk!r} must be an object with speaker and text")
        for name in _TURN_CONTENT:
            if filled(turn.get(name)):
                raise ItemError(_kind_of(name), f"turn {index} has {name!r}, which a row cannot hold")
        flags = {name: turn[name] for name in _FLAGS if turn.get(name) is not None}
        if "from" in turn or "role" in turn:
            name = _one(turn, ("from", "role"), index)
            spoken = _joined(_one(turn, ("value", "content"), index), f"value of turn {index}")
            yield {"from": _SPEAKERS.get(str(name), name), **spoken, **flags}
            continue
        pair = [(name, turn[name]) for name in ("system", "human", "user", "assistant", "gpt") if name in turn]
        if not pair:
            raise ItemError("missing field", f'turn {index} of {talk!r} needs "role" and "content"')
        for name, text in pair:
            speaker = _SPEAKERS.get(name, name)
            yield {"from": speaker, **_joined(text, name), **(flags if speaker == "gpt" else {})}


def _kind_of(name: str) -> str:
    """The kind of problem that a field of a turn is."""
    if name in _OTHER_FLAGS or name.endswith("detail"):
        return "turn weight"
    return CONTENT.get(name, "turn content")


def _one(turn: Item, names: Sequence[str], index: int) -> object:
    """The value of a turn under one of two names."""
    given = [turn[name] for name in names if turn.get(name) is not None]
    if len(given) > 1 and given[0] != given[1]:
        raise ItemError("several layouts", f"turn {index} has {names[0]!r} and {names[1]!r}, which differ")
    return given[0] if given else None


def _joined(value: object, name: str) -> Item:
    """A text, or the parts of one that OpenAI's layout allows, and the pictures among them.

    A picture becomes its placeholder.
    """
    if not isinstance(value, str | list):
        raise ItemError("missing field", f"the field {name!r} needs a text")
    if isinstance(value, str):
        return {"value": value, _SHOWN: []}
    parts = [_part(part, name) for part in value]
    pictures = [picture for _, picture in parts if picture is not None]
    return {"value": "\n".join(text for text, _ in parts), _SHOWN: pictures}


def _part(part: object, name: str) -> tuple[str, object]:
    """The text of a part, and its picture, which may also be named elsewhere."""
    if isinstance(part, str):
        return part, None
    if not isinstance(part, dict):
        raise ItemError("wrong field", f"a part of {name!r} must be a text or an object with a type")
    kind = part.get("type") or next((key for key in ("text", "image", "image_url") if part.get(key)), None)
    if kind in ("text", "input_text", "output_text"):
        text = part.get("text")
        if not isinstance(text, str):
            raise ItemError("missing field", f"a part of {name!r} needs a text")
        return text, None
    if kind not in ("image", "image_url", "input_image"):
        allowed = "a part of a message must be a text or an image"
        raise ItemError("wrong field", f"{allowed}, this is {kind!r}{instead(str(kind))}")
    given = next((part[key] for key in ("image", "image_url", "path", "url") if filled(part.get(key))), None)
    return IMAGE_TOKEN, given if given is None else _reference(given)


def _placed(turn: Item, index: int, pictures: list[object], *, pictured: bool) -> str:
    """The text of a turn, its pictures moved to `pictures`, and tags of them replaced by placeholders."""
    text, shown = str(turn["value"]), cast(list[object], turn.pop(_SHOWN, []))
    if turn["from"] != "human":
        if shown or _TAGGED.search(text):
            raise ItemError("picture in an answer", f"turn {index} is an answer that shows a picture")
        return text
    pictures += [*shown, *_TAGGED.findall(text)]
    text = _TAGGED.sub(IMAGE_TOKEN, text)
    found = _PLACEHOLDERS.search(text) or _AT_END.search(text)
    if found is None and (pictured or pictures):
        found = _PICTURE_TAGS.search(text)
    if found is None:
        return text
    tag = found.group().strip()
    if re.search("video|audio|speech", tag):
        frames = instead("video" if "video" in tag else "")
        raise ItemError("video or audio", f"turn {index} holds {tag!r:.60}, which is not read{frames}")
    detail = (
        f"turn {index} holds {tag!r:.60}, which is not a placeholder here; write {IMAGE_TOKEN} and name the picture"
    )
    raise ItemError("other placeholder", detail)


def _named(item: Item, shown: Sequence[object]) -> list[object]:
    """The item's pictures: what `image`, `images` or its turns name, which must be the same where it is several."""
    found = {repr(name): _given(item, name) for name in PICTURES} | {"the turns": list(shown)}
    named = {where: pictures for where, pictures in found.items() if pictures not in ([], [""])}
    if any(pictures != next(iter(named.values())) for pictures in named.values()):
        told = ", ".join(f"{where} {len(pictures)}" for where, pictures in named.items())
        raise ItemError(
            "several layouts", f"the item names different pictures in different places ({told}); name each once"
        )
    return next((pictures for pictures in (named or found).values() if pictures), [])


def _given(item: Item, name: str) -> list[object]:
    """The pictures under one name, none where all are null; raises `ItemError` where only some are."""
    value = item.get(name)
    given = [_reference(one) for one in (value if isinstance(value, list) else [value])]
    named = [one for one in given if one is not None and one != ""]
    if named and len(named) < len(given):
        lost = len(given) - len(named)
        raise ItemError("wrong field", f"{lost} of the {len(given)} pictures in {name!r} are null or empty")
    return named or [one for one in given if one is not None]


def _reference(picture: object) -> object:
    """A picture's bytes, or else its path, or else the value itself."""
    if not isinstance(picture, dict):
        return picture
    named = (picture.get(key) for key in ("bytes", "path", "url"))
    return next((found for found in named if found is not None), picture)


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise ItemError("wrong field", f"{name!r} must be a list")
    return value
