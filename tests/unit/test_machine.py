"""CPUs that a process may use: against the kernel's own mask."""

from __future__ import annotations

import os
import subprocess
import sys


def test_an_affinity_mask_counts() -> None:
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{first}}});"
    code += "from components.core.machine import usable_cpus; print(usable_cpus())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
