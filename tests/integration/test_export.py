"""A real run's export says what the run itself said: its recorded replies, from a bundle and from plain peft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

from components.data.rows import Row
from components.data.streams import open_stream
from components.exporting import Bundle, load_bundle
from components.models.embedded.pocket import pocket_model

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
TASKS = ("chartqa", "docvqa")
RUN = (
    *("pocket", "--method", "o-lora", "--run-id", "real", "--stream.order", *TASKS, "--training.epochs", "10"),
    *("--evaluation.limit", "6", "--evaluation.no-zero-shot", "--training.optimizer.learning-rate", "0.01"),
)


def littoral(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.littoral", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    littoral("coast", *RUN, "--storage", str(storage))
    return storage / "real"


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    said = littoral("export", str(run), "--to", "bundle", "--out", str(run.parent / "bundle"))
    assert "o_lora after task 2 (docvqa), as bundle" in said
    return load_bundle(run.parent / "bundle")


def replies(run: Path) -> dict[str, str]:
    """What the run said at its end, by sample."""
    rows = pq.read_table(run / "predictions").to_pylist()
    return {row["sample_id"]: row["prediction"] for row in rows if row["after"] == TASKS[-1]}


def asked(bundle: Bundle, known: dict[str, str]) -> list[tuple[Row, int]]:
    """The rows with a reply, and how many tokens it could have."""
    tasks = open_stream(bundle.config.stream).tasks
    rows = [(row, task.max_new_tokens) for task in tasks for row in task.test.rows() if row.sample_id in known]
    assert len(rows) == len(known) == 12
    return rows


def test_a_bundle_says_what_the_run_said(run: Path, bundle: Bundle) -> None:
    known = replies(run)
    assert len(set(known.values())) > 1
    for row, limit in asked(bundle, known):
        assert bundle.answer(row.instruction, row.image, max_new_tokens=limit).text == known[row.sample_id]


def test_plain_peft_says_what_the_run_said(run: Path, bundle: Bundle) -> None:
    folder = run.parent / "peft"
    said = littoral("export", str(run), "--to", "peft", "--out", str(folder))
    assert "checked: logits are within" in said
    model = PeftModel.from_pretrained(pocket_model(), str(folder)).eval()
    known = replies(run)
    for row, limit in asked(bundle, known):
        example = bundle.encoder.prompt_example(row)
        ids = example.input_ids.unsqueeze(0)
        pixels = example.pictures[0].tensors["pixel_values"] if example.pictures else None
        with torch.no_grad():
            found = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=limit, do_sample=False)
        assert bundle.encoder.decode(found[0, ids.shape[1] :]) == known[row.sample_id]
