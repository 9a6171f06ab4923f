"""Names and plain texts for records: legal run ids and metric names, flat parameters without secrets, the commit."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

from components.core.errors import ConfigError
from components.core.secrets import is_secret_name, without_secrets

MAX_VALUE_CHARS = 1000  # of a recorded parameter; MLflow stores up to 6000, a page shows far fewer
MAX_NAME_CHARS = 200  # of a metric's or parameter's name; MLflow allows 250 with its prefixes
MAX_ID_BYTES = 200  # of a run's or a sweep's id; file systems allow 255, and files of ours append to it

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_RESERVED = re.compile(r"mlflow\.db.*|mlflow-artifacts|mlruns", re.IGNORECASE)  # MLflow's own, beside the runs
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-. ]+")


def flatten_params(params: Mapping[str, object]) -> dict[str, str]:
    """Nested mappings and dataclasses as dotted names with short text values.

    Values longer than `MAX_VALUE_CHARS` are cut and end in "..."; secrets are replaced (see `without_secrets`).
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping) and (value or not prefix):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif is_secret_name(prefix.rpartition(".")[2]) and value not in (None, ""):
            flat[_short_name(prefix)] = "(not recorded)"
        else:
            flat[_short_name(prefix)] = _short(without_secrets(_as_text(value)))

    walk("", params)
    return flat


def metric_names(names: Sequence[str]) -> dict[str, str]:
    """Each name as one legal part of a metric's name: letters, digits, `_ - .` and space, all different.

    Two names that become the same get a number: "a/b" and "a:b" -> "a_b" and "a_b-2".
    """
    legal: dict[str, str] = {}
    for name in names:
        short = _NOT_IN_NAMES.sub("_", name).strip(" .")[:MAX_NAME_CHARS] or "_"
        candidate, number = short, 1
        while candidate in legal.values():
            number += 1
            candidate = f"{short}-{number}"
        legal[name] = candidate
    return legal


def require_id(name: str, kind: str = "run") -> None:
    """Raise `ConfigError` for a run's (or a sweep's) id that cannot be a folder of its own in the storage."""
    if not _ID.fullmatch(name):
        raise ConfigError(
            f"{kind} id {name!r} may hold letters, digits, '-', '_' and '.' only, and must not begin with '.'."
        )
    if len(name) > MAX_ID_BYTES:
        raise ConfigError(f"{kind} id {name[:40]}... has {len(name)} letters; give at most {MAX_ID_BYTES}.")
    if is_mlflows(name):
        raise ConfigError(f"{kind} id {name!r} is the name of MLflow's own file or folder there; give another one.")


def is_mlflows(name: str) -> bool:
    """Whether a file or folder of this name in the storage is MLflow's own."""
    return _RESERVED.fullmatch(name) is not None


def id_of(*parts: str) -> str:
    """A legal id put together from any texts: `id_of("my stream", "l2p")` -> `my-stream-l2p`."""
    words = (re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-.") for part in parts)
    return "-".join(word for word in words if word)[:MAX_ID_BYTES].strip("-.") or "run"


def git_commit() -> str | None:
    """The checkout's commit, "-dirty" behind it when tracked files differ; None outside a checkout or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # an installed wheel inside somebody else's checkout has no commit of ours
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()


def _as_text(value: object) -> str:
    if isinstance(value, list | tuple | dict | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return json.dumps(items, default=str, ensure_ascii=False)
    return str(value)


def _short(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def _short_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:MAX_NAME_CHARS]
