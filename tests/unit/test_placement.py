"""Where scorers go: what the plan says of it, and clusters without room for them."""

from __future__ import annotations

import pytest

from components.core.errors import ConfigError
from components.training.config import ClusterConfig, EvaluationConfig, RunConfig, TrainingConfig
from components.training.devices import Node
from components.training.placement import placement, require_places
from components.tuning.sweep import SweepOptions, scored_for_choice


def run(workers: int = 1, **evaluation: object) -> RunConfig:
    return RunConfig(
        training=TrainingConfig(global_batch_size=8),
        cluster=ClusterConfig(num_workers=workers),
        evaluation=EvaluationConfig(**evaluation),  # type: ignore[arg-type]
    )


EVAL = {"ray-subcluster": "eval"}
LABELS = ("ray-subcluster=eval",)


def test_in_turn_nothing_overlaps() -> None:
    assert placement(run(), on_gpus=False) == {
        "scoring": "by the workers, each row before the next task is learned; nothing overlaps"
    }


def test_beside_names_processes_what_they_take_and_what_overlaps() -> None:
    assert placement(run(beside=1), on_gpus=False) == {
        "placement": "1 worker for learning, with 1 CPU; 1 process for scoring, with 1 CPU; 1 CPU is left to Ray Data",
        "scoring": "each row but the last while the next task is learned; learning waits where scoring is more than "
        "1 row behind",
    }
    large = placement(run(4, beside=2, beside_cpus=8, beside_labels=LABELS, beside_rows=3), on_gpus=True)
    assert large == {
        "placement": "4 workers for learning, each with 1 CPU and a GPU; 2 processes for scoring, each with 8 CPUs and "
        "a GPU, on a node with ray-subcluster=eval; 1 CPU is left to Ray Data",
        "scoring": "each row but the last while the next task is learned; learning waits where scoring is more than "
        "3 rows behind",
    }


@pytest.mark.parametrize(
    ("config", "nodes", "on_gpus"),
    [
        (run(), [Node(cpus=1, gpus=0)], False),  # nothing is asked for
        (run(beside=1), [Node(cpus=3, gpus=0)], False),
        (run(beside=1), [Node(cpus=2, gpus=0), Node(cpus=1, gpus=0)], False),
        (run(2, beside=2), [Node(cpus=4, gpus=2), Node(cpus=4, gpus=2)], True),
        (run(beside=2, beside_labels=LABELS), [Node(cpus=2, gpus=0), Node(cpus=2, gpus=0, labels=EVAL)], False),
    ],
)
def test_what_has_room(config: RunConfig, nodes: list[Node], on_gpus: bool) -> None:
    require_places(config, nodes, on_gpus=on_gpus)


@pytest.mark.parametrize(
    ("config", "nodes", "on_gpus", "said"),
    [
        (
            run(beside=1),
            [Node(cpus=2, gpus=0)],
            False,
            r"1 worker and 1 process that score beside them \(evaluation.beside\) need 3 CPUs \(one is left to Ray "
            r"Data\), the cluster has 2; lower evaluation.beside or add nodes\.",
        ),
        (
            run(2, beside=2),
            [Node(cpus=8, gpus=3)],
            True,
            r"2 workers and 2 processes that score beside them \(evaluation.beside\) need 4 GPUs, the cluster has 3; ",
        ),
        (
            run(beside=2, beside_cpus=3),
            [Node(cpus=5, gpus=0), Node(cpus=2, gpus=0)],  # 7 CPUs, but 6 of them not in two threes
            False,
            r"evaluation.beside asks for 2 processes with 3 CPUs, and the cluster has places for 1; lower",
        ),
        (
            run(beside=1),
            [Node(cpus=8, gpus=0), Node(cpus=8, gpus=0)],
            True,
            r"1 process with 1 CPU and a GPU, and the cluster has places for 0; lower",
        ),
        (
            run(beside=1, beside_labels=LABELS),
            [Node(cpus=64, gpus=8, labels={"ray-subcluster": "train"})],
            False,
            r"1 process with 1 CPU, on a node with ray-subcluster=eval, and no node of the cluster has this label; "
            r"start one with --labels ray-subcluster=eval, or leave out evaluation.beside_labels\.",
        ),
    ],
)
def test_what_has_no_room_is_one_sentence(config: RunConfig, nodes: list[Node], on_gpus: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        require_places(config, nodes, on_gpus=on_gpus)
    assert "\n" not in str(refused.value)


def test_a_submitted_jobs_command_has_its_place() -> None:
    nodes = [Node(cpus=4, gpus=0)]
    require_places(run(beside=1), nodes, on_gpus=False, reserved=1.0)
    with pytest.raises(ConfigError, match=r"need 5 CPUs \(one is left to Ray Data, 2 kept for the job's command\)"):
        require_places(run(beside=1), nodes, on_gpus=False, reserved=2.0)


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_budget_that_ends_the_stream_needs_rows_in_turn(action: str) -> None:
    asked = {"max_forgetting": 5.0, "on_forgetting": action}
    run(**asked)
    with pytest.raises(ConfigError, match=f"on_forgetting is {action}, which needs a row before the next task begins"):
        run(beside=1, **asked)
    run(beside=1, max_forgetting=5.0)  # a warning may come later


@pytest.mark.parametrize("label", ["eval", "=eval", "ray-subcluster=", ""])
def test_a_label_is_a_key_and_a_value(label: str) -> None:
    with pytest.raises(ConfigError, match="write labels as KEY=VALUE"):
        run(beside=1, beside_labels=(label,))


def test_trials_of_a_sweep_are_scored_in_turn() -> None:
    scored_for_choice(run(), SweepOptions(), ())
    with pytest.raises(ConfigError, match=r"evaluation\.beside takes places in the cluster"):
        scored_for_choice(run(beside=1), SweepOptions(), ())
