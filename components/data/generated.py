"""The streams and suites that are generated instead of downloaded, by name.

What makes their rows is named as text and imported when rows are first written, so that reading options stays quick.
Another package adds a stream under the entry point group `littoral.streams`; the entry is a `GeneratedStream`:

    [project.entry-points."littoral.streams"]
    my-stream = "my_package:MY_STREAM"
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, Protocol, cast

from components.core.errors import ConfigError

if TYPE_CHECKING:
    from components.data.rows import Split

ENTRY_POINTS = "littoral.streams"


class StreamGenerator(Protocol):
    """Writes the splits of generated tasks."""

    @property
    def folder(self) -> str:
        """Where a cache keeps the splits: another name whenever the same arguments would write other rows."""
        ...

    def max_new_tokens(self, task: str) -> int:
        """How long a reply to the task may get, in tokens."""
        ...

    def generate_split(
        self, task: str, split: Literal["train", "test"], *, size: str, seed: int, out_dir: Path
    ) -> Split:
        """Write one split into `out_dir`, the same bytes at every call."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratedStream:
    """Tasks in the order in which they are learned, and what writes them."""

    tasks: tuple[str, ...]
    generator: str
    """Import path of a `StreamGenerator`, "package.module:NAME"."""
    sizes: tuple[str, ...] = ("nano", "mini", "small")

    def load(self) -> StreamGenerator:
        """The generator, imported now."""
        return cast(StreamGenerator, resolve_name(self.generator))


class SuiteGenerator(Protocol):
    """Writes one general suite."""

    @property
    def folder(self) -> str:
        """Where a cache keeps the suite: another name whenever other rows would be written."""
        ...

    def write(self, name: str, folder: Path) -> None:
        """Write the suite called `name` into the empty folder `folder`, the same bytes at every call."""
        ...


_COAST = "components.data.embedded.mini_coast.generate:MINI_COAST"
_COIN = "components.data.embedded.mini_coin.generate:MINI_COIN"
_COIN_ORDER = ("scienceqa", "textvqa", "imagenet", "gqa", "vizwiz", "grounding", "vqav2", "ocrvqa")

GENERATED_STREAMS: dict[str, GeneratedStream] = {
    name: GeneratedStream(tasks=tasks, generator=generator)
    for name, generator, tasks in (
        ("mini-coast-domain", _COAST, ("chartqa", "docvqa", "iconqa", "medicalqa")),
        ("mini-coast-capability", _COAST, ("conversation", "detail", "reasoning", "referring")),
        ("mini-coast-capability-table-order", _COAST, ("referring", "detail", "reasoning", "conversation")),
        # the same words with other pictures: routing by the question alone fails
        ("mini-coast-pictures", _COAST, ("charts", "cards", "icons", "scans")),
        ("mini-coast-dataset", _COIN, _COIN_ORDER),  # COAST's dataset-incremental stream learns CoIN's tasks
        ("mini-coin", _COIN, _COIN_ORDER),
        ("mini-coin-alphabetical", _COIN, tuple(sorted(_COIN_ORDER))),
        ("mini-coin-reversed", _COIN, _COIN_ORDER[::-1]),
    )
}
GENERATED_SUITES: dict[str, str] = {  # import paths of a `SuiteGenerator`
    "mini-general": "components.data.embedded.mini_suites:MINI_GENERAL",
    "mini-constraints": "components.data.embedded.mini_suites:MINI_CONSTRAINTS",
}


def generated_stream(name: str) -> GeneratedStream | None:
    """The generated stream of this name, ours or an installed package's.

    Raises `ConfigError` for an entry point that cannot be imported or is not a `GeneratedStream`.
    """
    if name in GENERATED_STREAMS:
        return GENERATED_STREAMS[name]
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            stream = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the stream {name!r} ({point.value}) cannot be imported ({error}).") from error
        if not isinstance(stream, GeneratedStream):
            raise ConfigError(f"the entry point {name!r} names {point.value}, which is not a GeneratedStream.")
        return stream
    return None


def suite_generator(name: str) -> SuiteGenerator:
    """What writes the suite `name`, a key of `GENERATED_SUITES`."""
    return cast(SuiteGenerator, resolve_name(GENERATED_SUITES[name]))
