"""A command in this process, which has imported all that a process of its own would import first."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

import pytest

from pipelines.littoral import guarded


def ran(
    main: Callable[[Sequence[str]], int], *arguments: str, columns: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Its exit code and what it printed, in a terminal of that width."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as environment, redirect_stdout(out), redirect_stderr(err):
        if columns is not None:
            environment.setenv("COLUMNS", str(columns))
        code = guarded(lambda: main(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
