"""PathVQA: open and yes/no questions about pictures from pathology textbooks; COAST's `medicalqa`.

**Get it**: the Parquet release huggingface.co/datasets/flaviagiammarino/path-vqa.

    ROOT/path-vqa/data/{train,validation,test}-*.parquet

Columns: `image` (struct of `bytes` and `path`), `question`, `answer`.

**Counts**: train 19,654, validation 6,259, test 6,719 (this release; the original says 19,755, 6,279 and 6,761 before
duplicates were dropped). **Licence**: MIT for the questions; the pictures belong to the books' publishers.
**Metric**: exact match.

**Traps**: the original release is a pickle, and unpickling runs whatever code is in it: it is refused. Half of the
answers are yes or no, so 50 % there is chance level. Several pictures are CMYK. Items have no id: ours is part and
place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from components.core.errors import DataError
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import answers_of, find, parquet_rows, picture_bytes, roots, text_of
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.formats.sources import require_shards
from components.data.problems import Problem

LICENCE = "MIT (questions); the pictures belong to the books' publishers"
GET = "huggingface.co/datasets/flaviagiammarino/path-vqa"
LAYOUT = "path-vqa/data/{train,validation}-*.parquet"
COLUMNS = ("image", "question", "answer")


def read_pathvqa(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one part; raises `DataError` at once when its files are missing or the original pickles."""
    part = task.part(side).source
    folders = roots("path-vqa", "path_vqa", "PathVQA", "pathvqa")
    try:
        first = find(root, [f"{base}{data}{part}-*.parquet" for base in folders for data in ("data/", "")], LAYOUT)
    except DataError:
        _refuse_pickles(root, folders)
        raise
    folder = (root / first).parent
    files = [path.relative_to(root).as_posix() for path in sorted(folder.glob(f"{part}-*.parquet"))]
    require_shards(str(folder), [file.rpartition("/")[2] for file in files])
    return _items(root, files, task, part)


def _refuse_pickles(root: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        pickles = sorted((root / folder).glob("*.pkl")) + sorted((root / folder).glob("*/*/*.pkl"))
        if pickles:
            raise DataError(
                f"{pickles[0]} belongs to the original PathVQA release, whose pickles run code when they are opened; "
                f"download the Parquet release huggingface.co/datasets/flaviagiammarino/path-vqa to {LAYOUT}."
            )


def _items(root: Path, files: list[str], task: TaskSpec, part: str) -> Iterator[RawItem | Problem]:
    before = 0
    for file in files:

        def parse(number: int, item: dict[str, object], before: int = before) -> Iterator[RawItem]:
            answers = answers_of(item, "answer")
            yield RawItem(
                item_id=f"{part}-{before + number}",
                turns=question_and_answer("\n".join((text_of(item, "question"), *task.prompts)), answers[0]),
                answers=answers,
                data=picture_bytes(item.get("image")),
            )

        yield from parsed(file, enumerate(parquet_rows(root, file, COLUMNS), start=1), parse)
        before += pq.ParquetFile(root / file).metadata.num_rows
