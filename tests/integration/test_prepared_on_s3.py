"""Data, caches and learned runs in an S3-compatible store: what folders give, and nothing of it is needed elsewhere.

python -m pytest tests/integration/test_prepared_on_s3.py -m 'long or not long'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from local_servers import SOMEBODY, denying_server, free_ports, s3_server, s3_uri

from components.core.errors import ConfigError, DataError, StorageError
from components.core.location import Location, locate
from components.data.prepared import open_prepared
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.exporting.learned import read_learned
from pipelines import coast
from pipelines import prepare as prepare_command

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("iconqa", "docvqa")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3"), "shop") as found:
        for name, value in SOMEBODY.items():
            patch.setenv(name, value)
        yield found


def uri(port: int, folder: str, bucket: str = "shop") -> str:
    return s3_uri(port, f"{bucket}/{folder}")


def test_it_is_prepared_into_a_bucket_and_read_from_it(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a second time, in the place of the first; then what cannot be, in a sentence before anything starts."""
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    out = uri(port, "data/icons")
    for seed in ("1", "0"):
        options = ["--size", "nano", "--data-seed", seed, "--out", out, "--no-overlaps"]
        assert prepare_command.main(["mini-coast-domain", *options]) == 0
    assert f"--stream.name '{out}'" in capsys.readouterr().out
    here = open_stream(StreamConfig(size="nano", data_dir=tmp_path / "here"))
    there = open_prepared(locate(out))
    assert there.digest == here.digest
    assert [*there.tasks[0].train.rows()] == [*here.tasks[0].train.rows()]
    listed = locate(uri(port, "data")).files_below()
    assert len(listed) == 4 * len(here.splits) // 2 + 1  # a shard and a manifest for each split, and stream.json
    nobody = free_ports(1)[0]
    for given, said in (
        (uri(port, "none"), "s3://shop/none is not a prepared stream: it has no stream.json"),
        (uri(port, "data", "nothing"), r"s3://nothing/data.*(is not a prepared stream|NO_SUCH_BUCKET)"),
        (uri(nobody, "data"), "s3://shop/data/stream.json cannot be read"),
    ):
        with pytest.raises((DataError, StorageError), match=said):
            coast.main(["pocket", "--stream.name", given, "--storage", str(tmp_path / "runs"), "--run-id", "r"])
    with denying_server() as denying, pytest.raises(StorageError, match=r"s3://shop/data/stream\.json.*ACCESS_DENIED"):
        open_stream(StreamConfig(name=uri(denying, "data")))
    with pytest.raises(StorageError, match=r"s3://nothing/data.*NO_SUCH_BUCKET"):
        prepare_command.main(["mini-coast-domain", "--size", "nano", "--out", uri(port, "data", "nothing")])
    monkeypatch.setenv("LITTORAL_CACHE", uri(port, "cache", "nothing"))
    with pytest.raises(
        ConfigError, match=r"^LITTORAL_CACHE cannot be used: .*NO_SUCH_BUCKET.*, of s3://nothing/cache;"
    ):
        coast.main(["pocket", "--storage", str(tmp_path / "runs"), "--run-id", "r"])
    assert not (tmp_path / "runs").exists()


# ---- by the commands, each with a home of its own


def littoral(home: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LITTORAL_CACHE"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.littoral", *arguments],
        cwd=ROOT,
        env={**environment, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def run_options(storage: str, run_id: str = "first") -> list[str]:
    return [
        *("coast", "pocket", "--method", "sequential-lora", "--run-id", run_id, "--storage", storage),
        *("--stream.order", *TASKS, "--evaluation.limit", "6", "--training.updates-per-task", "6"),
        *("--tracking.no-enabled", "--cluster.num-workers", "2"),
    ]


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that knows no store."""
    folder = tmp_path_factory.mktemp("direct")
    littoral(folder, *run_options(str(folder / "runs")), "--stream.size", "nano")
    return folder / "runs" / "first"


@pytest.fixture(scope="module")
def stored(port: int, tmp_path_factory: pytest.TempPathFactory) -> Location:
    """The same with its data, its caches and its run in the store, from another home."""
    home = tmp_path_factory.mktemp("home")
    littoral(home, "prepare", "mini-coast-domain", "--size", "nano", "--out", uri(port, "nano"), "--no-overlaps")
    littoral(home, *run_options(uri(port, "runs")), "--stream.name", uri(port, "nano"))
    return locate(uri(port, "runs/first"))


def scores(run: Path | Location) -> object:
    return json.loads((run / "score_matrix.json").read_bytes())["rows"]


@pytest.mark.long
def test_a_run_with_data_and_caches_in_the_store(port: int, direct: Path, stored: Location, tmp_path: Path) -> None:
    """It ends with the tensors, scores and replies of the direct run; its next one finds features and replies."""
    assert scores(stored) == scores(direct)
    for number in ("1", "2"):
        there, here = (read_learned(run, number, None).checkpoint.tensors["method"] for run in (stored, direct))
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in here)
    for file in sorted((direct / "predictions").glob("*.parquet")):
        copy = tmp_path / file.name
        (stored / "predictions" / file.name).fetch(copy)
        assert pq.read_table(copy) == pq.read_table(file)
    kept = locate(uri(port, "runs/.cache")).files_below()
    assert {name.partition("/")[0] for name in kept} == {"picture-features", "picture-names", "unaided-replies"}
    said = littoral(tmp_path, *run_options(uri(port, "runs"), "second"), "--stream.name", uri(port, "nano"))
    assert "replies of the frozen model come from first" in " ".join(said.split())
    assert set(locate(uri(port, "runs/.cache")).files_below()) == set(kept)


@pytest.mark.long
def test_export_reads_it_there(direct: Path, stored: Location, tmp_path: Path) -> None:
    for name, run in (("there", stored.uri), ("here", str(direct))):
        said = littoral(tmp_path, "export", run, "--to", "peft", "--out", str(tmp_path / name))
        assert "after task 2 (docvqa), as peft" in said
    for file in (tmp_path / "here").rglob("*.safetensors"):
        assert (tmp_path / "there" / file.relative_to(tmp_path / "here")).read_bytes() == file.read_bytes()


@pytest.mark.long
def test_serve_goes_over_to_a_task_that_appears_there(port: int, direct: Path, tmp_path: Path) -> None:
    """The run is put there as a run writes it: first its tensors, then the marker of the task, then its row."""
    run, (door,) = locate(uri(port, "served/first")), free_ports(1)
    whole = json.loads((direct / "score_matrix.json").read_text())
    first = {**whole, "rows": whole["rows"][:-1]}
    for file in sorted(direct.rglob("*"), key=lambda each: each.name == "state.json"):
        name = file.relative_to(direct).as_posix()
        if file.is_file() and not name.startswith(("checkpoints/02", "finished", "checkpoint_", ".lock")):
            (run / name).put(file)
    (run / "score_matrix.json").put(json.dumps(first).encode())
    log = tmp_path / "said"
    with log.open("w") as said:
        served = subprocess.Popen(
            [sys.executable, "-m", "pipelines.littoral", "serve", run.uri, "--watch", "--port", str(door)],
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path)},
            stdout=said,
            stderr=said,
        )
    try:
        wait_for(log, served, "first/01-iconqa (sequential_lora) answers at")
        assert model_of(reply(door)) == "first/01-iconqa"
        for file in (direct / "checkpoints" / "02-docvqa").iterdir():
            (run / "checkpoints" / "02-docvqa" / file.name).put(file)
        (run / "score_matrix.json").put(json.dumps(whole).encode())
        wait_for(log, served, "first/02-docvqa answers from now on")
        end = time.monotonic() + 60
        while model_of(reply(door)) != "first/02-docvqa":
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
    finally:
        served.terminate()
        served.wait(120)


def wait_for(log: Path, process: subprocess.Popen[bytes], text: str) -> None:
    end = time.monotonic() + 200
    while text not in " ".join(log.read_text().split()):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def reply(port: int) -> dict[str, object]:
    asked = {"model": "first", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 2}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def model_of(answer: dict[str, object]) -> str:
    found = answer["littoral"]
    assert isinstance(found, dict)
    return str(found["checkpoint"])
