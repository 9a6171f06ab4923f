"""The files of one split, in any of the usual formats, as one stream of numbered items.

| format | files |
|---|---|
| `json` | a JSON list or JSONL file, also packed (.gz, .bz2, .zst) |
| `parquet` | a Parquet file, or a folder of them |
| `datasets` | a folder that Hugging Face's `save_to_disk` wrote, or one Arrow file |
| `webdataset` | a tar shard, or a folder of them |

A pattern (`part-*.parquet`, `shop-{000..003}.tar`) names several files. Of a folder whose files have names of several
splits (`train-00000-of-00002.parquet`, `test.parquet`), those of the wanted one are read. The format follows from the
ending or from the first bytes; `format` in the stream file overrides it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, get_args

from components.core.errors import DataError
from components.core.file_systems import reason
from components.core.location import Location
from components.core.reading import is_plain_name, parse_json
from components.data.formats.json_items import Numbered, iter_items
from components.data.formats.storage import looked_at, matches
from components.data.formats.tables import arrow_rows, parquet_rows, unread_columns
from components.data.formats.webdataset import tar_samples

Format = Literal["json", "parquet", "datasets", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)

_SHEETS = (".csv", ".tsv", ".xls", ".xlsx")
_ENDINGS: dict[str, Format] = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "datasets", ".tar": "webdataset", ".tgz": "webdataset",
}  # fmt: skip
_TABLES: tuple[Format, ...] = ("parquet", "datasets")
_LARGEST_DESCRIPTION = 1 << 24  # bytes of a saved dataset's JSON file
_PACKED = (".gz", ".bz2", ".zst")
_STARTS: dict[bytes, Format] = {b"PAR1": "parquet", b"ARROW1": "datasets", b"\xff\xff\xff\xff": "datasets"}
# Words in the names of files, as `datasets` knows them, and the split that each stands for.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORDS = re.compile(r"[^\W_]+")
_OR_NAME = ", or name the files that are meant without a *"
_SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5})(?!\d).*")  # the Hub's: train-00000-of-00002.parquet


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a stream file names as `train` or `test`."""

    shown: str
    """As it may be written: without user, password and query."""
    name: str
    files: tuple[Location, ...]
    format: Format
    instruction: str | None = None
    """What was asked where a WebDataset sample has only an answer."""

    def read(self) -> Reading:
        return Reading(source=self)


@dataclass(kw_only=True)
class Reading:
    """One pass over a source: its items are numbered through all files."""

    source: Source
    remarks: list[tuple[int, str]] = field(default_factory=list)
    """What is odd about the form of the files, with the number of the item where it was found."""
    _before: list[int] = field(default_factory=list)

    def items(self) -> Iterator[Numbered]:
        """Number and value of every item, or why it has none; raises `DataError` for a file that cannot be read."""
        number = 0
        for file in self.source.files:
            before = number
            self._before.append(before)
            for within, item in self._items(file):
                number = before + within
                if self.source.format in _TABLES and isinstance(item, dict):
                    item.setdefault("id", f"row-{number}")  # of a table that has no such column
                yield number, item

    def _items(self, file: Location) -> Iterator[Numbered]:
        before = self._before[-1]
        if self.source.format == "json":
            return iter_items(file, lambda within, detail: self.remarks.append((before + within, detail)))
        if self.source.format == "parquet":
            return parquet_rows(file)
        if self.source.format == "datasets":
            return arrow_rows(file)
        return tar_samples(file, self.source.instruction)

    def unread(self) -> list[str]:
        """Columns of tables that are not read, each once; raises `DataError`."""
        if self.source.format not in _TABLES:
            return []
        arrow = self.source.format == "datasets"
        return list(dict.fromkeys(name for file in self.source.files for name in unread_columns(file, arrow=arrow)))

    def locate(self, number: int) -> tuple[str, int]:
        """The file that holds item `number`, and its row in it."""
        file = bisect_right(self._before, number - 1) - 1
        return self.source.files[file].shown, number - self._before[file]

    def described(self, number: int) -> str:
        file, row = self.locate(number)
        return f"row {row}" if len(self.source.files) == 1 else f"row {row} of {file.rpartition('/')[2]}"


def open_source(
    location: Location, split: str, *, given: Format | None = None, instruction: str | None = None
) -> Source:
    """The files of `location`, which must exist; `split` is looked for in a folder of several splits.

    Raises `DataError` when it does not exist or has no known format.
    """
    with looked_at(location):
        is_folder = location.is_dir()
    if is_folder:
        files, found = _folder(location, split, given)
    else:
        files = matches(location)
        if "*" in location.name:
            require_shards(location.shown, [file.name for file in files], _OR_NAME)
        with looked_at(location):
            there = files[0].is_file()
        if not there:
            raise DataError(f"{location.shown} is not a file or folder.")
        found = given or _format_of(files[0])
    return Source(shown=location.shown, name=location.name, files=tuple(files), format=found, instruction=instruction)


def _folder(folder: Location, split: str, given: Format | None) -> tuple[list[Location], Format]:
    """A folder's files in the order of their names, and their format."""
    with looked_at(folder):
        names = [file.name for file in folder.iterdir()]
    if given in (None, "datasets") and {"dataset_dict.json", "state.json"} & set(names):
        return _saved_files(folder, split, names), "datasets"
    found: dict[Format, list[Location]] = {}
    for name in names:
        if (kind := _by_ending(name)) in ("parquet", "webdataset") and not name.startswith((".", "_")):
            found.setdefault(kind, []).append(folder / name)
    if given is not None:
        found = {kind: files for kind, files in found.items() if kind == given}
    if len(found) != 1:
        held = " and ".join(found) or "no Parquet files, tar shards or saved dataset"
        advice = "say which with format" if found else "name such a folder, or a file"
        raise DataError(f"The folder {folder.shown} holds {held}; {advice}.")
    ((kind, files),) = found.items()
    files = _of_split(folder, files, split)
    require_shards(folder.shown, [file.name for file in files], _OR_NAME)
    return files, kind


def _of_split(folder: Location, files: list[Location], split: str) -> list[Location]:
    """The files of one split where their names tell several, else all of them."""
    named = {file.name: _split_of(file.name) for file in files}
    held = sorted({found for found in named.values() if found is not None})
    if len(held) < 2:
        return files
    for name, found in named.items():
        if found is None:
            raise DataError(
                f"The folder {folder.shown} holds files of {' and '.join(held)}, and {name}, whose name tells no "
                "split; name the files that are meant by a pattern."
            )
    if split not in held:
        raise DataError(
            f"The folder {folder.shown} holds files of {', '.join(held)} and none of {split!r}; name the files that "
            "are meant by a pattern."
        )
    return [file for file in files if named[file.name] == split]


def _split_of(name: str) -> str | None:
    """The one split that a file's name tells."""
    words = _WORDS.findall(name.lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def require_shards(place: str, names: Iterable[str], instead: str = "") -> None:
    """Raise `DataError` where the names of the files in `place` count more shards (`00001-of-00003`) than there are."""
    shards: dict[tuple[str, str], set[int]] = {}
    for one in names:
        if found := _SHARD.fullmatch(one):
            shards.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (name, count), there in shards.items():
        missing = next((number for number in range(int(count)) if number not in there), None)
        if missing is not None:
            raise DataError(
                f"{place} holds {len(there)} of the {int(count)} files {name}*-of-{count}, not {missing:05d}; "
                f"get the rest{instead}."
            )


def _saved_files(folder: Location, split: str, names: list[str]) -> list[Location]:
    """The Arrow files of a saved dataset, or of its part `split`, in their order."""
    if "dataset_dict.json" in names:
        parts = _described(folder, "dataset_dict.json", "splits")
        if split not in parts:
            raise DataError(
                f"The saved dataset {folder.shown} has the splits {', '.join(map(str, parts))} and no {split!r}; "
                f"name the folder of the one you mean."
            )
        folder = folder / split
    described = _described(folder, "state.json", "_data_files")
    files = [file.get("filename") if isinstance(file, dict) else None for file in described]
    for name in files:
        if not isinstance(name, str) or not is_plain_name(name):
            raise DataError(f"{folder.shown}/state.json names the file {name!r:.200}; it must be beside it.")
    return [folder / str(name) for name in files]


def _described(folder: Location, name: str, key: str) -> list[object]:
    """A list in a saved dataset's JSON file."""
    file = folder / name
    try:
        with file.unpacked() as opened:
            content = opened.read(_LARGEST_DESCRIPTION + 1)
        if len(content) > _LARGEST_DESCRIPTION:
            raise ValueError(f"it has more than {_LARGEST_DESCRIPTION:,} bytes")
        value = parse_json(content)[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file.shown} describes no saved dataset ({reason(error)}).") from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{file.shown} names nothing in {key!r}; save the dataset again.")
    return value


def _by_ending(name: str) -> Format | None:
    endings = PurePosixPath(name.lower()).suffixes
    if endings and endings[-1] in _PACKED:
        endings.pop()
    return _ENDINGS.get(endings[-1]) if endings else None


def _format_of(file: Location) -> Format:
    """By the ending, or else by the first bytes."""
    found = _by_ending(file.name)
    if found is not None:
        return found
    if file.name.lower().endswith(_SHEETS):
        raise DataError(
            f"{file.shown} is a table that is not read; write it as Parquet, with a column for each field of a row, as "
            "docs/guides/own-data.md shows."
        )
    try:
        with file.unpacked() as opened:
            start = opened.read(512)
    except OSError as error:
        raise DataError(f"{file.shown} cannot be read ({reason(error)}).") from error
    for wanted, kind in _STARTS.items():
        if start.startswith(wanted):
            return kind
    if start[257:262] == b"ustar":
        return "webdataset"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        return "json"
    raise DataError(f"{file.shown} is of no known format; say which with format: {', '.join(FORMATS)}.")
