"""Which rows of a batch a pass is of: prompts may be read in parts, a row whose reply has ended leaves, and a row that
has several options is there once for each.

Adapters that hold something of each row read it through `present`, so that it fits the rows of the pass at hand, and
what they take from a pass over the prompts for later ones goes through `with_earlier`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Prompts that are read in one pass."""

    rows: slice
    padding: int  # columns of padding before all of them, which are left out


class Leaving:
    """The rows of one batch of which the passes are."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._all = torch.arange(size, device=device)
        self.rows = self._all  # [b] int64, of range(size); rising but in `repeated`
        self.part: Part | None = None  # of the prompts, while they are read in parts
        self.continues = False  # the pass is over options behind prompts
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # by id, with the tensor, so that its id stays its own

    def keep(self, places: Tensor) -> None:
        """Only these rows of those that are still there, rising places [k] int64, stay."""
        if len(places) < len(self.rows):
            self.rows, self._known = self.rows[places], {}

    @contextmanager
    def only(self, part: Part) -> Iterator[None]:
        """A scope of a pass over some prompts."""
        before, self.part = self.rows, part
        rows = self._all[part.rows]
        self.now(rows if len(rows) < self.size else self._all)
        try:
            yield
        finally:
            self.part = None
            self.now(before)

    def now(self, rows: Tensor) -> None:
        """The next passes are of these rows [b] int64."""
        self.rows, self._known = rows, {}

    @contextmanager
    def repeated(self, rows: Tensor) -> Iterator[None]:
        """A scope of a pass over options, one behind each prompt of `rows` [n] int64, any number of times each."""
        before, self.continues = self.rows, True
        self.now(rows)
        try:
            yield
        finally:
            self.continues = False
            self.now(before)

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of `tensor` [size, ...] that the pass is of."""
        if self.rows is self._all:
            return tensor
        assert len(tensor) == self.size, f"{len(tensor)} rows of a batch of {self.size}"
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor, tensor.index_select(0, self.rows)
        return self._known[id(tensor)][1]


class _Current(threading.local):
    """Of each thread: two that answer at the same time do not read each other's rows."""

    leaving: Leaving | None = None  # None: every pass is of all rows


_current = _Current()


@contextmanager
def leaving(size: int, device: torch.device) -> Iterator[Leaving]:
    """A scope in which passes of this thread may be of some of a batch's `size` rows."""
    before, _current.leaving = _current.leaving, Leaving(size, device)
    try:
        yield _current.leaving
    finally:
        _current.leaving = before


def present(tensor: Tensor) -> Tensor:
    """The rows of `tensor` [B, ...] that the pass is of; the one of [1, ...] holds for every row of a larger batch."""
    current = _current.leaving
    return tensor if current is None or (len(tensor) == 1 and current.size > 1) else current.of(tensor)


def present_prompts(tensor: Tensor) -> Tensor:
    """The rows and columns of `tensor` [B, T] that the pass is of, if it is one over prompts; else all columns."""
    part = None if _current.leaving is None else _current.leaving.part
    return present(tensor) if part is None else present(tensor)[:, part.padding :]


def present_pictures(held: Sequence[T], counts: Sequence[int]) -> Sequence[T]:
    """What is `held` of the pictures of the rows that a pass over prompts is of; `counts`: pictures of each row."""
    part = None if _current.leaving is None else _current.leaving.part
    if part is None or not counts:
        return held
    rows = part.rows
    before = sum(counts[: rows.start])
    return held[before : before + sum(counts[rows])]


def continues() -> bool:
    """Whether the pass is over options, each of several tokens, whose prompts were read before."""
    return _current.leaving is not None and _current.leaving.continues


def is_later_part() -> bool:
    """Whether the pass is over prompts of a batch whose first prompts were read before."""
    part = None if _current.leaving is None else _current.leaving.part
    return part is not None and part.rows.start > 0


def with_earlier(earlier: Tensor | None, found: Tensor) -> Tensor:
    """What a pass over prompts has `found`; [B, ...] with what is `earlier` of other rows, if it has [b, ...] only."""
    current = _current.leaving
    if current is None or current.part is None:
        return found
    whole = found.new_zeros(current.size, *found.shape[1:]) if earlier is None else earlier
    return whole.index_copy(0, current.rows, found)
