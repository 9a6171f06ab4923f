"""What a measurement says: a line of JSON at once, and a table of all lines at the end."""

from __future__ import annotations

import gc
import importlib.util
import json
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DASH = "–"
Facts = dict[str, object]


class NotRun(Exception):
    """A measurement that this machine cannot make; the message says why. It is no failure."""


class Record:
    """The lines of one part. `deadline` is a time of `time.time()`; a measurement ends there at the latest."""

    def __init__(self, path: Path, part: str, *, deadline: float) -> None:
        self.path, self.part, self.deadline = path, part, deadline

    def say(self, what: str, **facts: object) -> None:
        """Write one line, to the file and to the terminal."""
        line = json.dumps({"part": self.part, "what": what, **facts, "at": round(time.time(), 2)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @contextmanager
    def measuring(self, what: str, *, budget_s: float) -> Iterator[Facts]:
        """A scope that fills the facts of one line. An error in it, or its budget passed, becomes the line instead."""
        facts: Facts = {}
        left = min(budget_s, self.deadline - time.time())
        # A `with` cannot leave out its body, but the alarm can end it as soon as it begins.
        over = NotRun("no time was left") if left < 1 else TimeoutError(f"it took more than its {left:.0f} s")
        try:
            with _limited(left if left >= 1 else 0.001, over):
                yield facts
        except NotRun as reason:
            self.say(what, not_run=str(reason))
        except Exception as error:  # noqa: BLE001 - the next measurement has to be made
            self.say(what, **facts, failed=one_line(error))
        else:
            self.say(what, **facts)
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    """An exception's kind and the first words of its message."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__


@contextmanager
def _limited(seconds: float, over: Exception) -> Iterator[None]:
    """Raise `over` in the main thread after `seconds`, once Python code runs again."""

    def ring(*_: object) -> None:
        raise over

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_lines(path: Path) -> list[Facts]:
    """The lines written so far; one that a killed process left half-written is no line."""
    lines: list[Facts] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def failures(lines: Iterable[Facts]) -> list[Facts]:
    return [line for line in lines if "failed" in line]


def markdown(lines: Iterable[Facts]) -> str:
    """A table a part, in the order of the lines: a row a measurement, a dash where it has no such figure."""
    parts: dict[str, list[Facts]] = {}
    for line in lines:
        parts.setdefault(str(line["part"]), []).append(line)
    return "\n\n".join(f"## {part}\n\n{_table(rows)}" for part, rows in parts.items()) + "\n"


def require(*packages: str) -> None:
    """Raise `NotRun` with the names of those packages that are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")


def _table(rows: list[Facts]) -> str:
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("part", "at")]
    outcome = [name for name in ("failed", "not_run") if name in names]
    names = [name for name in names if name not in outcome] + outcome
    head = ["" if name == "what" else name.replace("_", " ") for name in names]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in (head, ["---"] * len(head), *cells))


def _cell(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list):  # a median with the smallest and the largest
        middle, *ends = map(_cell, value)
        return f"{middle} [{', '.join(ends)}]" if ends else middle
    return str(value).replace("|", "\\|")
