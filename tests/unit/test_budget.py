"""The budget for forgetting: what a row says, and what it does to a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import BudgetExceeded, ConfigError
from components.core.run_files import REJECTED, VERDICTS_FILE
from components.data.stream_config import StreamConfig
from components.evaluation.budget import Action, Budget, Measured, lost_points, verdict
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.runs.status import read_status
from components.training.budget import require_within_budget
from components.training.config import EvaluationConfig, RunConfig
from components.training.plan import Plan, plan_stream
from components.training.run_folder import claim_run_dir
from components.tuning.sweep import SweepOptions, plan_sweep
from pipelines.cli import parse

TASKS = ["a", "b", "c"]
ROWS = [[10.0, 12.0, 5.0], [50.0, None, None], [60.0, 40.0, None], [44.0, 36.0, 70.0]]


def matrix(rows: list[list[float | None]]) -> ScoreMatrix:
    return ScoreMatrix(TASKS, rows, after=["zero-shot", *TASKS][: len(rows)])


def budget(allowed: float, measured: Measured = "mean", action: Action = "stop") -> Budget:
    return Budget(allowed=allowed, measured=measured, action=action)


def test_lost_points_are_best_before_minus_now() -> None:
    assert lost_points(matrix(ROWS)) == {"a": 16.0, "b": 4.0}  # zero-shot is no score since the task was learned
    assert lost_points(matrix(ROWS[:3])) == {"a": -10.0}
    assert lost_points(matrix(ROWS[:2])) == {} == lost_points(matrix(ROWS[:1]))
    assert sum(lost_points(matrix(ROWS)).values()) / 2 == matrix(ROWS).forgetting()
    assert lost_points(matrix([*ROWS[:3], [None, 36.0, 70.0]])) == {"b": 4.0}


def test_mean_and_any_task_are_held_against_the_bound() -> None:
    mean, worst = verdict(matrix(ROWS), budget(10.0)), verdict(matrix(ROWS), budget(10.0, "any"))
    assert mean is not None
    assert (mean.points, mean.exceeded) == (10.0, False)
    assert worst is not None
    assert (worst.points, worst.most, worst.exceeded) == (16.0, "a", True)
    assert worst.text() == (
        "after c the earlier tasks have lost 16.00 points on a, more than the 10 that evaluation.max-forgetting allows"
    )
    assert "on average (most: a, 16.00), within the 10" in mean.text()
    assert verdict(matrix(ROWS), None) is None
    assert verdict(matrix(ROWS[:2]), budget(0.0)) is None
    warned = verdict(matrix(ROWS), budget(1.0, action="warn"))
    assert warned is not None
    assert warned.exceeded
    assert not warned.ends_the_stream


def planned(tmp_path: Path, *, allowed: float | None, action: Action = "stop") -> Plan:
    evaluation = EvaluationConfig(max_forgetting=allowed, on_forgetting=action)
    stream = StreamConfig(size="small", train_limit=8, test_limit=2, order=("chartqa", "docvqa", "iconqa"))
    return plan_stream(RunConfig(run_id="r", storage=tmp_path, stream=stream, evaluation=evaluation))


def left_by_a_run(plan: Plan) -> None:
    names = plan.stream.task_names
    for number, name in enumerate(names, start=1):
        folder = plan.run_dir / "checkpoints" / f"{number:02d}-{name}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(name)
    found = ScoreMatrix(names, ROWS, after=["zero-shot", *names])
    found.write(plan.run_dir / MATRIX_FILE, stream="s", method="m", backbone="b", seed=0)


def test_a_task_is_rolled_back_and_accepted_again(tmp_path: Path) -> None:
    plan = planned(tmp_path, allowed=5.0, action="rollback")
    left_by_a_run(plan)
    third = f"03-{plan.stream.task_names[2]}"
    for _ in range(2):  # the second time nothing is left to move
        with pytest.raises(BudgetExceeded, match=r"10.00 points on average .* is the run's last") as ended:
            require_within_budget(plan)
        assert ended.value.exit_code == 3
        assert (plan.run_dir / REJECTED / third / "state.json").is_file()
        assert sorted(path.name[:2] for path in (plan.run_dir / "checkpoints").iterdir()) == ["01", "02"]
    said = json.loads((plan.run_dir / VERDICTS_FILE).read_text())
    assert [(row["points"], row["exceeded"]) for row in said["rows"]] == [(-10.0, False), (10.0, True)]
    require_within_budget(planned(tmp_path, allowed=None))
    assert (plan.run_dir / "checkpoints" / third / "state.json").is_file()
    require_within_budget(planned(tmp_path, allowed=10.0, action="rollback"))
    require_within_budget(planned(tmp_path, allowed=1.0, action="warn"))
    with pytest.raises(BudgetExceeded, match="nothing is left to learn"):
        require_within_budget(planned(tmp_path, allowed=1.0))
    assert (plan.run_dir / "checkpoints" / third).is_dir()


def test_a_sweep_does_not_end_trials_by_a_budget(tmp_path: Path) -> None:
    run = planned(tmp_path, allowed=1.0).config
    with pytest.raises(ConfigError, match='compares whole streams; set it to "warn"'):
        plan_sweep(RunConfig(storage=tmp_path, stream=run.stream, evaluation=run.evaluation), SweepOptions())


def test_the_options_have_short_names() -> None:
    command = parse(["pocket", "--max-forgetting", "5", "--on-forgetting=rollback"], program="p", description="d")
    assert command.run.evaluation.budget == budget(5.0, action="rollback")
    with pytest.raises(ConfigError, match=r"evaluation.max_forgetting is -1"):
        EvaluationConfig(max_forgetting=-1.0)


def test_status_says_what_the_budget_did(tmp_path: Path) -> None:
    plan = planned(tmp_path, allowed=5.0, action="rollback")
    left_by_a_run(plan)
    claim_run_dir(plan)
    before = read_status(plan.run_dir)
    with pytest.raises(BudgetExceeded):
        require_within_budget(plan)
    after = read_status(plan.run_dir)
    assert (before.state, after.state) == ("dead", "stopped")
    assert after.note.startswith("iconqa cost earlier tasks 10.0 points and was rolled back; give the command with")
    assert "--max-forgetting over 5.0" in after.note
    require_within_budget(planned(tmp_path, allowed=20.0))
    assert read_status(plan.run_dir).state == "dead"
