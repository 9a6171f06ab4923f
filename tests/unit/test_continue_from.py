"""Runs that begin where another one had learned: what they take over, what they refuse, and that they need no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import CheckpointError, ConfigError, LittoralError
from components.core.events import Event, Note
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.evaluation.decisions import Decisions, Served
from components.evaluation.general import GeneralScores
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.predictions import Prediction, predictions_file, read_predictions, write_predictions
from components.methods import METHODS
from components.models.source import model_source
from components.reporting.facts import lineage_notes
from components.runs.costs import Costs, RowCost
from components.runs.execute import lineage_tags, rows_taken_over, take_over_costs
from components.runs.results import read_run, task_facts, write_record
from components.runs.status import RunStatus, outlook, read_status
from components.training.config import RunConfig
from components.training.fork import new_origin, origin_for
from components.training.plan import Plan, plan_stream
from components.training.restoring import restore
from components.training.run_folder import claim_run_dir, require_same_weights
from components.training.stream_state import StreamState
from pipelines import coast, status
from pipelines.origin import with_origin
from pipelines.presets import preset

TASKS = ("docvqa", "iconqa", "chartqa")
ROWS: list[list[float | None]] = [[10.0, 20.0, 30.0], [50.0, None, None], [45.0, 60.0, None], [40.0, 55.0, 70.0]]
SERVED = Served(rows=1, own=1.0, fallback=None, by={"docvqa": 1})


def config_of(storage: Path, run_id: str, *order: str) -> RunConfig:
    run = preset("pocket")
    stream = StreamConfig(size="nano", order=order)
    return replace(run, run_id=run_id, storage=storage, stream=stream, tracking=replace(run.tracking, enabled=False))


@pytest.fixture
def first(tmp_path: Path) -> Plan:
    """A run that has learned and scored its three tasks."""
    plan = plan_stream(config_of(tmp_path, "first", *TASKS))
    claim_run_dir(plan)
    facts = {"stream": "s", "method": "m", "backbone": "pocket", "seed": 0}
    ScoreMatrix(TASKS, ROWS, zero_shot=True).write(plan.run_dir / "score_matrix.json", **facts)
    repaired: list[list[float | None]] = [[None, None, 31.0], *ROWS[1:]]
    ScoreMatrix(TASKS, repaired, zero_shot=True).write(plan.run_dir / "repaired_matrix.json", **facts)
    served = {after: {"docvqa": SERVED} for after in TASKS}
    Decisions(tasks={task: {"group": number} for number, task in enumerate(TASKS)}, served=served).write(
        plan.run_dir / "decisions.json"
    )
    general = GeneralScores()
    for learned, after in enumerate(("zero-shot", *TASKS)):
        scored = TASKS[:learned] if learned else TASKS
        write_predictions(
            predictions_file(plan.run_dir, learned, after),
            [Prediction(after=after, task=task, sample_id=f"{task}-0", score=0.5) for task in scored],
        )
        general = general.plus(learned, after, "mini-general", {"score": 80.0 - learned})
    general.write(plan.run_dir / "general.json")
    Costs(
        trainable_parameters=7,
        updates=99,
        rows=[
            RowCost(after=after, tasks_learned=n, train_s=n, evaluate_s=1.0)
            for n, after in enumerate(("zero-shot", *TASKS))
        ],
    ).write(plan.run_dir)
    for number, task in enumerate(TASKS, 1):
        folder = plan.run_dir / "checkpoints" / f"{number:02d}-{task}"
        folder.mkdir(parents=True)
        write_checkpoint(
            folder,
            {
                "backbone": model_source(plan.config.backbone).fingerprint(),
                "method": plan.config.method.name,
                "stream": plan.stream.digest,
                "method_structure": {"tasks": list(TASKS[:number])},
                "stream_state": StreamState(index=number - 1, learned=True).to_json(),
                "tasks": list(TASKS),
            },
            {"method": {"a": torch.full((2,), float(number))}},
        )
    return plan


def forked(first: Plan, config: RunConfig, at_task: int | None = None, *, score_again: bool = False) -> Plan:
    plan = plan_stream(config, new_origin(config, first.run_dir, at_task, score_again=score_again))
    claim_run_dir(plan)
    return plan


def test_it_takes_over_what_was_learned_and_scored_and_needs_no_more(first: Plan, tmp_path: Path) -> None:
    config = config_of(tmp_path, "fork", "medicalqa", "chartqa")
    origin = new_origin(config, first.run_dir, 2, score_again=False)
    plan = plan_stream(config, origin)
    assert not plan.run_dir.exists()
    assert plan.stream.task_names == ["docvqa", "iconqa", "medicalqa", "chartqa"]
    assert plan.stream.digest == open_stream(replace(config.stream, order=tuple(plan.stream.task_names))).digest
    assert [each.num_updates > 0 for each in plan.schedule] == [False, False, True, True]
    require_same_weights(plan)
    claim_run_dir(plan)
    take_over_costs(plan, Costs())
    shutil.rmtree(first.run_dir)

    again = plan_stream(config)
    claim_run_dir(again)
    assert again.origin == origin
    assert again.stream.digest == plan.stream.digest
    start = read_checkpoint(plan.run_dir / "checkpoints" / "02-iconqa")
    assert start.tensors["method"]["a"].tolist() == [2.0, 2.0]
    assert start.state["method_structure"] == {"tasks": ["docvqa", "iconqa"]}
    assert (start.state["stream"], start.state["tasks"]) == (plan.stream.digest, plan.stream.task_names)
    state = StreamState.of(start)
    assert (state.index, state.update, state.learned) == (2, 0, False)
    assert [row.after for row in state.rows] == ["zero-shot", "docvqa", "iconqa"]
    assert state.rows[0].scores == {"docvqa": 10.0, "iconqa": 20.0, "medicalqa": None, "chartqa": 30.0}
    assert state.rows[0].variants["repaired"] == {"docvqa": None, "iconqa": None, "medicalqa": None, "chartqa": 31.0}
    assert state.rows[2].served["docvqa"]["by"] == {"docvqa": 1}
    assert not (plan.run_dir / "checkpoints" / "01-docvqa").exists()

    content = json.loads((plan.run_dir / "score_matrix.json").read_text())
    assert content["taken_over"] == {"rows": 3, "run": "first", "at_task": 2}
    assert ScoreMatrix.read(plan.run_dir / "score_matrix.json").rows == [
        [10.0, 20.0, None, 30.0],
        [50.0, None, None, None],
        [45.0, 60.0, None, None],
    ]
    assert ScoreMatrix.read(plan.run_dir / "repaired_matrix.json").rows[1] == [50.0, None, None, None]
    kept = sorted((plan.run_dir / "predictions").glob("*.parquet"))
    assert [path.name for path in kept] == ["00-zero-shot.parquet", "01-docvqa.parquet", "02-iconqa.parquet"]
    assert [one.task for one in read_predictions(kept[2])] == ["docvqa", "iconqa"]
    assert [*GeneralScores.read(plan.run_dir / "general.json").figures] == [0, 1, 2]
    decisions = Decisions.read(plan.run_dir / "decisions.json")
    assert ([*decisions.tasks], [*decisions.served]) == (["docvqa", "iconqa"], ["docvqa", "iconqa"])
    costs = Costs.read(plan.run_dir)
    assert (costs.updates, costs.trainable_parameters) == (0, 7)
    assert [row.train_s for row in costs.rows] == [0.0, 1.0, 2.0]
    told = [*rows_taken_over(again)]
    assert [(row.tasks_learned, row.checkpoint_path) for row in told] == [(0, None), (1, None), (2, None)]
    tags = lineage_tags(again, {"method": config.method.name, "backbone": "pocket"})
    assert (tags["continued_from"], tags["continued_at_task"]) == ("first", "2")


def test_rows_of_tasks_that_the_new_stream_has_not_are_left_out(first: Plan, tmp_path: Path) -> None:
    plan = forked(first, config_of(tmp_path, "fork", "medicalqa"), 1)
    assert [one.task for one in read_predictions(predictions_file(plan.run_dir, 0, "zero-shot"))] == ["docvqa"]
    assert ScoreMatrix.read(plan.run_dir / "score_matrix.json").rows == [[10.0, None], [50.0, None]]


def test_the_last_task_can_be_scored_again(first: Plan, tmp_path: Path) -> None:
    plan = forked(first, config_of(tmp_path, "fork", "chartqa"), 2, score_again=True)
    state = StreamState.of(read_checkpoint(plan.run_dir / "checkpoints" / "02-iconqa"))
    assert (state.index, state.learned, len(state.rows)) == (1, True, 2)
    assert len(ScoreMatrix.read(plan.run_dir / "score_matrix.json").rows) == 2


def test_a_learned_task_without_its_row_is_scored_again(first: Plan, tmp_path: Path) -> None:
    ScoreMatrix(TASKS, ROWS[:3], zero_shot=True).write(
        first.run_dir / "score_matrix.json", stream="s", method="m", backbone="pocket", seed=0
    )
    origin = new_origin(config_of(tmp_path, "fork", "medicalqa"), first.run_dir, None, score_again=False)
    assert (origin.at_task, origin.score_again) == (3, True)


def test_a_continued_run_is_continued_from(first: Plan, tmp_path: Path) -> None:
    second = forked(first, config_of(tmp_path, "second", "medicalqa"), 2)
    third = config_of(tmp_path, "third", "chartqa")
    origin = new_origin(third, second.run_dir, None, score_again=False)
    assert origin.tasks == ("docvqa", "iconqa")
    assert origin.earlier == (("first", 2),)
    plan = plan_stream(third, origin)
    assert plan.stream.task_names == ["docvqa", "iconqa", "chartqa"]


def with_method(config: RunConfig) -> RunConfig:
    return replace(config, method=METHODS["lwf"].tiny())


def with_options(config: RunConfig) -> RunConfig:
    return replace(config, seed=4, evaluation=replace(config.evaluation, limit=3, replies="acc"))


def with_backbone(config: RunConfig) -> RunConfig:
    return replace(config, backbone=replace(config.backbone, pad_to_square=False))


@pytest.mark.parametrize(
    ("order", "at_task", "change", "says"),
    [
        (("medicalqa",), 4, None, "run first has learned 3 of its 3 tasks, not 4; give --at-task a smaller number"),
        (TASKS, 3, None, "run first has learned every task of stream mini-coast-domain by then"),
        (("medicalqa",), 2, with_method, "method.name was continual_llava and is lwf."),
        (
            ("medicalqa",),
            2,
            with_options,
            "evaluation.limit was .* and is 3, evaluation.replies was generated and is acc, seed was 0",
        ),
        (("medicalqa",), 2, with_backbone, "backbone.pad_to_square was True and is False."),
    ],
)
def test_what_does_not_go_on_is_refused_in_one_sentence(
    first: Plan,
    tmp_path: Path,
    order: tuple[str, ...],
    at_task: int,
    change: Callable[[RunConfig], RunConfig] | None,
    says: str,
) -> None:
    config = config_of(tmp_path, "fork", *order)
    config = config if change is None else change(config)
    with pytest.raises(ConfigError, match=says) as refused:
        plan_stream(config, new_origin(config, first.run_dir, at_task, score_again=False))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "fork").exists()


def test_a_task_of_the_same_name_with_other_data_is_refused(first: Plan, tmp_path: Path) -> None:
    config = config_of(tmp_path, "fork", "docvqa", "medicalqa")
    config = replace(config, stream=replace(config.stream, data_seed=5))
    with pytest.raises(ConfigError, match=r"task docvqa .* has the name of a task that run first learned, and other"):
        plan_stream(config, new_origin(config, first.run_dir, 2, score_again=False))


def test_a_damaged_checkpoint_is_refused_and_leaves_no_run(first: Plan, tmp_path: Path) -> None:
    config = config_of(tmp_path, "fork", "medicalqa")
    tensors = first.run_dir / "checkpoints" / "02-iconqa" / "method.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="differs from the checksum"):
        forked(first, config, 2)
    assert not [*(tmp_path / "fork").iterdir()]
    assert forked(first, config, 1).stream.task_names == ["docvqa", "medicalqa"]
    (tensors.parent / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no checkpoint .*02-iconqa any more"):
        new_origin(config, first.run_dir, 2, score_again=False)


def test_other_weights_of_the_same_name_are_refused(first: Plan, tmp_path: Path) -> None:
    config = config_of(tmp_path, "fork", "medicalqa")
    state = first.run_dir / "checkpoints" / "02-iconqa" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"backbone": "0" * 64}))
    with pytest.raises(CheckpointError, match="run first learned with other weights than 'pocket' has now"):
        require_same_weights(plan_stream(config, new_origin(config, first.run_dir, 2, score_again=False)))


def test_a_run_that_learned_all_at_once_has_no_task_to_continue_from(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path, "joint", "docvqa", "iconqa"), method=METHODS["joint"].tiny())
    claim_run_dir(plan_stream(config))
    with pytest.raises(ConfigError, match="learned all of its tasks at once"):
        new_origin(replace(config, run_id="fork"), tmp_path / "joint", 1, score_again=False)


def test_the_same_command_goes_on_and_another_origin_is_refused(first: Plan, tmp_path: Path) -> None:
    config = config_of(tmp_path, "fork", "medicalqa")
    plan = forked(first, config, 2)
    shutil.rmtree(first.run_dir)
    assert origin_for(config, first.run_dir, 2, score_again=False) == plan.origin
    assert origin_for(config, first.run_dir, None, score_again=False) == plan.origin
    for folder, at_task in ((first.run_dir, 1), (tmp_path / "other", 2)):
        with pytest.raises(ConfigError, match=r"run fork exists and began from run first after task 2 \(iconqa\)"):
            origin_for(config, folder, at_task, score_again=False)
    usual = config_of(tmp_path, "usual", "medicalqa")
    claim_run_dir(plan_stream(usual))
    with pytest.raises(ConfigError, match="run usual exists and began without another run"):
        origin_for(usual, first.run_dir, 2, score_again=False)


def test_the_command_takes_the_other_runs_configuration(
    first: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--continue-from", str(first.run_dir), "--at-task", "1", "--run-id", "fork", "--stream.order", "chartqa"]
    assert coast.main([*given, "iconqa", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "first after task 1 (docvqa)" in said
    assert not (tmp_path / "fork").exists()
    full, folder = with_origin(["--continue-from=first", "--storage", str(tmp_path), "--stream.name", "mini-coin"])
    assert (full[0], folder) == (str(first.run_dir / "config.json"), first.run_dir)
    assert full[-1] == "--stream.order"
    for arguments in (["--at-task", "1"], ["--score-again"], ["--continue-from", str(tmp_path / "none")]):
        with pytest.raises(LittoralError, match="--continue-from"):
            coast.main(arguments)


def test_status_and_reports_say_where_it_began(first: Plan, tmp_path: Path) -> None:
    plan = forked(first, config_of(tmp_path, "fork", "chartqa"), 2)
    found = read_status(plan.run_dir)
    assert isinstance(found, RunStatus)
    assert (found.origin, found.learned, found.tasks) == ("first after task 2", 2, 3)
    assert outlook(found) == "begun already; continues at task 3 (chartqa)"
    assert "continues   run first after task 2" in status.block(found)
    take_over_costs(plan, Costs())
    ScoreMatrix(TASKS, ROWS, zero_shot=True).write(
        plan.run_dir / "score_matrix.json", stream="s", method="m", backbone="pocket", seed=0
    )
    (plan.run_dir / "finished.json").write_text(json.dumps({"finished": "2026-01-02T03:04:05+00:00"}))
    run = read_run(plan.run_dir)
    says = ["fork continued from run first after task 2 (iconqa); its scores until then are that run's."]
    assert lineage_notes([run]) == says
    assert [*task_facts(run)] == [*TASKS]
    record = read_run(write_record(run, tmp_path))
    assert lineage_notes([record]) == says
    assert record.origin is not None
    assert not record.origin.folder
    assert lineage_notes([replace(run, origin=None)]) == []


def test_a_run_whose_checkpoints_are_lost_goes_on_from_what_it_took_over_and_never_from_task_1(
    first: Plan, tmp_path: Path
) -> None:
    plan = forked(first, config_of(tmp_path, "fork", "medicalqa", "chartqa"), 2)
    shutil.rmtree(first.run_dir)
    start, later = plan.run_dir / "checkpoints" / "02-iconqa", plan.run_dir / "checkpoints" / "03-medicalqa"
    said: list[Event] = []

    def restored() -> tuple[StreamState | None, list[float], list[str]]:
        said.clear()
        at = restore(plan, said.append)
        (folder,) = plan.run_dir.glob("checkpoint_*/")
        tensors = read_checkpoint(folder).tensors["method"]["a"].tolist()
        texts = [event.text for event in said if isinstance(event, Note)]
        shutil.rmtree(folder)  # what was made since: nothing
        return at, tensors, texts

    begun = StreamState.of(read_checkpoint(start))
    assert restored() == (begun, [2.0, 2.0], [])
    at, tensors, (text,) = restored()
    assert (at, tensors) == (begun, [2.0, 2.0])
    assert text.endswith("the run continues from 02-iconqa, and no update is lost")
    updates = plan.schedule[2].num_updates
    learned = StreamState(index=2, update=updates, learned=True, rows=begun.rows)
    later.mkdir()
    write_checkpoint(later, {"stream_state": learned.to_json()}, {"method": {"a": torch.full((2,), 3.0)}})
    assert restored()[:2] == (learned, [3.0, 3.0])
    (later / "method.safetensors").write_bytes(b"")
    at, tensors, (text,) = restored()
    assert (at, tensors) == (begun, [2.0, 2.0])
    assert text.endswith(f"the run continues from 02-iconqa, and {updates} updates are made again")
    (file,) = (plan.run_dir / "tensors").iterdir()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"restore \S+/02-iconqa and \S+/tensors from a copy, or give the same"):
        restore(plan, said.append)
    shutil.rmtree(plan.run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match=r"\(and 1 more\), and no other checkpoint of the run is whole"):
        restore(plan, said.append)
