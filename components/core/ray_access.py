"""Who can reach a Ray that a command starts: programs of this machine, with a token that only its user can read."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray._private.ray_constants as ray_constants

from components.core.errors import ConfigError

_OTHERS = 0o077  # what group and others may do


@contextmanager
def loopback_only() -> Iterator[None]:
    """Ray that is started in here binds every port of its node to loopback.

    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 opens them: the switch was made for desktops, and works on Linux too. Ray reads
    it once, when it is imported, and the processes of the node read it from the environment. It is put back afterwards:
    with it, no other cluster could be joined.
    """
    name, cluster = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(name)
    os.environ.setdefault(name, "0")
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[name].lower() in ("1", "true")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        if given is None:
            del os.environ[name]


def private_token() -> None:
    """Make the token that Ray would make with the user's umask, or take the rights of others from it.

    Raises `ConfigError` where the home folder does not take it. A token that is in RAY_AUTH_TOKEN needs no file.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        if not given and not path.exists():
            _make(path)
        facts = path.stat()
        if facts.st_uid == os.getuid() and facts.st_mode & _OTHERS:
            path.chmod(facts.st_mode & 0o777 & ~_OTHERS)
    except OSError as error:
        raise ConfigError(
            f"Ray's token {path} cannot be read or made ({error.strerror}); make its folder writable, or give a token "
            "in RAY_AUTH_TOKEN."
        ) from error


def _make(path: Path) -> None:
    """Written whole before it has its name: two commands may start at the same time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)  # private, as mkstemp makes every file
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        Path(partial).unlink()
