"""A node that is about to be taken away: the run on it leaves a checkpoint first."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2

from components.core.errors import StreamStopped
from components.core.events import Event, Note, StepDone
from components.core.ray_session import ray_session
from components.training.config import ClusterConfig, RunConfig
from components.training.driver import run_stream
from components.training.plan import plan_stream
from pipelines.presets import pocket


@pytest.mark.long
def test_a_run_on_a_drained_node_stops_at_a_checkpoint(tmp_path: Path) -> None:
    preset = pocket()
    config = RunConfig(
        run_id="drained",
        storage=tmp_path,
        stream=replace(preset.stream, order=("chartqa",)),
        backbone=preset.backbone,
        training=replace(preset.training, updates_per_task=500, checkpoint_every_updates=400),
        evaluation=replace(preset.evaluation, zero_shot=False),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
    )
    plan, seen = plan_stream(config), list[Event]()

    def handle(event: Event) -> None:
        if isinstance(event, StepDone) and not any(isinstance(each, StepDone) for each in seen):
            reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
            deadline_ms = int((time.time() + 60) * 1000)
            node = ray.get_runtime_context().get_node_id()
            taken, _ = global_worker.gcs_client.drain_node(node, reason, "taken back", deadline_ms)
            assert taken
        seen.append(event)

    with ray_session(None, num_workers=1), pytest.raises(StreamStopped, match="the same command continues it"):
        run_stream(plan, handle)
    assert any("about to be taken away" in event.text for event in seen if isinstance(event, Note))
    made = max(event.update for event in seen if isinstance(event, StepDone))
    assert made < 400
    (checkpoint,) = plan.run_dir.glob("checkpoint_*/state.json")
    assert f'"update": {made}' in checkpoint.read_text()
