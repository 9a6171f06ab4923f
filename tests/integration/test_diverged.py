"""A run whose loss is no number any more: updates are skipped and told, then a sentence names the rows and ends it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.data.stream_config import StreamConfig
from components.data.streams import open_stream

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_a_run_that_diverges_skips_and_ends_in_one_sentence(tmp_path: Path) -> None:
    """Two workers, of which one has no test row to answer."""
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "wild"]
    command += ["--storage", str(tmp_path), "--stream.order", "docvqa", "--stream.test-limit", "1"]
    command += ["--cluster.num-workers", "2", "--training.epochs", "3", "--training.skip-bad-updates", "2"]
    # The first update multiplies what trains by -1e30; the second one's products are infinite.
    command += ["--training.optimizer.learning-rate", "1e15", "--training.optimizer.weight-decay", "1e15"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    told = re.findall(r"update (\d+) of task docvqa was skipped, because .* \((\d) of at most 2\)", ended.stdout)
    assert [count for _, count in told] == ["1", "2"]
    assert "Traceback" not in ended.stderr
    found = re.search(r"update (\d+) of task docvqa cannot be made, because .* its rows \((.*?)\), or", ended.stderr)
    assert found, ended.stderr
    assert int(found[1]) == int(told[1][0]) + 1
    stream = open_stream(StreamConfig(size="nano", order=("docvqa",)))
    known = {str(name) for name in stream.tasks[0].train.column("sample_id")}
    named = found[2].split(", ")
    assert len(set(named)) == len(named) == 8  # the whole batch, of both workers
    assert set(named) <= known
    assert pq.read_table(tmp_path / "wild" / "predictions").num_rows == 1
    assert not (tmp_path / "wild" / "finished.json").exists()
    assert json.loads((tmp_path / "wild" / "score_matrix.json").read_text())["rows"][0]["after"] == "zero-shot"
