"""Storage that fills up, files damaged after a kill, a folder that moves: the same command ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint_bits import learned_bits
from small_storage import grow, tmpfs

from components.core.checkpoint import read_checkpoint, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
LIST = "checkpoint_manager_snapshot.json"
FULL = re.compile(
    r"error: \S+ cannot be written( \(No space left on device, .*\); make room there and give the same command again)?"
    r"; this run needs about .* more there, and .* are free\."
)
# Nothing of a traceback, and none of Ray Train's and rich's frames and prefixes.
NOISE = re.compile(r"Traceback|^[╭│╰┏┃┗+|]|^\*\*\* |^\(\w[^)]*(pid|raylet)|^\s+File ", re.MULTILINE)


def command(storage: Path, tracked_in: Path) -> list[str]:
    return [
        *(sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora"),
        *("--stream.order", "chartqa", "docvqa", "--training.epochs", "6", "--training.checkpoint-every-updates", "2"),
        *("--storage", str(storage), "--run-id", "r", "--tracking.uri", f"sqlite:///{tracked_in / 'mlflow.db'}"),
    ]


def start(given: list[str], said: Path) -> subprocess.Popen[bytes]:
    with said.with_suffix(".out").open("wb") as out, said.with_suffix(".err").open("wb") as err:
        return subprocess.Popen(given, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)


def finish(given: list[str], said: Path) -> str:
    """Run the command to its end, which must be a good one; what it printed, in one line."""
    code = start(given, said).wait(timeout=300)
    errors = said.with_suffix(".err").read_text()
    assert code == 0, errors[-3000:]
    return " ".join((said.with_suffix(".out").read_text() + errors).split())


def checkpoints(run: Path) -> list[Path]:
    """Ray Train's whole ones, the oldest first."""
    return sorted(file.parent for file in run.glob("checkpoint_2*/state.json"))


def update_of(folder: Path) -> tuple[int, int]:
    at = json.loads((folder / "state.json").read_text())["stream_state"]
    return at["index"], at["update"]


def in_second_task(run: Path) -> bool:
    try:
        return any(update_of(folder) > (1, 2) for folder in checkpoints(run))
    except FileNotFoundError:  # Ray Train removes old ones
        return False


def wait_for_second_task(process: subprocess.Popen[bytes], run: Path, said: Path) -> None:
    while not in_second_task(run):
        assert process.poll() is None, said.with_suffix(".err").read_text()[-3000:]
        time.sleep(0.02)


def fill(folder: Path, process: subprocess.Popen[bytes], left: int) -> int:
    """Be the other user of a storage who fills it to the last `left` bytes, until the command ends; its exit code."""
    began = time.monotonic()
    with (folder / "others").open("ab", buffering=0) as file:
        while process.poll() is None and time.monotonic() - began < 200:
            free = shutil.disk_usage(folder).free
            if free > left:
                try:
                    file.write(bytes(free - left))
                except OSError:
                    continue  # the run was quicker
            time.sleep(0.01)
    return process.wait(timeout=10)


def last_sentence(said: Path) -> str:
    """The last line of stderr, of which all is checked to be free of tracebacks and tables."""
    errors = said.with_suffix(".err").read_text()
    assert not NOISE.search(errors), errors
    return errors.splitlines()[-1]


def as_in_earlier_versions(run: Path) -> None:
    """Each checkpoint with all of its tensors in its own folder, and no others."""
    for folder in [*run.glob("checkpoints/*"), *checkpoints(run)]:
        found, old = read_checkpoint(folder, run), folder.with_name(f"{folder.name}-old")
        old.mkdir()
        write_checkpoint(old, found.state, found.tensors)
        shutil.rmtree(folder)
        old.rename(folder)
    shutil.rmtree(run / "tensors")


def bits(run: Path) -> dict[str, str]:
    """What a run ends with: the method after each task, matrices, predictions."""
    patterns = ("*_matrix.json", "predictions/*.parquet", "manifest.json")
    files = [file for pattern in patterns for file in run.glob(pattern)]
    found = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return found | {name: json.dumps(tensors, sort_keys=True) for name, tensors in learned_bits(run).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(command(folder / "runs", folder), folder / "said")
    found = bits(folder / "runs" / "r")
    assert len(found) == 2 + 3 + 3 + 1
    return found


@pytest.mark.long
def test_a_storage_that_fills_up_costs_a_sentence(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    said = tmp_path / "said"
    with tmpfs(tmp_path / "runs", "4m") as storage:
        given, run = command(storage, tmp_path), storage / "r"
        process = start(given, said)
        wait_for_second_task(process, run, said)
        assert fill(storage, process, 30_000) == 1  # half a checkpoint
        assert FULL.fullmatch(last_sentence(said)), last_sentence(said)
        index, update = update_of(checkpoints(run)[-1])
        assert not list(run.glob(".*.partial"))
        grow(storage, "12m")
        told = finish(given, said)
        assert f"continuing at task {index + 1} of 2, update {update}" in told
        assert "is damaged" not in told
        assert bits(run) == undisturbed


@pytest.mark.long
def test_mlflow_in_the_same_full_storage(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with tmpfs(tmp_path / "runs", "8m") as storage:
        process = start(command(storage, storage), said)
        wait_for_second_task(process, storage / "r", said)
        began = time.monotonic()
        assert fill(storage, process, 0) == 1
        assert time.monotonic() - began < 100  # not the 120 s that a store is given which only does not answer
        assert FULL.fullmatch(last_sentence(said)), last_sentence(said)
        assert checkpoints(storage / "r")


@pytest.mark.long
def test_killed_damaged_moved_and_cut(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    said, run = tmp_path / "said", tmp_path / "runs" / "r"
    process = start(command(tmp_path / "runs", tmp_path), said)
    wait_for_second_task(process, run, said)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    moved = tmp_path / "elsewhere" / "deeper"
    moved.parent.mkdir()
    (tmp_path / "runs").rename(moved)
    run = moved / "r"
    older, newest = checkpoints(run)[-2:]
    at, lost = update_of(older), update_of(newest)[1] - update_of(older)[1]
    as_in_earlier_versions(run)
    os.truncate(newest / "method.safetensors", 1000)
    os.truncate(run / LIST, 100)

    told = finish(command(moved, tmp_path), said)
    sentence = rf"{newest.name} of run r is damaged \(.*\) \(and 1 more\); the run continues from {older.name}, and"
    assert re.search(rf"{sentence} {lost} updates are made again", told), told[:3000]
    assert f"continuing at task {at[0] + 1} of 2, update {at[1]}" in told
    assert bits(run) == undisturbed

    cut = run / "predictions" / "02-docvqa.parquet"
    os.truncate(cut, cut.stat().st_size // 2)
    told = finish(command(moved, tmp_path), said)
    assert "predictions/02-docvqa.parquet" in told
    assert bits(run) == undisturbed
    assert (run / "finished.json").is_file()
