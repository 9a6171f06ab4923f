"""Users' data and runs in an S3-compatible store over HTTP, by pyarrow's client.

python -m pytest tests/integration/test_s3.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmark_trees import picture, talk
from local_servers import s3_client, s3_server
from pyarrow import fs

from components.core.errors import ConfigError, DataError, StorageError
from components.core.files import whole_folder, write_json, write_text
from components.core.holder import Held
from components.core.location import Location, place
from components.core.lock import holder_of, sole_user
from components.core.tickets import held
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from pipelines import list as list_command

NAMES = ("a.png", "b.png")
SECRET = "not-to-be-written"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket `shop` with a list in two files, a test list and their pictures; the query that finds the server."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3"), "shop") as port:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        bucket = s3_client(port)
        for number, name in enumerate(NAMES):
            put(bucket, f"shop/images/{name}", picture(name))
            put(bucket, f"shop/train-{number}.json", json.dumps([item(name)]).encode())
        put(bucket, "shop/test.json", json.dumps([item(NAMES[0])]).encode())
        yield f"?endpoint_override=127.0.0.1:{port}&scheme=http"


def item(name: str) -> dict[str, object]:
    return {"id": name, "image": name, "conversations": talk("What?", "tea")}


def put(bucket: fs.FileSystem, path: str, content: bytes) -> None:
    with bucket.open_output_stream(path) as stream:
        stream.write(content)


def stream_file(folder: Path, query: str, **places: str) -> Path:
    """A task whose lists and pictures lie in the bucket."""
    path = folder / "stream.toml"
    lines = ['name = "mine"', "[[task]]", 'name = "shop"', 'metric = "exact"', "max_new_tokens = 16"]
    found = {"train": "train-{0..1}.json", "test": "test.json", "images": "images", **places}
    path.write_text("\n".join([*lines, *(f'{key} = "s3://shop/{name}{query}"' for key, name in found.items())]))
    return path


def test_lists_and_pictures_of_a_bucket(store: str, tmp_path: Path) -> None:
    report = import_stream(read_stream_file(stream_file(tmp_path, store)), tmp_path / "out")
    assert (report.refused, list(report.problems)) == (None, [])
    rows = list(open_prepared(tmp_path / "out").tasks[0].train.rows())
    assert [(row.sample_id, row.image) for row in rows] == [(name, picture(name)) for name in NAMES]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in written)


def test_what_is_not_there_is_one_sentence(store: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://shop/nothing\.json is not a file"):
        read_stream_file(stream_file(tmp_path, store, train="nothing.json"))
    with pytest.raises(DataError, match=r"s3://shop/train-\*\.jsonl"):
        read_stream_file(stream_file(tmp_path, store, train="train-*.jsonl"))


def test_files_folders_and_locks_of_runs(store: str) -> None:
    run = place(f"s3://shop/runs/first{store}")
    assert isinstance(run, Location)
    assert (str(run), run.is_dir(), [*run.glob("*")]) == ("s3://shop/runs/first", False, [])
    for number in range(3):
        write_json(run / "costs.json", number)
    assert json.loads((run / "costs.json").read_bytes()) == 2
    for version in ("old", "new"):
        with whole_folder(run / "checkpoints" / "01-a", replace=True, last="state.json") as made:
            write_text(made / f"{version}.safetensors", version * 1000)
            write_text(made / "state.json", version)
    assert (run / "checkpoints" / "01-a").files_below() == ["new.safetensors", "state.json"]
    assert [each.name for each in run.glob("checkpoints/*/state.json")] == ["state.json"]
    with sole_user(run, "run first"):
        found = holder_of(run)
        assert found is not None
        assert found.holds is True
        with pytest.raises(Held, match=found.name[:20]), held(run / ".lock", lambda _: False):
            pass
        write_json(run / "costs.json", 4)
    assert holder_of(run) is None
    assert (run / "costs.json").stat().st_size == 2


def test_a_start_that_ended_before_it_wrote_anything_is_not_listed(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place(f"s3://shop/begun/first{store}")
    with sole_user(run, "run first"):
        assert list_command.main(["--storage", f"s3://shop/begun{store}"]) == 0
        assert "it has just begun" in capsys.readouterr().out
    assert run.is_dir()  # its folder of tickets is still there
    assert list_command.main(["--storage", f"s3://shop/begun{store}"]) == 0
    assert capsys.readouterr().out == "no runs in s3://shop/begun\n"
    write_text(run / "notes.txt", "mine")
    assert list_command.main(["--storage", f"s3://shop/begun{store}"]) == 0
    assert "first: foreign: no run" in capsys.readouterr().out


def test_a_run_in_a_bucket_is_listed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(place(f"s3://shop/runs/first/config.json{store}"), "{")
    assert list_command.main(["--storage", f"s3://shop/runs{store}"]) == 0
    printed = capsys.readouterr().out
    assert "first: damaged: config.json is damaged" in printed
    assert "endpoint_override" not in printed


def test_what_a_bucket_refuses_is_one_sentence(store: str) -> None:
    with pytest.raises(StorageError, match=r"s3://nothing/runs/a\.json cannot be written .*NO_SUCH_BUCKET"):
        write_text(place(f"s3://nothing/runs/a.json{store}"), "x")
    nowhere = place(f"s3://nothing/runs/first{store}")
    with pytest.raises(ConfigError, match="cannot write to s3://nothing/runs/first"), sole_user(nowhere, "run first"):
        pass
