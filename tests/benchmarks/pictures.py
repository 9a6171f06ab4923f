"""What pictures cost on their way: the features' cache against a bare loop over the tower, and batching beside a step.

    PYTHONPATH=$PWD python tests/benchmarks/pictures.py --backbone smol

Aims: at least 0.9 of the bare loop's pictures per second; collating and moving a batch below 0.02 of a step.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro

from components.data.batch import Batch, Example, Picture, collate
from components.data.rows import Row
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.feature_writing import ENCODE_ROWS, FeatureWriter, ShardWork
from components.training.vision_cache import vision_cache
from tests.benchmarks.throughput import Contestant, measure, print_ratio, print_times


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    backbone: str = "smol"
    pictures: int = 48
    """Distinct pictures of the embedded stream's first task."""
    batch_size: int = 4
    """Rows of the micro batch beside whose step batching is timed."""
    repeats: int = 5


def main(options: Benchmark) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    config = BackboneConfig(name=options.backbone)
    split = open_stream(StreamConfig(size="nano")).tasks[0].train
    rows = list(islice(split.rows(), options.pictures))
    images = {each.data: row.sample_id for row in rows for each in row.pictures if each.data is not None}
    encoder, folder = build_encoder(config), tempfile.TemporaryDirectory()
    writer = FeatureWriter(config, vision_cache(config, Path(folder.name), "0" * 16))
    work = {"work": np.array([ShardWork(split=split, shard=0, rows={0: list(range(len(rows)))})], dtype=object)}
    rounds = iter(range(1000))

    def cached() -> None:
        place = Path(folder.name) / str(next(rounds))
        writer.cache = writer.read.cache = vision_cache(config, place, "0" * 16)
        assert writer(work) == {"pictures": [len(images)]}

    def bare() -> None:
        decoded = [encoder.prepared_picture(image, sample_id=name) for image, name in images.items()]
        for start in range(0, len(decoded), ENCODE_ROWS):
            chosen = [(each.tensors, sum(each.layout.runs)) for each in decoded[start : start + ENCODE_ROWS]]
            writer.model.picture_features([Picture(tensors=tensors, num_tokens=count) for tensors, count in chosen])

    times = measure(
        [
            Contestant(name="bare loop", run=bare, units=len(images)),
            Contestant(name="features' cache", run=cached, units=len(images)),
        ],
        options.repeats,
    )
    print_times("A picture", "ms", times)
    print_ratio("pictures per second of the cache", times["bare loop"], times["features' cache"], "aim: at least 0.9")
    size = sum(path.stat().st_size for path in Path(folder.name).glob("0/**/*.safetensors")) / len(images)
    print(f"  a picture takes {size / 1e3:.1f} kB on disk")
    compare_batching(options, load_backbone(config), encoder, rows)


def compare_batching(options: Benchmark, model: Backbone, encoder: Encoder, rows: list[Row]) -> None:
    """Collating a micro batch and moving it, beside its forward pass."""
    examples = [encoder.training_example(row) for row in rows[: options.batch_size]]

    def batching() -> None:
        batched(model, encoder, examples)

    @torch.no_grad()
    def forward() -> None:
        model(batched(model, encoder, examples))

    contestants: list[tuple[str, Callable[[], None]]] = [("batching", batching), ("batching and forward", forward)]
    times = measure([Contestant(name=name, run=run, units=1) for name, run in contestants], options.repeats)
    print_times("A micro batch", "ms", times)
    print_ratio("share of batching", times["batching"], times["batching and forward"], "aim: below 0.02 of a step")


def batched(model: Backbone, encoder: Encoder, examples: list[Example]) -> Batch:
    return collate(examples, pad_id=encoder.pad_id, padding_side="right").to(model.device)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=(__doc__ or "").split("\n\n")[0]))
