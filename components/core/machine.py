"""What the process may use of its machine, and how it is called there: CPUs by affinity and quota, cache, host name."""

from __future__ import annotations

import os
import platform
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import ConfigError

if TYPE_CHECKING:  # it imports this module
    from components.core.location import Place

CACHE = "LITTORAL_CACHE"


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
    """Where this machine keeps generated streams, converted models, copies of files in stores and fingerprints.

    That is $LITTORAL_CACHE where it is a folder, else ~/.cache/littoral.
    """
    given = shared_cache()
    return (given if isinstance(given, Path) else Path("~/.cache/littoral")).expanduser().resolve()


def shared_cache() -> Place | None:
    """What $LITTORAL_CACHE names, for all that machines may share: a folder or, by a URI, one in a store."""
    from components.core.location import place

    given = os.environ.get(CACHE)
    return place(given) if given else None


def require_cache() -> None:
    """Raise `ConfigError` where the cache folder, or the shared one, cannot be made or written."""
    folder, shared = cache_dir(), shared_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be written ({error.strerror}); set {CACHE} to a folder that can."
        ) from error
    if shared is not None and not isinstance(shared, Path):
        probe = shared / partial_name("probe")
        try:
            probe.put(b"")
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{CACHE} cannot be used: {error.strerror}, of {shared}; see that it can be reached from here and that "
                "you may write there, or set it to a folder."
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


def temporary_prefix(what: str) -> str:
    """How the names of this process's temporary folders for `what` begin: see `leftovers.clear_temporary`."""
    return f"littoral-{what}-{host_name()}-{os.getpid()}-"


def partial_name(name: str) -> str:
    """Under what name this process writes what becomes the file or folder `name`: `.NAME.HOST.PID.partial`."""
    return f".{name}.{host_name()}.{os.getpid()}.partial"
