"""Callables shipped as pickled bytes, so that Ray Train's controller process need not import torch.

Light on purpose: the controller imports this module and nothing else of ours. Unpickling our functions and
configurations there would import torch and transformers, some ten seconds on a slow machine, before the first worker
is even requested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ray import cloudpickle


class PickledCallable:
    """A callable that is unpickled once, in the process that calls it."""

    def __init__(self, held: Callable[..., Any]) -> None:
        self._bytes: bytes = cloudpickle.dumps(held)  # pyright: ignore[reportPrivateImportUsage]

    def __call__(self, *arguments: Any) -> Any:
        return _unpickled(self._bytes)(*arguments)


def call_pickled(pickled: PickledCallable) -> None:
    """A train function for Ray Train; what it runs is its configuration."""
    pickled()


@functools.lru_cache(maxsize=8)
def _unpickled(pickled: bytes) -> Callable[..., Any]:
    return cloudpickle.loads(pickled)
