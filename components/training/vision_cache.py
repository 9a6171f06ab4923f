"""The vision cache: features of the frozen tower, computed once per distinct picture and only for rows a run reaches.

The tower never trains, so its output is a function of the picture's bytes and of the backbone. Pictures are known by
the SHA-256 of their bytes, so tasks, splits, sizes and runs share them:

    <cache>/picture-names/<split digest>/<shard>-<row group>.json        the pictures of a row group's rows, in order
    <cache>/picture-features/<backbone view>/<xx>/<picture>.safetensors  one picture's features

All nodes of a cluster must see it, so it lies in the runs' storage, which they share, or in $LITTORAL_CACHE. From a
store each node fetches a picture's features once, several at a time, and reads its own copies (core/copies.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from components.core.copies import at_once, copied_once, forget
from components.core.errors import ConfigError, DataError, StorageError
from components.core.location import Location, Place
from components.core.machine import cache_dir, shared_cache
from components.core.options import from_plain
from components.core.reading import ODD, read_json
from components.core.runtime import fast_imports
from components.data.rows import MORE, Split, columns_without_pictures
from components.data.shards import parquet
from components.models.config import BackboneConfig
from components.models.source import model_source

if TYPE_CHECKING:  # transformers is imported where pictures are encoded, not by the driver
    from components.models.encoding import Prepared

Reached = Mapping[tuple[int, int], Sequence[int]]  # (shard, row group) of one split -> rows of that group


@dataclass(frozen=True, kw_only=True)
class VisionCache:
    """The cached features of one backbone's tower. Plain data, pickled to every reader."""

    root: Place
    view: str

    def picture_list(self, split: Split, shard: int, group: int) -> Place:
        """The file that names the pictures of one row group."""
        return self.root / "picture-names" / split.digest[:16] / f"{shard:05d}-{group:05d}.json"

    def features_file(self, picture: str) -> Place:
        """The file of one picture's features."""
        return self.root / "picture-features" / self.view / picture[:2] / f"{picture}.safetensors"

    def pictures(self, split: Split, shard: int, group: int) -> list[list[str]]:
        """By row of the group: the SHA-256 of each of its pictures."""
        path = self.picture_list(split, shard, group)
        advice = "remove it and run again"
        found = read_json(self._near(path), DataError, advice)
        try:
            return from_plain(list[list[str]], found, "pictures")
        except ConfigError as error:
            forget(path)
            raise DataError(f"{path} of the vision cache is damaged ({error}); {advice}.") from error

    def known(self, split: Split, groups: Iterable[tuple[int, int]]) -> list[list[list[str]] | None]:
        """The same of several row groups, each a shard and a number; None for those whose list is not there."""

        def read(place: tuple[int, int]) -> list[list[str]] | None:
            return self.pictures(split, *place) if self._is_there(self.picture_list(split, *place)) else None

        return [*map(read, groups)] if isinstance(self.root, Path) else at_once(read, groups)

    def _is_there(self, path: Place) -> bool:
        if isinstance(path, Path):
            return path.is_file()
        try:
            copied_once(path)
        except FileNotFoundError:
            return False
        return True

    def listed(self) -> set[str]:
        """Pictures with features that a store's listing shows, which may lag behind; of a folder none: it is asked."""
        if isinstance(self.root, Path):
            return set()
        names = (self.root / "picture-features" / self.view).files_below()
        return {name.rpartition("/")[2].partition(".")[0] for name in names}

    def bring(self, names: Iterable[str]) -> None:
        """From a store, fetch features that are read next; otherwise nothing."""
        if isinstance(self.root, Location):
            at_once(self._near, map(self.features_file, dict.fromkeys(names)))

    def missing(self, names: Iterable[str]) -> set[str]:
        """Pictures without features, of these."""
        if isinstance(self.root, Path):
            return {name for name in names if not self.features_file(name).is_file()}
        every = [*dict.fromkeys(names)]
        there = at_once(lambda name: self.features_file(name).is_file(), every)
        return {name for name, found in zip(every, there, strict=True) if not found}

    def _near(self, path: Place) -> Path:
        """A file of the cache on this machine; raises `DataError` where there is none."""
        try:
            return copied_once(path)
        except FileNotFoundError as error:
            raise DataError(f"{path} of the vision cache is gone; give the same command again.") from error

    def picture(self, name: str) -> Prepared:
        """A picture with its features [V, C], its layout, and the tensors that its family keeps beside them."""
        path = self.features_file(name)
        try:
            with safe_open(self._near(path), "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                text, runs = json.loads(file.metadata()["layout"])
        except StorageError:
            raise
        except (OSError, SafetensorError, *ODD) as error:
            forget(path)
            raise DataError(f"{path} of the vision cache cannot be read ({error}); remove it and run again.") from error
        # Imported late: readers of the cache's file names need no transformers.
        from components.models.encoding import Prepared
        from components.models.families.base import Layout

        return Prepared(layout=Layout(text, tuple(runs)), tensors=tensors)

    def holds(self, split: Split, shard: int, group: int, rows: Sequence[int]) -> bool:
        """Whether the features of these rows of a row group are there."""
        (names,) = self.known(split, [(shard, group)])
        return names is not None and not self.missing(name for row in rows for name in names[row])


def feature_root(storage: Place) -> Place:
    """The folder of the cache: $LITTORAL_CACHE where it is set, else one in the runs' storage."""
    shared = shared_cache()
    return storage / ".cache" if shared is None else shared if isinstance(shared, Location) else cache_dir()


def vision_cache(backbone: BackboneConfig, root: Place, fingerprint: str) -> VisionCache:
    """The cache of `backbone`; `fingerprint` identifies its weights.

    What its files say about preparing pictures counts too: with another resolution the features would be others.
    """
    padded = "padded" if backbone.pad_to_square else "plain"
    view = f"{fingerprint[:16]}-{backbone.dtype}-{padded}"
    preparing = [
        path for path in model_source(backbone).tokenizer_files() if path.name.endswith("processor_config.json")
    ]
    if preparing:
        view += "-" + hashlib.sha256(b"".join(path.read_bytes() for path in preparing)).hexdigest()[:8]
    return VisionCache(root=root, view=view)


def feature_bytes(reached: Sequence[tuple[Split, Reached]], backbone: BackboneConfig) -> int:
    """Bytes on disk that the features of the rows reached take at most, if no two rows share a picture."""
    with fast_imports():
        from components.models.encoding import build_encoder

        family = build_encoder(backbone).family
    sizes: Counter[tuple[int, int]] = Counter()
    columns = columns_without_pictures(["width", "height", MORE])
    for split, groups in reached:
        by_shard: dict[int, list[int]] = {}
        for shard, group in groups:
            by_shard.setdefault(shard, []).append(group)
        for shard, of_shard in by_shard.items():
            file, taken, start = split.shard_without_pictures(shard), list[int](), 0
            for group in sorted(of_shard):
                taken += [start + row for row in groups[shard, group]]
                start += file.metadata.row_group(group).num_rows
            with parquet(split.shard_paths()[shard]):
                table = file.read_row_groups(sorted(of_shard), columns=columns).take(taken)
            for row in table.to_pylist():
                shown = [row, *(row.get(MORE) or ())]
                sizes.update((each["width"], each["height"]) for each in shown if each["width"] is not None)
    tokens = sum(count * sum(family.layout(*size).runs) for size, count in sizes.items())
    return tokens * family.picture_width * getattr(torch, backbone.dtype).itemsize
