"""Forecasts of unfinished and recorded runs as report.py prints and draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_runs import STREAM, TASKS, finished
from PIL import Image

from components.core.errors import ConfigError
from components.evaluation.matrix import ScoreMatrix
from components.methods.joint import JointConfig
from components.methods.replay import ReplayConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.reporting.forecast import forecast_table, forecasts, write_calibration
from components.runs.results import read_run
from components.statistics.calibration import outcomes
from components.statistics.forecast import PastRun
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig

RECORDS = sorted((Path(__file__).resolve().parents[2] / "docs" / "results" / "mini-coast-domain").glob("*.json"))


@pytest.mark.long
def test_recorded_runs_are_forecast_by_the_others(tmp_path: Path) -> None:
    runs = [read_run(path) for path in RECORDS]
    header, lines, notes = forecast_table(forecasts(runs))
    assert {len(line) for line in lines} == {len(header)}
    learned_in_turn = [run for run in runs if run.config.method.data_scope != "union"]  # the others have one row
    assert len(lines) == 3 * len(learned_in_turn) > 0
    assert any("finished runs of other methods support an interval of" in line for line in notes) or len(runs) > 19
    assert "forecasts whose outcome is known" in notes[-1]
    past = [PastRun(method=run.config.method.name, matrix=run.matrix) for run in learned_in_turn]
    found = outcomes(past, 0.5)
    assert all(one.expected.low <= one.expected.estimate <= one.expected.high for one in found)
    with Image.open(write_calibration(runs, tmp_path / "new" / "c.png")) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture).std() > 5
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        write_calibration(runs, tmp_path / "c.txt")


def test_an_unfinished_run_is_forecast_and_too_few_runs_are_said_so(tmp_path: Path) -> None:
    base = RunConfig(stream=STREAM, tracking=TrackingConfig(enabled=False), method=SequentialLoraConfig())
    old = read_run(finished(tmp_path, replace(base, run_id="old"), [[80.0, None], [60.0, 50.0]]))
    joint = finished(tmp_path, replace(base, run_id="joint", method=JointConfig()), [[None, None], [60.0, 50.0]])
    path = finished(tmp_path, replace(base, run_id="new", method=ReplayConfig()), [[70.0, None], [70.0, 60.0]])
    (path / "finished.json").unlink()
    matrix = ScoreMatrix(TASKS, [[70.0, None]], zero_shot=False)
    matrix.write(path / "score_matrix.json", stream="s", method="replay", backbone="smol", seed=0)
    with pytest.raises(ConfigError, match="has not finished"):
        read_run(path)
    new = read_run(path, unfinished=True)
    assert (new.finished, new.cost) == ("", None)
    with pytest.raises(ConfigError, match="finished runs of other methods"):
        forecasts([new])
    with pytest.raises(ConfigError, match="nothing to forecast"):
        forecasts([read_run(joint)])
    [(run, made)] = forecasts([old, new])  # the finished one has nothing to be forecast from
    assert (run.config.run_id, made.num_learned, made.num_past) == ("new", 1, 0)
    _, lines, notes = forecast_table([(run, made)])
    assert lines[0][3].endswith("[0.0, 100.0]")
    assert (lines[0][4], lines[0][6]) == ("", ""), "nothing came yet"
    assert notes == ["Too few finished runs (0 count) for any interval: where [0.0, 100.0] stands, all is possible."]
