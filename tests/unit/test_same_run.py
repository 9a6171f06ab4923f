"""What may change when a run goes on: every option is decided, the rest is refused by name, sessions say what was."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from components.core.errors import ConfigError
from components.data.stream_config import StreamConfig
from components.data.streams import write_generated_stream
from components.methods import METHODS
from components.methods.base import MethodConfig
from components.methods.eproj import EProjConfig
from components.methods.ewc import EwcConfig
from components.methods.l2p import L2PConfig
from components.methods.pgp import PgpConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.config import BackboneConfig
from components.runs.execute import claim_and_note
from components.runs.provenance import made_with
from components.tracking.config import TrackingConfig
from components.training.config import ClusterConfig, EvaluationConfig, RunConfig, TrainingConfig
from components.training.plan import Plan, plan_stream
from components.training.run_folder import changed_execution, check_run_dir, claim_run_dir
from components.training.same_run import EXECUTION, PLACE, RESULT
from pipelines.presets import preset

STREAM = StreamConfig(size="nano", order=("docvqa", "iconqa"))


def options(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """The names of all options of a dataclass and of those inside it, the method's apart."""
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if hints[item.name] is MethodConfig:
            continue
        if dataclasses.is_dataclass(hints[item.name]):
            yield from options(hints[item.name], f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}"


def test_every_option_says_whether_it_may_change() -> None:
    assert sorted([*PLACE, *EXECUTION, *RESULT]) == sorted(options(RunConfig))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_methods_result_depends_on_is_execution(name: str) -> None:
    for config in (METHODS[name](), METHODS[name].tiny()):
        assert set(config.result_depends_on) <= EXECUTION


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A run that has begun."""
    config = RunConfig(
        run_id="r",
        storage=tmp_path,
        stream=STREAM,
        backbone=BackboneConfig(name="pocket"),
        method=SequentialLoraConfig(rank=4),
        tracking=TrackingConfig(enabled=False),
    )
    begun = plan_stream(config)
    claim_run_dir(begun)
    return begun


def changed(plan: Plan, **parts: object) -> Plan:
    return replace(plan, config=replace(plan.config, **parts))  # type: ignore[arg-type]


OTHER_EXECUTION: dict[str, object] = {
    "training": TrainingConfig(
        micro_batch_size=2,
        zero_stage=3,
        engine="torch",
        checkpoint_every_updates=7,
        skip_bad_updates=9,
        cache_features="off",
        feature_cache_gb=1.5,
    ),
    "evaluation": EvaluationConfig(
        refill=True,
        batch_size=3,
        batch_tokens=900,
        reuse=False,
        max_forgetting=5.0,
        forgetting_of="any",
        on_forgetting="stop",
    ),
    "backbone": BackboneConfig(name="pocket", gradient_checkpointing=True, attention="sdpa", float32_kernels="onednn"),
    "cluster": ClusterConfig(
        num_workers=2,
        use_gpu=False,
        threads_per_worker=1,
        max_failures=4,
        hang_minutes=9.0,
        worker_labels=("ray-subcluster=train",),
        data_labels=("ray-subcluster=data",),
    ),
}


def test_all_of_execution_may_change_and_config_json_says_how_it_is_now(plan: Plan) -> None:
    before = json.loads((plan.run_dir / "config.json").read_text())
    assert not changed_execution(plan)
    other = changed(plan, **OTHER_EXECUTION)
    check_run_dir(other)
    # Apart, because a budget that ends the stream and scoring beside training exclude each other.
    beside = EvaluationConfig(beside=1, beside_cpus=2, beside_labels=("a=b",), beside_rows=2)
    assert changed_execution(other).keys() | changed_execution(changed(plan, evaluation=beside)).keys() == EXECUTION
    assert changed_execution(other)["training.zero_stage"] == ("2", "3")
    claim_run_dir(other)
    assert not changed_execution(other)
    now = json.loads((plan.run_dir / "config.json").read_text())
    continued = preset(str(plan.run_dir / "config.json"))  # what the command that continues the run reads
    assert continued.to_json()["training"] == other.config.to_json()["training"]  # with the resolved learning rate
    assert all(
        getattr(continued, part) == getattr(other.config, part) for part in ("evaluation", "backbone", "cluster")
    )
    for name, value in before.items():
        if name not in OTHER_EXECUTION:
            assert now[name] == value


def test_a_session_notes_its_execution_and_the_reader_hears_of_a_change(plan: Plan) -> None:
    said: list[object] = []
    claim_and_note(plan, said.append, gpu=False)
    assert not said
    claim_and_note(changed(plan, evaluation=EvaluationConfig(batch_size=3)), said.append, gpu=False)
    assert [getattr(note, "text", None) for note in said] == ["going on with evaluation.batch_size 3 (was 16)"]
    first, second = made_with(plan.run_dir)["sessions"]
    assert first["execution"].keys() == EXECUTION
    assert (first["execution"].pop("evaluation.batch_size"), second["execution"].pop("evaluation.batch_size")) == (
        "16",
        "3",
    )
    assert first["execution"] == second["execution"]


def test_all_that_would_change_the_result_is_named_at_once(plan: Plan) -> None:
    written = (plan.run_dir / "config.json").read_bytes()
    other = changed(
        plan,
        seed=3,
        method=SequentialLoraConfig(rank=8),
        training=TrainingConfig(global_batch_size=4, zero_stage=0),
        evaluation=EvaluationConfig(limit=5),
    )
    with pytest.raises(ConfigError) as refused:
        claim_run_dir(other)
    assert str(refused.value) == (
        "run r exists with evaluation.limit = None, this command has 5; method.rank = 4, this command has 8; seed = 0, "
        "this command has 3; training.global_batch_size = 8, this command has 4; use the same settings to continue it, "
        "or another --run-id."
    )
    assert (plan.run_dir / "config.json").read_bytes() == written
    with pytest.raises(ConfigError, match=r"exists with method\.name = sequential_lora, this command has ewc; use"):
        check_run_dir(changed(plan, method=EwcConfig(rank=4)))


@pytest.mark.parametrize("part", ["training", "evaluation", "backbone", "stream"])
def test_each_option_of_the_result_is_refused_alone(plan: Plan, part: str) -> None:
    """All of a part's, one by one, with any other legal value."""
    others: dict[str, object] = {
        **{"training.epochs": 2, "training.updates_per_task": 3, "training.global_batch_size": 4},
        **{"evaluation.zero_shot": False, "evaluation.unseen": True, "evaluation.oracle_routing": True},
        **{"evaluation.limit": 3, "evaluation.split": "validation", "evaluation.suites": ("mini-general",)},
        **{"evaluation.suites_after_every_task": True, "evaluation.replies": "acc"},
        **{"backbone.dtype": "bfloat16", "backbone.adapter_compute": "float32", "backbone.float32_matmul": "highest"},
        **{"backbone.vision_layer": "final", "backbone.template": "vicuna_v1", "backbone.pad_to_square": False},
        "backbone.name": "smol",
        **{"stream.name": "mini-coin", "stream.size": "mini", "stream.order": ("iconqa",), "stream.data_seed": 1},
        **{"stream.train_limit": 9, "stream.test_limit": 9, "stream.validation": 0.2},
    }
    # the optimizer's are checked by the test above of names; limits of length have tests of their own
    wanted = {name for name in RESULT if name.startswith(f"{part}.") and ".optimizer." not in name}
    wanted -= {"backbone.max_length", "backbone.too_long"}
    assert wanted
    for name in sorted(wanted):
        option = name.partition(".")[2]
        other = replace(getattr(plan.config, part), **{option: others[name]})
        stream = replace(plan.stream, name="other") if name == "stream.name" else plan.stream
        with pytest.raises(ConfigError, match=rf"exists with {name} = "):
            check_run_dir(replace(changed(plan, **{part: other}), stream=stream))


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        (EwcConfig(fisher_samples=128), {"cluster.num_workers"}),
        (EwcConfig(fisher_samples=0), set[str]()),
        (EwcConfig(fisher_samples=0, estimator="batch"), {"cluster.num_workers", "training.micro_batch_size"}),
        (PgpConfig(basis_samples=2), {"cluster.num_workers"}),
        (EProjConfig(importance_samples=2), {"cluster.num_workers"}),
        (L2PConfig(selection="batch"), {"cluster.num_workers", "training.micro_batch_size"}),
        (L2PConfig(diversify=True), {"cluster.num_workers"}),
        (L2PConfig(), set[str]()),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),
)
def test_methods_that_count_by_worker_or_batch_keep_these(plan: Plan, method: MethodConfig, refused: set[str]) -> None:
    begun = replace(changed(plan, method=method, run_id="of-" + method.name), run_dir=plan.run_dir.parent / "other")
    claim_run_dir(begun)
    for name, other in {
        "cluster.num_workers": changed(begun, cluster=ClusterConfig(num_workers=2)),
        "training.micro_batch_size": changed(begun, training=TrainingConfig(micro_batch_size=2)),
        "evaluation.batch_size": changed(begun, evaluation=EvaluationConfig(batch_size=2)),
    }.items():
        if name in refused:
            with pytest.raises(ConfigError, match=f"exists with {name} = "):
                check_run_dir(other)
        else:
            check_run_dir(other)


def test_data_may_lie_in_another_folder_if_they_are_the_same(tmp_path: Path) -> None:
    write_generated_stream(STREAM, tmp_path / "here")
    config = replace(preset("pocket"), run_id="r", storage=tmp_path / "runs")
    claim_run_dir(plan_stream(replace(config, stream=StreamConfig(name=str(tmp_path / "here")))))
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = plan_stream(replace(config, stream=StreamConfig(name=str(tmp_path / "there"))))
    check_run_dir(moved)
    claim_run_dir(moved)
    assert preset(str(moved.run_dir / "config.json")).stream.name == str(tmp_path / "there")
    write_generated_stream(replace(STREAM, data_seed=1), tmp_path / "else")
    with pytest.raises(ConfigError, match=r"stream\.name = .*/there, .*; stream_digest = [0-9a-f]{12}, "):
        check_run_dir(plan_stream(replace(config, stream=StreamConfig(name=str(tmp_path / "else")))))
