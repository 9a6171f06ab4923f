"""The first pass over a source: count it, name what cannot be parsed, and find out which items the stream uses.

Memory: one item, 16 bytes for every id, and a rank for every item that is used.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.spec import Side, StreamSpec, TaskSpec, rank
from components.data.formats.seen_ids import SeenIds
from components.data.problems import Problem
from components.data.quality.report import FileReport


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the first pass found: the largest rank that is used (None: all are) and a digest of every whole item."""

    largest: int | None
    digest: str


def distinct(items: Iterable[RawItem | Problem]) -> Iterator[RawItem | Problem]:
    """The same items, but a second one with an id that was used before is a problem."""
    seen = SeenIds()
    for item in items:
        if isinstance(item, Problem):
            yield item
            continue
        if seen.first_use(item.item_id, item.number) is not None:
            detail = f"the id {item.item_id!r} was used before"
            yield Problem(kind="duplicate id", file=item.file, row=item.number, detail=detail)
            continue
        yield item


def counted(items: Iterable[RawItem | Problem], report: FileReport) -> Iterator[RawItem | Problem]:
    """The same items; `report` gets their number, unreadable ones, a file that breaks off, and if any has a picture."""
    last: RawItem | Problem | None = None
    for item in items:
        report.rows += 1
        if isinstance(item, Problem):
            report.leave_out(item)
            report.unread += item.kind not in report.by_rule
        else:
            report.pictured |= bool(item.images) or item.data is not None
        if last is not None and last.file != item.file:
            report.cut = report.cut or _cut(last)
        last = item
        yield item
    if last is not None:
        report.cut = report.cut or _cut(last)


def _cut(last: RawItem | Problem) -> str:
    """The file whose last item is `last`, when that is a list broken from there on or a line that ends too early."""
    broken = isinstance(last, Problem) and (last.rest_lost or last.kind == "broken JSON")
    return last.file if broken else ""


def select(
    items: Iterable[RawItem | Problem], stream: StreamSpec, task: TaskSpec, side: Side, report: FileReport
) -> Selection:
    """Read a source to its end; `report` gets its size, its problems and how many items are used."""
    use = task.part(side).use
    smallest: list[int] = []  # a heap of the used ranks, negated: its first is the largest
    digest = hashlib.sha256()
    whole = 0
    for item in counted(distinct(items), report):
        if isinstance(item, Problem):
            continue
        whole += 1
        report.repeated_ids += item.repeated
        digest.update(_identity(item))
        if use is not None:
            key = -rank(stream.seed, task.name, side, item.item_id)
            if len(smallest) < use:
                heapq.heappush(smallest, key)
            else:
                heapq.heappushpop(smallest, key)
    report.chosen = whole if use is None else min(use, whole)
    largest = -smallest[0] if use is not None and whole > use else None
    return Selection(largest=largest, digest=digest.hexdigest())


def selected(
    items: Iterable[RawItem | Problem], selection: Selection, stream: StreamSpec, task: TaskSpec, side: Side
) -> Iterator[RawItem]:
    """The used items, in the order of the source."""
    for item in distinct(items):
        if isinstance(item, Problem):
            continue
        if selection.largest is None or rank(stream.seed, task.name, side, item.item_id) <= selection.largest:
            yield item


def _identity(item: RawItem) -> bytes:
    """All that the annotation says of an item."""
    turns = [turn.text for turn in item.turns]
    data = hashlib.sha256(item.data).hexdigest() if item.data is not None else None
    return json.dumps([item.item_id, turns, item.answers, item.images, item.choices, data]).encode()
