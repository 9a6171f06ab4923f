"""Published streams, prepared from tiny trees in the releases' layouts, are learned by the real loop.

python -m pytest tests/integration/test_benchmarks.py                   # COAST's domains
python -m pytest tests/integration/test_benchmarks.py --every-stream
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import benchmark_trees as trees
import pytest

from components.core.ray_session import ray_session
from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.stream_config import StreamConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.tracking.config import TrackingConfig
from components.training.config import EvaluationConfig, RunConfig, TrainingConfig
from components.training.driver import run_stream
from components.training.plan import plan_stream
from pipelines.presets import pocket

pytestmark = pytest.mark.long  # streams of these layouts are prepared by unit tests

TREES = {
    "coast-domain": (trees.chartqa, trees.docvqa, trees.iconqa, trees.pathvqa),
    "coin": (trees.coin,),
    "trace": (trees.trace,),
    "coast-capability": (trees.svit,),
    "coast-dataset": (trees.coin,),
    "ucit": (trees.ucit,),
    "mllm-dcl": (trees.mllm_cl,),
    "mllm-acl": (trees.mllm_cl_abilities,),
    "vqacl": (trees.vqacl,),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--every-stream")
    metafunc.parametrize("name", TREES if every else ("coast-domain",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    """Two updates of one row a task."""
    run = replace(
        pocket(),
        storage=tmp_path_factory.mktemp("benchmarks"),
        method=SequentialLoraConfig(rank=4),
        training=TrainingConfig(global_batch_size=1, updates_per_task=2),
        evaluation=EvaluationConfig(zero_shot=False),
        tracking=TrackingConfig(enabled=False),
    )
    with ray_session(None, num_workers=run.cluster.num_workers):
        yield run


def test_it_is_prepared_and_learned(name: str, base: RunConfig) -> None:
    root, out = base.storage / f"{name}-raw", base.storage / f"{name}-prepared"
    for make in TREES[name]:
        make(root)
    report = prepare_benchmark(BENCHMARKS[name], root, out)
    assert report.refused is None
    plan = plan_stream(replace(base, run_id=name, stream=StreamConfig(name=str(out))))
    assert tuple(plan.stream.task_names) == BENCHMARKS[name].task_names
    matrix = run_stream(plan, lambda _: None).matrix
    assert matrix.after == list(BENCHMARKS[name].task_names)
    assert all(score is not None for score in matrix.rows[-1])
    assert sum(1 for _ in Path(plan.run_dir / "predictions").glob("*.parquet")) == len(matrix.after)
