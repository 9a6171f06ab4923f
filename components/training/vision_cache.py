"""The vision cache: features of the frozen tower, computed once per distinct picture and only for rows a run reaches.

The tower never trains, so its output is a function of the picture's bytes and of the backbone. Pictures are known by
the SHA-256 of their bytes, so tasks, splits, sizes and runs share them:

    <cache>/picture-names/<split digest>/<shard>-<row group>.json        the pictures of a row group's rows, in order
    <cache>/picture-features/<backbone view>/<xx>/<picture>.safetensors  one picture's features

All nodes of a cluster must see it, so it lies in the runs' storage, which they share, or in $LITTORAL_CACHE.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from components.core.errors import ConfigError, DataError
from components.core.files import write_bytes
from components.core.location import Location, Place
from components.core.machine import cache_dir, host_name
from components.core.options import from_plain
from components.core.reading import ODD, read_json
from components.core.runtime import fast_imports
from components.data.batch import Picture
from components.data.rows import MORE, Split, columns_without_pictures, row_from_record
from components.models.config import BackboneConfig
from components.models.pixels import packed, scale_of, unpacked
from components.models.source import model_source
from components.training.kept_replies import UNAIDED_FOLDER
from components.training.pickled import PickledCallable
from components.training.precision import set_float32_products

if TYPE_CHECKING:  # transformers is imported where pictures are encoded, not by the driver
    from components.models.encoding import Prepared

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
        return self.root / "picture-names" / split.digest[:16] / f"{shard:05d}-{group:05d}.json"

    def features_file(self, picture: str) -> Path:
        """The file of one picture's features."""
        return self.root / "picture-features" / self.view / picture[:2] / f"{picture}.safetensors"

    def pictures(self, split: Split, shard: int, group: int) -> list[list[str]]:
        """By row of the group: the SHA-256 of each of its pictures."""
        path = self.picture_list(split, shard, group)
        advice = "remove it and run again"
        found = read_json(path, DataError, advice)
        try:
            return from_plain(list[list[str]], found, "pictures")
        except ConfigError as error:
            raise DataError(f"{path} of the vision cache is damaged ({error}); {advice}.") from error

    def picture(self, name: str) -> Prepared:
        """A picture with its features [V, C], its layout, and the tensors that its family keeps beside them."""
        path = self.features_file(name)
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                text, runs = json.loads(file.metadata()["layout"])
        except (OSError, SafetensorError, *ODD) as error:
            raise DataError(f"{path} of the vision cache cannot be read ({error}); remove it and run again.") from error
        # Imported late: readers of the cache's file names need no transformers.
        from components.models.encoding import Prepared
        from components.models.families.base import Layout

        return Prepared(layout=Layout(text, tuple(runs)), tensors=tensors)

    def holds(self, split: Split, shard: int, group: int, rows: Sequence[int]) -> bool:
        """Whether the features of these rows of a row group are there."""
        if not self.picture_list(split, shard, group).is_file():
            return False
        pictures = self.pictures(split, shard, group)
        return all(self.features_file(name).is_file() for row in rows for name in pictures[row])


def feature_root(storage: Place) -> Path:
    """The folder of the cache: $LITTORAL_CACHE where it is set, else one in the runs' storage, if that has folders."""
    return cache_dir() if os.environ.get("LITTORAL_CACHE") or isinstance(storage, Location) else storage / ".cache"


def vision_cache(backbone: BackboneConfig, root: Path, fingerprint: str) -> VisionCache:
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
            file = pq.ParquetFile(split.path / split.shards[shard].file)
            for group in of_shard:
                table = file.read_row_group(group, columns=columns).take([*groups[shard, group]])
                for row in table.to_pylist():
                    shown = [row, *(row.get(MORE) or ())]
                    sizes.update((each["width"], each["height"]) for each in shown if each["width"] is not None)
    tokens = sum(count * sum(family.layout(*size).runs) for size, count in sizes.items())
    return tokens * family.picture_width * getattr(torch, backbone.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Row groups of one shard, and for each the rows whose features are wanted."""

    split: Split
    shard: int
    rows: dict[int, list[int]]


def cache_features(
    reached: Sequence[tuple[Split, Reached]],
    backbone: BackboneConfig,
    cache: VisionCache,
    *,
    on_cpus: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Compute the features that are missing for the rows reached; what a killed run has computed is kept.

    `on_cpus`: the labels of nodes that do it where there are no GPUs.
    """
    remove_leftovers(cache.root)
    work = _missing(reached, cache)
    if not work:
        return
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_gpus:
        _compute_on_gpus(work, backbone, cache, num_gpus)
    else:  # one process at a time, for which Ray Data would start five others
        # SPREAD, as Ray Data has it: in a trial of a sweep it would otherwise have to fit into the trial's own place.
        task = ray.remote(max_retries=0, scheduling_strategy="SPREAD", label_selector={**on_cpus})(compute_features)
        ray.get(task.remote(work, backbone, cache))
    left = _missing(reached, cache)
    if left:
        raise DataError(f"vision features of {len(left)} of {len(work)} shards are missing; run the command again.")


def compute_features(work: Sequence[ShardWork], backbone: BackboneConfig, cache: VisionCache) -> None:
    """Compute and write the features of `work`, in this process."""
    writer = FeatureWriter(backbone, cache)
    for each in work:
        writer({"work": [each]})


def _compute_on_gpus(work: Sequence[ShardWork], backbone: BackboneConfig, cache: VisionCache, num_gpus: int) -> None:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # `max_restarts` has no other name in Ray 2.60
        items = ray.data.from_items([{"work": each} for each in work], override_num_blocks=len(work))
        # A tower takes a picture in a millisecond, and decoding it takes twenty: many CPUs feed each GPU.
        reader = PickledCallable(PictureReader(backbone, cache))
        pictures = items.map_batches(reader, batch_size=1, batch_format="numpy")  # type: ignore[arg-type]
        pictures.map_batches(
            FeatureWriter,
            fn_constructor_kwargs={"backbone": backbone, "cache": cache},
            batch_size=ENCODE_ROWS,
            batch_format="numpy",
            num_gpus=1,
            compute=ActorPoolStrategy(size=num_gpus),
            max_restarts=0,  # what a lost actor left is found again by a rerun
        ).count()  # counting is what runs the lazy dataset


def _missing(reached: Sequence[tuple[Split, Reached]], cache: VisionCache) -> list[ShardWork]:
    """What of the rows reached is not in the cache, by shard."""
    work: list[ShardWork] = []
    for split, groups in reached:
        missing = {place: list(rows) for place, rows in groups.items() if not cache.holds(split, *place, rows)}
        for shard in sorted({shard for shard, _ in missing}):
            rows = {group: missing[each, group] for each, group in sorted(missing) if each == shard}
            work.append(ShardWork(split=split, shard=shard, rows=rows))
    return work


def remove_leftovers(root: Path) -> None:
    """Delete partial files that killed runs left in the cache: those of dead processes on this host, and old ones."""
    folders = ("picture-features", "picture-names", UNAIDED_FOLDER)
    for path in [path for folder in folders for path in (root / folder).rglob("*.partial")]:
        named = re.fullmatch(r"\..+?\.(?:(?P<host>[^.]+)\.)?(?P<pid>\d+)\.partial", path.name)
        ours = named is not None and named["host"] in (None, host_name())
        try:
            old = time.time() - path.stat().st_mtime > STALE_SECONDS
            if old or (ours and named is not None and not psutil.pid_exists(int(named["pid"]))):
                path.unlink()
        except FileNotFoundError:  # its writer finished, or another run removed it
            continue


class PictureReader:
    """Turns work into pictures as the tower takes them, `ENCODE_ROWS` at a time: names, layouts, tensors as bytes."""

    def __init__(self, backbone: BackboneConfig, cache: VisionCache) -> None:
        self.backbone, self.cache = backbone, cache

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        with fast_imports():
            from components.models.encoding import build_encoder

        encoder = build_encoder(self.backbone)
        scale = scale_of(encoder.family.files.image_processor)
        for work in batch["work"]:
            file = pq.ParquetFile(work.split.shard_paths()[work.shard])
            for group, rows in work.rows.items():
                records = file.read_row_group(group).to_pylist()
                images = [row_from_record(record).images for record in records]
                names = [[hashlib.sha256(image).hexdigest() for image in of_row] for of_row in images]
                wanted = {
                    name: (records[row]["sample_id"], image)
                    for row in rows
                    for name, image in zip(names[row], images[row], strict=True)
                    if not self.cache.features_file(name).is_file()
                }
                every = list(wanted)
                for start in range(0, len(every), ENCODE_ROWS):
                    chosen = every[start : start + ENCODE_ROWS]
                    prepared = [encoder.prepared_picture(wanted[name][1], sample_id=wanted[name][0]) for name in chosen]
                    yield {
                        "name": chosen,
                        "layout": [json.dumps(each.layout) for each in prepared],
                        "num_tokens": [sum(each.layout.runs) for each in prepared],
                        "tensors": [save(contiguous(packed(each.tensors, scale))) for each in prepared],
                    }
                # A list without its features is no harm: whoever looks for them finds them missing.
                write_bytes(self.cache.picture_list(work.split, work.shard, group), json.dumps(names).encode())


class FeatureWriter:
    """A Ray Data actor: holds the towers once and turns pictures into files of features.

    It is given what `PictureReader` makes, or the work itself.
    """

    def __init__(self, backbone: BackboneConfig, cache: VisionCache) -> None:
        with fast_imports():
            from components.models.backbone import load_backbone
            from components.models.families.base import FEATURES

        self.name = FEATURES
        torch.set_num_threads(2)
        self.dtype, self.cache = getattr(torch, backbone.dtype), cache
        self.read = PictureReader(backbone, cache)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        set_float32_products(backbone, device)
        self.model = load_backbone(backbone, device, decoder=False)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        parts = self.read(batch) if "work" in batch else [batch]
        return {"pictures": [sum(map(self._write, parts))]}

    def _write(self, batch: Mapping[str, Sequence[Any]]) -> int:
        """How many pictures were computed."""
        loaded = [unpacked(load(tensors)) for tensors in batch["tensors"]]
        pictures = [
            Picture(tensors=tensors, num_tokens=int(count))
            for tensors, count in zip(loaded, batch["num_tokens"], strict=True)
        ]
        features = self.model.picture_features(pictures)
        for name, layout, tensors, value in zip(batch["name"], batch["layout"], loaded, features, strict=True):
            kept = {key: tensors[key] for key in self.model.family.kept}
            found = {self.name: value.cpu().to(self.dtype).contiguous(), **kept}
            write_bytes(self.cache.features_file(name), save(found, {"layout": layout}))
        return len(loaded)


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor in one piece, as safetensors wants them."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
