"""What Ray Train's controller hands on to others: as bytes, so that it need not import what they are made of.

The controller is a process of its own. Unpickling our functions and configurations there would import torch and
transformers, some ten seconds on a slow machine, before the first worker is even asked for.
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
    """A train function whose configuration is all of it."""
    pickled()


@functools.lru_cache(maxsize=8)
def _unpickled(pickled: bytes) -> Callable[..., Any]:
    return cloudpickle.loads(pickled)
