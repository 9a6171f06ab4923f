"""The vision cache: features of the frozen tower, computed once per picture and read by every later epoch and row.

The tower never trains, so its output is a function of the picture and the backbone. Files lie beside each other as
`<cache>/features/<backbone fingerprint>/<split digest>/part-*.parquet`, row group for row group like the split itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext

from components.data.rows import ROW_GROUP_ROWS, Row, Split
from components.models.config import BackboneConfig
from components.models.source import model_source
from components.starting import quick_imports
from components.training.loading import FEATURES_SCHEMA, tensor_bytes

ENCODE_ROWS = 16  # pictures per forward pass of the tower
_EMPTY: object = None


def vision_shape(backbone: BackboneConfig) -> tuple[int, int]:
    """(V, C) of one picture's features, without loading the model."""
    with quick_imports():
        from transformers import AutoConfig

        from components.models.encoding import build_encoder
        from components.models.pocket import pocket_model

    encoder = build_encoder(backbone)
    pocket = backbone.name == "pocket"
    # Any: the library does not type what a configuration holds.
    config: Any = pocket_model().config if pocket else AutoConfig.from_pretrained(model_source(backbone))
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    return encoder.image_tokens, layers * config.vision_config.hidden_size


def feature_bytes(splits: Sequence[Split], vision_shape: tuple[int, int], dtype: str) -> int:
    """Disk the features of `splits` take at most (every row counted as having a picture)."""
    tokens, channels = vision_shape
    size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    return sum(split.num_rows for split in splits) * tokens * channels * size


def features_dir(cache: Path, split: Split, backbone: BackboneConfig, fingerprint: str) -> Path:
    """Where the features of one split lie."""
    view = f"{fingerprint[:16]}-{backbone.dtype}-{'padded' if backbone.pad_to_square else 'plain'}"
    return cache / "features" / view / split.digest[:16]


def cache_features(splits: Sequence[Split], backbone: BackboneConfig, cache: Path, fingerprint: str) -> None:
    """Compute what is missing, shard by shard; a shard is complete or absent, so a killed run continues here."""
    missing = [
        {"source": str(path), "target": str(features_dir(cache, split, backbone, fingerprint) / path.name)}
        for split in splits
        for path in split.shard_paths()
        if not (features_dir(cache, split, backbone, fingerprint) / path.name).is_file()
    ]
    if not missing:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    with DataContext.current(context):
        items = ray.data.from_items(missing, override_num_blocks=len(missing))
        written = items.map_batches(
            FeatureWriter,
            fn_constructor_kwargs={"backbone": backbone},
            batch_size=1,
            batch_format="numpy",
            num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
            compute=ActorPoolStrategy(size=1),
            # Ray warns on the terminal otherwise; what a lost actor left is found again by a rerun
            ray_remote_args_fn=lambda: {"max_restarts": 0},
        )
        assert written.count() == len(missing)


class FeatureWriter:
    """A Ray Data actor: holds the model once and turns shards of rows into shards of features."""

    def __init__(self, backbone: BackboneConfig) -> None:
        with quick_imports():
            from components.models.backbone import load_backbone
            from components.models.encoding import build_encoder

        torch.set_num_threads(2)
        self.config = backbone
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_backbone(backbone).to(device)
        self.encoder = build_encoder(backbone)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        for source, target in zip(batch["source"], batch["target"], strict=True):
            self._write(Path(str(source)), Path(str(target)))
        return {"target": [str(target) for target in batch["target"]]}

    def _write(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")  # two runs may fill the same cache
        file = pq.ParquetFile(source)
        with pq.ParquetWriter(partial, FEATURES_SCHEMA) as writer:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=["sample_id", "image"])
                records = self._features(table["sample_id"].to_pylist(), table["image"].to_pylist())
                writer.write_table(pa.Table.from_pylist(records, FEATURES_SCHEMA), row_group_size=ROW_GROUP_ROWS)
        partial.rename(target)

    def _features(self, sample_ids: list[str], images: list[bytes | None]) -> list[dict[str, object]]:
        records: list[dict[str, object]] = [dict.fromkeys(FEATURES_SCHEMA.names, _EMPTY) for _ in images]
        with_picture = [index for index, image in enumerate(images) if image is not None]
        for start in range(0, len(with_picture), ENCODE_ROWS):
            chosen = with_picture[start : start + ENCODE_ROWS]
            pixels = torch.stack([self.encoder.pixels(_picture_row(sample_ids[i], images[i])) for i in chosen])
            features = self.model.vision_features(pixels.to(self.model.device)).cpu()
            features = features.to(getattr(torch, self.config.dtype))
            for index, value in zip(chosen, features, strict=True):
                records[index] = {
                    "vision": tensor_bytes(value),
                    "vision_shape": list(value.shape),
                    "dtype": self.config.dtype,
                }
        return records


def _picture_row(sample_id: str, image: bytes | None) -> Row:
    """A row of which only the picture matters."""
    return Row(sample_id=sample_id, task="", split="", turns=(), answers=(), metric="", source="", image=image)
