"""The GPU proof from end to end, every part at tiny sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))

from prove import PARTS  # noqa: E402


@pytest.mark.long
def test_every_part_runs(tmp_path: Path) -> None:
    command = [sys.executable, "tests/gpu/prove.py", "--cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "proof.jsonl").read_text().splitlines()]
    assert [line for line in lines if "failed" in line or "not_run" in line] == []
    found = {part: [line["what"] for line in lines if line["part"] == part] for part in PARTS}
    assert found["equality"] == [f"{model}, {name}" for model in ("pocket", "llava") for name in METHODS]
    assert {name.split(",")[0] for name in found["methods"]} >= {"continual_llava", "lcia", "moelora"}
    assert {name.split(",")[1].strip() for name in found["zero"] if "ZeRO" in name} == {
        "ZeRO-0", "ZeRO-2", "ZeRO-3", "the random model",
    }  # fmt: skip
    assert all(found.values())
    (loop,) = [line for line in lines if line["what"] == "killed in task 2 and continued"]
    assert loop["equal_bits"] is True
    table = (tmp_path / "proof.md").read_text()
    assert [line.removeprefix("## ") for line in table.splitlines() if line.startswith("## ")] == list(PARTS)
    assert table in done.stdout
