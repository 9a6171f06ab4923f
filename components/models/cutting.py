"""Cutting rows that are longer than the limit: which of their tokens stay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def kept_of_training(
    size: int, limit: int, *, picture: Sequence[int], labelled: Sequence[int], asked: Sequence[int]
) -> list[int] | None:
    """Positions to keep of a conversation of `size` tokens, or None when it cannot be cut to `limit`.

    The end is cut, as in LLaVA, if that leaves the picture and at least one token of an answer; otherwise the middles
    of the longest questions. The sequences hold positions: of the picture's tokens, of tokens with a label, of tokens
    of the questions' texts.
    """
    if labelled[0] < limit and (not picture or picture[-1] < limit):
        return list(range(limit))
    return without_middles(size, limit, asked)


def without_middles(size: int, limit: int, free: Sequence[int]) -> list[int] | None:
    """Positions left when the middles of the longest runs of `free` ones are cut; None when that is not enough."""
    stretches = [[place for _, place in group] for _, group in groupby(enumerate(free), lambda item: item[1] - item[0])]
    surplus, gone = size - limit, set[int]()
    for stretch in sorted(stretches, key=len, reverse=True):
        take = min(surplus, len(stretch))
        first = (len(stretch) - take) // 2
        gone.update(stretch[first : first + take])
        surplus -= take
    return None if surplus else [place for place in range(size) if place not in gone]
