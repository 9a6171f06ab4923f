"""Where a backbone's weights lie, what identifies them and how large they are, all without loading the model.

Modules that import transformers are imported where they are needed: planning a run of a directory needs none of them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open

from components.core.errors import ConfigError
from components.models.config import BackboneConfig
from components.models.identity import directory_fingerprint, local_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_source(config: BackboneConfig) -> str:
    """What `from_pretrained` is given; converts `smol` into the cache at the first use."""
    if config.name == "smol":
        from components.models.embedded.smol import smol_directory

        return str(smol_directory(config.vision_layer))
    path = Path(config.name).expanduser()
    if not path.is_dir() and (path.is_absolute() or config.name.startswith((".", "~")) or config.name.count("/") > 1):
        raise ConfigError(
            f'backbone.name {config.name!r} is not a directory; give "smol", "pocket", a model directory or a hub id.'
        )
    return str(path) if path.is_dir() else config.name


def backbone_fingerprint(config: BackboneConfig) -> str:
    """SHA-256 identity of the weights and the architecture, independent of dtype; the model need not be loaded."""
    if config.name == "pocket":
        from components.models.embedded.pocket import pocket_fingerprint

        return pocket_fingerprint()
    return directory_fingerprint(model_source(config))


def weight_bytes(config: BackboneConfig) -> int:
    """Memory of the frozen weights in one worker, read from the safetensors headers without loading anything."""
    if config.name == "pocket":
        from components.models.embedded.pocket import pocket_model

        count = sum(parameter.numel() for parameter in pocket_model().parameters())
        return count * DTYPES[config.dtype].itemsize
    count = 0
    for path in sorted(local_folder(model_source(config)).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count * DTYPES[config.dtype].itemsize
