"""Judged scores: how much of the reference a reply gets right, 0..10; for open answers and CoIN's general knowledge.

A judge gets a versioned prompt; its reply is parsed strictly or by the released code's rule; verdicts are kept in an
append-only file, keyed by their whole content. A failed verdict is missing: it never counts as zero nor is cached.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from components.core.appended import PART_BYTES
from components.core.errors import ConfigError, DataError
from components.core.files import write_text
from components.core.location import Place
from components.core.reading import ODD, parse_json

HIGHEST = 10.0
CHUNK = 32  # exchanges judged between two writes to the cache
Parser = Literal["strict", "coin"]

# Our own words for what CoIN's judge is asked; boxes have a text of their own there too. A changed text is a new name,
# so that old verdicts stay valid.
PROMPTS: dict[str, dict[Literal["words", "box"], str]] = {
    "knowledge-1": {
        "words": (
            "You grade an answer to a question about a picture that you cannot see. Trust the reference answer.\n"
            "Grade only whether the content of the answer agrees with the reference; ignore form, length and style.\n\n"
            "Question: {question}\nReference answer: {reference}\nAnswer to grade: {reply}\n\n"
            "Give a grade from 0 (nothing agrees) to 10 (all agrees). Write only: Grade: N"
        ),
        "box": (
            "You grade a bounding box [x1,y1,x2,y2], in shares of the width and height, against a reference.\n\n"
            "Question: {question}\nReference box: {reference}\nBox to grade: {reply}\n\n"
            "Give a grade from 0 (they do not overlap) to 10 (they are the same). Write only: Grade: N"
        ),
    },
}

_STRICT = re.compile(r"(?:grade|score)?\s*[:=]?\s*(\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*\.?", re.IGNORECASE)
_FRACTION = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*\d+")
_DIGIT = re.compile(r"[1-9]")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What is judged: the question as the model got it, the accepted answers, and the model's reply."""

    question: str
    answers: tuple[str, ...]
    reply: str
    box: bool = False  # the answer is a bounding box

    def knowledge_question(self) -> str:
        """The question without its last line, which asks for a form, where it has more than one."""
        lines = self.question.strip().splitlines()
        return "\n".join(lines[:-1] if len(lines) > 1 else lines)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judged exchange. `score` is 0..10, or None where the judge failed for the reason `failure`."""

    score: float | None
    said: str = ""  # the judge's whole reply
    failure: str | None = None


class Judge(Protocol):
    """What a judge has to provide."""

    @property
    def identity(self) -> str:
        """Judge, prompt, parser and settings in one line: verdicts of equal identity are interchangeable."""
        ...

    def verdicts(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """In order. A single exchange that fails is a verdict; raises `ConfigError` when nothing can be judged."""
        ...


def prompt_text(name: str, exchange: Exchange) -> str:
    """The prompt called `name` for one exchange; raises `ConfigError` for an unknown one."""
    if name not in PROMPTS:
        raise ConfigError(f"there is no judge prompt {name!r}; choose one of {', '.join(PROMPTS)}.")
    parts = {
        "question": exchange.knowledge_question(),
        "reference": " or ".join(exchange.answers),
        "reply": exchange.reply.strip() or "(no answer)",
    }
    # Replaced in one pass, so that braces in a reply are text.
    text = PROMPTS[name]["box" if exchange.box else "words"]
    return re.sub(r"\{(question|reference|reply)\}", lambda found: parts[found.group(1)], text)


def parse_grade(said: str, parser: Parser) -> float | None:
    """0..10 from a judge's words, or None.

    strict: the words are one number up to 10, with "Grade:" before and "/10" after it at most.
    coin: the released code's rule: a number up to 10; else a of "a/b"; else the first digit from 1 to 9.
    """
    text = said.strip()
    if parser == "strict":
        found = _STRICT.fullmatch(text)
        grade = float(found.group(1)) if found else None
    else:
        grade = _coin_grade(text)
    return grade if grade is not None and grade <= HIGHEST else None


def _coin_grade(text: str) -> float | None:
    try:
        grade = float(text)
    except ValueError:
        grade = None
    if grade is not None and 0.0 <= grade <= HIGHEST:
        return grade
    if found := _FRACTION.search(text):
        return float(found.group(1))
    found = _DIGIT.search(text)
    return float(found.group()) if found else None


class VerdictCache:
    """An append-only file of verdicts, one JSON object per line; a line that a crash cut off is skipped.

    In a store it is a folder of such files, and each process that judges writes its own.
    Raises `DataError` for a file of something else.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self._known: dict[str, Verdict] = {}
        self._number, self._own, self._own_name = 0, "", f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        files = [path] if isinstance(path, Path) else [*path.glob("*.jsonl")]
        if any(file.is_file() for file in files):
            lines = [line for file in files for line in _lines(file)]
            for line in lines:
                self._take(line)
            if not self._known and any(line.strip() and not line.startswith('{"key"') for line in lines):
                raise DataError(f"{path} is not a judge's cache; give --cache a new file or one that judge wrote.")

    def _take(self, line: str) -> None:
        try:
            entry = parse_json(line)
            key, score, said = entry["key"], float(entry["score"]), entry["said"]
        except ODD:
            return  # cut off by a crash: it will be judged again
        if isinstance(key, str) and isinstance(said, str) and 0.0 <= score <= HIGHEST:
            self._known[key] = Verdict(score=score, said=said)

    @staticmethod
    def key(judge: Judge, exchange: Exchange) -> str:
        content = [judge.identity, exchange.question, list(exchange.answers), exchange.reply, exchange.box]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def get(self, key: str) -> Verdict | None:
        return self._known.get(key)

    def add(self, verdicts: dict[str, Verdict]) -> None:
        """Remember the verdicts that did not fail; raises `DataError` when the file cannot be written."""
        good = {key: verdict for key, verdict in verdicts.items() if verdict.score is not None}
        self._known |= good
        lines = [
            json.dumps({"key": key, "score": verdict.score, "said": verdict.said}) for key, verdict in good.items()
        ]
        try:
            if not isinstance(self.path, Path):
                if len(self._own) > PART_BYTES:
                    self._own, self._number = "", self._number + 1
                self._own += "".join(f"{line}\n" for line in lines)
                write_text(self.path / f"{self._own_name}-{self._number:04d}.jsonl", self._own)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = not self.path.is_file() or self.path.read_bytes()[-1:] in (b"", b"\n")
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in ([] if whole else [""]) + lines)
        except OSError as error:
            raise DataError(f"the judge's cache {self.path} cannot be written ({error.strerror}).") from error


def _lines(path: Place) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"the judge's cache {path} cannot be read ({error.strerror}).") from error


def judged(
    judge: Judge,
    exchanges: Sequence[Exchange],
    cache: VerdictCache,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """A verdict for every exchange, in order: from the cache, else from the judge, equal exchanges once."""
    keys = [cache.key(judge, exchange) for exchange in exchanges]
    waiting = {key: exchange for key, exchange in zip(keys, exchanges, strict=True) if cache.get(key) is None}
    failed: dict[str, Verdict] = {}
    progress(len(exchanges) - len(waiting))
    for start in range(0, len(waiting), CHUNK):
        chunk = dict(list(waiting.items())[start : start + CHUNK])
        found = dict(zip(chunk, judge.verdicts(list(chunk.values())), strict=True))
        cache.add(found)
        failed |= {key: verdict for key, verdict in found.items() if verdict.score is None}
        progress(len(exchanges) - len(waiting) + start + len(chunk))
    return [cache.get(key) or failed[key] for key in keys]


def cell(verdicts: Sequence[Verdict], *, max_failed: float) -> float | None:
    """The mean over verdicts that did not fail, as 0..100; None (missing) when more than that share failed."""
    grades = [verdict.score for verdict in verdicts if verdict.score is not None]
    if not grades or len(verdicts) - len(grades) > max_failed * len(verdicts):
        return None
    return 100.0 * sum(grades) / (HIGHEST * len(grades))
