"""Which ids were used before, at 16 bytes each: a million rows' ids as Python objects would take 200 MB."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_RECENT = 1 << 16  # ids kept in a dict before they are sorted into an array


class SeenIds:
    """The ids of one source and the numbers of the rows that used them first.

    An id is known by 8 bytes of its SHA-256: in a source of a million rows, two ids are taken for one with a chance of
    3 in 100 million. Sorted arrays are merged when the newer one has grown as long as the older, so there are few.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._sorted: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def first_use(self, item_id: str, number: int) -> int | None:
        """The row that used the id before, or None; then row `number` is its first."""
        key = int.from_bytes(hashlib.sha256(item_id.encode(errors="surrogatepass")).digest()[:8], "little")
        if key in self._recent:
            return self._recent[key]
        for keys, numbers in self._sorted:
            at = int(np.searchsorted(keys, np.uint64(key)))
            if at < len(keys) and int(keys[at]) == key:
                return int(numbers[at])
        self._recent[key] = number
        if len(self._recent) == _RECENT:
            self._settle()
        return None

    def _settle(self) -> None:
        """Sort the recent ids into an array."""
        keys = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        numbers = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1][0]) <= len(keys):
            older = self._sorted.pop()
            keys, numbers = np.concatenate((older[0], keys)), np.concatenate((older[1], numbers))
        order = np.argsort(keys)
        self._sorted.append((keys[order], numbers[order]))
