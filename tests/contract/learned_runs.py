"""Runs of the toy tasks as the training loop leaves them on disk, learned in this process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from components.core.checkpoint import write_checkpoint
from components.evaluation.matrix import ScoreMatrix
from components.methods.base import Method, MethodConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.config import RunConfig
from tests.contract.toy_tasks import Toy, attached, learn, tiny_config

POCKET = BackboneConfig(name="pocket")


def learned_run(
    folder: Path,
    config: MethodConfig | str,
    toys: list[Toy],
    *,
    updates: int = 3,
    backbone_config: BackboneConfig = POCKET,
) -> tuple[Path, Method, Backbone]:
    """Learn `toys`, the first of the stream's two tasks or both, and write a run's folder with a checkpoint after each.

    Also gives the method as it is at the end, and its backbone.
    """
    method_config = tiny_config(config) if isinstance(config, str) else config
    run = RunConfig(run_id="toys", storage=folder, backbone=backbone_config, method=method_config)
    backbone = load_backbone(backbone_config)
    method = attached(method_config, backbone)
    path, names = folder / "toys", ["colours", "opposites"]
    for number, toy in enumerate(toys, start=1):
        learn(method, backbone, toy, updates=updates, rate=max(1e-2, method_config.default_learning_rate))
        state = method.state_dict(backbone)
        checkpoint = path / "checkpoints" / f"{number:02d}-{toy.info.name}"
        checkpoint.mkdir(parents=True)
        content = {
            "backbone": backbone.fingerprint,
            "method": method_config.name,
            "stream": "0" * 64,
            "method_structure": state.structure,
            "config": run.to_json(),
            "stream_name": "toys",
            "tasks": names,
            "stream_state": {"index": number - 1, "update": updates, "learned": True, "rows": []},
        }
        write_checkpoint(checkpoint, content, {"method": state.tensors})
    (path / "config.json").write_text(json.dumps({**run.to_json(), "stream_digest": "0" * 64, "stream_name": "toys"}))
    rows: list[list[float | None]] = [[60.0, 10.0], [50.0, 80.0]]
    ScoreMatrix(names, rows[: len(toys)], zero_shot=False).write(
        path / "score_matrix.json", stream="toys", method=method_config.name, backbone="pocket", seed=0
    )
    return path, method, backbone


def told(toy: Toy, task: str) -> Toy:
    """The toy with a task's name in its batches."""
    return replace(toy, batch=replace(toy.batch, oracle_task=task), prompts=replace(toy.prompts, oracle_task=task))
