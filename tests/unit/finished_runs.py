"""Folders as finished runs leave them."""

from __future__ import annotations

import json
from pathlib import Path

from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.evaluation.matrix import ScoreMatrix
from components.training.config import RunConfig

TASKS = ["docvqa", "iconqa"]
STREAM = StreamConfig(size="nano", order=tuple(TASKS))


def finished(folder: Path, config: RunConfig, rows: list[list[float | None]], *, zero_shot: bool = False) -> Path:
    path = folder / str(config.run_id)
    path.mkdir()
    digest, tasks = open_stream(config.stream).digest, list(config.stream.order)
    (path / "config.json").write_text(json.dumps({**config.to_json(), "stream_digest": digest}))
    ScoreMatrix(tasks, rows, zero_shot=zero_shot).write(
        path / "score_matrix.json", stream="s", method=config.method.name, backbone="smol", seed=config.seed
    )
    (path / "finished.json").write_text(json.dumps({"finished": "2026-01-02T03:04:05+00:00"}))
    return path
