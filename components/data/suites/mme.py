"""MME (2306.13394): fourteen subtasks of perception and cognition; two questions a picture, one yes and one no.

**Get it**: `MME_Benchmark_release_version`, from the authors on request
(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation).

    ROOT/[MME_Benchmark_release_version/[MME_Benchmark/]]SUBTASK/{NAME.jpg, NAME.txt}
    ROOT/[...]/SUBTASK/{images/NAME.jpg, questions_answers_YN/NAME.txt}

The second form is that of artwork, celebrity, landmark, posters and scene.
A text file holds one question a line, a tab, and Yes or No.

**Counts**: 2,374 questions over 1,187 pictures. **Licence**: for research; pictures not to be passed on. **Figures**:
per subtask accuracy plus accuracy+ (both questions of a picture right), summed to perception (up to 2,000) and
cognition (up to 800): `suite_figures.mme`.

**Traps**: the released script reads a reply's first four letters when they are no plain yes or no; ours reads the first
word yes or no. Some copies leave empty lines at the end of the text files.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.layout import find, homes
from components.data.benchmarks.raw import RawItem, question_and_answer
from components.data.reports import Problem
from components.data.suites.suite import row_id

LICENCE = "for research; pictures not to be passed on"
LAYOUT = "MME_Benchmark_release_version/SUBTASK/{NAME.jpg, NAME.txt}, or SUBTASK/{images, questions_answers_YN}/"
SUBTASKS = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
_SUFFIXES = (".jpg", ".png", ".jpeg")
_SPLIT = ("questions_answers_YN", "images")  # folders of the subtasks that keep texts and pictures apart


def read_mme(root: Path) -> Iterator[RawItem | Problem]:
    """All fourteen subtasks; raises `DataError` at the call when one is not there."""
    release = "MME_Benchmark_release_version"
    folders = homes(f"{release}/MME_Benchmark", release, f"MME/{release}/MME_Benchmark", f"MME/{release}", "MME")
    found = [find(root, [f"{folder}{subtask}" for folder in folders], LAYOUT) for subtask in SUBTASKS]
    return chain.from_iterable(_subtask(root, folder) for folder in found)


def _subtask(root: Path, folder: str) -> Iterator[RawItem | Problem]:
    apart = all((root / folder / name).is_dir() for name in _SPLIT)
    texts, pictures = (f"{folder}/{name}" for name in _SPLIT) if apart else (folder, folder)
    for path in sorted((root / texts).glob("*.txt")):
        yield from _picture(path, f"{texts}/{path.name}", f"{pictures}/{path.stem}", folder.rpartition("/")[2])


def _picture(path: Path, file: str, picture: str, subtask: str) -> Iterator[RawItem | Problem]:
    """The questions of one text file; `picture` is its path without the ending."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield Problem(kind="not UTF-8", file=file, row=None, detail=f"the file is no UTF-8 text ({error})")
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question, _, answer = line.rpartition("\t")
        answer = answer.strip().casefold()
        if not question.strip() or answer not in ("yes", "no"):
            detail = f"a line must be a question, a tab, and Yes or No, this is {line!r:.60}"
            yield Problem(kind="wrong field", file=file, row=number, detail=detail)
            continue
        yield RawItem(
            item_id=row_id(subtask, path.stem, number),
            turns=question_and_answer(f"{question.strip()}\n{SHORT}", answer),
            answers=(answer,),
            images=tuple(f"{picture}{suffix}" for suffix in _SUFFIXES),
            file=file,
            number=number,
        )
