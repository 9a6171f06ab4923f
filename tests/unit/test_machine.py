"""CPUs that a process may use: against the kernel's own mask, and against control groups written out by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.core import machine


def test_an_affinity_mask_counts() -> None:
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{first}}});"
    code += "from components.core.machine import usable_cpus; print(usable_cpus())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


GROUPS = {
    "version 2, own group": ("0::/job/step", {"job/step/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 1.5),
    "version 2, group above": ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "50000 100000"}, 0.5),
    "version 2, seen from inside": ("0::/../../docker/abc", {"cpu.max": "300000 100000"}, 3.0),
    "version 2, none": ("0::/", {"cpu.max": "max 100000"}, None),
    "version 1": (
        "4:memory:/j\n3:cpu,cpuacct:/j",
        {"cpu,cpuacct/j/cpu.cfs_quota_us": "250000", "cpu,cpuacct/j/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    "version 1, seen from inside": (
        "3:cpu:/docker/abc",
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
        2.0,
    ),
    "version 1, none": ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "no groups": ("", {}, None),
}


@pytest.mark.parametrize("case", GROUPS)
def test_quotas_of_control_groups(case: str, tmp_path: Path) -> None:
    membership, files, expected = GROUPS[case]
    (tmp_path / "self").write_text(membership)
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content + "\n")
    assert machine.cpu_quota(tmp_path / "cgroup", tmp_path / "self") == expected


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.9, 1), (1e6, None), (None, None)])
def test_the_smaller_of_mask_and_quota(
    quota: float | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.usable_cpus() == (expected or len(os.sched_getaffinity(0)))
