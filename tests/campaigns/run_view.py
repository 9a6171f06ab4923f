"""What can be seen of a run from outside while it goes on, and what it has ended with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint_bits import learned_bits

CONTINUING = re.compile(r"continuing at task (\d+) of \d+, update (\d+)")
SENTENCE = re.compile(r"(error|interrupted|terminated|stopped): \S.*")
_TRACE = "Traceback (most recent call last)"
_TABLE = re.compile(r"^[╭│╰┏┃┗+|]|^\*\*\* |^\(\w[^)]*(pid|raylet)|^\[\d{4}-\d\d-\d\d .*\]|^\s+@|^\s+File |^ {4,}\S")


@dataclass
class View:
    """One start of a run: its folder, and the files that take its output."""

    run_dir: Path
    out: Path
    err: Path
    known_checkpoints: set[str] = field(default_factory=set)  # before it began
    known_rows: int = 0

    def __post_init__(self) -> None:
        self.known_checkpoints, self.known_rows = self.checkpoints(), self.rows()

    def said(self) -> str:
        with contextlib.suppress(OSError):
            return self.out.read_text(encoding="utf-8", errors="replace")
        return ""

    def complaints(self) -> list[str]:
        """The lines of stderr that are not empty."""
        with contextlib.suppress(OSError):
            return [
                line for line in self.err.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
            ]
        return []

    def rows(self) -> int:
        """Rows of the score matrix."""
        return len(_content(self.run_dir / "score_matrix.json").get("rows", ()))

    def learned(self) -> int:
        """Tasks whose checkpoint is kept."""
        return len(list(self.run_dir.glob("checkpoints/*/state.json")))

    def checkpoints(self) -> set[str]:
        """Ray Train's own, whole or not."""
        return {path.name for path in self.run_dir.glob("checkpoint_2*")}

    def finished(self) -> bool:
        return (self.run_dir / "finished.json").is_file()

    def registered(self) -> tuple[int, int] | None:
        """Task (from 0) and update of the newest checkpoint that Ray Train knows of."""
        latest = _content(self.run_dir / "checkpoint_manager_snapshot.json").get("latest_checkpoint_result")
        if not isinstance(latest, dict):
            return None
        return latest["metrics"]["task"], latest["metrics"]["update"]

    def continued_at(self) -> tuple[int, int]:
        """Task (from 0) and update that this start went on from first."""
        found = CONTINUING.search(self.said())
        return (int(found[1]) - 1, int(found[2])) if found else (0, 0)

    def at_work(self) -> bool:
        """Whether the workers of this start have begun."""
        return any(word in self.said() for word in ("continuing at", "Task 1/", "scoring after", "scoring before"))

    def progress(self) -> tuple[object, ...]:
        """Differs once the run has moved."""
        names = (name for name in self.said().splitlines() if name.startswith(("Task ", "After ", "scoring ", "Zero")))
        cells = sorted(str(path) for path in (self.run_dir / "predictions").rglob("*.parquet"))
        return (self.rows(), self.learned(), self.finished(), *sorted(self.checkpoints()), *cells, *names)


def updates_made(run_dir: Path) -> list[tuple[int, int]] | None:
    """Task and update of all that the tracker was told of, in order; None where it keeps no such list."""
    path = run_dir / "mlflow_events.jsonl"
    if not path.is_file():
        return None
    found: list[tuple[int, int]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            if event["kind"] == "StepDone":
                found.append((event["event"]["index"], event["event"]["update"]))
    return found


def last_word(lines: list[str]) -> str:
    """What stderr ended with: "nothing", "a sentence", "a traceback", "a table", or "other"."""
    if not lines:
        return "nothing"
    if SENTENCE.fullmatch(lines[-1]):
        return "a sentence"
    if any(_TRACE in line for line in lines[-60:]):
        return "a traceback"
    return "a table" if _TABLE.match(lines[-1]) else "other"


def final_bits(run_dir: Path) -> dict[str, str]:
    """SHA-256 by name of all that a run ends with: the method after each task, matrices, predictions, records.

    Of `state.json` the configuration is left out, because it names the run, and in which files the tensors are.
    """
    patterns = ("*_matrix.json", "predictions/**/*.parquet", "predictions/*.json")
    paths = [path for pattern in patterns for path in run_dir.glob(pattern)]
    paths += [path for name in ("general.json", "decisions.json") if (path := run_dir / name).is_file()]
    found = {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    for path in run_dir.glob("checkpoints/*/state.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in ("config", "files", "shared"):
            content.pop(name, None)
        text = json.dumps(content, sort_keys=True)
        found[str(path.relative_to(run_dir))] = hashlib.sha256(text.encode()).hexdigest()
    for name, tensors in learned_bits(run_dir).items():
        found |= {f"checkpoints/{name}: {tensor}": bits for tensor, bits in tensors.items()}
    return dict(sorted(found.items()))


def different(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of the files that only one of them has, or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def statuses(storage: Path, run_dir: Path) -> list[str]:
    """Of the stream's MLflow run and of those of its tasks."""
    run_id = _content(run_dir / "mlflow.json").get("run_id")
    with contextlib.closing(sqlite3.connect(f"file:{storage / 'mlflow.db'}?mode=ro", uri=True)) as store:
        below = "select run_uuid from tags where key = 'mlflow.parentRunId' and value = ?"
        query = f"select status from runs where run_uuid = ? or run_uuid in ({below})"
        return sorted(str(status) for (status,) in store.execute(query, (run_id, run_id)))


def _content(path: Path) -> dict:  # type: ignore[type-arg]
    """A JSON object; empty while it is missing or being written."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
