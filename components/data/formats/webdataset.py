"""WebDataset shards sample by sample: tar archives read from start to end, without unpacking to disk.

Neighbouring members that share their path up to the first dot of the name are one sample: a `.json` with an item
of a layout of `layouts`, or a `.txt` with the answer to the task's `instruction`; and its picture, or its pictures with
numbers before their endings (`KEY.0.jpg`, `KEY.1.jpg`), which are taken in that order. Members with other endings are
not read and are counted as fields of that name; sound and film, links and devices are refused. A sample without an id
is named SHARD/KEY.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any, cast

from components.core.errors import DataError
from components.core.file_systems import reason
from components.core.location import Location
from components.data.formats.fields import TALKS
from components.data.formats.json_items import Numbered, parsed
from components.data.problems import ItemError

PICTURES = ("bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
_NUMBERED = re.compile(rf"\d+\.(?:{'|'.join(PICTURES)})")
_TEXTS = ("json", "txt")
_MEDIA = ("avi", "flac", "m4a", "mkv", "mov", "mp3", "mp4", "ogg", "opus", "wav", "webm")
_LARGEST_MEMBER = 1 << 27  # bytes
_MOST_MEMBERS = 64  # of one sample
_PIECE = 1 << 20  # bytes read at a time


@dataclass(kw_only=True)
class _Sample:
    """The useful members of one key, by ending."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    wrong: ItemError | None = None


@dataclass(kw_only=True)
class _Bytes:
    """The bytes of an archive, and what was read of them."""

    file: IO[bytes]
    size: int = 0
    filled: int = 0
    """Where the last byte ends that is not zero."""

    def read(self, size: int) -> bytes:
        read = self.file.read(size)
        if held := len(read.rstrip(b"\0")):
            self.filled = self.size + held
        self.size += len(read)
        return read


def tar_samples(location: Location, instruction: str | None) -> Iterator[Numbered]:
    """Number and item of every sample of a shard. Raises `DataError` when it is not a whole tar archive."""
    shard = location.name.partition(".")[0]
    try:
        with location.unpacked() as file:
            content = _Bytes(file=file)
            with tarfile.open(fileobj=cast("IO[bytes]", content), mode="r|", bufsize=_PIECE) as archive:
                for number, sample in enumerate(_samples(archive), start=1):
                    try:
                        yield number, _item(sample, shard, instruction)
                    except ItemError as error:
                        yield number, error
                _require_end(content, archive.offset)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{location.shown} is not a whole tar archive ({reason(error)}).") from error


def _require_end(content: _Bytes, end: int) -> None:
    """Raise `tarfile.ReadError` unless an empty block is at `end`, where tarfile saw no further member.

    It says nothing of a file that breaks off between two members, of one that is damaged there, or of a second archive
    behind the first.
    """
    while content.read(_PIECE):
        pass
    if content.filled > end:
        raise tarfile.ReadError(f"what follows byte {end:,} is no member: it is damaged, or several were put together")
    if content.size < end + tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it breaks off after {content.size:,} bytes")


def _samples(archive: tarfile.TarFile) -> Iterator[_Sample]:
    for key, group in groupby(_members(archive), key=lambda member: _parts(member.name)[0]):
        sample = _Sample(key=key)
        for member in group:
            _add(sample, archive, member)
        yield sample


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        cast(Any, archive).members.clear()  # it would remember all of them
        if not member.isdir():
            yield member


def _parts(name: str) -> tuple[str, str]:
    """A member's key and its ending, in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}".removeprefix("./"), ending.lower()


def _add(sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Read a member into its sample, or note why the sample cannot be used."""
    ending = _parts(member.name)[1]
    if not member.isreg():
        sample.wrong = ItemError("no plain file", f"the member {member.name} is a link or a device")
    elif member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        sample.wrong = ItemError("path outside", f"the member {member.name} leads outside the archive")
    elif ending.rpartition(".")[2] in _MEDIA:
        sample.wrong = ItemError(
            "video or audio", f"the member {member.name} is sound or film, which a row cannot hold"
        )
    elif ending not in (*PICTURES, *_TEXTS) and _NUMBERED.fullmatch(ending) is None:
        sample.unread.append(ending)
    elif len(sample.members) == _MOST_MEMBERS:
        sample.wrong = ItemError("too large", f"the sample {sample.key} has more than {_MOST_MEMBERS} members")
    elif member.size + sum(map(len, sample.members.values())) > _LARGEST_MEMBER:
        sample.wrong = ItemError("too large", f"the member {member.name} has {member.size:,} bytes")
    elif ending in sample.members:
        sample.wrong = ItemError("repeated member", f"the member {member.name} is there twice")
    else:
        file = archive.extractfile(member)
        assert file is not None  # a regular member has content
        sample.members[ending] = file.read()


def _item(sample: _Sample, shard: str, instruction: str | None) -> dict[str, object]:
    if sample.wrong is not None:
        raise sample.wrong
    item = _told(sample, instruction)
    if item.get("id") is None:
        item["id"] = f"{shard}/{sample.key}"
    pictures = [ending for ending in sample.members if ending not in _TEXTS]
    numbers = [int(ending.partition(".")[0]) for ending in pictures if _NUMBERED.fullmatch(ending)]
    if len(pictures) > 1 and len(set(numbers)) < len(pictures):
        told = f"the sample {sample.key} has the pictures {', '.join(pictures)}"
        raise ItemError("too many images", f"{told}; number them, as in {sample.key}.0.jpg and {sample.key}.1.jpg")
    other = next((ending for ending in sample.unread if ending.rpartition(".")[2] in PICTURES), None)
    if other is not None and not pictures:
        detail = f"the sample has the picture {sample.key}.{other}; call it {sample.key}.{other.rpartition('.')[2]}"
        raise ItemError("other picture", detail)
    if pictures:
        item.pop("image", None)  # the path it had before it was packed
        pictures.sort(key=lambda ending: int(ending.partition(".")[0]) if numbers else 0)
        item["images"] = [sample.members[ending] for ending in pictures]
    item.update((f".{ending}", "not read") for ending in sample.unread)
    return item


def _told(sample: _Sample, instruction: str | None) -> dict[str, object]:
    """The sample's item: its .json, or its .txt beside a .json that only describes it."""
    texts = {name: _decoded(sample, name) for name in _TEXTS if name in sample.members}
    if not texts:
        raise ItemError("missing field", f"the sample {sample.key} has neither a .json nor a .txt")
    item = _object(sample, texts["json"]) if "json" in texts else {}
    talks = any(item.get(name) is not None for name in TALKS)
    if "txt" not in texts or talks:
        return {**item, ".txt": texts["txt"]} if "txt" in texts else item
    return {**item, **_answered(sample.key, texts["txt"], instruction)}


def _decoded(sample: _Sample, name: str) -> str:
    try:
        return sample.members[name].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ItemError("not UTF-8", f"{sample.key}.{name} is not UTF-8 text ({error.reason})") from error


def _object(sample: _Sample, text: str) -> dict[str, object]:
    item = parsed(text, f"{sample.key}.json")
    if not isinstance(item, dict):
        raise ItemError("not an object", f"{sample.key}.json must hold one JSON object")
    return cast(dict[str, object], item)


def _answered(key: str, text: str, instruction: str | None) -> dict[str, object]:
    if instruction is None:
        detail = f'{key}.txt holds an answer alone; say what was asked in the field "instruction" of the task'
        raise ItemError("no instruction", detail)
    turns = [{"from": "human", "value": instruction}, {"from": "gpt", "value": text.strip()}]
    return {"conversations": turns}
