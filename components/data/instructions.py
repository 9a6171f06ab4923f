"""The instructions of splits, read where somebody asks for them: a long stream has millions, most methods need none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

from components.data.rows import Split, instruction_of


class Instructions(Sequence[str]):
    """First human turns of the rows of splits, in stored order, without picture placeholders.

    Their text is read at the first use, and each is parsed when it is asked for; no picture is decoded.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = tuple(splits)

    def __len__(self) -> int:
        return sum(split.num_rows for split in self.splits)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [instruction_of(text) for text in self._conversations[index]]
        return instruction_of(self._conversations[index])

    def __iter__(self) -> Iterator[str]:
        return map(instruction_of, self._conversations)

    @cached_property
    def _conversations(self) -> list[str]:
        return [str(text) for split in self.splits for text in split.column("conversations")]
