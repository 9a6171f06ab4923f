"""What is wrong with data that is being read: an exception for one item, and the record of it for a report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one row (counted from 1), or with the whole file (`row` is None)."""

    kind: str
    file: str
    row: int | None
    detail: str
    rest_lost: bool = False
    """Nothing after it in the file can be read either (see `ItemError`)."""

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{place}: {self.detail}"


class ItemError(Exception):
    """One item that cannot become a row: a short kind for counting, and a sentence.

    `rest_lost`: nothing after it in the file can be read either, so the number of lost rows is unknown.
    """

    def __init__(self, kind: str, detail: str, rest_lost: bool = False) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.rest_lost = rest_lost

    def at(self, file: str, row: int | None) -> Problem:
        """The record of it."""
        return Problem(kind=self.kind, file=file, row=row, detail=self.detail, rest_lost=self.rest_lost)

    def __reduce__(self) -> tuple[type[ItemError], tuple[str, str, bool]]:
        return ItemError, (self.kind, self.detail, self.rest_lost)  # the default would pass the detail alone
