"""TRACE: eight text-only tasks in three languages and in code, for continual learning of aligned models (2310.06762).

**Get it**: the archive "Trace Benchmark" that the README of github.com/BeyonderXX/TRACE links (Google Drive).

    ROOT/TRACE-Benchmark/LLM-CL-Benchmark_5000/TASK/{train.json, eval.json, test.json}

TASK: C-STANCE, FOMC, MeetingBank, Py150, ScienceQA, NumGLUE-cm, NumGLUE-ds, 20Minuten. Each file is a list of
`{"prompt", "answer"}`; the prompt carries its own instruction. Items have no id: ours is part and position in the file.

**Order**: as listed. **Counts**: 5,000 training rows a task, as counted by users; the paper says 2,000 test rows a
task, but held-out parts are smaller where the source is (NumGLUE-cm's `eval` has 41), so test sizes are not compared.
**Licence**: Apache-2.0 for the repository; each source has its own, which we did not establish.

**Metric**: as theirs: exact match for C-STANCE, FOMC and both NumGLUE, the letter for ScienceQA, ROUGE-L for
MeetingBank, an edit ratio for Py150 (its placeholders written out) and SARI for 20Minuten. Their scripts compare
character by character, ScienceQA by its first one: the compat variant (`metrics/released/trace.py`).

**Traps**: an answer of ScienceQA is its letter, a line break and the reasons, and only the letter counts in theirs.
The archive also has smaller variants, `_500` and `_1000`; the first lacks 20Minuten's `eval`. A ninth folder, Lima,
is for replay. Most transcripts of MeetingBank are longer than 1,024 tokens, where the published runs cut prompts on the
left. Their runs train 5, 3, 7, 5, 3, 5, 5 and 7 epochs and sample replies at temperature 0.1. There are no pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import answers_of, find, roots, text_of
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.formats.json_items import iter_items
from components.data.problems import Problem

LICENCE = "Apache-2.0 (repository); every source has its own"
GET = "the archive that github.com/BeyonderXX/TRACE links"
LAYOUT = "TRACE-Benchmark/LLM-CL-Benchmark_5000/TASK/{train.json, test.json}"
_VARIANT = "LLM-CL-Benchmark_5000"


def read_trace(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The items of one list; raises `DataError` at once when it is missing."""
    part = task.part(side).source
    folders = roots(f"TRACE-Benchmark/{_VARIANT}", f"TRACE/{_VARIANT}", _VARIANT)
    file = find(root, [f"{folder}{task.subset}/{part}" for folder in folders], LAYOUT)

    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem]:
        answers = answers_of(item, "answer")
        yield RawItem(
            item_id=f"{part.removesuffix('.json')}-{number}",
            turns=question_and_answer(text_of(item, "prompt"), answers[0]),
            answers=answers,
        )

    return parsed(file, iter_items(root / file), parse)
