"""The options of a stream: which data is learned, in which order.

Light on purpose: the data itself is opened by `components.data.streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.core.errors import ConfigError
from components.core.location import is_uri, place
from components.core.options import Count, CountOrZero, ShareUpToHalf, check_options, listed
from components.data.generated import GENERATED_STREAMS, GeneratedStream


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Which data is learned, in which order."""

    name: str = "mini-coast-domain"
    """The stream to learn: mini-coast-domain, mini-coast-capability, mini-coast-capability-table-order,
    mini-coast-pictures, mini-coast-dataset, mini-coin, mini-coin-alphabetical, mini-coin-reversed, or a stream TOML, or
    a folder (path or URI) that pipelines/prepare.py wrote."""
    size: str = "mini"
    """Of a generated stream: nano (32/16 rows a task), mini (400/100) or small (2000/400)."""
    order: tuple[str, ...] = ()
    """Task names in the order to learn them, possibly fewer; empty: the stream's own order."""
    data_dir: str | Path | None = None
    """Where generated splits are kept, a path or a URI; default: data in $LITTORAL_CACHE, for runs at a URI in .cache
    of their storage, otherwise in ~/.cache/littoral."""
    data_seed: CountOrZero = 0
    """Seed of a generated stream."""
    train_limit: Count | None = None
    """Use only the first rows of every train split, without its validation part."""
    test_limit: Count | None = None
    """Use only the first rows of every test split and validation part."""
    validation: ShareUpToHalf = 0.0
    """Share of the training rows (0 to 0.5) that is never trained on, to choose settings by: cut by a hash of a row's
    picture, or of its questions where it has none. Kept as copies below the data folder."""

    def __post_init__(self) -> None:
        if isinstance(self.data_dir, str) and (not is_uri(self.data_dir) or self.data_dir.startswith("file:")):
            object.__setattr__(self, "data_dir", place(self.data_dir))  # a path, whatever a command line or file has
        check_options(self, "stream")
        if self.name in GENERATED_STREAMS:
            check_size(GENERATED_STREAMS[self.name], self.size)
        doubled = {task for task in self.order if self.order.count(task) > 1}
        if doubled:
            raise ConfigError(f"stream.order names {sorted(doubled)[0]} twice; a task is learned once.")


def check_size(stream: GeneratedStream, size: str) -> None:
    """Raise `ConfigError` for a size that the generated stream does not have."""
    if size not in stream.sizes:
        raise ConfigError(f"stream.size {size!r} is unknown; choose {listed(size, stream.sizes)}")
