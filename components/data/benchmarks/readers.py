"""The readers of published releases, by the name that specifications use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.data.benchmarks import chartqa, coin, docvqa, iconqa, mllm_cl, pathvqa, svit, trace, ucit, vqacl
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.spec import Side, TaskSpec
from components.data.problems import Problem

Reader = Callable[[Path, TaskSpec, Side], Iterator[RawItem | Problem]]


@dataclass(frozen=True, kw_only=True)
class ReleaseReader:
    """A release: its licence, where to get it, and its reader, which raises `DataError` at once for missing files."""

    read: Reader
    licence: str
    get: str
    by_rule: frozenset[str] = frozenset()
    """Kinds of rows that are left out on purpose, see `FileReport.by_rule`."""


READERS: dict[str, ReleaseReader] = {
    "chartqa": ReleaseReader(read=chartqa.read_chartqa, licence=chartqa.LICENCE, get=chartqa.GET),
    "docvqa": ReleaseReader(read=docvqa.read_docvqa, licence=docvqa.LICENCE, get=docvqa.GET),
    "iconqa": ReleaseReader(read=iconqa.read_iconqa, licence=iconqa.LICENCE, get=iconqa.GET),
    "pathvqa": ReleaseReader(read=pathvqa.read_pathvqa, licence=pathvqa.LICENCE, get=pathvqa.GET),
    "svit": ReleaseReader(read=svit.read_svit, licence=svit.LICENCE, get=svit.GET, by_rule=svit.BY_RULE),
    "coin": ReleaseReader(read=coin.read_coin, licence=coin.LICENCE, get=coin.GET),
    "ucit": ReleaseReader(read=ucit.read_ucit, licence=ucit.LICENCE, get=ucit.GET),
    "mllm_cl": ReleaseReader(read=mllm_cl.read_mllm_cl, licence=mllm_cl.LICENCE, get=mllm_cl.GET),
    "trace": ReleaseReader(read=trace.read_trace, licence=trace.LICENCE, get=trace.GET),
    "vqacl": ReleaseReader(read=vqacl.read_vqacl, licence=vqacl.LICENCE, get=vqacl.GET),
}
