"""Which rows of a batch a pass is of: prompts may be read in parts, and a row whose reply has ended leaves.

Adapters that hold something of each row read it through `present`, so that it fits the rows of the pass at hand, and
what they take from a pass over the prompts for later ones goes through `with_earlier`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Prompts that are read in one pass."""

    rows: slice
    padding: int  # columns of padding before all of them, which are left out


class Leaving:
    """The rows of one batch of which the passes are."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.rows = torch.arange(size, device=device)  # [b] int64, of range(size), rising
        self.part: Part | None = None  # of the prompts, while they are read in parts
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # by id, with the tensor, so that its id stays its own

    def keep(self, places: Tensor) -> None:
        """Only these rows of those that are still there [k] int64 stay."""
        self.rows, self._known = self.rows[places], {}

    @contextmanager
    def only(self, part: Part) -> Iterator[None]:
        """A scope of a pass over some prompts."""
        before, self.part = self.rows, part
        self.keep(torch.arange(self.size, device=self.rows.device)[part.rows])
        try:
            yield
        finally:
            self.rows, self.part, self._known = before, None, {}

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of `tensor` [size, ...] that the pass is of."""
        if len(self.rows) == self.size:
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
    """The rows of `tensor` [B, ...] that the pass is of; the one of [1, ...] holds for every row."""
    current = _current.leaving
    return tensor if current is None or len(tensor) == 1 else current.of(tensor)


def present_prompts(tensor: Tensor) -> Tensor:
    """The rows and columns of `tensor` [B, T] that the pass is of, if it is one over prompts; else all columns."""
    part = None if _current.leaving is None else _current.leaving.part
    return present(tensor) if part is None else present(tensor)[:, part.padding :]


def is_later_part() -> bool:
    """Whether the pass is over prompts of a batch whose first prompts were read before."""
    part = None if _current.leaving is None else _current.leaving.part
    return part is not None and part.rows.start > 0


def with_earlier(earlier: Tensor | None, found: Tensor) -> Tensor:
    """What a pass over prompts has `found` [b, ...], after that of the parts that were read before."""
    return found if earlier is None or not is_later_part() else torch.cat([earlier, found])
