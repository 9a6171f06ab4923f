"""SVIT: what GPT-4 wrote about Visual Genome, four kinds of it; the source of COAST-capability.

COAST's capability tasks carry exactly the names of SVIT's four files, which makes it the near-certain source.

**Get it**: huggingface.co/datasets/BAAI/SVIT, the four archives of `data/`; the pictures `images.zip` and
`images2.zip` of homes.cs.washington.edu/~ranjay/visualgenome.

    ROOT/svit/{conversation,detail_description,complex_reasoning,referring_qa}.json
    ROOT/visual_genome/{VG_100K,VG_100K_2}/ID.jpg

Each item: `image_id` and `conversations`, a list of `{content: [{from: user|gpt, value}, ...]}`. A row here is one
such conversation. Referring questions write boxes as four numbers from 0 to 1 after `<st>object<ed>`.

**Counts** (about): 108,077 pictures; 1.6 M conversation questions (3 conversations of 5 a picture), 1.6 M reasoning
(15), 1.0 M referring (10), 106 k descriptions. Conversations as rows were not counted by the publishers, so no exact
size is compared. **Licence**: CC BY 4.0, and OpenAI's terms for what GPT-4 wrote. **Orders**: the paper's
introduction goes from conversation to description, its task table from referring to conversation; both are streams
here.

**Metric**: iou for referring; exact for the rest, a lower bound only: free text needs a judge. A
referring row is tested on the last answer, and only when that names a box.

**Traps**: there is no test part. The code repository once held a list of test image ids, without saying what for; it
is not used. Pictures are held out by hash, the same for all four tasks. Boxes were written by a language model: some
leave the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.data.benchmarks.raw import RawItem, parsed
from components.data.benchmarks.release import find, id_of, roots
from components.data.benchmarks.spec import Side, TaskSpec, held_out
from components.data.formats.items import conversation
from components.data.formats.json_items import iter_items
from components.data.problems import ItemError, Problem

LICENCE = "CC BY 4.0; OpenAI's terms for text that GPT-4 wrote"
GET = "huggingface.co/datasets/BAAI/SVIT; pictures: homes.cs.washington.edu/~ranjay/visualgenome"
LAYOUT = (
    "svit/{conversation,detail_description,complex_reasoning,referring_qa}.json with visual_genome/{VG_100K,VG_100K_2}/"
)
BY_RULE = frozenset({"answer does not fit"})  # a referring answer without a box cannot be scored
_SPEAKERS = {"user": "human", "human": "human", "gpt": "gpt", "assistant": "gpt"}


def read_svit(root: Path, task: TaskSpec, side: Side) -> Iterator[RawItem | Problem]:
    """The conversations about one side's pictures; raises `DataError` at once when files are missing."""
    file = find(root, [f"{base}{task.subset}.json" for base in roots("svit", "SVIT", "svit/data", "SVIT/data")], LAYOUT)
    genome = roots("visual_genome", "VG", "vg")
    folders = [find(root, [f"{base}{name}" for base in genome], LAYOUT) for name in ("VG_100K", "VG_100K_2")]

    def parse(number: int, item: dict[str, object]) -> Iterator[RawItem | ItemError]:
        image_id = id_of(item, "image_id")
        if not image_id.isdecimal():
            raise ItemError("wrong field", f'"image_id" must be a whole number, this is {image_id!r:.60}')
        if held_out(image_id, task.holdout) == (side == "test"):
            images = tuple(f"{folder}/{image_id}.jpg" for folder in folders)
            yield from (_row(image_id, at, turns, images) for at, turns in _conversations(item))

    return parsed(file, iter_items(root / file), parse)


def _conversations(item: dict[str, object]) -> list[tuple[int, object]]:
    """The conversations of an item with their number, from 1; some copies have the turns of one without `content`."""
    given = item.get("conversations")
    if not isinstance(given, list) or not given:
        raise ItemError("missing field", '"conversations" must be a list with at least one conversation')
    if all(isinstance(one, dict) and "content" in one for one in given):
        return [(at, one["content"]) for at, one in enumerate(given, start=1)]
    return [(1, given)]


def _row(image_id: str, at: int, content: object, images: tuple[str, ...]) -> RawItem | ItemError:
    """One conversation as an item; a broken one does not affect the others."""
    turns = content if isinstance(content, list) else []
    said = [
        {**turn, "from": _SPEAKERS.get(str(turn.get("from")), turn.get("from"))}
        for turn in turns
        if isinstance(turn, dict)
    ]
    try:
        if len(said) != len(turns):
            raise ItemError("missing field", f"conversation {at} has a turn that is not an object")
        checked = tuple(conversation({"conversations": said}))
    except ItemError as error:
        return ItemError(error.kind, f"conversation {at}: {error.detail}")
    answers = (checked[-1].text.strip(),)
    return RawItem(item_id=f"{image_id}-{at}", turns=checked, answers=answers, images=images)
