"""The vision cache: features of the frozen tower, computed once per distinct picture and only for rows a run reaches.

The tower never trains, so its output is a function of the picture's bytes and of the backbone. Pictures are known by
the SHA-256 of their bytes, so tasks, splits, sizes and runs share them:

    <cache>/pictures/<split digest>/<shard>-<row group>.json    the pictures of a row group's rows, in order
    <cache>/vision/<backbone view>/<xx>/<picture>.safetensors   one picture's features
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from components.core.errors import DataError
from components.core.files import host_name, write_bytes
from components.core.runtime import fast_imports
from components.data.rows import Row, Split
from components.models.config import BackboneConfig
from components.models.source import model_source

ENCODE_ROWS = 16  # pictures per forward pass of the tower
STALE_SECONDS = 24 * 3600  # a partial file of another machine that is older than this was abandoned

Reached = Mapping[tuple[int, int], Sequence[int]]  # (shard, row group) of one split -> rows of that group


@dataclass(frozen=True, kw_only=True)
class VisionCache:
    """The cached features of one backbone's tower. Plain data, pickled to every reader."""

    root: Path
    view: str

    def picture_list(self, split: Split, shard: int, group: int) -> Path:
        """The file that names the pictures of one row group."""
        return self.root / "pictures" / split.digest[:16] / f"{shard:05d}-{group:05d}.json"

    def features_file(self, picture: str) -> Path:
        """The file of one picture's features."""
        return self.root / "vision" / self.view / picture[:2] / f"{picture}.safetensors"

    def pictures(self, split: Split, shard: int, group: int) -> list[str | None]:
        """By row of the group: the picture's SHA-256, or None for a row without one."""
        path = self.picture_list(split, shard, group)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} of the vision cache cannot be read ({error}); remove it and run again.") from error

    def features(self, picture: str) -> torch.Tensor:
        """Features [V, C] of a picture."""
        path = self.features_file(picture)
        try:
            return load_file(path)["vision"]
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{path} of the vision cache cannot be read ({error}); remove it and run again.") from error

    def holds(self, split: Split, shard: int, group: int, rows: Sequence[int]) -> bool:
        """Whether the features of these rows of a row group are there."""
        if not self.picture_list(split, shard, group).is_file():
            return False
        pictures = self.pictures(split, shard, group)
        return all(self.features_file(name).is_file() for name in {pictures[row] for row in rows} if name is not None)


def vision_cache(backbone: BackboneConfig, root: Path, fingerprint: str) -> VisionCache:
    """The cache of `backbone`; `fingerprint` identifies its weights."""
    padded = "padded" if backbone.pad_to_square else "plain"
    return VisionCache(root=root, view=f"{fingerprint[:16]}-{backbone.dtype}-{padded}")


def vision_shape(backbone: BackboneConfig) -> tuple[int, int]:
    """(V, C) of one picture's features, without loading the model."""
    with fast_imports():
        from components.models.encoding import build_encoder

        encoder = build_encoder(backbone)
        config: Any = model_source(backbone).model_config()  # Any: the library does not type its fields
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    return encoder.image_tokens, layers * config.vision_config.hidden_size


def feature_bytes(num_rows: int, vision_shape: tuple[int, int], dtype: str) -> int:
    """Bytes on disk that the features of `num_rows` rows take at most, if no two rows share a picture."""
    tokens, channels = vision_shape
    return num_rows * tokens * channels * torch.empty((), dtype=getattr(torch, dtype)).element_size()


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Row groups of one shard, and for each the rows whose features are wanted."""

    split: Split
    shard: int
    rows: dict[int, list[int]]


def cache_features(reached: Sequence[tuple[Split, Reached]], backbone: BackboneConfig, cache: VisionCache) -> None:
    """Compute the features that are missing for the rows reached; what a killed run has computed is kept."""
    remove_leftovers(cache.root)
    work: list[ShardWork] = []
    for split, groups in reached:
        missing = {place: list(rows) for place, rows in groups.items() if not cache.holds(split, *place, rows)}
        for shard in sorted({shard for shard, _ in missing}):
            rows = {group: missing[each, group] for each, group in sorted(missing) if each == shard}
            work.append(ShardWork(split=split, shard=shard, rows=rows))
    if not work:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # `max_restarts` has no other name in Ray 2.60
        items = ray.data.from_items([{"work": each} for each in work], override_num_blocks=len(work))
        written = items.map_batches(
            FeatureWriter,
            fn_constructor_kwargs={"backbone": backbone, "cache": cache},
            batch_size=1,
            batch_format="numpy",
            num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
            compute=ActorPoolStrategy(size=1),
            max_restarts=0,  # what a lost actor left is found again by a rerun
        ).count()  # counting is what runs the lazy dataset
    if written != len(work):
        raise DataError(f"vision features of {written} of {len(work)} shards were written; run the command again.")


def remove_leftovers(root: Path) -> None:
    """Delete partial files that killed runs left in the cache: those of dead processes on this host, and old ones."""
    for path in [path for folder in ("vision", "pictures", "features") for path in (root / folder).rglob("*.partial")]:
        named = re.fullmatch(r"\..+?\.(?:(?P<host>[^.]+)\.)?(?P<pid>\d+)\.partial", path.name)
        ours = named is not None and named["host"] in (None, host_name())
        try:
            old = time.time() - path.stat().st_mtime > STALE_SECONDS
            if old or (ours and named is not None and not psutil.pid_exists(int(named["pid"]))):
                path.unlink()
        except FileNotFoundError:  # its writer finished, or another run removed it
            continue


class FeatureWriter:
    """A Ray Data actor: holds the model once and turns pictures of shards into files of features."""

    def __init__(self, backbone: BackboneConfig, cache: VisionCache) -> None:
        with fast_imports():
            from components.models.backbone import load_backbone
            from components.models.encoding import build_encoder

        torch.set_num_threads(2)
        self.config, self.cache = backbone, cache
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_backbone(backbone).to(device)
        self.encoder = build_encoder(backbone)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        return {"pictures": [self._write(work) for work in batch["work"]]}

    def _write(self, work: ShardWork) -> int:
        """How many pictures were computed."""
        count = 0
        file = pq.ParquetFile(work.split.shard_paths()[work.shard])
        for group, rows in work.rows.items():
            table = file.read_row_group(group, columns=["sample_id", "image"])
            images = table["image"].to_pylist()
            pictures = [None if image is None else hashlib.sha256(image).hexdigest() for image in images]
            wanted = {
                picture: (table["sample_id"][row].as_py(), images[row])
                for row in rows
                if (picture := pictures[row]) is not None and not self.cache.features_file(picture).is_file()
            }
            count += self._compute(wanted)
            write_bytes(self.cache.picture_list(work.split, work.shard, group), json.dumps(pictures).encode())
        return count

    def _compute(self, wanted: dict[str, tuple[str, bytes]]) -> int:
        names = list(wanted)
        for start in range(0, len(names), ENCODE_ROWS):
            chosen = names[start : start + ENCODE_ROWS]
            pixels = torch.stack([self.encoder.pixels(_picture_row(*wanted[name])) for name in chosen])
            features = self.model.vision_features(pixels.to(self.model.device)).cpu()
            for name, value in zip(chosen, features.to(getattr(torch, self.config.dtype)), strict=True):
                write_bytes(self.cache.features_file(name), save({"vision": value.contiguous()}))
        return len(names)


def _picture_row(sample_id: str, image: bytes) -> Row:
    """A row with nothing but a picture."""
    return Row(sample_id=sample_id, task="", split="", turns=(), answers=(), metric="", source="", image=image)
