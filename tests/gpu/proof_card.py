"""What the card is, and what it does at most today: matrix products and copies."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from proof_record import Record
from proof_scale import Scale, float32_products, timed

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray")


def card(record: Record, scale: Scale, folder: Path) -> None:
    """A line for the machine and one for each limit."""
    with record.measuring("machine", budget_s=20) as facts:
        facts["card"] = torch.cuda.get_device_name() if scale.on_gpu else "none (CPU)"
        if scale.on_gpu:
            facts["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
            facts["driver"] = _driver()
        facts |= {name: _version(name) for name in PACKAGES}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        with record.measuring(f"{name} matrix product, {scale.matmul} cubed", budget_s=20) as facts:
            with float32_products():
                torch.set_float32_matmul_precision(precision)
                facts["seconds"], rate = matrix_product(scale, dtype)
            facts["tflop_s"] = rate / 1e12
    with record.measuring("copy on the device", budget_s=20) as facts:
        source = torch.empty(scale.copied_bytes, dtype=torch.uint8, device=scale.device)
        target = torch.empty_like(source)
        facts["seconds"] = seconds = timed(lambda: target.copy_(source), scale)
        facts["tb_s"] = 2 * scale.copied_bytes / seconds[0] / 1e12  # read and written


def matrix_product(scale: Scale, dtype: torch.dtype) -> tuple[list[float], float]:
    """Seconds of a large product, and its floating point operations per second."""
    n = scale.matmul
    left, right = (torch.randn(n, n, device=scale.device, dtype=dtype) for _ in range(2))
    seconds = timed(lambda: left @ right, scale)
    return seconds, 2 * n**3 / seconds[0]


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
