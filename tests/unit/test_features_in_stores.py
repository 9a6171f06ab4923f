"""The vision cache in a store: a folder's features, computed once, fetched once by a machine, and named where lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from failing_store import Store

from components.core import copies
from components.core.errors import DataError, StorageError
from components.data.rows import Split, write_split
from components.models.config import BackboneConfig
from components.tracking.config import TrackingConfig
from components.training import feature_writing
from components.training.feature_size import feature_size
from components.training.feature_writing import FeatureWriter, ShardWork, compute_features
from components.training.plan import plan_stream
from components.training.streaming import Loader, examples
from components.training.vision_cache import Reached, VisionCache, feature_bytes, feature_root, vision_cache
from components.training.windows import Slice, plan_windows, stretches_of
from pipelines.presets import preset
from tests.unit.sample_rows import picture, row

POCKET = BackboneConfig(name="pocket")
ROWS = 70  # more than a row group
VIEW = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "PATIENCE_S", 0.0)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Neighbours share a picture; every fifth row has none."""
    rows = [
        row("<image>\nshade?", str(n), image=picture((n // 2, 7, 7)), sample_id=f"row-{n}")
        if n % 5
        else row("two?", "2", sample_id=f"row-{n}")
        for n in range(ROWS)
    ]
    return write_split(rows, tmp_path_factory.mktemp("data") / "train", task="t", split="train")


def reached(split: Split) -> list[tuple[Split, Reached]]:
    return [(split, {(0, 0): [*range(64)], (0, 1): [*range(ROWS - 64)]})]


def read(split: Split, cache: VisionCache) -> list[tuple[str, list[torch.Tensor]]]:
    """By row: the tensors of its pictures, as a worker gets them."""
    loader = Loader(splits=(split,), backbone=POCKET, mode="train", slice=Slice(), num_rows=ROWS, cache=cache)
    windows = plan_windows([split], epochs=1, num_rows=ROWS, seed=3)
    blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
    found = [example for block in blocks for example in examples(block.to_pylist())]
    return [(each.sample_id, [*(t for p in each.pictures for t in p.tensors.values())]) for each in found]


def filled(split: Split, cache: VisionCache) -> VisionCache:
    compute_features(feature_writing._missing(reached(split), cache), POCKET, cache)
    return cache


def test_the_same_files_and_rows_as_in_a_folder(split: Split, tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    near = filled(split, vision_cache(POCKET, tmp_path / "near", VIEW))
    far = filled(split, vision_cache(POCKET, store.place("b/.cache"), VIEW))
    here = {path.relative_to(tmp_path / "near").as_posix(): path.read_bytes() for path in (tmp_path / "near").rglob("*")
            if path.is_file()}  # fmt: skip
    assert {name.removeprefix("b/.cache/"): content for name, content in store.files.items()} == here
    for (name, tensors), (same, expected) in zip(read(split, far), read(split, near), strict=True):
        assert name == same
        assert all(torch.equal(one, two) for one, two in zip(tensors, expected, strict=True))


def test_nothing_is_computed_twice_and_a_machine_fetches_once(split: Split) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    cache = filled(split, vision_cache(POCKET, store.place("b/.cache"), VIEW))
    assert feature_writing._missing(reached(split), cache) == []
    first = read(split, cache)
    store.done = []
    assert [name for name, _ in read(split, cache)] == [name for name, _ in first]
    assert store.done == []


def test_a_listing_that_lags_costs_nothing_but_a_question(split: Split) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    cache = filled(split, vision_cache(POCKET, store.place("b/.cache"), VIEW))
    store.listed = set()
    assert feature_writing._missing(reached(split), cache) == []


def test_what_is_lost_or_damaged_is_named(split: Split) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    cache = filled(split, vision_cache(POCKET, store.place("b/.cache"), VIEW))
    (name, *_) = next(names for names in cache.pictures(split, 0, 0) if names)
    file = f"b/.cache/picture-features/{cache.view}/{name[:2]}/{name}.safetensors"
    whole = store.files.pop(file)
    with pytest.raises(DataError, match=rf"{name}\.safetensors of the vision cache is gone; give the same command"):
        read(split, cache)
    (missing,) = feature_writing._missing(reached(split), cache)
    assert missing.rows == {0: [*range(64)]}
    store.files[file] = whole[:100]
    with pytest.raises(DataError, match=rf"{name}\.safetensors of the vision cache cannot be read"):
        cache.picture(name)
    store.files[file] = whole
    cache.picture(name)  # the damaged copy was not kept
    with store.failing(1, after=False, gone=True), pytest.raises(StorageError, match="test://b"):
        vision_cache(POCKET, store.place("b/other"), VIEW).known(split, [(0, 0)])


def test_a_killed_computation_goes_on(split: Split) -> None:
    """Half of the pictures of a group are there, without the group's list."""
    store = Store(whole_puts=True, piece=1 << 20)
    cache = vision_cache(POCKET, store.place("b/.cache"), VIEW)
    whole = filled(split, vision_cache(POCKET, store.place("b/whole"), VIEW))
    names = sorted({name for names in whole.pictures(split, 0, 0) for name in names})
    for name in names[:10]:
        here = store.files[f"b/whole/picture-features/{whole.view}/{name[:2]}/{name}.safetensors"]
        cache.features_file(name).put(here)  # type: ignore[union-attr]
    work = ShardWork(split=split, shard=0, rows={0: [*range(64)]})
    assert FeatureWriter(POCKET, cache)({"work": [work]}) == {"pictures": [len(names) - 10]}
    assert cache.holds(split, 0, 0, [*range(64)])


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = Store(whole_puts=True)
    assert feature_root(store.place("b/runs")) == tmp_path / "cache"
    monkeypatch.setenv("LITTORAL_CACHE", "memory://unit-features/cache")
    assert str(feature_root(tmp_path)) == "memory://unit-features/cache"
    monkeypatch.delenv("LITTORAL_CACHE")
    assert feature_root(store.place("b/runs")) == store.place("b/runs/.cache")
    assert feature_root(tmp_path) == tmp_path / ".cache"


def test_sizes_are_those_of_the_rows_reached(split: Split) -> None:
    all_of_them = feature_bytes(reached(split), POCKET)
    pictured = sum(1 for number in range(ROWS) if number % 5)
    each = feature_bytes([(split, {(0, 0): [1]})], POCKET)
    assert each > 0
    assert all_of_them == pictured * each
    assert feature_bytes([(split, {(0, 1): [1, 2], (0, 0): [1]})], POCKET) == 2 * each  # row 65 has none


def test_a_plan_says_which_store_the_features_go_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITTORAL_CACHE")
    run = replace(preset("pocket"), run_id="r", storage=tmp_path, tracking=TrackingConfig(enabled=False))
    assert feature_size(plan_stream(run)).described() == "cached on disk, at most 590 kB"
    monkeypatch.setenv("LITTORAL_CACHE", "memory://unit-features/cache")
    assert feature_size(plan_stream(run)).described().startswith("cached in memory://unit-features/cache, at most ")
