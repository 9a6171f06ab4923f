"""Fills the vision cache: which features are missing, and who computes and writes them."""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
import ray.data
import torch
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning
from safetensors.torch import load, save

from components.core.copies import at_once
from components.core.errors import DataError
from components.core.files import write_bytes
from components.core.location import Location, Place
from components.core.machine import host_name
from components.core.runtime import fast_imports
from components.data.batch import Picture
from components.data.rows import Split, row_from_record
from components.models.config import BackboneConfig
from components.models.pixels import packed, scale_of, unpacked
from components.training.kept_replies import UNAIDED_FOLDER
from components.training.pickled import PickledCallable
from components.training.precision import set_float32_products
from components.training.vision_cache import Reached, VisionCache

ENCODE_ROWS = 16  # pictures per forward pass of the tower
STALE_SECONDS = 24 * 3600  # a partial file of another machine that is older than this was abandoned


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
    worker: ActorHandle | None = None,
) -> None:
    """Compute the features that are missing for the rows reached; what a killed run has computed is kept.

    Where there are no GPUs `worker` does it, a process with a method `compute_features`; without one, a process that is
    started for it on a node with the labels `on_cpus`.
    """
    if isinstance(cache.root, Path):
        remove_leftovers(cache.root)
    work = _missing(reached, cache)
    if not work:
        return
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_gpus:
        _compute_on_gpus(work, backbone, cache, num_gpus)
    elif worker is not None:
        ray.get(worker.compute_features.remote(work, backbone, cache))
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
    listed = cache.listed()
    for split, groups in reached:
        names = dict(zip(groups, cache.known(split, groups), strict=True))
        known = {place: found for place, found in names.items() if found is not None}
        wanted = {name for place, found in known.items() for row in groups[place] for name in found[row]}
        gone = cache.missing(wanted - listed)
        missing = {
            place: list(rows)
            for place, rows in groups.items()
            if place not in known or any(name in gone for row in rows for name in known[place][row])
        }
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
            file = work.split.whole_shard(work.shard)
            for group, rows in work.rows.items():
                records = file.read_row_group(group).to_pylist()
                images = [row_from_record(record).images for record in records]
                names = [[hashlib.sha256(image).hexdigest() for image in of_row] for of_row in images]
                missing = self.cache.missing(name for row in rows for name in names[row])
                wanted = {
                    name: (records[row]["sample_id"], image)
                    for row in rows
                    for name, image in zip(names[row], images[row], strict=True)
                    if name in missing
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
        made: list[tuple[Place, bytes]] = []
        for name, layout, tensors, value in zip(batch["name"], batch["layout"], loaded, features, strict=True):
            kept = {key: tensors[key] for key in self.model.family.kept}
            found = {self.name: value.cpu().to(self.dtype).contiguous(), **kept}
            made.append((self.cache.features_file(name), save(found, {"layout": layout})))
        if isinstance(self.cache.root, Location):
            at_once(lambda one: write_bytes(*one), made)
        else:
            for one in made:
                write_bytes(*one)
        return len(loaded)


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor in one piece, as safetensors wants them."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
