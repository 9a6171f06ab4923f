"""Signals to commands that train nothing: one sentence, the exit code, and nothing half-written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from finished_runs import STREAM, TASKS, finished

from components.methods.sequential_lora import SequentialLoraConfig
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 15.0  # of a busy machine


def ended_by(number: signal.Signals, command: list[str], when: Callable[[], bool]) -> tuple[int, str]:
    """The exit code of a command that all its processes get a signal in, once `when` is true, and what it said last."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    asked = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - asked < SOON_S
    return process.returncode, said.decode()


def test_a_preparation_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    command = ["pipelines/prepare.py", "mini-coast-domain", "--out", str(out)]
    begun = [*command, "--size", "mini"]

    def is_writing() -> bool:
        return any(tmp_path.glob(".prepared.*.partial/*/*/*"))

    code, said = ended_by(signal.SIGTERM, begun, is_writing)
    assert (code, said) == (143, "terminated: nothing half-written is left; run the same command again\n")
    assert list(tmp_path.iterdir()) == []

    out.mkdir()
    (out / "stream.json").write_text("{}")  # a prepared folder, which this would replace
    code, said = ended_by(signal.SIGINT, begun, is_writing)
    assert (code, said) == (130, "interrupted: nothing half-written is left; run the same command again\n")
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    assert [path.name for path in out.iterdir()] == ["stream.json"]


def test_a_judge_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    config = RunConfig(run_id="a", stream=STREAM, method=SequentialLoraConfig(), tracking=TrackingConfig(enabled=False))
    run = finished(tmp_path, config, [[0.0, None], [0.0, 0.0]])
    (run / "predictions").mkdir()
    for number, (after, task) in enumerate([(TASKS[0], TASKS[0]), (TASKS[1], TASKS[0]), (TASKS[1], TASKS[1])]):
        row = {"after": after, "task": task, "prompt": "What?", "prediction": "cat", "answers": ["cat"]}
        rows = pa.Table.from_pylist([{**row, "metric": "exact", "sample_id": "0", "score": 0.0}])
        pq.write_table(rows, run / "predictions" / f"{number:02d}.parquet")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    asked: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def is_asking() -> bool:
            try:
                asked.append(server.accept()[0])  # and never answers
            except BlockingIOError:
                return False
            return True

        command = ["pipelines/judge.py", str(run), "--judge.kind", "endpoint", "--judge.model", "m"]
        command += ["--judge.base-url", f"http://127.0.0.1:{server.getsockname()[1]}/v1"]
        code, said = ended_by(signal.SIGTERM, command, is_asking)
    assert code == 143
    assert said == "terminated: run the same command again; it keeps the verdicts that it has\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
