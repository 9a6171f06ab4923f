"""A file of lines that are only ever added, in a store that cannot append: a file of this machine, and its parts there.

    FOLDER/000000000000.jsonl   the first bytes of the lines
    FOLDER/000000262210.jsonl   those from this byte on

Each part is put whole. The last one is put again, longer, until it is large, so there are few. None is looked for by a
listing: the next one's name follows from the length of the one before. One process writes; it holds a lock.

Light on purpose (no torch, no ray).
"""

from __future__ import annotations

import logging
import time

from components.core.files import write_bytes
from components.core.leftovers import temporary_folder
from components.core.location import Location

PART_BYTES = 1 << 18  # from this length on, a part stays as it is
EVERY_S = 10.0  # between two puts of what need not be there at once

logger = logging.getLogger("littoral")


class Parts:
    """The parts in a folder of a store, and `file`, of this machine, which has all of them. Raises `StorageError`."""

    def __init__(self, folder: Location) -> None:
        self._folder, self.file = folder, temporary_folder("appended") / folder.name
        self._begin = self._kept = 0  # bytes before the part that still grows, and all that are there
        with self.file.open("wb") as file:
            while content := self._content(self._kept):
                file.write(content)
                self._begin = self._kept if len(content) < PART_BYTES else self._kept + len(content)
                self._kept += len(content)
        self._last = time.monotonic()

    def keep(self, *, at_once: bool) -> None:
        """Put what was added to `file`, all of it whole lines; not always, unless `at_once`.

        Where the store fails, it is put the next time, with what has come by then.
        """
        if self.file.stat().st_size == self._kept or (not at_once and time.monotonic() < self._last + EVERY_S):
            return
        self._last = time.monotonic()
        with self.file.open("rb") as file:
            file.seek(self._begin)
            content = file.read()
        try:
            write_bytes(self._part(self._begin), content)
        except OSError as error:
            logger.debug("%s is written later (%s)", self._folder, error)
            return
        self._kept = self._begin + len(content)
        if len(content) >= PART_BYTES:
            self._begin = self._kept

    def _part(self, start: int) -> Location:
        return self._folder / f"{start:012d}.jsonl"

    def _content(self, start: int) -> bytes:
        try:
            return self._part(start).read_bytes()
        except FileNotFoundError:
            return b""
