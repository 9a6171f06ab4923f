"""The order of training rows and their split over workers. The loader is called directly; Ray only schedules it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_rows import picture, row

from components.data.rows import Row, Split, Turn, write_split
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.training.config import TrainingConfig
from components.training.engine import OptimizerConfig
from components.training.features import FeatureWriter, features_dir, vision_shape
from components.training.loading import Loader, Slice, dataset_name, examples, plan_windows, stretches_of

POCKET = BackboneConfig(name="pocket")
ROWS = 70  # more than one row group, and no multiple of one


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    rows = (
        Row(
            sample_id=f"row-{index}",
            task="t",
            split="train",
            turns=(Turn(speaker="human", text=f"number {index}?"), Turn(speaker="gpt", text=str(index))),
            answers=(str(index),),
            metric="exact",
            source="test",
        )
        for index in range(ROWS)
    )
    return write_split(rows, tmp_path_factory.mktemp("data") / "train", task="t", split="train")


def ids(
    split: Split, *, epochs: int = 1, num_rows: int = ROWS, seed: int | None = 0, slice: Slice | None = None
) -> list[str]:
    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=slice or Slice(), num_rows=num_rows)
    windows = plan_windows([split], epochs=epochs, num_rows=num_rows, seed=seed)
    blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    return [example.sample_id for block in blocks for example in examples(block.to_pylist(), "float32")]


def test_an_epoch_is_a_permutation(split: Split) -> None:
    order = ids(split)
    assert sorted(order) == sorted(f"row-{index}" for index in range(ROWS))
    assert order != [f"row-{index}" for index in range(ROWS)]


def test_without_a_seed_the_stored_order_is_kept(split: Split) -> None:
    assert ids(split, seed=None) == [f"row-{index}" for index in range(ROWS)]


def test_the_order_is_a_function_of_seed_and_epoch(split: Split) -> None:
    two = ids(split, epochs=2, num_rows=2 * ROWS)
    assert two == ids(split, epochs=2, num_rows=2 * ROWS)
    assert two[:ROWS] == ids(split)
    assert two[:ROWS] != two[ROWS:]
    assert sorted(two[:ROWS]) == sorted(two[ROWS:])
    assert ids(split, seed=1) != ids(split)


@pytest.mark.parametrize(("world_size", "micro"), [(2, 4), (4, 2), (2, 2), (1, 8)])
def test_an_update_sees_the_same_rows_on_any_number_of_workers(split: Split, world_size: int, micro: int) -> None:
    """Updates of 8 rows: the ranks' shares together are the rows one worker would get, nothing lost or doubled."""
    whole = ids(split, num_rows=64)
    shares = [
        ids(split, num_rows=64, slice=Slice(rank=rank, world_size=world_size, micro_batch_size=micro))
        for rank in range(world_size)
    ]
    per_rank = 8 // world_size
    for update in range(8):
        together = {name for share in shares for name in share[update * per_rank : (update + 1) * per_rank]}
        assert together == set(whole[update * 8 : (update + 1) * 8])


def test_short_windows_are_read_together_and_full_ones_alone(split: Split) -> None:
    """No order changes: stretches hold the same windows one after the other."""
    windows = plan_windows([split], epochs=40, num_rows=40 * ROWS, seed=0)
    stretches = stretches_of(windows)
    assert [window for stretch in stretches for window in stretch.windows] == windows
    assert [len(stretch.windows) for stretch in stretches] == [14, 14, 12]  # 14 x 70 rows are below 1024
    full = [replace(window, num_rows=1024) for window in windows]
    assert [stretch.windows for stretch in stretches_of(full)] == [(window,) for window in full]


def test_examples_survive_the_trip_through_arrow(split: Split) -> None:
    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=3)
    windows = plan_windows([split], epochs=1, num_rows=3, seed=None)
    (block,) = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    first = next(examples(block.to_pylist(), "float32"))
    assert first.instruction == "number 0?"
    assert first.input_ids.dtype == torch.long
    assert len(first.input_ids) == len(first.labels)
    assert (first.labels >= 0).any()


def test_dataset_names_are_harmless_and_different() -> None:
    names = {dataset_name("train", task, 0) for task in ("a/b", "a_b", "../x", "a b")}
    assert len(names) == 4
    assert not any(set("/. ") & set(name) for name in names)


def test_updates_and_epochs_follow_from_sizes() -> None:
    assert TrainingConfig(global_batch_size=8).num_updates(400) == 50
    assert TrainingConfig(global_batch_size=8, updates_per_task=75).num_updates(400) == 75
    assert TrainingConfig(global_batch_size=8, micro_batch_size=2).accumulation(2) == 2


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1).rate_at(update, 20) for update in range(20)]
    assert rates[0] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_cached_features_are_the_towers(tmp_path: Path) -> None:
    """A picture row, a text-only row: the cache written by the Ray Data actor is what the tower gives."""
    rows = [row("<image>\ncolour?", "red", image=picture((255, 0, 0)), sample_id="a"), row("two?", "2", sample_id="b")]
    split = write_split(rows, tmp_path / "train", task="t", split="train")
    cache = features_dir(tmp_path / "cache", split, POCKET, "0123456789abcdef")
    source, target = split.shard_paths()[0], cache / split.shards[0].file
    FeatureWriter(POCKET)({"source": np.array([str(source)]), "target": np.array([str(target)])})

    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=2, features_dirs=(cache,))
    windows = plan_windows([split], epochs=1, num_rows=2, seed=None)
    (block,) = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    with_picture, text_only = examples(block.to_pylist(), "float32")
    expected = load_backbone(POCKET).vision_features(build_encoder(POCKET).pixels(rows[0]).unsqueeze(0))[0]
    assert with_picture.features is not None
    torch.testing.assert_close(with_picture.features, expected)
    assert tuple(expected.shape) == vision_shape(POCKET)
    assert with_picture.pixel_values is None
    assert text_only.features is None
    assert list(cache.iterdir()) == [target]
