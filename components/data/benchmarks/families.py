"""The readers of published releases, by the name that specifications use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.data.benchmarks import chartqa, coin, docvqa, iconqa, mllm_cl, pathvqa, svit, ucit
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.reports import Problem

Reader = Callable[[Path, TaskSpec, Side], Iterator[RawItem | Problem]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkFamily:
    """A release: its reader, which raises `DataError` at the call when files are missing, and its licence."""

    read: Reader
    licence: str


FAMILIES: dict[str, BenchmarkFamily] = {
    "chartqa": BenchmarkFamily(read=chartqa.read_chartqa, licence=chartqa.LICENCE),
    "docvqa": BenchmarkFamily(read=docvqa.read_docvqa, licence=docvqa.LICENCE),
    "iconqa": BenchmarkFamily(read=iconqa.read_iconqa, licence=iconqa.LICENCE),
    "pathvqa": BenchmarkFamily(read=pathvqa.read_pathvqa, licence=pathvqa.LICENCE),
    "svit": BenchmarkFamily(read=svit.read_svit, licence=svit.LICENCE),
    "coin": BenchmarkFamily(read=coin.read_coin, licence=coin.LICENCE),
    "ucit": BenchmarkFamily(read=ucit.read_ucit, licence=ucit.LICENCE),
    "mllm_cl": BenchmarkFamily(read=mllm_cl.read_mllm_cl, licence=mllm_cl.LICENCE),
}
