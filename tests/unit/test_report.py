"""The comparison table of finished runs, from folders as a run leaves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import STREAM, TASKS, finished

from components.core.errors import ConfigError
from components.data.streams import open_stream
from components.evaluation.majority import majority_score
from components.evaluation.matrix import ScoreMatrix
from components.methods.joint import JointConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.reporting.groups import grouped, require_comparable
from components.reporting.tables import control_lines, group_lines
from components.runs.costs import Cost
from components.runs.results import FinishedRun, read_run, write_record
from components.statistics.mean_std import MeanStd
from components.tracking.config import TrackingConfig
from components.training.config import EvaluationConfig, RunConfig


@pytest.fixture
def runs(tmp_path: Path) -> list[FinishedRun]:
    base = RunConfig(stream=STREAM, method=SequentialLoraConfig(rank=4), tracking=TrackingConfig(enabled=False))
    first = replace(base, run_id="a", seed=0)
    second = replace(base, run_id="b", seed=1)
    joint = replace(base, run_id="c", method=JointConfig())
    return [
        read_run(finished(tmp_path, first, [[1.0, 2.0], [80.0, None], [60.0, 50.0]], zero_shot=True)),
        read_run(finished(tmp_path, second, [[84.0, None], [54.0, 40.0]])),
        read_run(finished(tmp_path, joint, [[None, None], [90.0, 70.0]])),
    ]


def test_seeds_are_one_line_with_mean_and_spread(runs: list[FinishedRun]) -> None:
    require_comparable(runs)
    first, second = [line for group in grouped(runs) for line in group_lines(group)]
    # sample standard deviations by hand: of 80, 84 = 2.83; of 60, 54 = 4.24; of 50, 40 = 7.07; of 55, 47 = 5.66
    scores = ["82.0 ± 2.8 -> 57.0 ± 4.2", "45.0 ± 7.1", "51.0 ± 5.7", "25.0 ± 7.1"]
    assert first[:5] == ["`sequential_lora` (rank 4)", *scores]
    assert first[5:7] == ["", ""]
    assert first[-3:] == ["unknown", "unknown", "0, 1"]
    assert second[:5] == ["`joint`", "90.0", "70.0", "80.0", "-"]


def test_orders_are_draws_of_the_same_line(runs: list[FinishedRun], tmp_path: Path) -> None:
    """The same tasks the other way round: cells are found by name; orders have different last tasks."""
    other = replace(runs[0].config, run_id="d", stream=replace(STREAM, order=("iconqa", "docvqa")))
    turned = read_run(finished(tmp_path, other, [[30.0, None], [20.0, 90.0]]))
    require_comparable([*runs, turned])
    line, _ = [line for group in grouped([runs[0], turned, runs[2]]) for line in group_lines(group)]
    assert line[1:5] == ["85.0 ± 7.1 -> 75.0 ± 21.2", "40.0 ± 14.1 -> 35.0 ± 21.2", "55.0 ± 0.0", "15.0 ± 7.1"]
    assert line[-1] == "0 in 2 orders"
    assert control_lines([turned, runs[0]])[1][:4] == ["zero-shot", "2.0", "1.0", "1.5"]
    with pytest.raises(ConfigError, match="same run with the same seed"):
        grouped([turned, turned])
    with pytest.raises(ConfigError, match="differ in stream"):
        require_comparable([runs[0], replace(turned, stream_digest="of other data")])


def test_a_zero_shot_row_without_an_added_task_is_no_control(runs: list[FinishedRun], tmp_path: Path) -> None:
    added = replace(runs[0].config, run_id="d")
    more = read_run(finished(tmp_path, added, [[1.0, None], [80.0, None], [60.0, 50.0]], zero_shot=True))
    assert "zero-shot" not in {line[0] for line in control_lines([more])}
    assert control_lines([more, runs[0]])[1][:4] == ["zero-shot", "1.0", "2.0", "1.5"]


def test_a_routed_methods_forgetting_is_split(runs: list[FinishedRun]) -> None:
    """By hand: docvqa falls 80 to 60; with the task known 81 to 71, so 10 by drift and 10 by routing."""
    routed = replace(runs[0], oracle=ScoreMatrix(TASKS, [[81.0, None], [71.0, 55.0]], zero_shot=False))
    own, oracle = group_lines([routed])
    assert own[5:7] == ["10.0", "10.0"]
    assert oracle[5:7] == ["", ""]
    assert len(own) == len(oracle)
    same = replace(runs[0], oracle=ScoreMatrix(TASKS, [[80.0, None], [60.0, 50.0]], zero_shot=False))
    assert len(group_lines([same])) == 1, "the task known and the same scores: one line says it all"


def test_controls_are_measured_on_the_streams_own_rows(runs: list[FinishedRun]) -> None:
    majority, zero_shot = control_lines(runs)
    stream = open_stream(STREAM)
    task = stream.tasks[1]
    replies = {row.answers[0] for row in task.train.rows()}
    hits = {reply: sum(reply in row.answers for row in task.test.rows()) for reply in replies}
    assert majority_score(task.train, task.test) == pytest.approx(100 * max(hits.values()) / 16)
    first = {reply: sum(reply in row.answers for row in list(task.test.rows())[:5]) for reply in replies}
    assert majority_score(task.train, task.test, 5) == pytest.approx(100 * max(first.values()) / 5)
    fewer = [replace(run, config=replace(run.config, evaluation=EvaluationConfig(limit=5))) for run in runs]
    assert control_lines(fewer)[0][2] == f"{majority_score(task.train, task.test, 5):.1f}"
    assert majority[0] == "majority answer"
    assert zero_shot[:4] == ["zero-shot", "1.0", "2.0", "1.5"]


def test_what_cannot_be_compared_is_refused(runs: list[FinishedRun], tmp_path: Path) -> None:
    other = replace(runs[0].config, run_id="d", training=replace(runs[0].config.training, global_batch_size=4))
    different = read_run(finished(tmp_path, other, [[1.0, None], [1.0, 1.0]]))
    with pytest.raises(ConfigError, match="a and d differ in batch"):
        require_comparable([runs[0], different])
    larger = replace(runs[0].config, backbone=replace(runs[0].config.backbone, max_length=4096))
    with pytest.raises(ConfigError, match=r"differ in backbone\.max_length \(2048 and 4096\)"):
        require_comparable([runs[0], replace(runs[0], config=larger)])
    scored_on_fewer = replace(runs[0], config=replace(runs[0].config, evaluation=EvaluationConfig(limit=5)))
    with pytest.raises(ConfigError, match="differ in test rows a task \\(None and 5\\)"):
        require_comparable([runs[0], scored_on_fewer])
    chosen = replace(runs[0], config=replace(runs[0].config, evaluation=EvaluationConfig(replies="acc")))
    with pytest.raises(ConfigError, match=r"differ in evaluation\.replies \(generated and acc\)"):
        require_comparable([runs[0], chosen])
    with pytest.raises(ConfigError, match="no run was given"):
        require_comparable([])
    with pytest.raises(ConfigError, match="same run with the same seed"):
        grouped([runs[0], runs[0]])
    (runs[1].path / "finished.json").unlink()
    with pytest.raises(ConfigError, match="has not finished"):
        read_run(runs[1].path)
    with pytest.raises(ConfigError, match="is not a run but holds some"):
        read_run(tmp_path)


def test_a_spread_by_hand() -> None:
    spread = MeanStd.of([1.0, 2.0, 4.0])
    assert spread.mean == pytest.approx(7 / 3)
    assert spread.deviation == pytest.approx((((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2) ** 0.5)
    assert str(MeanStd.of([3.0])) == "3.0"
    assert f"{spread} -> {MeanStd.of([2 / 3])}, {spread:.3f}" == "2.3 ± 1.5 -> 0.7, 2.333 ± 1.528"
    with pytest.raises(ValueError, match="at least one"):
        MeanStd.of([])


def test_a_record_compares_as_its_run_does_and_says_nothing_of_where_it_ran(
    runs: list[FinishedRun], tmp_path: Path
) -> None:
    run = replace(runs[0], cost=Cost(train_s=60.0, evaluate_s=1.0, trainable_parameters=7))
    run = replace(run, oracle=ScoreMatrix(TASKS, [[81.0, None], [71.0, 55.0]], zero_shot=False))
    rows = [
        {"after": "docvqa", "task": "docvqa", "sample_id": name, "score": score}
        for name, score in {"b": 1.0, "a": 0.5}.items()
    ]
    (run.path / "predictions").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), run.path / "predictions" / "01-docvqa.parquet")
    records = tmp_path / "records"
    path = write_record(run, records)
    assert path == records / "a.json"
    assert str(tmp_path) not in path.read_text()
    assert json.loads(path.read_text())["item_scores"] == {"docvqa": {"docvqa": [0.5, 1.0]}}  # by sample id
    back = read_run(path)
    assert group_lines([back]) == group_lines([run])
    assert (back.cost, back.finished, back.stream_digest) == (run.cost, run.finished, run.stream_digest)
    require_comparable([back, *runs[1:]])
    with pytest.raises(ConfigError, match="exists; move it away"):
        write_record(run, records)
    with pytest.raises(ConfigError, match="is a record already"):
        write_record(back, tmp_path)
    path.write_text(path.read_text().replace('"config"', '"other"'))
    with pytest.raises(ConfigError, match="does not have the content it should"):
        read_run(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="is not"):
        read_run(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_run(path)
