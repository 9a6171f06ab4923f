"""The import of DeepSpeed, without what it brings along and no run uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import torch

from components.core.runtime import fast_imports


def import_deepspeed() -> ModuleType:
    """The module `deepspeed`. Its first import takes a second: only workers that train pay for it.

    DeepSpeed 0.19 imports MLflow for its autotuner, and compiles functions of its optimizer Muon, for which torch
    imports its compiler. Together these take twice as long as DeepSpeed itself.
    """
    with fast_imports(), _missing("mlflow"), _not_compiled():
        import deepspeed

        with suppress(ImportError):  # the first engine would import it, and of another version something else
            import deepspeed.runtime.zero.muon.muon_optimizer

    return deepspeed


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """While open, nobody can import the package `name`, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  (Python's own way to say so)
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _not_compiled() -> Iterator[None]:
    """While open, `torch.compile` gives functions back as they are."""
    compiler = torch.compile

    def as_it_is(function: Any = None, **_: Any) -> Any:  # Any: torch's own annotations are overloads
        return function if function is not None else as_it_is

    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler
