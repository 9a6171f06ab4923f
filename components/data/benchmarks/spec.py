"""What a published stream is, to the last row: its tasks in order, where their rows come from and which are used.

COAST and its counts were never released, and CoIN's published figures come from subsets whose ids are
unknown. So each stream here is pinned by a specification of our own: preparing the same stream from the same
releases gives the same rows. Its digest is the SHA-256 of its canonical JSON (sorted keys, no spaces, UTF-8), and goes
into every manifest's card.

Two rules belong to the format `littoral-spec/1`:

- **Which rows are used.** With `use` = n, those n items whose `rank` (SHA-256 of seed, task, split and item id, joined
  by null bytes) is smallest, in the order of the source. Items that cannot be parsed do not take part; an item whose
  picture is missing on one machine does take part and is lost there, so that the selection is the same everywhere.
- **Which pictures are held out.** With `holdout` = n, a source without a test part is cut by picture: test pictures are
  those whose SHA-256 of the image id is 0 modulo n. All tasks of one source share the cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from components.core.errors import ConfigError
from components.core.options import listed
from components.metrics import SCORERS

SPEC_FORMAT = "littoral-spec/1"

Side = Literal["train", "test"]
Boxes = Literal["", "picture", "square"]


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """One split of a task: which part of the release, how many of its rows (None: all), and its published sizes."""

    source: str
    use: int | None = None
    published: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.use is not None and self.use < 1:
            raise ConfigError(f"use is {self.use}; give at least 1, or None for every row.")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task of a stream; what `subset`, `variant` and the prompts mean is decided by the family's reader."""

    name: str
    family: str
    """Which reader, a key of components.data.benchmarks.readers.READERS."""
    subset: str = ""
    variant: str = ""
    train: PartSpec
    test: PartSpec
    holdout: int = 0
    metric: str
    max_new_tokens: int
    prompts: tuple[str, ...] = ()
    """Lines that the reader adds to questions; empty for releases that carry their own."""
    boxes: Boxes = ""
    """Frame of the boxes in the texts, 0 to 1: the picture, or the picture padded to a square around its centre."""

    def __post_init__(self) -> None:
        if self.metric not in SCORERS:
            raise ConfigError(f"The metric of {self.name} is {self.metric!r}; allowed are {', '.join(SCORERS)}.")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens of {self.name} is {self.max_new_tokens}; give at least 1.")

    def part(self, side: Side) -> PartSpec:
        return self.train if side == "train" else self.test


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """A stream: its tasks in the order in which they are learned."""

    name: str
    tasks: tuple[TaskSpec, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"The stream {self.name} names the tasks {names}; give at least one, each once.")

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def canonical(self) -> str:
        """The specification as canonical JSON."""
        plain = {"format": SPEC_FORMAT, **asdict(self)}
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def ordered(self, name: str, order: tuple[str, ...]) -> StreamSpec:
        """The same tasks under another name and in another order."""
        tasks = {task.name: task for task in self.tasks}
        return replace(self, name=name, tasks=tuple(tasks[task] for task in order))

    def part(self, names: Sequence[str]) -> StreamSpec:
        """Some tasks, in this stream's order, as a stream of another name: its figures are not those of the whole.

        All of the tasks are the stream itself. Raises `ConfigError` for an unknown name.
        """
        for name in names:
            if name not in self.task_names:
                known = listed(name, self.task_names)
                raise ConfigError(f"{self.name} has no task {name!r}; its tasks are {known}")
        kept = tuple(task for task in self.tasks if task.name in names)
        if len(kept) == len(self.tasks):
            return self
        return replace(self, name="-".join(("part-of", self.name, *(task.name for task in kept))), tasks=kept)


def rank(seed: int, task: str, side: Side, item_id: str) -> int:
    """The rank of an item in the selection, below 2**128; the smallest are used."""
    text = "\0".join((str(seed), task, side, item_id))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def held_out(image_id: str, holdout: int) -> bool:
    """Whether a picture belongs to the test part of a source without one."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest(), "big") % holdout == 0
