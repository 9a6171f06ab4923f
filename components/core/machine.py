"""What the process may use of its machine, and how it is called there: CPUs by affinity and quota, cache, host name."""

from __future__ import annotations

import os
import platform
import socket
import tempfile
from pathlib import Path

from components.core.errors import ConfigError
from components.core.options import require_no_uri


def usable_cpus() -> int:
    """CPUs for threads and workers, at least 1: by affinity mask and by the container's quota, rounded up."""
    from joblib import cpu_count  # a tenth of a second, and `--help` imports this module

    return cpu_count()


def cpu_model() -> str:
    """The processor's name, "unknown" where the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def cache_dir() -> Path:
    """Where generated streams, converted models and fingerprints are kept: $LITTORAL_CACHE, or ~/.cache/littoral."""
    return Path(os.environ.get("LITTORAL_CACHE") or "~/.cache/littoral").expanduser().resolve()


def require_cache() -> None:
    """Raise `ConfigError` where the cache folder cannot be made or written."""
    require_no_uri(Path(os.environ.get("LITTORAL_CACHE", "")), "LITTORAL_CACHE")
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be written ({error.strerror}); set LITTORAL_CACHE to a folder that can."
        ) from error


def cpu_vendor() -> str:
    """Who made the processor, as it says itself (GenuineIntel, AuthenticAMD); empty where Linux does not tell."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return ""


def host_name() -> str:
    """This machine's name without its domain."""
    return socket.gethostname().split(".")[0]


def partial_name(name: str) -> str:
    """Under what name this process writes what becomes the file or folder `name`: `.NAME.HOST.PID.partial`."""
    return f".{name}.{host_name()}.{os.getpid()}.partial"
