"""The published suites that can be prepared: reader, metric, figures, how long replies may get, and published sizes.

`use` draws that many rows by a hash of their ids where a suite is too large to be scored before and after a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.data.benchmarks.raw import RawItem
from components.data.reports import Problem
from components.data.suites import hallusion, mathvista, mmbench, mme, mmmu, ocrvqa, pope, scienceqa, seed
from components.data.suites.suite import Scoring


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """One published suite; `read` raises `DataError` at the call when its files are not below the root."""

    read: Callable[[Path], Iterator[RawItem | Problem]]
    metric: str  # of rows whose reader names none
    scoring: Scoring
    max_new_tokens: int
    published: tuple[int, ...]
    licence: str
    use: int | None = None


SUITES: dict[str, SuiteSpec] = {
    "pope": SuiteSpec(
        read=pope.read_pope, metric="yes_no", scoring="pope", max_new_tokens=8,
        published=(9_000, 8_910), licence=pope.LICENCE,
    ),
    "mme": SuiteSpec(
        read=mme.read_mme, metric="yes_no", scoring="mme", max_new_tokens=8, published=(2_374,), licence=mme.LICENCE
    ),
    "mmbench": SuiteSpec(
        read=mmbench.read_mmbench, metric="choice", scoring="grouped", max_new_tokens=16,
        published=(4_377, 4_329), licence=mmbench.LICENCE,
    ),
    "seed-bench": SuiteSpec(
        read=seed.read_seed, metric="choice", scoring="mean", max_new_tokens=16,
        published=(14_233,), licence=seed.LICENCE, use=2_000,
    ),
    "seed-bench-2-plus": SuiteSpec(
        read=seed.read_seed_plus, metric="choice", scoring="mean", max_new_tokens=16, published=(), licence=seed.LICENCE
    ),
    "mmmu": SuiteSpec(
        read=mmmu.read_mmmu, metric="choice", scoring="mean", max_new_tokens=32, published=(900,), licence=mmmu.LICENCE
    ),
    "mathvista": SuiteSpec(
        read=mathvista.read_mathvista, metric="exact", scoring="mean", max_new_tokens=64,
        published=(1_000,), licence=mathvista.LICENCE,
    ),
    "hallusion-bench": SuiteSpec(
        read=hallusion.read_hallusion, metric="yes_no", scoring="hallusion", max_new_tokens=8,
        published=(1_129, 254), licence=hallusion.LICENCE,
    ),
    "scienceqa-test": SuiteSpec(
        read=scienceqa.read_scienceqa, metric="choice", scoring="mean", max_new_tokens=16,
        published=(4_241,), licence=scienceqa.LICENCE,
    ),
    "ocr-vqa-test": SuiteSpec(
        read=ocrvqa.read_ocrvqa, metric="exact", scoring="mean", max_new_tokens=32,
        published=(), licence=ocrvqa.LICENCE, use=2_000,
    ),
}  # fmt: skip
