"""General suites: held-out test rows that are scored before and after a stream and are never trained on.

`DIR/suite.json` names the suite, how its figures are computed and how long replies may get; `DIR/test` is its split.
There is no training split, so no run can train on one. The id of a row is SUBSET/GROUP/NUMBER: figures that look at
several rows together (both questions about a picture, all orders of one question's choices) group by the part before
the last slash, and figures per subset by the part before the first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from components.core.errors import DataError
from components.core.files import write_text
from components.core.location import Place
from components.core.reading import is_plain_name, read_object, understood
from components.data.rows import Split, open_split, verify_split

SUITE_FORMAT = "littoral-suite/1"
SUITE_FILE = "suite.json"  # the marker of a prepared suite
PICTURED = "picture"  # the group of rows that have a picture, in suites that distinguish them
Scoring = Literal["mean", "pictured", "pope", "mme", "grouped", "hallusion", "constraints"]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite; `scoring` is a key of components.evaluation.suite_figures.FIGURES."""

    name: str
    test: Split
    max_new_tokens: int
    scoring: Scoring

    @property
    def digest(self) -> str:
        """Identity of the suite's rows."""
        return self.test.digest


def row_id(subset: str, group: str, number: int | str) -> str:
    """The id of a suite's row; slashes inside its parts become "_"."""
    return "/".join(part.replace("/", "_") for part in (subset, group, str(number)))


def subset_of(sample_id: str) -> str:
    """The subset that a row belongs to."""
    return sample_id.partition("/")[0]


def group_of(sample_id: str) -> str:
    """Subset and group of a row: rows with the same one are scored together."""
    return sample_id.rpartition("/")[0]


def write_suite_json(folder: Place, name: str, *, scoring: Scoring, max_new_tokens: int) -> None:
    """Write `folder`/suite.json."""
    entry = {"format": SUITE_FORMAT, "name": name, "scoring": scoring, "max_new_tokens": max_new_tokens}
    write_text(folder / SUITE_FILE, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")


def open_suite(folder: Place) -> Suite:
    """The suite in `folder`, every shard compared with its manifest; raises `DataError`."""
    path = folder / SUITE_FILE
    entry = read_object(path, DataError, "prepare it with pipelines/prepare.py")
    with understood(path, DataError, "prepare it with pipelines/prepare.py"):
        if entry["format"] != SUITE_FORMAT:
            raise DataError(f"{path} has format {entry['format']!r}, expected {SUITE_FORMAT!r}; prepare it again.")
        if entry["scoring"] not in get_args(Scoring):
            allowed = ", ".join(get_args(Scoring))
            raise DataError(f"{path} has scoring {entry['scoring']!r}, allowed are {allowed}; prepare it again.")
        name, tokens = str(entry["name"]), int(entry["max_new_tokens"])
    if not is_plain_name(name) or tokens < 1:
        raise DataError(f"{path} names the suite {name!r:.80} with {tokens} new tokens; prepare the suite again.")
    test = open_split(folder / "test")
    verify_split(test)
    return Suite(name=name, test=test, max_new_tokens=tokens, scoring=entry["scoring"])
