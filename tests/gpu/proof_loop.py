"""The real loop on the device: prepare, train, score under Ray, killed in the second task and continued."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from checkpoint_bits import learned_bits
from PIL import Image
from proof_record import Record, require
from proof_scale import Scale
from toy_tasks import COLOURS

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = {"colour": "Which colour is this?", "size": "Is this large or small?"}
ROWS = {"train": 32, "test": 4}
UPDATES = 8  # of a task: two epochs of 32 rows in batches of 8
OPTIONS = ["--method", "sequential_lora", "--training.epochs", "2", "--training.checkpoint-every-updates", "2"]
OPTIONS += ["--evaluation.no-zero-shot"]


def loop(record: Record, scale: Scale, folder: Path) -> None:
    """Whether a killed and continued run ends with the bits of an uninterrupted one."""
    require("ray", "tyro", "mlflow", "deepspeed")
    stream = _prepared(folder)
    with record.measuring("a run", budget_s=120) as facts:
        started = time.perf_counter()
        _finish(_start(scale, folder, stream, "whole"))
        facts["seconds"] = time.perf_counter() - started
    with record.measuring("killed in task 2 and continued", budget_s=150) as facts:
        started = time.perf_counter()
        facts["killed_at_update"] = _killed(scale, folder, stream)
        said = _finish(_start(scale, folder, stream, "killed"))
        facts["seconds"] = time.perf_counter() - started
        assert "continuing at task 2 of 2" in said, f"it did not continue inside task 2: {said[-300:]}"
        whole, killed = (_bits(folder / "runs" / run) for run in ("whole", "killed"))
        facts["equal_bits"] = whole == killed
        assert whole == killed, "the continued run ended with other weights or scores"


def _prepared(folder: Path) -> Path:
    """Two tasks of drawn pictures, described and prepared as a user's own data are."""
    pictures = folder / "shop" / "images"
    pictures.mkdir(parents=True)
    lines = ['name = "shop"']
    rows: dict[tuple[str, str], list[object]] = {(task, split): [] for task in QUESTIONS for split in ROWS}
    for split, count in ROWS.items():
        for number in range(count):
            colour, size = list(COLOURS)[number % len(COLOURS)], ("small", "large")[number // len(COLOURS) % 2]
            picture = Image.new("RGB", (64, 64), "white")
            side = 48 if size == "large" else 16
            picture.paste(COLOURS[colour], (number % 16, number % 16, number % 16 + side, number % 16 + side))
            picture.save(pictures / f"{split}-{number}.png")
            for task, reply in (("colour", colour), ("size", size)):
                asked = {"from": "human", "value": f"<image>\n{QUESTIONS[task]}"}
                turns = [asked, {"from": "gpt", "value": reply}]
                row = {"id": f"{split}-{number}", "image": f"{split}-{number}.png", "conversations": turns}
                rows[task, split].append(row)
    for task in QUESTIONS:
        for split in ROWS:
            (folder / "shop" / f"{task}-{split}.json").write_text(json.dumps(rows[task, split]))
        files = (f'{split} = "{folder}/shop/{task}-{split}.json"' for split in ROWS)
        lines += ["[[task]]", f'name = "{task}"', *files, f'images = "{pictures}"']
        lines += ['metric = "exact"', "max_new_tokens = 3"]
    (folder / "shop.toml").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "pipelines/prepare.py", str(folder / "shop.toml"), "--out", str(folder / "prepared")]
    done = subprocess.run(command, cwd=ROOT, env=_environment(folder), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr)[-300:]
    return folder / "prepared"


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LITTORAL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


def _start(scale: Scale, folder: Path, stream: Path, run: str) -> subprocess.Popen[str]:
    # DeepSpeed, the default, takes seconds to import, and `zero` has it on the CPU.
    device = ["--cluster.use-gpu", "true"] if scale.on_gpu else ["--training.engine", "torch"]
    command = [sys.executable, "pipelines/coast.py", "pocket", "--stream.name", str(stream), *OPTIONS, *device]
    command += ["--storage", str(folder / "runs"), "--run-id", run]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that the kill reaches all of its processes
    )


def _finish(process: subprocess.Popen[str]) -> str:
    try:
        said, _ = process.communicate(timeout=150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-300:]
    return said


def _killed(scale: Scale, folder: Path, stream: Path) -> int:
    """Start a run and kill it once Ray Train knows of a checkpoint inside task 2; that checkpoint's update."""
    process = _start(scale, folder, stream, "killed")
    known = folder / "runs" / "killed" / "checkpoint_manager_snapshot.json"
    try:
        while True:
            assert process.poll() is None, "the run ended before it could be killed"
            try:
                at = json.loads(known.read_text())["latest_checkpoint_result"]["metrics"]
            except (OSError, ValueError, TypeError):  # not there yet, or being written
                at = {"task": 0, "update": 0}
            if at["task"] == 1 and 0 < at["update"] < UPDATES:
                return int(at["update"])
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _bits(run: Path) -> dict[str, str]:
    """Digests of what the run ended with: the scores, and the method's tensors after every task."""
    found = {"score_matrix.json": hashlib.sha256((run / "score_matrix.json").read_bytes()).hexdigest()}
    return found | {name: repr(sorted(tensors.items())) for name, tensors in learned_bits(run).items()}
