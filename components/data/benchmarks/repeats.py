"""Pictures that a release has twice: the same bytes under several names within one split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from components.data.benchmarks.raw import Checked
from components.data.problems import Problem


@dataclass(kw_only=True)
class RepeatedPictures:
    """Remembers the pictures of one split by a digest of their bytes; each surplus file is reported once.

    Several questions about one file do not count, nor does one file under two spellings of its path.
    """

    first: dict[bytes, str] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def notes(self, one: Checked) -> Iterator[Problem]:
        """A note when the row's picture has the bytes of an earlier one with another name."""
        if one.picture is None:
            return
        digest, name = one.picture
        earlier = self.first.setdefault(digest, name)
        if name == earlier or name in self.reported:
            return
        self.reported.add(name)
        detail = f"the picture {name} has the same bytes as {earlier}"
        yield Problem(kind="duplicate picture", file=one.file, row=one.number, detail=detail)
