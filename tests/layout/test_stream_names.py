"""The options' help lists streams by hand, so that reading it imports no data; here the lists are compared."""

from __future__ import annotations

import inspect
import re

import pytest

from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.generated import GENERATED_STREAMS
from components.data.stream_config import StreamConfig
from components.data.suites.catalogue import SUITES
from pipelines.prepare import Prepare


def named_in(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


@pytest.mark.parametrize("name", GENERATED_STREAMS)
def test_generated_streams_are_listed(name: str) -> None:
    assert named_in(inspect.getsource(StreamConfig), name)
    assert named_in(inspect.getsource(Prepare), name)


@pytest.mark.parametrize("name", [*BENCHMARKS, *SUITES])
def test_published_streams_and_suites_are_listed(name: str) -> None:
    variants = r"^coin(-diverse|-10type)?(-alphabetical|-reversed)?(-full)?$"  # written there as one pattern
    assert named_in(inspect.getsource(Prepare), name) or re.match(variants, name)
