"""The common layouts of instruction data, item by item, as LLaVA's: what each calls turns, speakers and pictures.

| layout | turns | speakers | picture |
|---|---|---|---|
| LLaVA | `conversations` of `from`, `value` | human, gpt | `image` |
| ShareGPT | the same | also user, assistant, model | `images`, a list |
| OpenAI, ms-swift | `messages` of `role`, `content` | user, assistant | `images`, or a part of `content` |
| older ms-swift | `conversation` of `human`, `assistant` | | `images` |
| alpaca | `instruction`, `input`, `output`; earlier turns in `history` | | `images` |
| older ms-swift | `query`, `response`; earlier turns in `history` | | `images` |
| Qwen-VL | as LLaVA or ShareGPT | user, assistant | `<img>PATH</img>` in a question |

`image` and `images` mean the same everywhere: a path, encoded bytes, an object of `bytes` and `path`, or a list of one.

An answer that is only context says so in its turn: `loss` or `loss_scale` (ms-swift), `weight` (OpenAI), `train` or
`training` (axolotl); false is 0, true 1.

Nothing is guessed and no content is passed over: a system text, a second picture, a video or tools, which a row cannot
hold, are named and the item left out. `unread` names all other fields that mean nothing here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from components.data.problems import ItemError
from components.data.rows import IMAGE_TOKEN

Item = dict[str, object]

TALKS = ("conversations", "messages", "conversation", "instruction", "query")  # one of them says what was asked
PICTURES = ("image", "images")
SYSTEM = (
    "system", "system_prompt", "system_message", "system_instruction", "sys_prompt",
    "systemprompt", "systemmessage", "systeminstruction", "sysprompt",
)  # fmt: skip
# What rows cannot hold, and what kind of fault that is.
CONTENT = {
    **dict.fromkeys(("video", "videos", "audio", "audios"), "video or audio"),
    **dict.fromkeys(("tools", "functions"), "tools"),
    **dict.fromkeys(
        ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag"), "preferences"
    ),
    "objects": "objects",
}
_PAIRS = {"instruction": ("output", "input", "history"), "query": ("response", "history")}
_OTHER_PICTURES = frozenset(
    ("image_path", "image_paths", "image_file", "image_url", "image_name", "img", "img_path", "picture", "photo")
)
_NUMBERED_PICTURE = re.compile(r"images?_?\d+")
_PICTURE_FILE = re.compile(r"[^\n]+\.(?:bmp|gif|jpe?g|png|ppm|tiff?|webp)", re.IGNORECASE)
_MEDIA_FILE = re.compile(r"[^\n]+\.(?:avi|flac|m4a|mkv|mov|mp3|mp4|ogg|opus|wav|webm)", re.IGNORECASE)
# All fields of an item that are looked at, besides its id and accepted answers.
FIELDS = frozenset((*TALKS, *PICTURES, *SYSTEM, *CONTENT, *(name for names in _PAIRS.values() for name in names)))
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
_SHOWN = "pictures"  # of a turn that is being read
_READ_AS_TEXT = ("id", "answers", *TALKS)
_TURN_KNOWN = {"from", "role", "value", "content", "human", "assistant", *_FLAGS, *_TURN_CONTENT}
_TAGGED = re.compile(r"<img>(.*?)</img>", re.DOTALL)
# Placeholders that are nothing else, and tags that are placeholders at one end of a question; amid other words they are
# code that a text is about, unless the row has a picture.
_PLACES = re.compile(
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
        return item
    _check_content(item, talks[0])
    if talks[0] == "conversations" and _is_own(item):
        return item
    system, turns, pictures = _turns(item, talks[0])
    if system:
        raise ItemError("system text", f"the item has the system text {system!r:.60}, which a row cannot hold")
    llava: Item = {"id": item.get("id", f"row-{number}"), "conversations": turns}
    if (image := _image([*_pictures(item), *pictures])) is not None:
        llava["image"] = image
    if "answers" in item:
        llava["answers"] = item["answers"]
    return llava


def other_picture(name: str) -> bool:
    """Whether a field has the name of a picture, and not the one that is read."""
    plain = _plain(name)
    return plain in _OTHER_PICTURES or _NUMBERED_PICTURE.fullmatch(plain) is not None or plain in PICTURES != name


def is_content(name: str) -> bool:
    """Whether a field has the name of content, in any spelling, that rows cannot hold or that is called otherwise."""
    return _plain(name) in FIELDS or other_picture(name)


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def unread(item: Item) -> list[str]:
    """Fields of an item, or of its turns, that say something and mean nothing here."""
    talk = next(iter(_talks(item)), "")
    known = {"id", "answers", talk, *PICTURES, *SYSTEM, *_PAIRS.get(talk, ())}
    names = [name for name in item if name not in known and _said(item[name])]
    turns = item.get(talk)
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict):
            names += [f"{name} of a turn" for name in turn if name not in _TURN_KNOWN and _said(turn[name])]
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
    """The fields that hold the conversation: those that say something, or else the first that is there."""
    there = [name for name in TALKS if item.get(name) is not None]
    return [name for name in there if _said(item[name])] or there[:1]


def _said(value: object) -> bool:
    """Whether a field says anything: not null, not empty, not only blanks."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value not in ([], {}, b"", ())


def _check_content(item: Item, talk: str) -> None:
    """Raise `ItemError` for content that a row cannot hold."""
    places = _PAIRS.get(talk, ())
    pictured = any(_said(item.get(name)) for name in PICTURES)
    for name, value in item.items():
        if name in PICTURES or not _said(value):
            continue
        plain = _plain(name)
        if plain in SYSTEM:
            raise ItemError("system text", f"the item has the system text {value!r:.60}, which a row cannot hold")
        if plain in CONTENT:
            raise ItemError(CONTENT[plain], f"the item has {name!r}, which a row cannot hold")
        if plain in ("history", "input", "output", "response") and name not in places:
            raise ItemError("several layouts", f"the item has {name!r} beside {talk!r}, where it has no place")
        if _NUMBERED_PICTURE.fullmatch(plain) or (not pictured and (other_picture(name) or _shows(name, value, talk))):
            raise ItemError("other picture", f'the item names a picture in {name!r}; call the field "image"')
        if not pictured and name not in _READ_AS_TEXT and any(map(_MEDIA_FILE.fullmatch, _paths(value))):
            raise ItemError("video or audio", f"the item names {value!r:.60} in {name!r}; a row has neither")


def _shows(name: str, value: object, talk: str) -> bool:
    """Whether a field that is not read holds pictures: paths of them, or bytes."""
    if name in _READ_AS_TEXT or name in (talk, *_PAIRS.get(talk, ())):
        return False
    return _holds_bytes(value) or any(
        path.startswith("data:image/") or _PICTURE_FILE.fullmatch(path) for path in _paths(value)
    )


def _holds_bytes(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_holds_bytes, value))
    return isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes)


def _paths(value: object) -> Iterator[str]:
    """The texts of a field that may be paths: itself, those in a list, or of an object of `path` or `url`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)
    elif isinstance(value, dict):
        yield from (path for path in (value.get("path"), value.get("url")) if isinstance(path, str))


def _is_own(item: Item) -> bool:
    """Whether the item is in LLaVA's own layout, or too broken to be in any."""
    if "images" in item or isinstance(item.get("image"), list):
        return False
    turns = item["conversations"]
    if not isinstance(turns, list):
        return True
    return not any(_is_other(turn) for turn in turns if isinstance(turn, dict))


def _is_other(turn: Item) -> bool:
    """Whether a turn has what LLaVA's turns have not."""
    name, text = turn.get("from"), turn.get("value")
    if isinstance(name, str) and name in {*_SPEAKERS, *_SYSTEM_SPEAKERS} - {"human", "gpt"}:
        return True
    if isinstance(text, list) or any(field in turn for field in ("role", "content")):
        return True
    if any(_said(turn.get(field)) for field in _TURN_CONTENT):
        return True
    return isinstance(text, str) and any(tags.search(text) for tags in (_PLACES, _PICTURE_TAGS, _AT_END))


def _turns(item: Item, talk: str) -> tuple[str, list[Item], list[object]]:
    """The system text, the turns in LLaVA's form, and the pictures that they hold."""
    turns = list(_of_pairs(item, talk) if talk in _PAIRS else _spoken(_list(item[talk], talk), talk))
    system = [str(turn["value"]) for turn in turns if turn["from"] in _SYSTEM_SPEAKERS]
    turns = [turn for turn in turns if turn["from"] not in _SYSTEM_SPEAKERS]
    pictures: list[object] = []
    pictured = any(_said(item.get(name)) for name in PICTURES)
    for index, turn in enumerate(turns, start=1):
        turn["value"] = _placed(turn, index, pictures, pictured=pictured)
    return "".join(system).strip(), turns, pictures


def _of_pairs(item: Item, question: str) -> Iterator[Item]:
    answer = _PAIRS[question][0]
    asked = [item.get(question), item.get("input") if question == "instruction" else None]
    parts = [part for text in asked if _said(text) for part in (text if isinstance(text, list) else [text])]
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
            if _said(turn.get(name)):
                raise ItemError(_kind_of(name), f"turn {index} has {name!r}, which a row cannot hold")
        flags = {name: turn[name] for name in _FLAGS if turn.get(name) is not None}
        if "from" in turn or "role" in turn:
            name = _one(turn, ("from", "role"), index)
            said = _joined(_one(turn, ("value", "content"), index), f"value of turn {index}")
            yield {"from": _SPEAKERS.get(str(name), name), **said, **flags}
            continue
        pair = [(name, turn[name]) for name in ("system", "human", "user", "assistant", "gpt") if name in turn]
        if not pair:
            raise ItemError("missing field", f'turn {index} of {talk!r} needs "role" and "content"')
        for name, text in pair:
            speaker = _SPEAKERS.get(name, name)
            yield {"from": speaker, **_joined(text, name), **(flags if speaker == "gpt" else {})}


def _kind_of(name: str) -> str:
    """The kind of fault that a field of a turn is."""
    if name in _OTHER_FLAGS or name.endswith("detail"):
        return "turn weight"
    return CONTENT.get(name, "turn content")


def _one(turn: Item, names: Sequence[str], index: int) -> object:
    """What a turn says under one of two names."""
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
        raise ItemError("wrong field", f"a part of a message must be a text or an image, this is {kind!r}")
    given = next((part[key] for key in ("image", "image_url", "path", "url") if _said(part.get(key))), None)
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
    found = (
        _PLACES.search(text) or _AT_END.search(text) or (_PICTURE_TAGS.search(text) if pictured or pictures else None)
    )
    if found is None:
        return text
    tag = found.group().strip()
    if re.search("video|audio|speech", tag):
        raise ItemError("video or audio", f"turn {index} holds {tag!r:.60}; a row has neither video nor audio")
    detail = f"turn {index} holds {tag!r:.60}, which is no placeholder here; write {IMAGE_TOKEN} and name the picture"
    raise ItemError("other placeholder", detail)


def _pictures(item: Item) -> Iterator[object]:
    """What `image` and `images` name."""
    for name in PICTURES:
        value = item.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                yield _reference(one)


def _reference(picture: object) -> object:
    """A picture's bytes, or else its path; or whatever else stands there."""
    if not isinstance(picture, dict):
        return picture
    named = (picture.get(key) for key in ("bytes", "path", "url"))
    return next((found for found in named if found is not None), picture)


def _image(pictures: Sequence[object]) -> object:
    """The item's one picture or None."""
    pictures = [one for one in pictures if one != ""] or pictures
    distinct = [one for at, one in enumerate(pictures) if one not in pictures[:at]]
    if len(distinct) > 1:
        raise ItemError("too many images", f"the item names {len(distinct)} pictures; a row has one")
    return distinct[0] if distinct else None


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise ItemError("wrong field", f"{name!r} must be a list")
    return value
