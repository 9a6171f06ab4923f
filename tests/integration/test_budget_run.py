"""A task that costs the earlier ones too much ends the run with exit code 3, is rolled back, and is accepted later."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("chartqa", "docvqa", "iconqa")


@pytest.mark.long
def test_a_task_is_rolled_back_then_accepted(tmp_path: Path) -> None:
    run_dir = tmp_path / "gate"

    def coast(*budget: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "gate"]
        command += ["--storage", str(tmp_path), "--stream.order", *TASKS, "--training.epochs", "6"]
        # At this rate the first task is learned well enough to be forgotten.
        command += ["--training.optimizer.learning-rate", "0.02", *budget]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    def matrix() -> list[dict[str, float | None]]:
        return [row["scores"] for row in json.loads((run_dir / "score_matrix.json").read_text())["rows"]]

    def folders(name: str) -> list[str]:
        return sorted(path.name for path in (run_dir / name).iterdir())

    ended = coast("--max-forgetting", "0", "--on-forgetting", "rollback")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    before = matrix()
    lost = (before[1]["chartqa"] or 0.0) - (before[2]["chartqa"] or 0.0)
    assert lost > 0.0
    assert ended.stderr.splitlines()[-1].startswith(
        f"error: after docvqa the earlier tasks have lost {lost:.2f} points"
    )
    assert (len(before), folders("checkpoints"), folders("rejected")) == (3, ["01-chartqa"], ["02-docvqa"])
    went_on = coast("--max-forgetting", "100", "--on-forgetting", "rollback")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert matrix()[:3] == before
    assert (folders("checkpoints"), folders("rejected")) == (["01-chartqa", "02-docvqa", "03-iconqa"], [])
    assert (run_dir / "finished.json").is_file()
    link = json.loads((run_dir / "mlflow.json").read_text())
    recorded = MlflowClient(link["store"]).get_run(link["run_id"])
    assert recorded.info.status == "FINISHED"
    assert "within the 100 that" in recorded.data.tags["forgetting_budget"]
