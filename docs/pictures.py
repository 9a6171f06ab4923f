"""Draw the pictures of the README and of the pages again, from the records and from the embedded data.

    python docs/pictures.py

- images/RECORD.png: the score matrices of two recorded runs.
- images/TASK.png: the first test row of each task of mini-COAST's domain stream.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from components.evaluation.heatmap import draw_score_matrix  # noqa: E402
from components.evaluation.matrix import ScoreMatrix  # noqa: E402
from components.runs.results import read_run  # noqa: E402

RECORDS, IMAGES = ROOT / "docs" / "results" / "mini-coast-domain", ROOT / "docs" / "images"
BESIDE = {"sequential-lora-s0": "Sequential LoRA", "continual-llava-s0": "Continual LLaVA"}
TASKS = ("chartqa", "docvqa", "iconqa", "medicalqa")
SIDE, TEXT_HEIGHT = 300, 250  # pixels


def main() -> None:
    """Draw all."""
    for record, title in BESIDE.items():
        save(draw_score_matrix(learned(record), title), record)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stream"
        command = [sys.executable, "pipelines/prepare.py", "mini-coast-domain", "--size", "nano", "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for task in TASKS:
            save(sample(out / task / "test"), task)


def learned(record: str) -> ScoreMatrix:
    """The record's matrix without its zero-shot row, which not every run has."""
    matrix = read_run(RECORDS / f"{record}.json").matrix
    return ScoreMatrix(matrix.tasks, matrix.rows[matrix.has_zero_shot :], zero_shot=False)


def sample(split: Path) -> Image.Image:
    """The split's first row: picture, question, answer."""
    row = pq.read_table(sorted(split.glob("*.parquet"))[0]).slice(0, 1).to_pylist()[0]
    question, answer = (turn["value"] for turn in json.loads(row["conversations"]))
    card = Image.new("RGB", (SIDE, SIDE + TEXT_HEIGHT), "white")
    card.paste(ImageOps.fit(Image.open(io.BytesIO(row["image"])).convert("RGB"), (SIDE, SIDE)))
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(20)
    lines = [line for part in question.split("\n")[1:] for line in textwrap.wrap(part, 30)]
    draw.multiline_text((0, SIDE + 14), "\n".join([*lines, f"-> {answer}"]), fill="#1b2a33", font=font, spacing=8)
    return card


def save(picture: Image.Image, name: str) -> None:
    """Few colours, since the pictures are flat."""
    picture.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
