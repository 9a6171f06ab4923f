"""clusters/submit.py refuses what no cluster could run before it looks for one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from cluster_files import CLUSTERS

from components.core.errors import ConfigError


def refused(*arguments: str) -> str:
    main = runpy.run_path(str(CLUSTERS / "submit.py"))["main"]
    with pytest.raises(ConfigError) as told:
        main(arguments)
    return str(told.value)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "nonsense", "auto", ""])
def test_an_address_that_is_no_dashboards(address: str, tmp_path: Path) -> None:
    """Ray asks what is there for its other protocols, for most of a minute, and ends in a traceback."""
    said = refused("--address", address, "first", "pocket", "--storage", str(tmp_path))
    assert said == f"--address is {address!r}; give http://HOST:PORT, that of the cluster's dashboard."


@pytest.mark.parametrize("given", [["--storage", "runs"], ["--storage=../runs"], ["--storage"], ["--storage="], []])
def test_a_storage_that_would_be_thrown_away(given: list[str]) -> None:
    said = refused("first", "pocket", *given, "--seed", "1")
    assert said.startswith("a job works in a copy that is thrown away, and --storage is '")
    assert said.endswith("; give an absolute folder that every node sees, or a URI.")


def test_a_run_id_that_is_given_twice_or_is_none(tmp_path: Path) -> None:
    assert "given twice" in refused("first", "--storage", str(tmp_path), "--run-id=second")
    assert "may hold letters" in refused("a b", "--storage", "s3://shop/runs")
