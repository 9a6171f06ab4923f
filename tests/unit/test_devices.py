"""Which devices a run gets, and how the command line says so."""

from __future__ import annotations

import pytest

from components.training.devices import Devices, uses_gpu
from pipelines.cli import Command, parse


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), "auto"),
        (("--cluster.use-gpu", "auto"), "auto"),
        (("--cluster.use-gpu", "true"), True),
        (("--cluster.use-gpu", "False"), False),
        (("--cluster.use-gpu=false",), False),
        (("--cluster.use-gpu",), True),  # the switch that it was in earlier versions
        (("--cluster.use-gpu", "--cluster.num-workers", "2"), True),
        (("--cluster.no-use-gpu",), False),
    ],
)
def test_how_it_is_asked_for(given: tuple[str, ...], wanted: object) -> None:
    command: Command = parse(["pocket", *given], program="coast.py", description="")
    assert command.run.cluster.use_gpu == wanted


def test_auto_takes_what_there_is() -> None:
    assert [uses_gpu("auto", gpus) for gpus in (0, 1, 8)] == [False, True, True]
    assert not uses_gpu(False, 8)
    assert uses_gpu(True, 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Some Other Card", None),
    ],
)
def test_the_peak_of_a_card(name: str, peak: float | None) -> None:
    """The makers' data sheets: dense bfloat16, without sparsity."""
    assert Devices(gpus=1, name=name).peak == peak
