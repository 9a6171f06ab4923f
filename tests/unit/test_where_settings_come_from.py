"""What a run's record says of how its settings were chosen, and of a prepared stream's own name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from components.data.stream_config import StreamConfig
from components.data.streams import write_generated_stream
from components.evaluation.matrix import ScoreMatrix
from components.methods.moelora import MoeLoraConfig
from components.models.config import BackboneConfig
from components.reporting.facts import chosen_notes, published_differences, stream_title
from components.runs.results import FinishedRun, read_run, write_record
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig
from components.training.plan import plan_stream
from components.training.run_folder import check_run_dir, claim_run_dir
from components.tuning.sweep import plan_sweep
from pipelines.cli import parse
from pipelines.coast import main as coast
from pipelines.presets import how_chosen, preset, preset_notes
from pipelines.report import main as report
from pipelines.sweep import SweepCommand

TEST, VALIDATION = {"sweep": "s", "on": "test", "value": 40.0}, {"sweep": "s", "on": "validation", "value": 40.0}
STREAM = StreamConfig(size="nano", order=("docvqa", "iconqa"))


def best(folder: Path, chosen: dict[str, object] | None, *, name: str = "best.json") -> str:
    """A file as a sweep leaves it."""
    config = RunConfig(stream=STREAM, backbone=BackboneConfig(name="pocket"), method=MoeLoraConfig(rank=4))
    config = replace(config, tracking=TrackingConfig(enabled=False))
    path = folder / name
    path.write_text(json.dumps(config.to_json() | ({} if chosen is None else {"chosen": chosen})))
    return str(path)


def finished(folder: Path, file: str, run_id: str = "r", stream: StreamConfig = STREAM) -> FinishedRun:
    """The run of `file`, its folder claimed as coast.py claims it, its scores written in."""
    config = replace(preset(file), run_id=run_id, storage=folder, stream=stream)
    plan = replace(plan_stream(config), chosen=how_chosen(file))
    claim_run_dir(plan)
    matrix = ScoreMatrix(plan.stream.task_names, [[80.0, None], [60.0, 50.0]], zero_shot=False)
    matrix.write(plan.run_dir / "score_matrix.json", stream="s", method="moelora", backbone="pocket", seed=0)
    (plan.run_dir / "finished.json").write_text(json.dumps({"finished": "2026-01-02T03:04:05+00:00"}))
    return read_run(plan.run_dir)


def test_a_choice_on_test_rows_stands_in_the_runs_folder_its_record_and_what_starts_from_them(tmp_path: Path) -> None:
    run = finished(tmp_path, best(tmp_path, TEST))
    record = write_record(run, tmp_path / "records")
    for file in (run.path / "config.json", record):
        assert read_run(record if file == record else run.path).chosen == TEST
        assert how_chosen(str(file)) == TEST
        assert preset_notes(str(file)) == [
            f"{file} was chosen by its scores on test rows, so these rows do not test it."
        ]
    again = finished(tmp_path, str(record), "again")
    assert again.chosen == TEST


@pytest.mark.parametrize("chosen", [None, VALIDATION])
def test_what_was_not_chosen_on_test_rows_carries_no_warning(tmp_path: Path, chosen: dict[str, object] | None) -> None:
    run = finished(tmp_path, best(tmp_path, chosen))
    record = read_run(write_record(run, tmp_path / "records"))
    assert run.chosen == record.chosen == chosen
    assert chosen_notes([run, record]) == []
    assert preset_notes(str(record.path)) == preset_notes(str(run.path / "config.json")) == []


def test_reports_say_which_runs_settings_were_chosen_on_test_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path, best(tmp_path, TEST))
    said = "Settings chosen by scores on test rows, which are therefore no test of them: r."
    assert report([str(run.path), "--markdown"]) == 0
    assert said in capsys.readouterr().out
    assert report([str(run.path), "--html", str(tmp_path / "page")]) == 0
    assert said in (tmp_path / "page" / "report.html").read_text()


def test_a_configuration_that_is_printed_keeps_how_it_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert coast([best(tmp_path, TEST), "--print-config"]) == 0
    (tmp_path / "mine.json").write_text(capsys.readouterr().out)
    assert how_chosen(str(tmp_path / "mine.json")) == TEST


def test_a_sweep_that_begins_with_a_choice_on_test_rows_passes_it_on(tmp_path: Path) -> None:
    command = parse(
        [best(tmp_path, TEST), "--storage", str(tmp_path / "runs"), "--space", "method.rank=grid(4, 8)"],
        program="sweep.py",
        description="",
        kind=SweepCommand,
    )
    assert plan_sweep(command.run, command, began_with=how_chosen(command.preset)).began_with == TEST
    later = best(tmp_path, {**VALIDATION, "began_with": TEST}, name="later.json")
    assert preset_notes(later) == [f"{later} was chosen by its scores on test rows, so these rows do not test it."]


def test_a_run_goes_on_whoever_names_its_choice(tmp_path: Path) -> None:
    """The settings are the same, so a command that spells them out continues the run; what is written stays."""
    run = finished(tmp_path, best(tmp_path, TEST))
    plain = best(tmp_path, None, name="plain.json")
    plan = plan_stream(replace(preset(plain), run_id="r", storage=tmp_path))
    check_run_dir(plan)
    claim_run_dir(plan)
    assert read_run(run.path).chosen == TEST


def test_published_rows_are_found_for_a_prepared_stream_by_its_own_name(tmp_path: Path) -> None:
    """A benchmark is learned from the folder that prepare.py wrote, whatever its name; the record outlives it."""
    folder = tmp_path / "some folder"
    write_generated_stream(STREAM, folder)
    manifest = json.loads((folder / "stream.json").read_text())
    (folder / "stream.json").write_text(json.dumps({**manifest, "name": "coin"}))
    run = finished(tmp_path, best(tmp_path, None), stream=StreamConfig(name=str(folder)))
    record = write_record(run, tmp_path / "records")
    old = json.loads((run.path / "config.json").read_text())
    del old["stream_name"]  # as an earlier version wrote it
    (run.path / "config.json").write_text(json.dumps(old))
    assert published_differences({"x": [read_run(run.path)]}), "the folder is here and says its name"
    (folder / "stream.json").unlink()
    for found in (run, read_run(record)):
        assert stream_title(found) == "coin"
        differences = published_differences({"x": [found]})
        assert {difference.row.benchmark for _, difference in differences} == {"coin"}
        assert {difference.row.method for _, difference in differences} == {"moelora"}
