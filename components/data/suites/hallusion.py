"""HallusionBench (2310.14566): yes or no about figures and their edited twins, some without any figure.

**Get it**: `HallusionBench.json` from github.com/tianyi-lab/HallusionBench, `hallusion_bench.zip` as its README says.

    ROOT/[HallusionBench/]{HallusionBench.json, [hallusion_bench/]{VD,VS}/SUBCATEGORY/SET_FIGURE.png}

The archive holds `hallusion_bench/`; copies have its two folders beside the list. Since November 2023 the list names
pictures `./VD/...`, earlier `./hallusion_bench/VD/...`: both paths are tried for either.

An item: `category` (VD: needs its figure; VS: the figure adds to it), `subcategory`, `visual_input` ("0": no figure),
`set_id`, `figure_id`, `question_id`, `question`, `gt_answer` ("1" yes, "0" no), `filename`.

**Counts**: 1,129 questions over 346 figures (first release: 254). **Licence**: BSD-3-Clause. **Figures**: accuracy per
question, per question pair (one question, all figures of its set) and per figure: `suite_figures.hallusion`.

**Traps**: the released evaluation has GPT-4 judge replies and may accept "uncertain" where there is no figure; ours
reads the first yes or no.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from components.data.benchmarks.catalogue import SHORT
from components.data.benchmarks.raw import RawItem, parsed, question_and_answer
from components.data.benchmarks.release import below, find, id_of, json_list, roots, text_of
from components.data.problems import ItemError, Problem
from components.data.suite import row_id

LICENCE = "BSD-3-Clause"
GET = "github.com/tianyi-lab/HallusionBench"
LAYOUT = "HallusionBench.json with hallusion_bench/{VD,VS}/ or {VD,VS}/ beside it"
_ARCHIVE = "hallusion_bench/"
_ANSWERS = {"0": "no", "1": "yes"}


def read_hallusion(root: Path) -> Iterator[RawItem | Problem]:
    """All questions; raises `DataError` at once when the file is missing."""
    file = find(root, [f"{base}HallusionBench.json" for base in roots("HallusionBench")], LAYOUT)
    return parsed(file, enumerate(json_list(root / file), start=1), partial(_parse, file))


def _parse(file: str, number: int, item: dict[str, object]) -> Iterator[RawItem]:
    given = id_of(item, "gt_answer")
    if given not in _ANSWERS:
        raise ItemError("wrong field", f'"gt_answer" must be 0 or 1, this is {given!r:.60}')
    answer, base = _ANSWERS[given], file.rpartition("/")[0]
    images: tuple[str, ...] = ()
    if id_of(item, "visual_input") != "0":
        images = _candidates(base, text_of(item, "filename"))
    group = f"{text_of(item, 'subcategory')}_{id_of(item, 'set_id')}"
    question = f"{id_of(item, 'figure_id')}-{id_of(item, 'question_id')}"
    yield RawItem(
        item_id=row_id(text_of(item, "category"), group, question),
        turns=question_and_answer(f"{text_of(item, 'question')}\n{SHORT}", answer),
        answers=(answer,),
        images=images,
    )


def _candidates(base: str, name: str) -> tuple[str, ...]:
    """Where a named figure may be: beside the list or in the archive's folder there, or below the root."""
    figure = name.removeprefix("./").removeprefix(_ARCHIVE)
    inside = f"{_ARCHIVE}{figure}"
    return tuple(dict.fromkeys((below(base, inside), below(base, figure), inside, figure)))
