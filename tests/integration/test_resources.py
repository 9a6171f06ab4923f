"""Workers that a cluster cannot place are refused before a run has written anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import ray
from ray.train import RunConfig as RayRunConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from components.core.errors import ConfigError
from components.core.ray_access import loopback_only
from components.training.config import ClusterConfig, RunConfig
from components.training.deaths import explained, is_lost
from components.training.devices import with_labels
from components.training.pickled import PickledCallable
from components.training.resources import awaited_nodes, check_resources
from pipelines import coast


@pytest.fixture(scope="module", autouse=True)
def _one_cpu() -> Iterator[None]:
    """A cluster of one node with one CPU, in the group `train`."""
    with loopback_only():
        ray.init(address="local", num_cpus=1, labels={"ray-subcluster": "train"}, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ClusterConfig(),
            "1 worker needs 2 CPUs (one is left to reading data), the cluster has 1; add nodes, or tell Ray to count "
            "more CPUs: ray start --num-cpus 2.",
        ),
        (ClusterConfig(num_workers=2), "2 workers need 3 CPUs (one is left to reading data), the cluster has 1; lower"),
        (
            ClusterConfig(worker_labels=("ray-subcluster=gpu",)),
            "cluster.worker-labels asks for nodes with ray-subcluster=gpu, and the cluster has none; start one with "
            "--labels ray-subcluster=gpu, or leave out cluster.worker-labels.",
        ),
    ],
)
def test_what_cannot_be_placed_is_one_sentence(options: ClusterConfig, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_resources(RunConfig(cluster=options))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 worker needs 2 CPUs"):
        coast.main(["pocket", "--stream.order", "iconqa", "--run-id", "first", "--storage", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_nodes_that_read_may_come_later() -> None:
    assert awaited_nodes(ClusterConfig()) is None
    assert awaited_nodes(ClusterConfig(data_labels=("ray-subcluster=train",))) is None
    said = awaited_nodes(ClusterConfig(data_labels=("ray-subcluster=data",)))
    assert said is not None
    assert "ray-subcluster=data" in said


def test_a_task_is_placed_by_the_label() -> None:
    @ray.remote
    def nothing() -> str:
        return "done"

    there = nothing.options(label_selector=with_labels(("ray-subcluster=train",))).remote()
    elsewhere = nothing.options(label_selector=with_labels(("ray-subcluster=data",))).remote()
    assert ray.wait([elsewhere, there], num_returns=1, timeout=200) == ([there], [elsewhere])


@pytest.mark.long
def test_a_node_without_a_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that this process has and no worker: the train function, or what it is to do, cannot be read there."""
    module = ModuleType("only_here")
    exec("def work():\n    pass", module.__dict__)  # of that module, so that it is pickled as a reference
    monkeypatch.setitem(sys.modules, "only_here", module)
    for number, function in enumerate((lambda pickled: pickled(), module.work)):
        trainer = TorchTrainer(
            function,
            train_loop_config=PickledCallable(module.work) if number == 0 else None,  # type: ignore[arg-type]
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RayRunConfig(name=f"run{number}", storage_path=str(tmp_path)),
        )
        with pytest.raises(Exception, match="only_here") as failed:
            trainer.fit()
        said = explained(failed.value, tmp_path, logs=None)
        assert not is_lost(failed.value)
        assert isinstance(said, ConfigError)
        assert "a node of the run cannot import the Python package 'only_here'" in str(said)
        assert "\n" not in str(said)
