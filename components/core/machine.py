"""What the process may use of its machine: CPUs by affinity mask and container quota, and the cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from components.core.errors import ConfigError
from components.core.options import require_no_uri

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """CPUs for threads and workers, at least 1: what the process may run on, and what its quota pays for.

    `os.cpu_count()` counts the machine's. A quota of 2.5 CPUs counts as 2: a third thread would be held back.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def cpu_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """The smallest CPU quota of the process's control group and those above it (versions 1 and 2); None without one.

    In a container the root of `cgroups` is the container's own group, whatever `membership` calls it.
    """
    quotas: list[float] = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = cgroups if not controllers else _first_dir(cgroups / controllers, cgroups / "cpu")
        own = mounted / path.strip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(mounted):
                quotas += _quota_v1(group) if controllers else _quota_v2(group)
    return min(quotas, default=None)


def cache_dir() -> Path:
    """Where generated streams, converted models, features and fingerprints are kept: $LITTORAL_CACHE, or
    ~/.cache/littoral."""
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


def _quota_v2(group: Path) -> list[float]:
    """`cpu.max` holds "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    words = " ".join(_lines(group / "cpu.max")).split()
    return [int(words[0]) / int(words[1])] if len(words) == 2 and words[0] != "max" else []


def _quota_v1(group: Path) -> list[float]:
    """-1 stands for no quota."""
    quota, period = (" ".join(_lines(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return [int(quota) / int(period)] if quota and period and int(quota) > 0 else []


def _first_dir(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
