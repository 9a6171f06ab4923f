"""How GPUs multiply float32 matrices; CPUs always do so exactly."""

from __future__ import annotations

import torch

from components.models.config import BackboneConfig


def set_float32_products(config: BackboneConfig, device: torch.device) -> None:
    """TF32 or exact, as `config` says, for this process; convolutions, too, which PyTorch would leave in TF32."""
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32
