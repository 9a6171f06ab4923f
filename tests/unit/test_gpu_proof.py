"""The GPU proof's own machinery, which needs no GPU: failures, budgets, the table, the archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("gpu", "contract")]

import prove  # noqa: E402
from proof_equality import Seen, differences, require_equal  # noqa: E402
from proof_record import NotRun, Record, failures, markdown, read_lines  # noqa: E402


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "proof.jsonl", "speed", deadline=time.time() + 60)


def test_a_failure_is_a_line_and_the_rest_goes_on(record: Record) -> None:
    with record.measuring("first", budget_s=5) as facts:
        facts["rows"] = 3
        raise ValueError("two\nlines")
    with record.measuring("second", budget_s=5) as facts:
        facts["rows"] = 1234
    first, second = read_lines(record.path)
    assert (first["failed"], first["rows"]) == ("ValueError: two lines", 3)
    assert second["rows"] == 1234
    assert failures([first, second]) == [first]


def test_a_measurement_ends_with_its_budget(record: Record) -> None:
    started = time.monotonic()
    with record.measuring("endless", budget_s=1):
        while True:
            time.sleep(0.01)
    assert time.monotonic() - started < 10
    (line,) = read_lines(record.path)
    assert line["failed"] == "TimeoutError: it took more than its 1 s"


def test_what_cannot_be_measured_is_no_failure(record: Record) -> None:
    with record.measuring("absent", budget_s=5):
        raise NotRun("a package is not installed")
    late, began = Record(record.path, "late", deadline=time.time()), []
    with late.measuring("late", budget_s=5):
        time.sleep(5)
        began.append(1)
    assert [line["not_run"] for line in read_lines(record.path)] == ["a package is not installed", "no time was left"]
    assert not failures(read_lines(record.path))
    assert not began


def test_a_half_written_line_is_left_out(record: Record) -> None:
    record.say("whole", rows=1)
    with record.path.open("a") as file:
        file.write('{"part": "speed", "wh')
    assert [line["what"] for line in read_lines(record.path)] == ["whole"]


def test_the_table_has_a_dash_where_there_is_no_figure() -> None:
    lines = [
        {"part": "card", "what": "copy", "tb_s": 4.125, "at": 1.0},
        {"part": "steps", "what": "ours", "step_s": [0.2, 0.19, 0.21], "peak_gib": None, "at": 2.0},
        {"part": "steps", "what": "peft", "failed": "OutOfMemoryError: a | b", "at": 3.0},
    ]
    assert markdown(lines) == (
        "## card\n\n|  | tb s |\n| --- | --- |\n| copy | 4.12 |\n\n"
        "## steps\n\n|  | step s | peak gib | failed |\n| --- | --- | --- | --- |\n"
        "| ours | 0.2 [0.19, 0.21] | – | – |\n| peft | – | – | OutOfMemoryError: a \\| b |\n"
    )


def test_sides_that_differ_are_told_apart() -> None:
    one = Seen(losses=[2.0], gradients={"up": torch.ones(3)}, logits=[torch.ones(2)], replies=[[[1, 2]]])
    near = replace(one, losses=[2.0 + 1e-6], gradients={"up": torch.ones(3) + 1e-6})
    require_equal(differences(one, near))
    with pytest.raises(AssertionError, match=r"losses differ by 1\.0e-03$"):
        require_equal(differences(one, replace(one, losses=[2.002])))
    with pytest.raises(AssertionError, match="gradients differ by nan; replies differ"):
        require_equal(differences(one, replace(one, gradients={"up": torch.full((3,), torch.nan)}, replies=[[[1]]])))
    with pytest.raises(AssertionError, match="different parameters"):
        differences(one, replace(one, gradients={"down": torch.ones(3)}))


# Machines for deep learning have none of these, and the parts that train need none.
ABSENT = ("ray", "mlflow", "tyro", "deepspeed")
WITHOUT = f"""
import runpy, sys
for name in {ABSENT}:
    sys.modules[name] = None  # importing it is an ImportError from here on
sys.argv = ["prove.py", "--cpu", "--out", sys.argv[1], "--only", "waits", "zero", "loop"]
runpy.run_path("tests/gpu/prove.py", run_name="__main__")
"""


@pytest.mark.long
def test_it_trains_from_its_archive_without_what_may_be_missing(tmp_path: Path) -> None:
    """The archive is all it finds: a file that it needs and that was not packed would show."""
    archive = tmp_path / "new" / "folder" / "gpu-proof.tar.gz"
    command = [sys.executable, "tests/gpu/prove.py", "--pack", str(archive.parent)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip download" in said
    assert archive.stat().st_size < 60e6
    with tarfile.open(archive) as tar:
        assert not [name for name in tar.getnames() if "__pycache__" in name]
        tar.extractall(tmp_path)  # our own archive; the argument `filter` came with Python 3.11.4
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "out")]
    place = tmp_path / "gpu-proof"
    done = subprocess.run(command, cwd=place, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "proof.jsonl").read_text().splitlines()]
    absent = {line["part"]: line["not_run"] for line in lines if "not_run" in line}
    assert absent == {"zero": "deepspeed is not installed", "loop": "ray, tyro, mlflow, deepspeed are not installed"}
    assert {line["what"] for line in lines if line["part"] == "waits"} >= {"sequential_lora", "lcia", "moelora"}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("PyTorch sees a GPU")
    done = subprocess.run([sys.executable, "tests/gpu/prove.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("PyTorch sees no GPU here; --cpu runs every part at tiny sizes.")


OTHER_PARTS = """
import os, time

def works(record, scale, folder):
    record.say("fine", device=scale.device, made=folder.is_dir())

def raises(record, scale, folder):
    record.say("before", rows=1)
    raise RuntimeError("no such kernel")

def dies(record, scale, folder):
    os._exit(3)

def hangs(record, scale, folder):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


def test_parts_that_raise_die_or_hang_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_parts.py").write_text(OTHER_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(prove, "GRACE_S", 0.5)
    names = ["raises", "dies", "hangs", "works"]
    for name in names:
        monkeypatch.setitem(prove.PARTS, name, prove.Part(work=f"other_parts:{name}", budget_s=2.0))
    assert prove.prove(tmp_path / "out", names, seconds=60, cpu=True) == 1
    said = [(line["part"], line["what"], line.get("failed")) for line in read_lines(tmp_path / "out" / "proof.jsonl")]
    assert sorted(said, key=lambda each: names.index(each[0])) == [
        ("raises", "before", None),
        ("raises", "–", "RuntimeError: no such kernel"),
        ("dies", "–", "its process ended with 3"),
        ("hangs", "–", "its process was ended, because it took 0.5 s more than it may"),
        ("works", "fine", None),
    ]
    table = (tmp_path / "out" / "proof.md").read_text()
    assert table.index("## raises") < table.index("## hangs") < table.index("| fine | cpu | yes |")
