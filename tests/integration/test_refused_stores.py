"""A store that cannot be used is one sentence of a run's command, before any process starts.

python -m pytest tests/integration/test_refused_stores.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from local_servers import SOMEBODY, denying_server, free_ports, s3_server, s3_uri

from components.core.errors import ConfigError, StorageError
from pipelines import coast


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SOMEBODY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def denying() -> Iterator[int]:
    with denying_server() as port:
        yield port


def refusal(path: str, port: int) -> str:
    with pytest.raises((ConfigError, StorageError)) as found:
        coast.main(["pocket", "--storage", s3_uri(port, path), "--run-id", "r", "--tracking.no-enabled"])
    assert not ray.is_initialized()
    said = str(found.value)
    assert "\n" not in said
    assert "endpoint_override" not in said
    return said


def test_a_store_that_does_not_answer() -> None:
    assert re.match(r"s3://shop/runs/r/\w+\.json cannot be read \(", refusal("shop/runs", free_ports(1)[0]))


def test_a_store_that_lets_nobody_in(denying: int) -> None:
    said = refusal("shop/runs", denying)
    assert re.match(r"s3://shop/runs/r/\w+\.json cannot be read \(", said)
    assert "ACCESS_DENIED" in said


def test_a_bucket_that_is_not_there(tmp_path: Path) -> None:
    with s3_server(tmp_path, "shop") as port:
        said = refusal("nothing/runs", port)
    assert re.match(r"s3://nothing/runs/\.cache/data/\S+ cannot be written \(", said)  # the first that is put there
    assert "NO_SUCH_BUCKET" in said


def test_a_file_of_sqlite_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"give --tracking.uri \(or MLFLOW_TRACKING_URI\)"):
        coast.main(["pocket", "--storage", "s3://shop/runs?endpoint_override=127.0.0.1:1", "--run-id", "r"])
