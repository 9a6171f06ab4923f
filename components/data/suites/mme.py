"""MME (2306.13394): fourteen subtasks of perception and cognition; two questions a picture, one yes and one no.

**Get it**: `MME_Benchmark_release_version`, from the authors on request
(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation).

    ROOT/[MME_Benchmark_release_version/[MME_Benchmark/]]SUBTASK/{NAME.jpg, NAME.txt}
    ROOT/[...]/SUBTASK/{images/NAME.jpg, questions_answers_YN/NAME.txt}

The second form is that of artwork, celebrity, landmark, posters and scene.
A text file holds one question a line, a tab, and Yes or No.

**Counts**: 2,374 questions over 1,187 pictures. **Licence**: for research; pictures may not be redistributed.
**Figures**: per subtask accuracy plus accuracy+ (both questions of a picture right), summed to perception (up to 2,000)
and cognition (up to 800): `suite_figures.mme`.

**Prompts**: every released question ends with "Please answer yes or no." LLaVA, whose figures most papers compare with,
asks for a single word or phrase instead, and so does `mme`; `mme-release` asks as the release does.

**Traps**: the released script reads the first four letters of a reply that is not plainly yes or no (the compat
figures); ours reads the first word yes or no. Some copies leave empty lines at the end of the text files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.raw import RawItem, question_and_answer
from components.data.benchmarks.release import below, find, roots
from components.data.problems import Problem
from components.data.suite import row_id

LICENCE = "for research; pictures may not be redistributed"
GET = "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (branch Evaluation), on request"
LAYOUT = "MME_Benchmark_release_version/SUBTASK/{NAME.jpg, NAME.txt}, or SUBTASK/{images, questions_answers_YN}/"
SUBTASKS = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
_ASKED = re.compile(r"\s*Please answer yes or no\.?\s*\Z", re.IGNORECASE)
_SUFFIXES = (".jpg", ".png", ".jpeg")
_TEXTS = "questions_answers_YN"  # of the subtasks that keep texts and pictures apart


def read_mme(root: Path) -> Iterator[RawItem | Problem]:
    """All fourteen subtasks with LLaVA's prompt; raises `DataError` at once when one is missing."""
    return _read(root, lambda question: f"{_ASKED.sub('', question)}\n{SHORT}")


def read_mme_release(root: Path) -> Iterator[RawItem | Problem]:
    """The same, asked as the release does."""
    return _read(root, lambda question: question)


def _read(root: Path, prompt: Callable[[str], str]) -> Iterator[RawItem | Problem]:
    release = "MME_Benchmark_release_version"
    folders = roots(f"{release}/MME_Benchmark", release, f"MME/{release}/MME_Benchmark", f"MME/{release}", "MME")
    found = [find(root, [f"{folder}{subtask}" for folder in folders], LAYOUT) for subtask in SUBTASKS]
    return chain.from_iterable(_subtask(root, folder, prompt) for folder in found)


def _subtask(root: Path, folder: str, prompt: Callable[[str], str]) -> Iterator[RawItem | Problem]:
    texts = below(folder, _TEXTS) if (root / folder / _TEXTS).is_dir() else folder
    paths = sorted((root / texts).glob("*.txt"))
    if not paths:
        yield Problem(kind="no rows", file=texts, row=None, detail="the folder has no text files of questions")
    for path in paths:
        pictures = tuple(f"{base}/{path.stem}{suffix}" for base in (f"{folder}/images", folder) for suffix in _SUFFIXES)
        yield from _picture(path, f"{texts}/{path.name}", pictures, folder.rpartition("/")[2], prompt)


def _picture(
    path: Path, file: str, pictures: tuple[str, ...], subtask: str, prompt: Callable[[str], str]
) -> Iterator[RawItem | Problem]:
    """The questions of one text file; `pictures` are the paths where their picture may be."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield Problem(kind="not UTF-8", file=file, row=None, detail=f"the file is not UTF-8 text ({error})")
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
            turns=question_and_answer(prompt(question.strip()), answer),
            answers=(answer,),
            images=pictures,
            file=file,
            number=number,
        )
