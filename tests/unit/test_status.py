"""What runs' folders say: states by real locks, positions by real checkpoints, commands that give the same run."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from finished_runs import STREAM, finished
from held_locks import held

from components.core.checkpoint import write_checkpoint
from components.core.errors import ConfigError
from components.core.files import write_json
from components.core.lock import LOCK_FILE
from components.evaluation.matrix import ScoreMatrix
from components.methods.lcia import LciaConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.runs.continuing import given_as, to_continue
from components.runs.results import read_run
from components.runs.status import RunStatus, SweepStatus, outlook, progress, read_status, read_storage
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig
from components.training.plan import Plan, plan_stream
from components.training.run_folder import check_run_dir, claim_run_dir
from components.training.stopping import request_stop
from components.training.stream_state import StreamState
from components.tuning.sweep import Sweep, claim_folder, identity, plan_sweep, write_record
from pipelines import coast, status
from pipelines import list as list_command
from pipelines.cli import parse
from pipelines.presets import preset
from pipelines.sweep import SweepCommand, kept_arguments

NUM_UPDATES = {"docvqa": 8, "iconqa": 6}


def begun(storage: Path, name: str = "first", *, learned: int = 0, tracking_uri: str | None = None) -> Plan:
    """A run's folder as a start leaves it, with `learned` tasks scored (50 each, and 25 before)."""
    run = replace(preset("pocket"), run_id=name, storage=storage, stream=STREAM)
    run = replace(run, tracking=replace(run.tracking, uri=tracking_uri))
    plan = plan_stream(run)
    claim_run_dir(plan)
    write_json(plan.run_dir / "made_with.json", {"budget": {"updates": NUM_UPDATES}, "sessions": []})
    cells: list[list[float | None]] = [[25.0, 25.0], [50.0, None], [50.0, 50.0]]
    if learned:
        ScoreMatrix([*NUM_UPDATES], cells[: learned + 1], zero_shot=True).write(
            plan.run_dir / "score_matrix.json", stream="s", method="m", backbone="pocket", seed=0
        )
    return plan


def checkpoint(plan: Plan, state: StreamState, second: int = 0) -> Path:
    """A checkpoint where Ray Train puts it."""
    folder = plan.run_dir / f"checkpoint_2026-01-02_03-04-{second:02d}.000000"
    folder.mkdir()
    facts = {"tasks": plan.stream.task_names, "stream_state": state.to_json()}
    write_checkpoint(folder, facts, {"method": {"a": torch.zeros(1)}})
    return folder


def status_of(path: Path) -> RunStatus:
    found = read_status(path)
    assert isinstance(found, RunStatus)
    return found


def given(command: str) -> RunConfig:
    """The run that a pasted `... coast.py ARGUMENTS` would begin."""
    words = shlex.split(command)
    at = next(place for place, word in enumerate(words) if word.endswith("coast.py"))
    return parse(words[at + 1 :], program="coast.py", description="").run


def test_a_finished_run(tmp_path: Path) -> None:
    found = status_of(finished(tmp_path, RunConfig(run_id="first", stream=STREAM), [[40.0, None], [30.0, 60.0]]))
    assert (found.state, found.learned, found.tasks, found.rows, found.command) == ("finished", 2, 2, 2, "")
    assert found.figures["final_average"] == 45.0
    assert found.moved == datetime.fromisoformat("2026-01-02T03:04:05+00:00")
    assert progress(found) == "2 of 2 tasks"
    assert outlook(found).startswith("finished already")


def test_a_run_is_running_while_its_lock_is_held_and_dead_after_a_kill(tmp_path: Path) -> None:
    path = begun(tmp_path).run_dir
    with held(path) as process:
        running = status_of(path)
        assert running.holder is not None
        assert (running.state, running.command) == ("running", "")
        assert (running.holder.process, running.holder.host) == (process.pid, socket.gethostname())
        assert datetime.fromisoformat(running.holder.since) <= datetime.now().astimezone()
        assert f"running already (process {process.pid} on " in outlook(running)
        request_stop(path)
        assert "running, asked to stop: process" in status.block(status_of(path))
        (path / "stop").unlink()
        process.send_signal(signal.SIGKILL)
        process.wait()
        dead = status_of(path)
        assert dead.state == "dead"
        assert f"dead: process {process.pid} on {socket.gethostname()}" in status.block(dead)
        assert dead.command


def test_a_run_that_was_stopped_in_order(tmp_path: Path) -> None:
    plan = begun(tmp_path)
    assert status_of(plan.run_dir).state == "dead"
    request_stop(plan.run_dir)
    assert status_of(plan.run_dir).state == "stopped"


def test_the_lock_of_another_host_may_not_be_seen_here(tmp_path: Path) -> None:
    path = begun(tmp_path).run_dir
    (path / LOCK_FILE).write_text("process 12 on node-of-a-cluster since 2026-01-02 03:04:05+00:00\n")
    found = status_of(path)
    assert found.state == "unclear"
    assert "process 12 on node-of-a-cluster since 2026-01-02 03:04:05+00:00" in status.block(found)


def test_what_a_start_leaves_that_was_killed_before_it_wrote_anything_is_no_run(tmp_path: Path) -> None:
    with held(tmp_path / "first") as process:
        assert [each.state for each in read_storage(tmp_path)] == ["running"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_storage(tmp_path) == []
    (tmp_path / "first" / LOCK_FILE).write_text("process 12 on node-of-a-cluster since 2026-01-02 03:04:05+00:00\n")
    assert [each.state for each in read_storage(tmp_path)] == ["foreign"]  # that may be alive


def test_how_far_a_run_is(tmp_path: Path) -> None:
    plan = begun(tmp_path, learned=1)
    assert outlook(status_of(plan.run_dir)).endswith("without a checkpoint; starts again at task 1")
    checkpoint(plan, StreamState(index=1), 1)
    assert progress(status_of(plan.run_dir)) == "1 of 2 tasks; at task 2 (iconqa)"
    checkpoint(plan, StreamState(index=1, update=4), 2)
    found = status_of(plan.run_dir)
    assert progress(found) == "1 of 2 tasks; at task 2 (iconqa), update 4 of 6"
    assert outlook(found) == "begun already; continues at task 2 (iconqa), update 4 of 6"
    assert (found.rows, found.figures["final_average"], found.figures["zero_shot_average"]) == (2, 50.0, 25.0)
    checkpoint(plan, StreamState(index=1, update=6, learned=True), 3)
    assert progress(status_of(plan.run_dir)) == "1 of 2 tasks; at task 2 (iconqa), learned and not scored yet"
    checkpoint(plan, StreamState(index=2), 4)
    assert outlook(status_of(plan.run_dir)).endswith("it only has to end")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_counts(tmp_path: Path) -> None:
    plan = begun(tmp_path)
    checkpoint(plan, StreamState(update=2), 1)
    newest = checkpoint(plan, StreamState(update=4), 2)
    (newest / "state.json").write_text('{"stream_state": ')
    (checkpoint(plan, StreamState(update=6), 3) / "method.safetensors").unlink()
    unfinished = plan.run_dir / "checkpoint_2026-01-02_03-04-59.000000"
    unfinished.mkdir()
    found = status_of(plan.run_dir)
    assert found.position is not None
    assert found.position.update == 2
    assert newest.name in found.problem
    assert unfinished.name not in found.problem


@pytest.mark.parametrize("name", ["first", "-x", "a.b"])
def test_the_command_gives_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plan = begun(tmp_path / "my runs", name)
    monkeypatch.chdir(tmp_path)
    for path in (plan.run_dir, Path("my runs") / name):
        again = given(status_of(path).command)
        continued = plan_stream(again)
        assert continued.run_dir == plan.run_dir
        assert {**again.to_json(), "storage": ""} == {**plan.config.to_json(), "storage": ""}
        check_run_dir(continued)
        with pytest.raises(ConfigError, match=r"with seed = 0, this command has 1"):
            check_run_dir(plan_stream(replace(again, seed=1)))


def test_the_command_records_where_the_run_began_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = begun(tmp_path).run_dir
    link = {"run_id": "abc", "store": "http://mlflow:5000", "ui": "http://mlflow:5000"}
    write_json(path / "mlflow.json", link)  # from MLFLOW_TRACKING_URI, which is not set here
    found = status_of(path)
    assert found.mlflow is not None
    assert (found.mlflow.run_id, found.mlflow.see) == ("abc", "http://mlflow:5000")
    assert given(found.command).tracking.uri == "http://mlflow:5000"
    write_json(path / "mlflow.json", {**link, "store": "http://***@mlflow:5000"})
    hidden = status_of(path)
    assert given(hidden.command).tracking.uri is None
    assert "the password is not kept" in hidden.note


NO_NUMBER = b'{"tasks": ["a"], "rows": [{"after": "a", "scores": {"a": []}}]}'
DAMAGES = [b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 200_000, b"{}", b'{"method": {"name": 3}}', NO_NUMBER]


@pytest.mark.parametrize("content", DAMAGES, ids=range(len(DAMAGES)))
@pytest.mark.parametrize("file", ["config.json", "finished.json", "score_matrix.json"])
def test_a_damaged_folder_is_a_line_and_the_others_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes
) -> None:
    finished(tmp_path, RunConfig(run_id="whole", stream=STREAM), [[40.0, None], [30.0, 60.0]])
    broken = finished(tmp_path, RunConfig(run_id="broken", stream=STREAM), [[40.0, None], [30.0, 60.0]])
    (broken / file).write_bytes(content)
    (tmp_path / "notes \x1b[31m").mkdir()
    (tmp_path / "mlflow-artifacts").mkdir()
    (tmp_path / ".cache").mkdir()
    assert list_command.main(["--storage", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    said = {line.split(" ")[0].removesuffix(":"): line for line in lines}
    assert head.startswith("run ")
    assert sorted(said) == ["broken", "notes", "whole"]
    assert said["broken"].startswith("broken: damaged: ")
    assert file in said["broken"]
    assert said["notes"].startswith("notes \\x1b[31m: foreign: no run")
    assert "finished" in said["whole"]


def test_damage_beside_the_run_itself_is_only_noted(tmp_path: Path) -> None:
    path = begun(tmp_path, learned=1).run_dir
    (path / "mlflow.json").write_text("[")
    (path / "made_with.json").write_bytes(b"\xff")
    found = status_of(path)
    assert (found.state, found.learned, found.mlflow) == ("dead", 1, None)
    assert "mlflow.json" in found.problem
    assert "made_with.json" in found.problem


def test_a_storage_without_runs_has_no_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("no run")
    assert list_command.main(["--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "notes: foreign: no run: it has no config.json and no sweep.json\n"


def test_the_newest_movement_comes_first(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        path = begun(tmp_path, name).run_dir
        for each in (*path.iterdir(), path):
            os.utime(each, (1e9 + number, 1e9 + number))
    assert [each.path.name for each in read_storage(tmp_path)] == ["c", "a", "b"]
    (tmp_path / "b" / "stop").touch()
    assert [each.path.name for each in read_storage(tmp_path)] == ["b", "c", "a"]


def test_a_sweep_over_methods_names_those_of_its_trials(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep-a"
    sweep.mkdir()
    for method in (SequentialLoraConfig(), LciaConfig()):
        run = RunConfig(run_id=method.name, stream=STREAM, method=method)
        finished(sweep, run, [[40.0, None], [30.0, 60.0]])
    for space, expected in (({"method": "grid(...)"}, "lcia, sequential_lora"), ({"seed": "grid(0, 1)"}, "lwf")):
        base = {"method": {"name": "lwf"}, "stream": {"name": "prepared/shop"}, "backbone": {"name": "pocket"}}
        write_json(sweep / "sweep.json", {"sweep": {"run": base, "space": space}, "trials": []})
        said = read_status(sweep)
        assert (said.method, said.stream) == (expected, STREAM.name)


def test_a_sweep_lists_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep-a"
    sweep.mkdir()
    finished(sweep, RunConfig(run_id="rank-4", stream=STREAM), [[40.0, None], [30.0, 60.0]])
    request_stop(begun(sweep, "rank-8", learned=1).run_dir)
    (sweep / "shared" / "0a").mkdir(parents=True)
    run = preset("pocket").to_json()
    content = {"sweep": {"run": run, "space": {"method.rank": "grid(4, 8)"}}, "trials": [], "mlflow_run": "abc"}
    write_json(sweep / "sweep.json", content)
    dead = read_status(sweep)
    assert isinstance(dead, SweepStatus)
    assert (dead.state, dead.space) == ("dead", {"method.rank": "grid(4, 8)"})
    assert {each.path.name: each.state for each in dead.trials} == {"rank-4": "finished", "rank-8": "stopped"}
    assert [each.command for each in dead.trials] == ["", ""]
    trial = status_of(sweep / "rank-8")
    assert (trial.command, trial.note) == ("", "a trial: sweep sweep-a continues it")
    with held(sweep):
        assert read_status(sweep).state == "running"
    trials = [{"name": "rank-4", "state": "finished"}, {"name": "rank-8", "state": "failed", "reason": "no memory"}]
    write_json(sweep / "sweep.json", {**content, "trials": trials})
    write_json(sweep / "rank-8" / "mlflow.json", {"run_id": "r8", "store": "http://here:1", "ui": "http://here:1"})
    status.main(["sweep-a", "--storage", str(tmp_path)])
    said = capsys.readouterr().out
    assert "  state       finished\n" in said
    assert re.search(r"  mlflow +run abc in \S+\n  see it +\S", said)
    assert "rank-4      finished; 2 of 2 tasks; 2 rows of scores; final average 45.00" in said
    assert "rank-8      stopped; 1 of 2 tasks; 2 rows of scores; final average 50.00; no memory" in said


def test_json_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = begun(tmp_path, learned=1)
    checkpoint(plan, StreamState(index=1, update=4))
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    for main in (status.main, list_command.main):
        assert main(["--storage", str(tmp_path), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["kind"], found["state"], found["position"]["update"]) == ("run", "dead", 4)
    assert status.main(["first", "--storage", str(tmp_path), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert status.main([str(plan.run_dir), "--storage", "/nonesuch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == one
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_name_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    begun(tmp_path)
    for name in ("frist", "", ".", "..", "/"):
        with pytest.raises(ConfigError, match=r"there is no run '"):
            status.main([name, "--storage", str(tmp_path)])
    with pytest.raises(ConfigError, match="Did you mean first"):
        status.main(["frist", "--storage", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"is not a run but holds some; give one of them, and --storage .* for all\."):
        status.main([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"holds some; give one of them, and to report all .*/\*\."):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match=r"there are no runs, and no folder .*; give the folder that holds them"):
        list_command.main(["--storage", str(tmp_path / "nonesuch")])


def test_a_dry_run_knows_a_run_id_that_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    plan = begun(tmp_path)
    checkpoint(plan, StreamState(index=1, update=4))
    words = ["pocket", "--stream.order", *STREAM.order, "--storage", str(tmp_path), "--dry-run", "--run-id"]
    assert coast.main([*words, "first"]) == 0
    assert "continues at task 2 (iconqa), update 4 of 6" in capsys.readouterr().out
    assert coast.main([*words, "other"]) == 0
    assert "run id" not in capsys.readouterr().out


@pytest.mark.parametrize("on_forgetting", ["rollback", "warn"])
def test_a_night_is_told_to_go_on_as_one(tmp_path: Path, on_forgetting: str) -> None:
    config = {"stream": {"name": "mini-coast"}, "evaluation": {"on_forgetting": on_forgetting}}
    (tmp_path / "origin.json").write_text("{}")
    _, note = to_continue(tmp_path, config, {}, TrackingConfig())
    assert ("littoral nightly" in note) == (on_forgetting == "rollback")


def test_a_sweep_says_the_command_that_continues_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    (tmp_path / "mine.json").write_text(json.dumps(preset("pocket").to_json()))
    words = ["mine.json", "--storage", "my runs", "--sweep_id=-a", "--space", "method.rank=2,4", "--stream.order"]
    words += ["iconqa", "--metric", "final_average", "--wait", "--seeds", "2"]

    def planned(arguments: list[str]) -> Sweep:
        command = parse(arguments, program="sweep.py", description="", kind=SweepCommand)
        return plan_sweep(command.run, command)

    sweep = planned(words)
    sweep = replace(sweep, given=given_as(kept_arguments(words), sweep.base.tracking))
    claim_folder(sweep)
    write_record(sweep, [], "abc")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # so the command has to say it
    found = read_status(Path("my runs/-a"))
    assert isinstance(found, SweepStatus)
    said = shlex.split(found.command)
    again = planned(said[next(place for place, word in enumerate(said) if word.endswith("sweep.py")) + 1 :])
    assert identity(again) == identity(sweep)
    assert (again.folder, again.base.tracking.uri) == (sweep.folder, "http://mlflow:5000")
    assert claim_folder(again) == "abc"
    assert found.note == ""
    monkeypatch.chdir("/")
    elsewhere = read_status(tmp_path / "my runs/-a")
    assert isinstance(elsewhere, SweepStatus)
    assert elsewhere.note == f"give it in {tmp_path}, where it was given: it names files from there"
    assert status.sweep_facts(elsewhere)["continue"] == elsewhere.command


def test_a_sweep_of_an_earlier_version_or_with_a_secret_has_a_sentence(tmp_path: Path) -> None:
    run = preset("pocket").to_json()
    secret = given_as(["pocket", "--stream.data-dir", "s3://me:pw@host/data"], TrackingConfig())
    for given in ({}, secret, None, {"arguments": 3}):
        write_json(tmp_path / "sweep.json", {"sweep": {"run": run, "space": {}}, "trials": [], "given": given})
        found = read_status(tmp_path)
        assert isinstance(found, SweepStatus)
        assert (found.command, found.note.startswith("give its `littoral sweep` command again")) == ("", True)
    hidden = given_as(["pocket"], TrackingConfig(uri="http://me:pw@mlflow:5000"))
    write_json(tmp_path / "sweep.json", {"sweep": {"run": run, "space": {}}, "given": hidden, "mlflow_run": "abc"})
    assert "pw@" not in (tmp_path / "sweep.json").read_text()
    found = read_status(tmp_path)
    assert "the password is not kept" in found.note


@pytest.mark.parametrize(("columns", "left_out"), [(None, 0), (93, 0), (92, 1), (82, 2), (63, 3), (55, 4), (9, 4)])
def test_a_list_leaves_out_what_a_terminal_has_no_room_for(columns: int | None, left_out: int) -> None:
    line = ["turned (from first:2)", "dead", "1/2", "45.00", "2026-01-02", "lcia", "mini-coast-domain", "pocket"]
    head, body = list_command.fitting([list_command.HEADER, line], columns)
    gone = ["backbone", "stream", "method", "last moved"][:left_out]
    assert head.replace("last moved", "last-moved").split() == [
        name.replace(" ", "-") for name in list_command.HEADER if name not in gone
    ]
    assert body.startswith("turned (from first:2)  dead   1/2    45.00")
