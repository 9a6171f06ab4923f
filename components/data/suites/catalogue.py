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


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """One published suite; `read` raises `DataError` at once when its files are not below the root."""

    read: Callable[[Path], Iterator[RawItem | Problem]]
    metric: str  # of rows whose reader names none
    scoring: Scoring
    max_new_tokens: int
    published: tuple[int, ...]
    licence: str
    get: str
    use: int | None = None
    by_rule: frozenset[str] = frozenset()
    """Kinds of rows that are left out on purpose, see `FileReport.by_rule`."""


SUITES: dict[str, SuiteSpec] = {
    "pope": SuiteSpec(
        read=pope.read_pope, metric="yes_no", scoring="pope", max_new_tokens=8,
        published=(9_000, 8_910), licence=pope.LICENCE, get=pope.GET,
    ),
    "mme": SuiteSpec(
        read=mme.read_mme, metric="yes_no", scoring="mme", max_new_tokens=8,
        published=(2_374,), licence=mme.LICENCE, get=mme.GET,
    ),
    "mme-release": SuiteSpec(
        read=mme.read_mme_release, metric="yes_no", scoring="mme", max_new_tokens=8,
        published=(2_374,), licence=mme.LICENCE, get=mme.GET,
    ),
    "mmbench": SuiteSpec(
        read=mmbench.read_mmbench, metric="choice", scoring="grouped", max_new_tokens=16,
        published=(4_377, 4_329), licence=mmbench.LICENCE, get=mmbench.GET,
    ),
    "seed-bench": SuiteSpec(
        read=seed.read_seed, metric="choice", scoring="mean", max_new_tokens=16,
        published=(14_233,), licence=seed.LICENCE, get=seed.GET, use=2_000,
    ),
    "seed-bench-2-plus": SuiteSpec(
        read=seed.read_seed_plus, metric="choice", scoring="mean", max_new_tokens=16,
        published=(), licence=seed.LICENCE, get=seed.GET_PLUS,
    ),
    "mmmu": SuiteSpec(
        read=mmmu.read_mmmu, metric="choice", scoring="mean", max_new_tokens=32, published=(900,),
        licence=mmmu.LICENCE, get=mmmu.GET, by_rule=mmmu.BY_RULE,
    ),
    "mathvista": SuiteSpec(
        read=mathvista.read_mathvista, metric="number", scoring="mean", max_new_tokens=64,
        published=(1_000,), licence=mathvista.LICENCE, get=mathvista.GET,
    ),
    "hallusion-bench": SuiteSpec(
        read=hallusion.read_hallusion, metric="yes_no", scoring="hallusion", max_new_tokens=8,
        published=(1_129, 254), licence=hallusion.LICENCE, get=hallusion.GET,
    ),
    "scienceqa-test": SuiteSpec(
        read=scienceqa.read_scienceqa, metric="choice", scoring="pictured", max_new_tokens=16,
        published=(4_241,), licence=scienceqa.LICENCE, get=scienceqa.GET,
    ),
    "ocr-vqa-test": SuiteSpec(
        read=ocrvqa.read_ocrvqa, metric="exact", scoring="mean", max_new_tokens=32,
        published=(), licence=ocrvqa.LICENCE, get=ocrvqa.GET, use=2_000,
    ),
}  # fmt: skip
