"""The whole job on tiny checkpoints on disk, one of each kind of family: killed in task 2, continued to equal bits.

    python -m pytest tests/integration/test_families_under_ray.py                 # Qwen2.5-VL
    python -m pytest tests/integration/test_families_under_ray.py --every-family   # all five

One Ray session serves all of them; each run goes through `coast.py`'s own `main`, tracking and console included.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from checkpoint_bits import learned_bits

from components.core.errors import LostError
from components.core.ray_session import ray_session
from pipelines import coast, prepare
from tests.families import tiny

UPDATES = 6  # of a task
TIMEOUT_S = 300
SHORT = (
    *("--training.epochs", "1", "--training.updates-per-task", str(UPDATES), "--training.global-batch-size", "4"),
    *("--training.checkpoint-every-updates", "2", "--evaluation.limit", "3", "--evaluation.no-zero-shot"),
    *("--evaluation.no-oracle-routing", "--backbone.max-length", "4096"),
)
PICTURES = ("--stream.order", "chartqa", "docvqa")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and a method of another kind for each, so that what they carry differs too."""

    method: str
    options: tuple[str, ...] = ()


CASES = {
    "llava": Case(method="eproj", options=("--method.sentence-encoder", "hash")),
    "qwen2_5_vl": Case(method="hide", options=("--method.sentence-encoder", "hash")),
    "smolvlm": Case(method="ewc", options=("--training.cache-features", "off")),
    "internvl": Case(
        method="dual-prompt", options=("--method.sentence-encoder", "hash", "--method.expert-layers", "2-2")
    ),
    "qwen3": Case(method="keep-lora"),
}


ALWAYS = ("qwen2_5_vl",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--every-family")
    metafunc.parametrize("name", CASES if every else ALWAYS)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LITTORAL_CACHE", str(folder / "cache"))
        with ray_session(None, num_workers=1):
            yield folder


@pytest.fixture(scope="module")
def words(storage: Path) -> Path:
    """Two tasks without pictures, as a user would bring them."""
    described = ['name = "words"']
    for task, answers in {"colour": ("red", "green", "blue"), "size": ("large", "small", "tiny")}.items():
        for split in ("train", "test"):
            turns = [
                [{"from": "human", "value": f"Say {word} {number}"}, {"from": "gpt", "value": word}]
                for number, word in enumerate(answers * 4)
            ]
            items = [{"id": f"{split}-{number}", "conversations": each} for number, each in enumerate(turns)]
            (storage / f"{task}-{split}.json").write_text(json.dumps(items))
        files = [f'{split} = "{storage / f"{task}-{split}.json"}"' for split in ("train", "test")]
        described += ["[[task]]", f'name = "{task}"', *files, 'metric = "exact"', "max_new_tokens = 4"]
    (storage / "words.toml").write_text("\n".join(described))
    assert prepare.main([str(storage / "words.toml"), "--out", str(storage / "words")]) == 0
    return storage / "words"


@pytest.mark.long
@pytest.mark.shows("resume", kind="killed")
def test_killed_in_the_second_task_and_continued(
    name: str, storage: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    case, folder = CASES[name], tiny.write(name, storage / name)
    stream = ("--stream.name", str(request.getfixturevalue("words"))) if name == "qwen3" else PICTURES
    command = ["pocket", "--method", case.method, *case.options, *stream, *SHORT, "--backbone.name", str(folder)]
    command += ["--storage", str(storage)]
    assert coast.main([*command, "--run-id", f"{name}-whole"]) == 0
    with pytest.raises(LostError), worker_killed_in_second_task(storage / f"{name}-killed"):
        coast.main([*command, "--run-id", f"{name}-killed", "--cluster.max-failures", "0"])
    capfd.readouterr()
    assert coast.main([*command, "--run-id", f"{name}-killed"]) == 0
    assert re.search(r"continuing at task 2 of 2, update [246]", capfd.readouterr().out)
    whole, killed = storage / f"{name}-whole", storage / f"{name}-killed"
    assert len(learned_bits(whole)) == 2
    assert learned_bits(killed) == learned_bits(whole)
    assert predictions(killed) == predictions(whole)
    assert len(predictions(whole)) == 3 + 6


def predictions(run: Path) -> list[dict[str, object]]:
    """Every reply, in an order of its own."""
    rows = pq.read_table(run / "predictions").to_pylist()
    return sorted(rows, key=lambda row: (row["after"], row["sample_id"]))


@contextmanager
def worker_killed_in_second_task(run: Path) -> Iterator[None]:
    """While open: SIGKILL for the training worker as soon as Ray Train has a checkpoint from inside task 2."""
    watcher = threading.Thread(target=_kill_in_second_task, args=(run,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        watcher.join(timeout=TIMEOUT_S)


def _kill_in_second_task(run: Path) -> None:
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        try:
            latest = json.loads((run / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
        except (json.JSONDecodeError, FileNotFoundError):  # being written, or not there yet
            latest = None
        if latest and latest["metrics"]["task"] == 1 and latest["metrics"]["update"]:
            for process in psutil.Process().children(recursive=True):
                if "LocalWorker" in "".join(process.cmdline()):
                    process.kill()
            return
        time.sleep(0.02)
