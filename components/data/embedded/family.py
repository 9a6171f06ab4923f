"""How a family of generated tasks (mini-COAST, mini-CoIN) becomes splits on disk: rows, data card, checks of names.

`Family.generate_split` is a pure function of (task, split, size, seed): run twice with the same packages it writes the
same bytes. Each row has its own random stream, so nano is the beginning of mini and mini the beginning of small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from components.core.errors import ConfigError
from components.data.embedded.facts import Maker, Partition, package_facts
from components.data.rows import Row, Split, write_split

SIZES: dict[str, dict[Partition, int]] = {
    "nano": {"align": 64, "train": 32, "test": 16},
    "mini": {"align": 2000, "train": 400, "test": 100},
    "small": {"align": 4000, "train": 2000, "test": 400},
}


@dataclass(frozen=True, kw_only=True)
class GeneratedTask:
    """How one task is made and what its data card says."""

    make: Maker
    max_new_tokens: int = 8  # enough for a word or two
    packages: tuple[str, ...]
    rendered: str  # what is drawn by us and what is real
    draws: str | None = None  # tasks of one name here share row i's random stream, and so what they draw first


@dataclass(frozen=True, kw_only=True)
class Family:
    """Tasks that share a name and a version; raise `version` whenever the same arguments would write other rows."""

    name: str
    version: int  # part of the cache's key
    tasks: Mapping[str, GeneratedTask]

    @property
    def folder(self) -> str:
        """Where a cache keeps the family's splits."""
        return f"{self.name.lower()}-v{self.version}"

    def max_new_tokens(self, task: str) -> int:
        """How long a reply to the task may get, in tokens."""
        return self.tasks[task].max_new_tokens

    def generate_split(self, task: str, split: Partition, *, size: str, seed: int, out_dir: Path) -> Split:
        """Write one split into the folder `out_dir` (replaced if it exists).

        `split` "align" exists only for the task "align", which has no other. Raises `ConfigError` for an unknown
        task, split or size and `DataError` when a package that holds the facts is not installed.
        """
        if task not in self.tasks:
            raise ConfigError(f"{task!r} is no {self.name} task; choose one of {', '.join(self.tasks)}.")
        if size not in SIZES:
            raise ConfigError(f"{size!r} is no {self.name} size; choose one of {', '.join(SIZES)}.")
        if split not in SIZES[size] or (task == "align") != (split == "align"):
            allowed = "align" if task == "align" else "train, test"
            raise ConfigError(f"The task {task} has no split {split!r}; choose {allowed}.")
        rows = list(self._rows(task, split, SIZES[size][split], seed))
        return write_split(rows, out_dir, task=task, split=split, card=self._card(task, size, seed, rows))

    def _rows(self, task: str, split: Partition, count: int, seed: int) -> Iterator[Row]:
        spec = self.tasks[task]
        for index in range(count):
            # A text seed is hashed with SHA-512 by `random`, the same in every process and version.
            sample = spec.make(Random(f"{seed}/{spec.draws or task}/{split}/{index}"), split)
            yield sample.row(f"{task}-{split}-{index:05d}", task, split)

    def _card(self, task: str, size: str, seed: int, rows: list[Row]) -> dict[str, object]:
        answers = Counter(row.answers[0] for row in rows)
        majority, times = answers.most_common(1)[0]
        return {
            "name": f"mini-{task}",
            "notice": "Rendered from packaged tables and pictures; not the published benchmark of a similar name.",
            "generator_version": self.version,
            "size": size,
            "seed": seed,
            "rows": len(rows),
            "distinct_sources": len({source for row in rows for source in row.source.split(";")}),
            "distinct_answers": len(answers),
            "majority_answer": majority,
            "majority_share": round(times / len(rows), 4),
            "metrics": dict(sorted(Counter(row.metric for row in rows).items())),
            "rendered": self.tasks[task].rendered,
            "packages": package_facts(dict.fromkeys((*self.tasks[task].packages, "pillow"))),
        }
