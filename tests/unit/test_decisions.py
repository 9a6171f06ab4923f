"""decisions.json: what is counted, that it goes through files and records, its curves, and the report's table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from finished_runs import STREAM, TASKS, finished

from components.core.errors import DataError
from components.evaluation.decisions import DECISIONS_FILE, Decisions, Served
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.lcia import LciaConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.reporting.decisions import decision_tables
from components.reporting.groups import grouped, named
from components.runs.results import read_run, write_record
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig

DOC, ICON = TASKS
DECISIONS = Decisions(
    tasks={
        DOC: {"group": 0, "similarity": None, "reused": False, "ema_steps": 0},
        ICON: {
            "group": 0,
            "similarity": 0.95,
            "reused": True,
            "ema_steps": 59,
            "ema_fallback": 0.25,
            "ema_old_mean": 0.97,
            "ema_old_min": 0.5,
            "ema_old_max": 0.9999,
        },
    },
    served={
        DOC: {DOC: Served(rows=4, own=1.0, fallback=0.0, by={DOC: 4})},
        ICON: {
            DOC: Served(rows=4, own=0.25, fallback=0.75, by={DOC: 1, ICON: 3}),
            ICON: Served(rows=4, own=1.0, fallback=0.0, by={ICON: 4}),
        },
    },
)


def test_shares_are_counted_over_the_rows_that_say() -> None:
    served = Served.of("b", ["b", "a", "b", None], [True, False, True, None])
    assert served == Served(rows=4, own=2 / 3, fallback=1 / 3, by={"a": 1, "b": 2})
    assert Served.of("b", [None, None], [None, None]) == Served(rows=2, own=None, fallback=None, by={})


def test_a_file_is_read_as_it_was_written_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / DECISIONS_FILE
    assert not Decisions.read(path)
    DECISIONS.write(path)
    assert Decisions.read(path) == DECISIONS
    assert [file.name for file in tmp_path.iterdir()] == [DECISIONS_FILE]
    for broken in ("{", "[]", '{"format": "other"}', json.dumps({**DECISIONS.to_dict(), "served": {"a": {"b": {}}}})):
        path.write_text(broken)
        with pytest.raises(DataError, match="decisions"):
            Decisions.read(path)


def test_curves_of_a_row() -> None:
    found = DECISIONS.metrics(ICON, {DOC: "doc", ICON: "icon"})
    assert found == {
        "decisions/group": 0.0,
        "decisions/similarity": 0.95,
        "decisions/reused": 1.0,
        "decisions/ema_steps": 59.0,
        "decisions/ema_fallback": 0.25,
        "decisions/ema_old_mean": 0.97,
        "decisions/ema_old_min": 0.5,
        "decisions/ema_old_max": 0.9999,
        "fallback/doc": 0.75,
        "fallback/icon": 0.0,
        "fallback_mean": 0.375,
    }
    scalars = Decisions(tasks={ICON: {"w": {DOC: 0.5}, "slots": [0.25, 0.75]}})
    assert scalars.metrics(ICON, {DOC: "doc", ICON: "icon"}) == {"decisions/w/doc": 0.5}


def test_a_record_carries_them_and_the_report_shows_them(tmp_path: Path) -> None:
    configs = {
        "lcia-s0": LciaConfig(),
        "lcia-s1": LciaConfig(),
        "cl": ContinualLlavaConfig(),
        "plain": SequentialLoraConfig(),
    }
    runs = []
    for name, method in configs.items():
        seed = int(name == "lcia-s1")
        config = RunConfig(stream=STREAM, method=method, tracking=TrackingConfig(enabled=False), seed=seed)
        path = finished(tmp_path, replace(config, run_id=name), [[75.0, None], [50.0, 25.0]])
        if name.startswith("lcia"):
            own = {**DECISIONS.tasks[ICON], "similarity": 0.93 + 0.04 * seed}
            replace(DECISIONS, tasks={**DECISIONS.tasks, ICON: own}).write(path / DECISIONS_FILE)
        elif name == "cl":
            scalars = {"slots": [0.5, 0.5, 0.0], "slots_used": 2, "w": {DOC: 0.62}, "w_moved": {DOC: -0.33}}
            Decisions(tasks={ICON: scalars}).write(path / DECISIONS_FILE)
        runs.append(read_run(write_record(read_run(path), tmp_path / "records")))
    assert runs[0].decisions.served == DECISIONS.served
    ((header, lines),) = decision_tables(named(grouped(runs)))
    assert header == [
        *("method: task", "group", "similarity", "EMA steps", "own group %", "fallback %"),
        *("old weight", "EMA fallback %", "w (moved)", "slots used"),
    ]
    assert lines == [
        [f"`lcia`: {DOC}", "0", "", "0 ± 0", "25.0 ± 0.0", "75.0 ± 0.0", "", "", "", ""],
        [
            *(f"`lcia`: {ICON}", "0 (reused)", "0.950 ± 0.028", "59 ± 0", "100.0 ± 0.0", "0.0 ± 0.0"),
            *("0.9700 ± 0.0000 (0.5000 to 0.9999)", "25.0 ± 0.0", "", ""),
        ],
        [f"`continual_llava`: {ICON}", *[""] * 7, f"{DOC} 0.620 (-0.330)", "2"],
    ]
    assert decision_tables(named(grouped(runs[3:]))) == []
