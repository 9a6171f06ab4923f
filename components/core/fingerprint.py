"""Identity of the code that runs: a digest over the sources of `components`.

The driver puts it into the worker configuration and the run's tags. Workers that import other sources (a wheel
installed beside a checkout) would otherwise train with other code than the one in view.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import components
from components.core.errors import ConfigError


def code_root() -> Path:
    """Folder that `components` is imported from in this process."""
    return Path(components.__path__[0]).resolve()


def code_fingerprint() -> str:
    """SHA-256 over names and contents of every Python file of `components`, first 16 hex digits."""
    digest = hashlib.sha256()
    root = code_root()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def require_same_code(expected: str, driver_root: str) -> None:
    """Raise `ConfigError` unless this process imports the sources the driver imported."""
    if code_fingerprint() == expected:
        return
    if str(code_root()) == driver_root:
        raise ConfigError(
            f"this worker's code in {driver_root} is not the driver's: it was changed while the run began, or another "
            "node has another version; give the same command again, on a cluster with one image for all nodes."
        )
    raise ConfigError(
        f"driver and workers run different code: the driver imports {driver_root}, this worker {code_root()}; install "
        "the checkout with `pip install -e .`, start it with `python -m pipelines.coast`, or uninstall the other copy."
    )
