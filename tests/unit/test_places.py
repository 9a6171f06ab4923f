"""MLflow's database and artifacts in storages of any name, moved and copied ones, and in stores that variables name."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, TrackingError
from components.tracking import config as tracking_config
from components.tracking.config import (
    TrackingConfig,
    recorded_uri,
    sqlite_path,
    sqlite_uri,
    tracking_source,
    tracking_uri,
    ui_command,
)
from components.tracking.new_database import kept_database
from components.tracking.store import open_tracker
from components.training.config import RunConfig

NAMES = ["plain", "with space", "50%41", "what?", "1#2", "a%2Fb", "ü+&=;", "it's", "my runs 50%41 #1?x"]
TAGS = {"stream": "s", "method": "m", "backbone": "b", "seed": "0"}


def record(storage: Path, name: str, content: Mapping[str, object], config: TrackingConfig | None = None) -> str:
    """A finished run with one artifact; its id."""
    tracker: Any = open_tracker(config or TrackingConfig(), storage, name, params={}, tags=TAGS, tasks=["a"])
    tracker._store.put_json(tracker.run_id, content, "content.json")
    tracker.finish("FINISHED")
    return str(tracker.run_id)


def artifact(storage: Path, run_id: str, config: TrackingConfig | None = None) -> object:
    tracker: Any = open_tracker(config or TrackingConfig(), storage, "x", {}, TAGS, (), run_id, tasks=["a"])
    return tracker._store.get_json(run_id, "content.json")


@pytest.mark.parametrize("name", NAMES)
def test_the_database_lies_in_the_storage_whatever_its_name(name: str, tmp_path: Path) -> None:
    storage = tmp_path / name / "runs"
    run_id = record(storage, "first", {"x": 1})
    assert artifact(storage, run_id) == {"x": 1}
    files = {str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file()}
    assert {"mlflow.db", f"mlflow-artifacts/{run_id}/artifacts/content.json"} <= files
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sqlite_path(sqlite_uri(storage / "mlflow.db")) == storage / "mlflow.db"
    words = shlex.split(ui_command(tracking_uri(TrackingConfig(), storage)))
    assert sqlite_path(words[words.index("--backend-store-uri") + 1]) == storage / "mlflow.db"


@pytest.mark.parametrize("new", ["new", "50%41 #1?x"])
def test_a_moved_storage_goes_on_where_it_is(new: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = record(tmp_path / "old", "first", {"x": 1})
    (tmp_path / "old").rename(tmp_path / new)
    second = record(tmp_path / new, "second", {"x": 2})
    assert [artifact(tmp_path / new, run) for run in (first, second)] == [{"x": 1}, {"x": 2}]
    assert [path.name for path in tmp_path.iterdir()] == [new]
    assert [line.getMessage().count(str(tmp_path / "old")) for line in caplog.records] == [1]


def test_a_copied_storage_is_its_own(tmp_path: Path) -> None:
    first = record(tmp_path / "old", "first", {"x": 1})
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    copied = record(tmp_path / "copy", "second", {"x": 2})
    other = record(tmp_path / "old", "second", {"x": 3})
    assert artifact(tmp_path / "copy", first) == artifact(tmp_path / "old", first) == {"x": 1}
    assert artifact(tmp_path / "copy", copied) == {"x": 2}
    assert artifact(tmp_path / "old", other) == {"x": 3}
    assert not (tmp_path / "old" / "mlflow-artifacts" / copied).exists()


def test_a_database_of_its_own_serves_several_storages_and_follows_those_that_move(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/db/mlflow.db")
    first = record(tmp_path / "a", "first", {"x": 1}, config)
    second = record(tmp_path / "b", "second", {"x": 2}, config)
    assert {path.name for path in (tmp_path / "a" / "mlflow-artifacts").iterdir()} == {first, second}
    (tmp_path / "a").rename(tmp_path / "c")
    assert artifact(tmp_path / "c", first, config) == {"x": 1}
    assert artifact(tmp_path / "b", second, config) == {"x": 2}
    assert not (tmp_path / "a").exists()


def test_no_database_at_all_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, and it is longer than a header of one hundred bytes " * 9)
    with pytest.raises(TrackingError, match="cannot be read as MLflow's database") as refused:
        record(tmp_path, "first", {})
    assert "\n" not in str(refused.value)


def schema(storage: Path) -> list[object]:
    """All words of a store's tables and indices, as MLflow writes constraints in any order; its version, its names."""
    with closing(sqlite3.connect(storage / "mlflow.db")) as connection:
        made = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        version = connection.execute("SELECT * FROM alembic_version").fetchall()
        names = connection.execute("SELECT experiment_id, name, workspace FROM experiments").fetchall()
    return [*((name, sorted(re.findall(r"\w+", sql or ""))) for name, sql in made), version, names]


def test_a_new_store_is_a_copy_of_the_first_one_and_equal_to_mlflows_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "file"))  # nothing can be kept
    record(tmp_path / "own", "first", {})
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))
    kept_database().parent.mkdir(parents=True)
    kept_database().write_bytes((tmp_path / "own" / "mlflow.db").read_bytes()[:50_000])  # damaged
    record(tmp_path / "kept", "first", {})
    with closing(sqlite3.connect(kept_database())) as kept:
        kept.execute("PRAGMA user_version = 7")
    run_id = record(tmp_path / "copied", "first", {"x": 1})
    with closing(sqlite3.connect(tmp_path / "copied" / "mlflow.db")) as copied:
        assert copied.execute("PRAGMA user_version").fetchone() == (7,)
    assert artifact(tmp_path / "copied", run_id) == {"x": 1}
    assert schema(tmp_path / "own") == schema(tmp_path / "kept") == schema(tmp_path / "copied")
    assert [path.name for path in kept_database().parent.iterdir()] == [kept_database().name]


def test_option_before_variable_before_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, server = sqlite_uri(tmp_path / "mlflow.db"), "https://me:secret@host:5000/x"
    assert tracking_source(TrackingConfig(), tmp_path) == (own, "in the storage")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert tracking_source(TrackingConfig(), tmp_path) == (server, "MLFLOW_TRACKING_URI")
    assert TrackingConfig().experiment == "theirs"
    assert TrackingConfig(experiment="ours").experiment == "ours"
    assert tracking_source(TrackingConfig(uri="http://other"), tmp_path) == ("http://other", "tracking.uri")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(TrackingConfig(), tmp_path) == own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/mlflow.db")
    record(tmp_path / "runs", "first", {})
    assert (tmp_path / "other" / "mlflow.db").is_file()
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.parametrize("given", ["./mlruns", "file:/tmp/mlruns", "/tmp/mlruns", "s3://b/c", "sqlite:///x.db"])
def test_a_variable_that_names_no_store_is_named_itself(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI "):
        tracking_uri(TrackingConfig(), Path("runs"))


@pytest.mark.parametrize("uri", ["https://[bad", "http://", "http://host:port"])
def test_a_broken_uri_is_one_sentence(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.uri "):
        TrackingConfig(uri=uri)


def test_no_password_is_written_down() -> None:
    secret = RunConfig(tracking=TrackingConfig(uri="http://me:secret@host"))
    assert "secret" not in json.dumps(secret.to_json())
    plain = RunConfig(tracking=TrackingConfig(uri="http://host"))
    assert RunConfig.from_json(plain.to_json()).tracking == plain.tracking


def test_a_recorded_run_is_found_again_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = sqlite_uri(tmp_path / "old" / "mlflow.db")
    (tmp_path / "new" / "sweep" / "trial").mkdir(parents=True)
    database = tmp_path / "new" / "mlflow.db"
    database.touch()
    trial = TrackingConfig(uri=gone)
    assert recorded_uri(trial, tmp_path / "new" / "sweep" / "trial", None) == sqlite_uri(database)
    assert recorded_uri(TrackingConfig(), tmp_path / "new" / "run", gone) == sqlite_uri(database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert recorded_uri(TrackingConfig(), tmp_path / "new" / "run", None) == sqlite_uri(database)
    assert recorded_uri(TrackingConfig(), tmp_path / "new" / "run", "http://host") == "http://host"
    assert recorded_uri(TrackingConfig(), tmp_path / "new" / "run", "http://***@elsewhere") == "http://elsewhere"


@pytest.mark.parametrize(("cpus", "workers"), [(2, True), (64, False)])
def test_few_cpus_get_one_server(cpus: int, workers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_config, "usable_cpus", lambda: cpus)
    assert ("--workers 1" in ui_command("sqlite:////a/mlflow.db")) == workers


def test_the_shown_command_is_this_environments_mlflow(tmp_path: Path) -> None:
    program = Path(shlex.split(ui_command(sqlite_uri(tmp_path / "mlflow.db")))[0])
    if not Path(sys.executable).with_name("mlflow").is_file():
        pytest.skip("mlflow's command is not installed beside this interpreter")
    assert program.samefile(Path(sys.executable).with_name("mlflow"))
    assert os.access(program, os.X_OK)
