"""Identity of model weights: one SHA-256 over a model directory's weights and configuration, computed once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from components.core.errors import ConfigError
from components.core.files import write_text
from components.core.machine import cache_dir

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
# Fields that say how a directory was written or is to be loaded, not what it is.
VOLATILE_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def directory_fingerprint(source: str) -> str:
    """SHA-256 over the configuration and weight files of a model directory (or cached hub id).

    Hashing 14 GB takes about a minute, so the result is remembered per file list, sizes and modification times.
    """
    folder = local_folder(source)
    files = sorted({path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)})
    if not files:
        raise ConfigError(
            f"{source} holds no weight file ({', '.join(WEIGHT_PATTERNS)}); give a complete model directory."
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([str(folder), state, config], sort_keys=True).encode()).hexdigest()
    memo = cache_dir() / "fingerprints" / key
    if memo.is_file():
        return memo.read_text(encoding="utf-8")
    digest = hashlib.sha256(json.dumps(_stable(config), sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    write_text(memo, digest.hexdigest())
    return digest.hexdigest()


def local_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source).resolve()
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(source, "config.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source} is neither a model directory nor a reachable hub id: {error}") from error
    assert found is not None
    return Path(found).parent


def _stable(config: dict[str, object]) -> dict[str, object]:
    stable = {name: value for name, value in config.items() if name not in VOLATILE_FIELDS}
    return {name: _stable(value) if isinstance(value, dict) else value for name, value in stable.items()}
