"""Keys that let requests in. Only their digests leave this module: a key is in no log and in no other process."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from pathlib import Path

from components.core.errors import ConfigError

API_KEY, ADMIN_KEY = "LITTORAL_API_KEY", "LITTORAL_ADMIN_KEY"  # environment variables
SHORTEST = 16  # characters: a digest of a shorter key could be found by trying


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def opens(given: str | None, digest: bytes) -> bool:
    """Whether an `Authorization` header has the key of this digest; it takes as long whatever was given."""
    scheme, _, key = (given or "").partition(" ")
    return hmac.compare_digest(digest_of(key.strip()), digest) and scheme.lower() == "bearer"


def read_key(file: Path | None, variable: str) -> bytes | None:
    """The digest of the key in `file`, else in the environment variable; None: there is neither.

    Raises `ConfigError` for a file that others may read, and for a key that is too short or no header can hold.
    """
    if file is None:
        key, source = os.environ.get(variable, ""), f"${variable}"
        if not key:
            return None
    else:
        key, source = _from_file(file), str(file)
    key = key.strip()
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the key in {source} has {len(key)} characters; give one of at least {SHORTEST} letters, digits and signs "
            "without spaces, such as `openssl rand -hex 24` writes."
        )
    return digest_of(key)


def _from_file(file: Path) -> str:
    try:
        facts = file.stat()
        if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"others may read the key in {file}; take their rights away: chmod 600 {file}.")
        with file.open("rb") as opened:
            return opened.read(4096).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"the key file {file} cannot be read ({error.strerror}); give a private file.") from error


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_guard(host: str, api_key: bytes | None) -> None:
    """Raise `ConfigError` where anybody on the network could ask."""
    if api_key is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines ask, and there is no key; put one into ${API_KEY} or a private file "
            "(--api-key-file), or leave the host at 127.0.0.1."
        )
