"""The names of fields in instruction data: which hold a conversation, which a picture, and which a row cannot hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from components.data.problems import ItemError

Item = dict[str, object]

TALKS = ("conversations", "messages", "conversation", "instruction", "query")  # one of them has the question
PICTURES = ("image", "images")
SYSTEM = (
    "system", "system_prompt", "system_message", "system_instruction", "sys_prompt",
    "systemprompt", "systemmessage", "systeminstruction", "sysprompt",
)  # fmt: skip
# What rows cannot hold, and the kind of problem that it is.
CONTENT = {
    **dict.fromkeys(("video", "videos", "audio", "audios"), "video or audio"),
    **dict.fromkeys(("tools", "functions"), "tools"),
    **dict.fromkeys(
        ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag"), "preferences"
    ),
    "objects": "objects",
}
FRAMES = '; list the frames of a video as pictures in "images"'
PAIRS = {"instruction": ("output", "input", "history"), "query": ("response", "history")}
_OTHER_PICTURES = frozenset(
    ("image_path", "image_paths", "image_file", "image_url", "image_name", "img", "img_path", "picture", "photo")
)
_NUMBERED_PICTURE = re.compile(r"images?_?\d+")
_PICTURE_FILE = re.compile(r"[^\n]+\.(?:bmp|gif|jpe?g|png|ppm|tiff?|webp)", re.IGNORECASE)
_MEDIA_FILE = re.compile(r"[^\n]+\.(?:avi|flac|m4a|mkv|mov|mp3|mp4|ogg|opus|wav|webm)", re.IGNORECASE)
# All fields of an item that are read, apart from its id and accepted answers.
FIELDS = frozenset((*TALKS, *PICTURES, *SYSTEM, *CONTENT, *(name for names in PAIRS.values() for name in names)))
_READ_AS_TEXT = ("id", "answers", *TALKS)


def other_picture(name: str) -> bool:
    """Whether a field has the name of a picture, and not the one that is read."""
    plain = _plain(name)
    return plain in _OTHER_PICTURES or _NUMBERED_PICTURE.fullmatch(plain) is not None or plain in PICTURES != name


def is_content(name: str) -> bool:
    """Whether a field has the name of content, in any spelling, that rows cannot hold or that has another name."""
    return _plain(name) in FIELDS or other_picture(name)


def filled(value: object) -> bool:
    """Whether a field has a value: not null, not empty, not only blanks."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value not in ([], {}, b"", ())


def check_content(item: Item, talk: str) -> None:
    """Raise `ItemError` for content that a row cannot hold."""
    expected = PAIRS.get(talk, ())
    pictured = any(filled(item.get(name)) for name in PICTURES)
    for name, value in item.items():
        if name in PICTURES or not filled(value):
            continue
        plain = _plain(name)
        if plain in SYSTEM:
            raise ItemError("system text", f"the item has the system text {value!r:.60}, which a row cannot hold")
        if plain in CONTENT:
            raise ItemError(CONTENT[plain], f"the item has {name!r}, which a row cannot hold{instead(plain)}")
        if plain in ("history", "input", "output", "response") and name not in expected:
            raise ItemError("several layouts", f"the item has {name!r} beside {talk!r}, where it has no place")
        if _NUMBERED_PICTURE.fullmatch(plain) or (not pictured and (other_picture(name) or _shows(name, value, talk))):
            raise ItemError(
                "other picture", f'the item names a picture in {name!r}; call the field "image", or "images"'
            )
        if not pictured and name not in _READ_AS_TEXT and any(map(_MEDIA_FILE.fullmatch, _paths(value))):
            raise ItemError("video or audio", f"the item names {value!r:.60} in {name!r}, which is not read{FRAMES}")


def instead(name: str) -> str:
    """What to do about a field or a tag of this name, as the rest of a sentence."""
    return FRAMES if name.startswith("video") else ""


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def _shows(name: str, value: object, talk: str) -> bool:
    """Whether a field that is not read holds pictures: paths of them, or bytes."""
    if name in _READ_AS_TEXT or name in (talk, *PAIRS.get(talk, ())):
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
