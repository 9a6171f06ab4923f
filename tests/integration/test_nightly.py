"""A service that keeps learning: it is asked all the time while nights are refused, killed, accepted and given again.

python -m pytest tests/integration/test_nightly.py -m long
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from local_servers import free_ports
from mlflow import MlflowClient
from openai import OpenAI

from components.data.rows import Row
from components.data.streams import open_stream
from components.runs.results import read_run
from components.tracking.config import sqlite_uri
from tests.unit.test_serving_requests import url

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
LEARNED, HARMFUL, GOOD = "chartqa", "docvqa", "iconqa"
ROWS, BUDGET = 24, "10"
# At this rate a task is learned well enough to be forgotten, and the next one forgets it.
FAST = ("--training.epochs", "6", "--training.optimizer.learning-rate", "0.02")
GENTLE = ("--training.epochs", "1", "--training.optimizer.learning-rate", "0.0002")
DRAWN = {"temperature": 1.5, "seed": 7, "max_tokens": 48}
RUN = ("pocket", "--method", "sequential-lora", "--run-id", "first", "--stream.order", LEARNED, *FAST)
RUN = (*RUN, "--evaluation.limit", str(ROWS), "--evaluation.no-zero-shot")


class Nights:
    """A storage with a run that is finished, and the commands that are given there."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        done = self.littoral("coast", *RUN)
        assert done.returncode == 0, done.stderr[-2000:]
        self.client = MlflowClient(sqlite_uri(storage / "mlflow.db"))

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.littoral", name, *arguments, "--storage", str(self.storage)]

    def littoral(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(name, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)

    def night(self, task: str, *options: str) -> list[str]:
        given = ("--model", "shop", "--run-id", f"night-{task}", "--stream.order", task, "--max-forgetting", BUDGET)
        return self.command("nightly", *given, *options)

    def spend(self, task: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.night(task, *options), cwd=ROOT, capture_output=True, text=True, timeout=300)

    def production(self) -> tuple[str, str]:
        """Version and checkpoint that the alias names."""
        found = self.client.get_model_version_by_alias("shop", "production")
        return str(found.version), found.tags["checkpoint"].split("/runs/")[-1]

    def gate(self, task: str) -> dict[str, Any]:
        return json.loads((self.storage / f"night-{task}" / "gate.json").read_text())

    def predictions(self, run: str) -> dict[str, str]:
        """What a run answers at its end, by row."""
        found = pq.read_table(self.storage / run / "predictions").to_pylist()
        last = json.loads((self.storage / run / "score_matrix.json").read_text())["rows"][-1]["after"]
        return {row["sample_id"]: row["prediction"] for row in found if row["after"] == last}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    storage = tmp_path_factory.mktemp("nightly") / "runs"
    return Nights(storage)


class Asking:
    """Clients that ask rows of both tasks, one after another, until the scope ends."""

    def __init__(self, client: OpenAI, rows: list[tuple[Row, int]], clients: int) -> None:
        self._client, self._rows, self._ended = client, rows, threading.Event()
        self.seen: list[tuple[str, str | None]] = []  # checkpoint and version of each reply, in order
        self._pool = ThreadPoolExecutor(clients)
        self._asking = [self._pool.submit(self._ask, number) for number in range(clients)]

    def reply(self, row: Row, tokens: int, **options: Any) -> Any:
        parts: list[Any] = [{"type": "text", "text": row.instruction}]
        if row.image is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": url(row.image)}})
        return self._client.chat.completions.create(
            model="shop", messages=[{"role": "user", "content": parts}], **{"max_tokens": tokens, **options}
        )

    def texts(self, **options: Any) -> dict[str, str]:
        """A reply to each row, by its id."""
        found = {row.sample_id: self.reply(row, tokens, **options) for row, tokens in self._rows}
        return {name: reply.choices[0].message.content for name, reply in found.items()}

    def _ask(self, number: int) -> int:
        count = 0
        while not self._ended.is_set():
            reply = self.reply(*self._rows[(number * 7 + count) % len(self._rows)])
            self.seen.append((reply.littoral["checkpoint"], reply.littoral["version"]))
            count += 1
            time.sleep(0.05)  # a night learns on the same cores
        return count

    def end(self) -> int:
        """How many replies there were; raises what any request has raised."""
        self._ended.set()
        return sum(each.result() for each in self._asking)


@pytest.fixture
def asking(nights: Nights) -> Iterator[Asking]:
    (port,) = free_ports(1)
    command = nights.command("serve", "models:/shop@production", "--watch", "--port", str(port))
    log = nights.storage.parent / "serve.txt"
    first = nights.littoral("nightly", "--model", "shop", "--first", "first")
    assert "models:/shop@production is version 1 of shop (first/01-chartqa) from now on" in first.stdout, first.stderr
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, text=True)
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
    try:
        end = time.monotonic() + 240
        while "answers at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        config = read_run(nights.storage / "first").config.stream
        stream = open_stream(replace(config, order=(LEARNED, GOOD)))
        rows = [(row, task.max_new_tokens) for task in stream.tasks for row in task.test.rows(limit=ROWS)]
        asking = Asking(client, rows, clients=3)
        try:
            yield asking
        finally:
            asking._ended.set()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143, log.read_text()


def killed_while_it_learns(nights: Nights, task: str, *options: str) -> None:
    run = nights.storage / f"night-{task}"
    command = nights.night(task, *options)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (run / "origin.json").is_file() or "learning" not in activity(run):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def activity(run: Path) -> str:
    try:
        return (run / "activity.json").read_text()
    except OSError:
        return ""


def test_a_service_that_keeps_learning(nights: Nights, asking: Asking) -> None:
    before, drawn, known = asking.texts(), asking.texts(**DRAWN), nights.predictions("first")
    assert {name: before[name] for name in known} == known
    refused = nights.spend(HARMFUL, *FAST)
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert "the earlier tasks have lost" in refused.stderr.splitlines()[-1]
    said = nights.gate(HARMFUL)
    assert (said["gate"], said["version"], said["before"]) == ("rejected", None, f"first/01-{LEARNED}")
    lost = [
        row["scores"][LEARNED]
        for row in json.loads((nights.storage / f"night-{HARMFUL}" / "score_matrix.json").read_text())["rows"]
    ]
    assert lost[-2] - lost[-1] > float(BUDGET)
    assert nights.production() == ("1", f"first/checkpoints/01-{LEARNED}")
    assert nights.spend(HARMFUL, *FAST).returncode == 3, "the same night again ends as it did"
    assert set(asking.seen) == {(f"first/01-{LEARNED}", "shop/1")}

    killed_while_it_learns(nights, GOOD, *GENTLE)
    assert nights.production()[0] == "1"
    accepted = nights.spend(GOOD, *GENTLE)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert accepted.stdout.splitlines()[-1].startswith("accepted: models:/shop@production is version 2 of shop (night-")
    assert nights.production() == ("2", f"night-{GOOD}/checkpoints/02-{GOOD}")
    again = nights.spend(GOOD, *GENTLE)
    assert (again.returncode, again.stdout.count("\n")) == (0, 1), again.stderr
    assert f"run night-{GOOD} is done: accepted on " in again.stdout
    assert len(nights.client.search_model_versions("name = 'shop'")) == 2

    new, end = (f"night-{GOOD}/02-{GOOD}", "shop/2"), time.monotonic() + 60
    while [*asking.seen[-5:]] != [new] * 5:
        assert time.monotonic() < end, asking.seen[-5:]
        time.sleep(0.2)
    assert asking.end() == len(asking.seen), "none was lost"
    assert set(asking.seen) == {(f"first/01-{LEARNED}", "shop/1"), new}
    assert asking.texts() == nights.predictions(f"night-{GOOD}")
    assert asking.texts(**DRAWN) != drawn, "what is likely to be said has changed"
