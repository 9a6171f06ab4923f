"""A user's data in other storages, through URIs; what is written and said holds no secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest
from benchmark_trees import picture, talk

from components.core.errors import ConfigError, DataError
from components.core.file_systems import without_secrets
from components.core.location import Location, place
from components.data.formats.storage import locate
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.training.config import RunConfig

SECRET = "hunter2"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A store in memory with a list of three rows, two of which must not be followed, and a test list."""
    store = fsspec.filesystem("memory")
    names = ("a.png", "../outside.png", "memory://shop/outside.png", "none.png")
    items = [{"id": str(at), "image": name, "conversations": talk("What?", "tea")} for at, name in enumerate(names)]
    store.pipe("/shop/train.json", json.dumps(items).encode())
    store.pipe("/shop/test.json", json.dumps(items[:1]).encode())
    store.pipe("/shop/images/a.png", picture("a.png"))
    store.pipe("/shop/outside.png", picture("outside.png"))
    yield "memory://shop"
    store.rm("/shop", recursive=True)


def stream_file(folder: Path, base: str, train: str = "train.json") -> Path:
    path = folder / "stream.toml"
    lines = ['name = "mine"', "[[task]]", 'name = "shop"', 'metric = "exact"', "max_new_tokens = 16"]
    places = {"train": train, "test": "test.json", "images": "images"}
    path.write_text("\n".join([*lines, *(f'{key} = "{base}/{name}"' for key, name in places.items())]))
    return path


def test_a_store_of_fsspec_is_read_and_pictures_stay_below_their_folder(bucket: str, tmp_path: Path) -> None:
    report = import_stream(read_stream_file(stream_file(tmp_path, bucket)), tmp_path / "out", max_broken=0.8)
    assert report.refused is None
    assert [(problem.row, problem.kind) for problem in report.problems] == [
        (2, "image outside folder"),
        (3, "image outside folder"),
        (4, "missing image"),
    ]
    (row,) = open_prepared(tmp_path / "out").tasks[0].train.rows()
    assert (row.sample_id, row.image) == ("0", picture("a.png"))


def test_a_file_uri_is_the_file_and_follows_it(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture("a.png"))
    item = {"id": "0", "image": "a.png", "conversations": talk("What?", "tea")}
    for name in ("train-0.json", "train-1.json", "test.json"):
        (tmp_path / name).write_text(json.dumps([{**item, "id": name}]))
    path = stream_file(tmp_path, f"file://{tmp_path}", "train-{0..1}.json")
    config = StreamConfig(name=str(path), data_dir=tmp_path / "data")
    first = open_stream(config)
    assert [row.sample_id for row in first.tasks[0].train.rows()] == ["train-0.json", "train-1.json"]
    assert open_stream(config) == first
    (tmp_path / "train-1.json").write_text(json.dumps([{**item, "id": "changed"}]))
    assert [row.sample_id for row in open_stream(config).tasks[0].train.rows()] == ["train-0.json", "changed"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"s3://key:{SECRET}@bucket/a.json?endpoint_override=host:9000", "s3://bucket/a.json"),
        (f"ftp://me:{SECRET}@host/a", "ftp://host/a"),
        ("memory://shop/what.json", "memory://shop/what.json"),
        (f"read s3://key:{SECRET}@bucket/a?secret={SECRET} again", "read s3://bucket/a again"),
    ],
)
def test_secrets_are_taken_out(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_no_secret_is_written_or_said(bucket: str, tmp_path: Path) -> None:
    base = f"memory://key:{SECRET}@shop"
    with pytest.raises(DataError) as missing:
        read_stream_file(stream_file(tmp_path, base, f"none.json?token={SECRET}"))
    unknown = f"nothing://key:{SECRET}@shop/a.json?token={SECRET}"
    with pytest.raises(ConfigError, match=r"nothing://shop/a\.json cannot be opened") as refused:
        locate(unknown, tmp_path)
    for error in (missing, refused):
        assert SECRET not in str(error.value)
        assert SECRET not in repr(error.value.__cause__)


def test_a_location_shows_no_secret() -> None:
    place = locate(f"s3://key:{SECRET}@bucket/lists/part-*.json?endpoint_override=localhost:1&scheme=http", Path("/"))
    assert (place.path, place.shown) == ("bucket/lists/part-*.json", "s3://bucket/lists/part-*.json")
    assert SECRET not in repr(place)


@pytest.mark.parametrize("given", ["s3:/shop/runs", "S3:/shop", "gs:/shop/runs?a=b"])
def test_a_uri_with_one_slash_is_no_folder_of_this_machine(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^'\w+:/shop\S* has one slash where a URI has two; give '\w+://shop\S*'\.$"):
        place(given)
    with pytest.raises(ConfigError, match="has one slash where a URI has two"):
        RunConfig(storage=given)


def test_a_misspelt_part_of_a_query_says_how_it_is_written() -> None:
    with pytest.raises(
        ConfigError, match=r"'endpoint_overide'\); give s3://bucket/folder, and behind it \?endpoint_over"
    ):
        place("s3://shop/runs?endpoint_overide=127.0.0.1:9000")


@pytest.mark.parametrize("given", ["s3://", "s3:///", "gs://?a=b", "S3://?endpoint_override=127.0.0.1:1&scheme=http"])
def test_a_store_without_a_bucket_is_refused_before_it_is_asked(given: str) -> None:
    with pytest.raises(ConfigError, match=r"'\w+:///*' names no bucket; give one, such as (s3|gs)://bucket/runs\.$"):
        place(given)


def test_a_scheme_in_capitals_and_names_with_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "my runs ü"
    folder.mkdir()
    for given in (f"file://{folder}", f"FILE://{folder}", f"file://{tmp_path}/my%20runs%20%C3%BC"):
        assert place(given) == folder
    found = place("S3://shop/my runs/ü?endpoint_override=127.0.0.1:1&scheme=http")
    assert isinstance(found, Location)
    assert (found.path, str(found)) == ("shop/my runs/ü", "s3://shop/my runs/ü")
    assert place(found.uri) == found


def test_a_file_uri_with_a_host_says_how_it_is_written() -> None:
    with pytest.raises(
        ConfigError, match=r"file://tmp/runs cannot be opened \(.*\); give the path itself, or file:///"
    ):
        place("file://tmp/runs")


@pytest.mark.parametrize(("query", "seconds"), [("", 30), ("?retry_limit_seconds=7", 7)])
def test_googles_store_is_not_asked_for_a_quarter_of_an_hour(query: str, seconds: int) -> None:
    found = place(f"gs://shop/runs{query}")
    assert isinstance(found, Location)
    _, (made_with,) = found.filesystem.__reduce__()
    assert made_with["retry_time_limit"] == timedelta(seconds=seconds)


def test_a_bucket_that_nobody_answers_for_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow asks Amazon for the region of a bucket; with or without a network, this one has none."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    with pytest.raises(ConfigError, match=r"^s3://n{64}/runs cannot be opened \(.*\); give s3://bucket/folder"):
        place(f"s3://{'n' * 64}/runs")


def test_an_empty_part_of_a_name_is_refused_before_the_store_is_asked() -> None:
    with pytest.raises(ConfigError, match=r"'s3://shop/a//b' has a part that is empty or leads up; name the folder"):
        place("s3://shop/a//b")
    with pytest.raises(ConfigError, match=r"has a part that is empty or leads up"):
        place("s3://shop/../b")


def test_a_storage_without_a_name_is_refused() -> None:
    """What `--storage "$DIR"` gives where DIR is not set: it must not become the working directory."""
    with pytest.raises(ConfigError, match=r"^run.storage is empty; give a folder or a URI\.$"):
        RunConfig(storage="")
