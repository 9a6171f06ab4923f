"""Prepared data in a store: the rows and digests of the same data in a folder, whole or not there, read by copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import benchmark_trees as trees
import fsspec
import pytest
from failing_store import Store
from rich.console import Console

from components.core import copies
from components.core.errors import ConfigError, DataError, StorageError
from components.core.location import Location
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.formats.parallel_map import OrderedMap
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.rows import Row
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream, write_generated_stream
from components.data.tasks import TaskStream
from components.training.windows import group_rows
from pipelines.prepare import Prepare, prepare
from tests.unit.sample_rows import picture

KINDS = pytest.mark.parametrize("whole_puts", [True, False], ids=["puts", "moves"])
TOML = """name = "shop"
[[task]]
name = "tea"
train = "train.json"
test = "test.json"
metric = "exact"
max_new_tokens = 16
images = "."
"""


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "PATIENCE_S", 0.0)


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://unit-prepared"
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]


def source(folder: Path, answer: str = "tea", rows: int = 70) -> Path:
    """A stream file of a task with more than one row group; every third row has no picture."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", rows), ("test", 5)):
        items: list[dict[str, object]] = []
        for number in range(count):
            pictured = number % 3 > 0
            (folder / f"{number}.png").write_bytes(picture((number, 9, 9)))
            human = {"from": "human", "value": "<image>\nWhat?" if pictured else "What?"}
            turns = [human, {"from": "gpt", "value": f"{answer} {number}"}]
            items.append({"id": f"{split}{number}", "conversations": turns})
            if pictured:
                items[-1]["image"] = f"{number}.png"
        (folder / f"{split}.json").write_text(json.dumps(items))
    (folder / "stream.toml").write_text(TOML)
    return folder / "stream.toml"


def imported(toml: Path, out: Path | Location) -> TaskStream:
    assert import_stream(read_stream_file(toml), out).refused is None
    return open_prepared(out)


def rows_of(stream: TaskStream) -> list[Row]:
    return [row for split in stream.splits for row in split.rows()]


@KINDS
def test_the_same_rows_and_digests_as_in_a_folder(tmp_path: Path, whole_puts: bool) -> None:
    store, toml = Store(whole_puts=whole_puts, piece=1 << 20), source(tmp_path / "raw")
    there, here = imported(toml, store.place("b/data")), imported(toml, tmp_path / "here")
    assert there.digest == here.digest
    assert rows_of(there) == rows_of(here)
    for far, near in zip(there.splits, here.splits, strict=True):
        assert [*far.rows(with_image=False)] == [*near.rows(with_image=False)]
        assert [*far.rows(limit=3)] == [*near.rows(limit=3)]
        assert [*far.column("sample_id")] == [*near.column("sample_id")]
        assert group_rows(far) == group_rows(near)
    assert sorted(store.files) == sorted(
        f"b/data/{path.relative_to(tmp_path / 'here').as_posix()}"
        for path in (tmp_path / "here").rglob("*")
        if path.is_file()
    )
    report = json.loads(store.files["b/data/report.json"])
    assert report == json.loads((tmp_path / "here" / "report.json").read_bytes())


def test_without_pictures_only_those_columns_are_read_and_a_copy_serves_both(tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    stream = imported(source(tmp_path / "raw"), store.place("b/data"))
    folder = tmp_path / "cache" / "copies"
    names = [row.sample_id for row in stream.tasks[0].train.rows(with_image=False)]
    assert not folder.exists()
    assert [row.sample_id for row in stream.tasks[0].train.rows()] == names
    store.done = []
    assert [row.sample_id for row in stream.tasks[0].train.rows(with_image=False)] == names
    assert [*stream.tasks[0].train.rows()]
    assert store.done == []


def outcome(out: Location) -> str:
    """Which of the two streams a reader finds; "" for none."""
    if (out / "stream.json").is_file():
        return rows_of(open_prepared(out))[0].answers[0].split()[0]
    with pytest.raises(DataError, match=r"has no stream\.json"):
        open_prepared(out)
    return ""


@KINDS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_whatever_fails_a_reader_finds_the_old_the_new_or_nothing(
    tmp_path: Path, whole_puts: bool, after: bool
) -> None:
    old, new = source(tmp_path / "old", "tea", 4), source(tmp_path / "new", "rum", 4)
    found: set[str] = set()
    for number in range(1, 400, 3):
        store = Store(whole_puts=whole_puts, piece=1 << 20)
        out = store.place("b/data")
        imported(old, out)
        with store.failing(number, after=after, gone=True), suppress(StorageError):
            imported(new, out)
        ended = number > len(store.done)
        found.add(outcome(out))
        for name in [name for name in store.files if "/.lock/" in name]:  # of a process that is dead by now
            del store.files[name]
        assert rows_of(imported(new, out))[0].answers == ("rum 0",)
        assert not [name for name in store.files if "unfinished" in name or "older" in name]
        if ended:
            break
    else:
        pytest.fail("it never ended")
    assert found == {"tea", "", "rum"}


def test_a_refused_preparation_leaves_what_was_there(tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    out = store.place("b/data")
    imported(source(tmp_path / "old"), out)
    before = dict(store.files)
    toml = source(tmp_path / "new")
    (toml.parent / "1.png").write_bytes(b"no picture")
    report = import_stream(read_stream_file(toml), out)
    assert report.refused is not None
    assert {name: store.files[name] for name in before} == before
    assert store.files.keys() - before == {"b/data.report.json"}


def test_a_foreign_folder_and_a_whole_bucket_are_never_replaced(tmp_path: Path) -> None:
    store, toml = Store(whole_puts=True), source(tmp_path / "raw", rows=3)
    store.place("b/data/notes.txt").put(b"mine")
    with pytest.raises(ConfigError, match="test://b/data exists and is not a prepared stream; give --out"):
        import_stream(read_stream_file(toml), store.place("b/data"))
    with pytest.raises(ConfigError, match=r"test://b/data/notes\.txt is a file; give --out"):
        import_stream(read_stream_file(toml), store.place("b/data/notes.txt"))
    with pytest.raises(ConfigError, match="test://b is all of a store; give --out a folder in it"):
        import_stream(read_stream_file(toml), store.place("b"))
    assert store.files == {"b/data/notes.txt": b"mine"}


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    out = store.place("b/data")
    stream = imported(source(tmp_path / "raw"), out)
    name = "b/data/tea/train/part-00000.parquet"
    whole = store.files[name]
    store.files[name] = whole[:-9]
    with pytest.raises(DataError, match=rf"part-00000\.parquet has {len(whole) - 9} bytes, its manifest says"):
        open_prepared(out)
    store.files[name] = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
    with pytest.raises(DataError, match=r"^test://b/data/tea/train/part-00000\.parquet differs from its manifest's"):
        rows_of(open_prepared(out))
    store.files[name] = b"no Parquet at all".ljust(len(whole), b".")
    with pytest.raises(DataError, match=r"part-00000\.parquet cannot be read \(.*; give the same command again"):
        next(open_prepared(out).tasks[0].train.column("sample_id"))
    del store.files[name]
    with pytest.raises(DataError, match=r"part-00000\.parquet is missing though its manifest lists it"):
        open_prepared(out)
    with pytest.raises(DataError, match="is missing though its manifest lists it"):
        rows_of(stream)
    del store.files["b/data/stream.json"]
    with pytest.raises(DataError, match=r"test://b/data is not a prepared stream: it has no stream\.json"):
        open_prepared(out)


def test_a_store_that_is_gone_is_told_as_that(tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    out = store.place("b/data")
    stream = imported(source(tmp_path / "raw"), out)
    with store.failing(1, after=False, gone=True):
        with pytest.raises(StorageError, match=r"test://b/data/stream\.json cannot be read \(lost before look"):
            open_prepared(out)
        with pytest.raises(StorageError, match=r"part-00000\.parquet cannot be read \(lost before read"):
            rows_of(stream)
        with pytest.raises(StorageError, match="test://b/other"):
            import_stream(read_stream_file(tmp_path / "raw" / "stream.toml"), store.place("b/other"))


def test_a_listing_that_lags_hides_nothing(tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    out = store.place("b/data")
    toml = source(tmp_path / "raw")
    wanted = rows_of(imported(toml, tmp_path / "here"))
    store.listed = set()
    assert rows_of(imported(toml, out)) == wanted  # what the preparation has just written is not listed either
    store.listed = {name for name in store.files if "train" not in name}
    assert rows_of(open_prepared(out)) == wanted


class _Interrupted(Exception):
    """As a kill: nothing is tidied up for it."""


def test_a_preparation_that_was_interrupted_is_resumed(tmp_path: Path) -> None:
    """The test part was written whole before: its pictures are not opened again."""
    charts = trees.only("coast-domain", "chartqa")
    trees.chartqa(tmp_path / "downloads")
    store = Store(whole_puts=True, piece=1 << 20)
    out = store.place("b/charts")
    splits: list[int] = []

    def stopping(at: int) -> OrderedMap:
        """Opens pictures one after the other; the call number `at`, one a split, is interrupted."""

        def in_order(make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            splits.append(len(splits))
            if len(splits) == at:
                raise _Interrupted
            yield from map(make, items)

        return in_order

    with pytest.raises(_Interrupted):
        prepare_benchmark(charts, tmp_path / "downloads", out, in_order=stopping(2))
    assert "b/charts/.unfinished/chartqa/test/manifest.json" in store.files
    assert "b/charts/stream.json" not in store.files
    splits.clear()
    report = prepare_benchmark(charts, tmp_path / "downloads", out, in_order=stopping(9))
    assert (report.refused, len(splits)) == (None, 1)
    prepare_benchmark(charts, tmp_path / "downloads", tmp_path / "here")
    assert open_prepared(out).digest == open_prepared(tmp_path / "here").digest
    assert not [name for name in store.files if "unfinished" in name or "whole" in name]


def test_a_generated_stream(tmp_path: Path) -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    config = StreamConfig(size="nano", order=("iconqa",), data_dir=tmp_path / "data")
    there = write_generated_stream(config, store.place("b/icons"))
    assert there.digest == open_stream(config).digest
    assert rows_of(there) == rows_of(open_stream(config))


def test_the_command_writes_to_a_uri_and_says_how_to_go_on(tmp_path: Path, memory: str) -> None:
    toml, console = source(tmp_path / "raw"), Console(width=300)
    with console.capture() as said:
        assert prepare(Prepare(stream=str(toml), out=f"{memory}/shop"), console) == 0
    printed = " ".join(said.get().split())
    assert f"Prepared in {memory}/shop; learn it with:" in printed
    assert f"--stream.name {memory}/shop" in printed
    stream = open_stream(StreamConfig(name=f"{memory}/shop"))
    assert (stream.name, len(rows_of(stream))) == ("shop", 75)
    limited = open_stream(StreamConfig(name=f"{memory}/shop", train_limit=2, data_dir=f"{memory}/kept"))
    assert limited.tasks[0].train.num_rows == 2
    assert str(limited.tasks[0].train.path).startswith(f"{memory}/kept/first-rows/")
    assert (
        limited.tasks[0].train.digest
        == open_stream(StreamConfig(name=f"{memory}/shop", train_limit=2, data_dir=tmp_path / "kept"))
        .tasks[0]
        .train.digest
    )
    with pytest.raises(DataError, match=f"{memory}/none is not a prepared stream"):
        open_stream(StreamConfig(name=f"{memory}/none"))
