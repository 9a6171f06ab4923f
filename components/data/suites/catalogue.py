"""The published suites that can be prepared: reader, metric, figures, how long replies may get, and published sizes.

`use` draws that many rows by a hash of their ids where a suite is too large to be scored before and after a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.data.benchmarks.raw import RawItem
from components.data.problems import Problem
from components.data.suite import Scoring
from components.data.suites import hallusion, mathvista, mmbench, mme, mmmu, ocrvqa, pope, scienceqa, seed


@dataclass(frozen=True)
class SuiteSpec:
    """One published suite; `read` raises `DataError` at once when its files are not below the root."""

    read: Callable[[Path], Iterator[RawItem | Problem]]
    metric: str  # of rows whose reader names none
    scoring: Scoring
    max_new_tokens: int
    published: tuple[int, ...]  # numbers of rows
    licence: str
    get: str
    use: int | None = None
    by_rule: frozenset[str] = frozenset()
    """Kinds of rows that are left out on purpose, see `FileReport.by_rule`."""


SUITES: dict[str, SuiteSpec] = {
    "pope": SuiteSpec(pope.read_pope, "yes_no", "pope", 8, (9_000, 8_910), pope.LICENCE, pope.GET),
    "mme": SuiteSpec(mme.read_mme, "yes_no", "mme", 8, (2_374,), mme.LICENCE, mme.GET),
    "mme-release": SuiteSpec(mme.read_mme_release, "yes_no", "mme", 8, (2_374,), mme.LICENCE, mme.GET),
    "mmbench": SuiteSpec(mmbench.read_mmbench, "choice", "grouped", 16, (4_377, 4_329), mmbench.LICENCE, mmbench.GET),
    "seed-bench": SuiteSpec(seed.read_seed, "choice", "mean", 16, (14_233,), seed.LICENCE, seed.GET, 2_000),
    "seed-bench-2-plus": SuiteSpec(seed.read_seed_plus, "choice", "mean", 16, (), seed.LICENCE, seed.GET_PLUS),
    "mmmu": SuiteSpec(mmmu.read_mmmu, "choice", "mean", 32, (900,), mmmu.LICENCE, mmmu.GET, by_rule=mmmu.BY_RULE),
    "mathvista": SuiteSpec(mathvista.read_mathvista, "number", "mean", 64, (1_000,), mathvista.LICENCE, mathvista.GET),
    "hallusion-bench": SuiteSpec(
        hallusion.read_hallusion, "yes_no", "hallusion", 8, (1_129, 254), hallusion.LICENCE, hallusion.GET
    ),
    "scienceqa-test": SuiteSpec(
        scienceqa.read_scienceqa, "choice", "pictured", 16, (4_241,), scienceqa.LICENCE, scienceqa.GET
    ),
    "ocr-vqa-test": SuiteSpec(ocrvqa.read_ocrvqa, "exact", "mean", 32, (), ocrvqa.LICENCE, ocrvqa.GET, 2_000),
}
