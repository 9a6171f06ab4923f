"""What chooses trials, and what a sweep is checked for before any is run, without a cluster.

python -m pytest tests/unit/test_sweep_search.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError
from components.core.files import write_json
from components.data.streams import open_stream
from components.models.config import BackboneConfig
from components.training.config import ClusterConfig, RunConfig
from components.training.stopping import stop_requested
from components.tuning.objective import parse_objective
from components.tuning.results import settings_of
from components.tuning.search import VALUES, Search, optuna_search, reason, scheduler_of, streams_of_this_machine
from components.tuning.space import Values, parse_axis
from components.tuning.sweep import Sweep, best_config, best_preset, identity, most_tasks, plan_sweep, require_families
from components.tuning.trials import LEARNED, Trial, TrialPlan
from pipelines.cli import parse
from pipelines.presets import preset, preset_notes
from pipelines.sweep import SweepCommand

AXES = (parse_axis("method.rank=randint(1, 9)"), parse_axis("training.optimizer.learning_rate=loguniform(1e-4, 1e-1)"))


def searched(*objectives: str, trials: int, listed: tuple[Values, ...] = ()) -> list[dict[str, float]]:
    """What is suggested, one after another, when high ranks are good and cost parameters."""
    goals = tuple(parse_objective(text) for text in objectives)
    search = optuna_search(Search(objectives=goals, num_tasks=4, axes=AXES, num_samples=trials, listed=listed, seed=0))
    suggested: list[dict[str, float]] = []
    for number in range(trials):
        values = search.suggest(f"trial-{number}")
        assert values is not None
        suggested.append(values)
        rank = values["method.rank"]
        figures = {"final_average": 10.0 * rank, "trainable_parameters": 100.0 * rank, "forgetting": 0.0}
        search.on_trial_complete(f"trial-{number}", result={"training_iteration": 4, **figures})
    return suggested


def test_optuna_finds_what_is_good() -> None:
    found = searched("final_average", trials=40)
    assert all(1 <= values["method.rank"] <= 8 for values in found)
    early, late = ([values["method.rank"] for values in part] for part in (found[:10], found[-10:]))
    assert sum(late) > sum(early)
    assert max(late) == 8


def test_it_looks_the_other_way_where_less_is_better() -> None:
    assert min(values["method.rank"] for values in searched("trainable_parameters", trials=40)[-10:]) == 1


def test_several_objectives_keep_both_ends() -> None:
    ranks = [values["method.rank"] for values in searched("final_average", "trainable_parameters", trials=40)]
    assert {min(ranks), max(ranks)} == {1, 8}


def test_a_continued_search_begins_with_what_was_tried() -> None:
    first: Values = {"method.rank": 3, "training.optimizer.learning_rate": 0.01}
    assert searched("final_average", trials=3, listed=(first,))[0] == first


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a scheduler asks of one of Tune's trials."""

    trial_id: str
    config: dict[str, Any]


def test_asha_asks_those_to_end_that_are_behind_at_equal_tasks(tmp_path: Path) -> None:
    """Four tasks, grace two: whoever comes after a better one and is worse ends, a finished one never."""
    goals = (parse_objective("final_average"),)
    plan = TrialPlan(base=replace(RunConfig(), storage=tmp_path), parent=None)
    scheduler = scheduler_of(Search(objectives=goals, num_tasks=4, stopping="asha", grace=2), plan)
    trials = {rank: Tried(trial_id=str(rank), config={VALUES: {"method.rank": rank}}) for rank in (1, 2, 3, 4)}
    for trial in trials.values():
        plan.folder(trial.config[VALUES]).mkdir()
        scheduler.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
    (plan.folder({"method.rank": 4}) / "finished.json").touch()

    def told(rank: int, learned: int, score: float) -> bool:
        result = {LEARNED: learned, "final_average": score}
        assert scheduler.on_trial_result(None, trials[rank], result) == "CONTINUE"  # pyright: ignore[reportArgumentType]
        return stop_requested(plan.folder({"method.rank": rank}))

    assert not told(2, 1, 10.0)
    assert not told(1, 1, 1.0)  # far behind, but within the grace
    assert not told(2, 2, 40.0)
    assert told(1, 2, 5.0)
    assert not told(3, 2, 50.0)
    assert not told(4, 2, 0.0)
    assert not told(2, 4, 0.0)  # its last figures: it ends anyway


def test_a_reason_is_one_line_and_the_users_own_error_where_there_is_one() -> None:
    failed = RuntimeError("a worker\nfailed")
    failed.__cause__ = ConfigError("the loss became nan; lower the rate.")
    assert reason(failed) == "the loss became nan; lower the rate."
    assert reason(RuntimeError("first line\nlast line\n")) == "last line"
    assert reason(None) == ""


@pytest.mark.parametrize(("workers", "streams"), [(1, 8), (2, 4), (3, 2), (9, 1)])
def test_streams_share_the_cores(workers: int, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.tuning.search.usable_cpus", lambda: 8)
    assert streams_of_this_machine(ClusterConfig(num_workers=workers)) == streams


@pytest.mark.parametrize(
    ("spaces", "tasks"),
    [
        ((), 4),
        (("method.rank=grid(4, 8)",), 4),
        (("stream.order=grid(('chartqa',), ('chartqa', 'iconqa', 'docvqa'))", "method.rank=grid(4, 8)"), 3),
    ],
)
def test_a_sweep_is_as_long_as_the_longest_stream_it_names(spaces: tuple[str, ...], tasks: int) -> None:
    assert most_tasks(preset("pocket"), [parse_axis(text) for text in spaces]) == tasks


def test_a_method_that_the_model_cannot_have_is_refused_before_any_trial(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}', encoding="utf-8")
    run = replace(preset("pocket"), backbone=BackboneConfig(name=str(tmp_path)))
    require_families(run, [parse_axis("method=sequential_lora,lcia"), parse_axis("training.micro_batch_size=1,2")])
    with pytest.raises(ConfigError, match="eproj trains the projector"):
        require_families(run, [parse_axis("method=sequential_lora,eproj")])


def test_a_stream_that_cannot_be_is_refused_before_any_trial() -> None:
    with pytest.raises(ConfigError, match="has no task 'nope'"):
        most_tasks(preset("pocket"), [parse_axis("stream.order=grid(('chartqa',), ('chartqa', 'nope'))")])


# ---- which rows decide


def asked(tmp_path: Path, *arguments: str) -> Sweep:
    given = [
        "pocket",
        "--storage",
        str(tmp_path),
        "--stream.order",
        "iconqa",
        "--stream.data-dir",
        str(tmp_path / "data"),
    ]
    command = parse([*given, *arguments], program="sweep.py", description="", kind=SweepCommand)
    return plan_sweep(command.run, command)


def test_a_sweep_chooses_on_validation_rows_and_its_best_is_scored_on_test_rows(tmp_path: Path) -> None:
    for given, share in (((), 0.2), (("--stream.validation", "0.4"), 0.4)):
        sweep = asked(tmp_path, *given)
        assert (sweep.base.evaluation.split, sweep.base.stream.validation) == ("validation", share)
        (setting, *_) = settings_of([learned({"method.rank": 2}, 40.0), learned({"method.rank": 4}, 40.0)])
        best = best_config(sweep, setting)
        assert (best.evaluation.split, best.stream.validation) == ("test", share)
        trial, again = (
            open_stream(config.stream, scored=config.evaluation.split).tasks[0] for config in (sweep.base, best)
        )
        assert again.train == trial.train
        assert (again.test, again.unscored) == (trial.unscored, trial.test)


def test_choosing_on_test_rows_takes_a_flag_and_is_written_down(tmp_path: Path) -> None:
    sweep = asked(tmp_path, "--choose-on-test")
    assert (sweep.base.evaluation.split, sweep.base.stream.validation) == ("test", 0.0)
    settings = settings_of([learned({"method.rank": 2}, 40.0), learned({"method.rank": 4}, 40.0)])
    path = tmp_path / "best.json"
    write_json(path, best_preset(sweep, settings, settings[0]))
    assert json.loads(path.read_text())["chosen"] == {
        "sweep": sweep.id,
        "on": "test",
        "by": "final_average (max)",
        "value": 40.0,
        "settings": 2,
        "tied_with": ["rank 4"],
    }
    assert preset(str(path)).evaluation.split == "test"
    assert preset_notes(str(path)) == [f"{path} was chosen by its scores on test rows, so these rows do not test it."]
    write_json(path, best_preset(asked(tmp_path), settings, settings[0]))
    assert preset_notes(str(path)) == []
    assert identity(sweep) != identity(asked(tmp_path))


def test_trials_scored_on_different_rows_are_refused(tmp_path: Path) -> None:
    for space in ("stream.validation=grid(0.2, 0.3)", "evaluation.split=grid('test', 'validation')"):
        with pytest.raises(ConfigError, match="scored on different rows cannot be compared"):
            asked(tmp_path, "--space", space)
    with pytest.raises(ConfigError, match=r"give one --evaluation\.replies for all trials"):
        asked(tmp_path, "--space", "evaluation.replies=grid('generated', 'acc')")
    with pytest.raises(ConfigError, match="contradict"):
        asked(tmp_path, "--choose-on-test", "--evaluation.split", "validation", "--stream.validation", "0.2")


def learned(values: Values, average: float) -> Trial:
    return Trial(name=str(values), values=values, state="finished", learned=1, figures={"final_average": average})
