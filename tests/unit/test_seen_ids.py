"""Ids that were used before, in little memory."""

from __future__ import annotations

import tracemalloc

from components.data.formats.seen_ids import SeenIds


def test_every_second_use_is_found_with_its_first_row() -> None:
    count = 140_000  # two arrays of 65,536 ids, merged, and some recent ones
    seen = SeenIds()
    assert [number for number in range(count) if seen.first_use(f"row-{number}", number) is not None] == []
    for number in (0, 1, 65_535, 65_536, 131_072, count - 1):
        assert seen.first_use(f"row-{number}", -1) == number
    assert seen.first_use("another", 7) is None
    assert seen.first_use("another", 8) == 7


def test_an_id_takes_few_bytes() -> None:
    count = 1 << 17
    tracemalloc.start()
    seen = SeenIds()
    for number in range(count):
        seen.first_use(f"row-{number}", number)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * count
