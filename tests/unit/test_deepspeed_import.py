"""After DeepSpeed is imported without MLflow and torch's compiler, both are there for whoever wants them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BEFORE = """
import sys, torch
from components.training.deepspeed_import import import_deepspeed
compiler = torch.compile
"""
BACK = """
assert import_deepspeed() is sys.modules["deepspeed"]
print("imported with it:", {"mlflow", "torch._dynamo"} & sys.modules.keys())
import mlflow
import_deepspeed()
print(sys.modules["mlflow"] is mlflow, torch.compile is compiler)
"""
BACK_AFTER_AN_ERROR = """
sys.modules["deepspeed"] = None
try:
    import_deepspeed()
except ImportError as error:
    print(error)
print("mlflow" not in sys.modules, torch.compile is compiler)
"""


@pytest.mark.parametrize(
    ("then", "said"),
    [
        pytest.param(BACK, "imported with it: set()", id="imported"),
        pytest.param(BACK_AFTER_AN_ERROR, "import of deepspeed halted; None in sys.modules", id="not there"),
    ],
)
def test_mlflow_and_the_compiler_are_back(then: str, said: str) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + then], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [said, "True True"]
