"""The order of training rows and their split over workers. The loader is called directly; Ray only schedules it."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_checkpoint import write_checkpoint
from sample_rows import picture, row

from components.core.errors import DataError
from components.data.rows import Row, Split, Turn, write_split
from components.data.tasks import Task
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.families.base import FEATURES
from components.training.config import RunConfig, TrainingConfig
from components.training.dataloader import TaskDataLoader
from components.training.feature_writing import FeatureWriter, PictureReader, ShardWork, remove_leftovers
from components.training.optimizer import OptimizerConfig
from components.training.schedule import ScheduledTask
from components.training.streaming import Loader, dataset_name, examples, fits_a_window, prompts_here, trains_here
from components.training.vision_cache import feature_bytes, vision_cache
from components.training.windows import Slice, plan_windows, reached_rows, stretches_of

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
    return [example.sample_id for block in blocks for example in examples(block.to_pylist())]


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


def test_ranks_share_the_prompts_of_a_short_test_split(split: Split) -> None:
    """Every second row each, in stored order, without the answers that training rows end with."""
    shares = [
        prompts_here(split, POCKET, slice=Slice(rank=rank, world_size=2), num_rows=67, cache=None) for rank in (0, 1)
    ]
    assert [[each.sample_id for each in share] for share in shares] == [
        [f"row-{index}" for index in range(0, 67, 2)],
        [f"row-{index}" for index in range(1, 67, 2)],
    ]
    encoder = build_encoder(POCKET)
    assert all((each.labels < 0).all() for each in shares[1])
    first = encoder.prompt_example(next(iter(split.rows(limit=1))))
    assert torch.equal(shares[0][0].input_ids, first.input_ids)
    assert fits_a_window(1024, 2)
    assert not fits_a_window(1025, 2)


def test_examples_survive_the_trip_through_arrow(split: Split) -> None:
    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=3)
    windows = plan_windows([split], epochs=1, num_rows=3, seed=None)
    (block,) = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    first = next(examples(block.to_pylist()))
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
    assert TrainingConfig(global_batch_size=8).num_updates(15) == 2, "the last update takes rows of one more pass"
    assert TrainingConfig(global_batch_size=8, epochs=3).num_updates(15) == 6
    assert TrainingConfig(global_batch_size=8).num_updates(7) == 0, "less than one update: the plan refuses it"
    assert TrainingConfig(global_batch_size=8, updates_per_task=75).num_updates(400) == 75
    assert TrainingConfig(global_batch_size=8, micro_batch_size=2).accumulation(2) == 2


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1).rate_at(update, 20) for update in range(20)]
    assert rates[0] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize(("batch_size", "epochs"), [(8, 1), (32, 1), (3, 2), (70, 1), (69, 3)])
def test_an_epoch_sees_every_row(split: Split, batch_size: int, epochs: int) -> None:
    """All rows come `epochs` times before any comes once more, whatever is left over for the last update."""
    num_rows = TrainingConfig(global_batch_size=batch_size, epochs=epochs).num_updates(ROWS) * batch_size
    seen = ids(split, epochs=-(-num_rows // ROWS), num_rows=num_rows)
    assert len(seen) == num_rows
    for epoch in range(epochs):
        assert len(set(seen[epoch * ROWS : (epoch + 1) * ROWS])) == ROWS


@pytest.mark.parametrize("seed", [0, None])
def test_the_rows_reached_are_those_that_are_read(split: Split, seed: int | None) -> None:
    for num_rows in (1, 20, ROWS, ROWS + 5):
        epochs = -(-num_rows // ROWS)
        reached = reached_rows(plan_windows([split], epochs=epochs, num_rows=num_rows, seed=seed), num_rows)
        names = {f"row-{64 * group + row}" for (_, _, group), rows in reached.items() for row in rows}
        assert names == set(ids(split, epochs=epochs, num_rows=num_rows, seed=seed))


def test_features_are_the_towers_once_per_picture_for_the_rows_reached(tmp_path: Path) -> None:
    """Two rows share a picture, one has none, one is not reached: the cache holds what the tower gives, once."""
    red, blue, green = (picture(colour) for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0)))
    rows = [
        row("<image>\ncolour?", "red", image=red, sample_id="a"),
        row("two?", "2", sample_id="b"),
        row("<image>\nhue?", "red", image=red, sample_id="c"),
        row("<image>\ncolour?", "blue", image=blue, sample_id="d"),
        row("<image>\ncolour?", "green", image=green, sample_id="e"),
    ]
    split = write_split(rows, tmp_path / "train", task="t", split="train")
    cache = vision_cache(POCKET, tmp_path / "cache", "0123456789abcdef")
    work = ShardWork(split=split, shard=0, rows={0: [0, 1, 2, 3]})
    written = FeatureWriter(POCKET, cache)({"work": np.array([work], dtype=object)})
    assert written == {"pictures": [2]}
    assert cache.holds(split, 0, 0, [0, 1, 2, 3])
    assert not cache.holds(split, 0, 0, [4])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2

    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=4, cache=cache)
    windows = plan_windows([split], epochs=1, num_rows=4, seed=None)
    (block,) = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    read = list(examples(block.to_pylist()))
    model, encoder = load_backbone(POCKET), build_encoder(POCKET)
    for example, source in zip(read, rows, strict=False):
        if source.image is None:
            assert not example.pictures
            continue
        (expected,) = model.picture_features(encoder.training_example(source).pictures)
        (found,) = example.pictures
        assert found.tensors.keys() == {FEATURES}
        torch.testing.assert_close(found.tensors[FEATURES], expected)
    size = expected.numel() * expected.element_size()
    assert feature_bytes([(split, {(0, 0): [0, 1, 2, 3]})], POCKET) == 3 * size  # what rows share is not known yet


def test_pictures_decoded_apart_give_the_same_files(tmp_path: Path) -> None:
    """On GPUs many readers feed one writer; on a CPU the writer reads for itself."""
    rows = [row("<image>\ncolour?", str(n), image=picture((n, 255 - n, 7)), sample_id=f"row-{n}") for n in range(20)]
    split = write_split(rows, tmp_path / "train", task="t", split="train")
    work = {"work": np.array([ShardWork(split=split, shard=0, rows={0: list(range(20))})], dtype=object)}
    alone, fed = (vision_cache(POCKET, tmp_path / name, "0123456789abcdef") for name in ("alone", "fed"))
    assert FeatureWriter(POCKET, alone)(work) == {"pictures": [20]}
    writer = FeatureWriter(POCKET, fed)
    assert [writer(batch) for batch in PictureReader(POCKET, fed)(work)] == [{"pictures": [16]}, {"pictures": [4]}]
    assert alone.pictures(split, 0, 0) == fed.pictures(split, 0, 0)
    for (name,) in alone.pictures(split, 0, 0):
        assert alone.features_file(name).read_bytes() == fed.features_file(name).read_bytes()


def test_a_budget_that_ends_inside_a_window_needs_the_features_of_its_rows_alone(tmp_path: Path) -> None:
    """Three row groups of pictures, five rows reached: the rest of the window was never computed, nor is it read."""
    colours = [(shade, 255 - shade, 7) for shade in range(150)]
    rows = [
        row("<image>\ncolour?", str(index), image=picture(colour), sample_id=f"row-{index}")
        for index, colour in enumerate(colours)
    ]
    split = write_split(rows, tmp_path / "train", task="t", split="train")
    cache = vision_cache(POCKET, tmp_path / "cache", "0123456789abcdef")
    windows = plan_windows([split], epochs=1, num_rows=5, seed=3)
    reached = reached_rows(windows, 5)
    work = ShardWork(split=split, shard=0, rows={group: wanted for (_, _, group), wanted in reached.items()})
    assert FeatureWriter(POCKET, cache)({"work": np.array([work], dtype=object)}) == {"pictures": [5]}
    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=5, cache=cache)
    blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    read = [example for block in blocks for example in examples(block.to_pylist())]
    assert len(read) == 5
    assert all(example.pictures[0].tensors.keys() == {FEATURES} for example in read)


def test_pictures_prepared_in_another_way_have_other_features(tmp_path: Path) -> None:
    """Same weights, another resolution: nothing of the old cache may be read."""
    config = BackboneConfig(name=str(write_checkpoint(tmp_path / "model")))
    before = vision_cache(config, tmp_path, "0123456789abcdef")
    assert vision_cache(config, tmp_path, "0123456789abcdef") == before
    for path in (tmp_path / "model").glob("*processor_config.json"):
        path.write_text(path.read_text().replace("28", "14"))
    assert vision_cache(config, tmp_path, "0123456789abcdef").view != before.view


def test_a_damaged_file_of_the_cache_is_named(tmp_path: Path) -> None:
    cache = vision_cache(POCKET, tmp_path, "0123456789abcdef")
    cache.features_file("ab12").parent.mkdir(parents=True)
    cache.features_file("ab12").write_bytes(b"half a fi")
    with pytest.raises(DataError, match=r"ab12\.safetensors of the vision cache cannot be read"):
        cache.picture("ab12")


def test_what_killed_runs_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "picture-features" / "view" / "ab"
    folder.mkdir(parents=True)
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, host = int(process.stdout), socket.gethostname().split(".")[0]
    names = {"mine": f".x.safetensors.{host}.{os.getpid()}.partial", "dead": f".x.safetensors.{host}.{dead}.partial"}
    names |= {"elsewhere": f".x.safetensors.other.{dead}.partial", "old": f".y.safetensors.other.{dead}.partial"}
    for name in names.values():
        (folder / name).write_bytes(b"")
    os.utime(folder / names["old"], (0, 0))
    remove_leftovers(tmp_path)
    assert {path.name for path in folder.iterdir()} == {names["mine"], names["elsewhere"]}


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_few_training_rows_with_features_are_read_by_the_worker_in_the_same_order(
    tmp_path: Path, rank: int, world_size: int
) -> None:
    """Batches of 4, also after a resume and once more at the end: the rows and features of Ray Data's loader."""
    rows = [row("<image>\nshade?", str(n), image=picture((n, 255 - n, 7)), sample_id=f"row-{n}") for n in range(20)]
    split = write_split(rows, tmp_path / "train", task="t", split="train")
    cache = vision_cache(POCKET, tmp_path / "cache", "0123456789abcdef")
    FeatureWriter(POCKET, cache)({"work": [ShardWork(split=split, shard=0, rows={0: list(range(20))})]})
    training = TrainingConfig(global_batch_size=4, updates_per_task=7)  # 28 rows: more than one pass
    config = RunConfig(backbone=POCKET, training=training, seed=5)
    task = Task(name="t", train=split, test=split, max_new_tokens=4)
    schedule = (ScheduledTask(task=task, splits=(split,), num_updates=7),)
    own = Slice(rank=rank, world_size=world_size, micro_batch_size=4 // world_size)
    windows = plan_windows([split], epochs=2, num_rows=28, seed=5)
    upstream = Loader(splits=(split,), backbone=POCKET, mode="train", slice=own, num_rows=28, cache=cache)
    blocks = upstream({"stretch": np.array(stretches_of(windows), dtype=object)})
    expected = [example for block in blocks for example in examples(block.to_pylist())]

    loader = TaskDataLoader(config, schedule, cache, rank=rank, world_size=world_size)
    loader.read_ahead("t")  # as a worker does that starts: nothing is read in a second thread
    size = len(expected) // 7
    for first in (0, 3):
        updates = itertools.islice(loader.updates("t", first=first), 7 - first)
        found = [name for batches in updates for batch in batches for name in batch.sample_ids]
        assert found == [example.sample_id for example in expected[first * size :]]
    assert [name for batch in loader.once_more("t") for name in batch.sample_ids] == [e.sample_id for e in expected]
    (batch,) = loader.first_updates("t", 1)
    for example, ids_of in zip(expected, batch.input_ids, strict=False):
        assert torch.equal(ids_of[: len(example.input_ids)], example.input_ids)


def test_rows_are_read_by_workers_where_they_are_few_and_their_features_cached(tmp_path: Path) -> None:
    cache = vision_cache(POCKET, tmp_path, "0123456789abcdef")
    assert trains_here(1024, 2, cache)
    assert not trains_here(1025, 2, cache)
    assert not trains_here(8, 1, None)
