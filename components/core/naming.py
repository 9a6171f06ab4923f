"""Names and plain texts for records: legal run ids and metric names, flat parameters without secrets, the commit."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

from components.core.errors import ConfigError

MAX_VALUE_CHARS = 1000  # of a recorded parameter; MLflow stores up to 6000, a page shows far fewer
MAX_NAME_CHARS = 200  # of a metric's or parameter's name; MLflow allows 250 with its prefixes
MAX_ID_BYTES = 200  # of a run's or a sweep's id; file systems allow 255, and files of ours append to it

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_RESERVED = re.compile(r"mlflow\.db.*|mlflow-artifacts|mlruns", re.IGNORECASE)  # MLflow's own, beside the runs
# What holds a secret by its name, as words joined by underscores: password, apiKey, X-Amz-Signature, aws_session_token.
_SECRET_WORDS = (
    r"passw(?:or)?d|pwd|secret|credentials?|authorization|sig|signature"
    r"|(?:api|access|secret|private|account)_?key(?:_?id)?|(?:auth|access|session|bearer|refresh|security|hf|api)_?token"
)
_SECRET_NAME = re.compile(rf"(?:^|_)(?:{_SECRET_WORDS})$|^token$", re.IGNORECASE)
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[-. ]")
_USER_INFO = re.compile(r"(?P<name>[a-zA-Z][\w+.-]{0,40}://)[^/\s\"'<>]*(?=@)")
_IN_QUERY = re.compile(r"(?P<name>[?&;](?P<key>[\w.-]+)=)[^&;\s\"'<>]*")
_QUERY_NAME = re.compile(r"(?:token|key|secret|password)$", re.IGNORECASE)  # shorter than elsewhere: nobody reads these
_BEARER = re.compile(r"(?P<name>\bbearer\s+)(?=\S*\d)[\w+/=.~-]{8,}", re.IGNORECASE)
# `Authorization: Basic abc`, `api_key=abc`, `"secret_access_key": "abc"`: the name stays, what follows it goes.
_NAMED = re.compile(
    r"(?P<name>(?:authorization|password|passwd|api[_-]?key|secret[_-]?(?:access[_-]?)?key|client[_-]?secret"
    r"|(?:auth|access|session|bearer|refresh|hf)[_-]?token)[\"']?\s*[=:]\s*[\"']?(?:(?:basic|bearer|token)\s+)?)"
    r"(?!None\b|null\b|\*|(?:basic|bearer|token)\s)[^\s\"',;&)}]+",
    re.IGNORECASE,
)
# By the beginnings that providers give their keys so that scanners find them: Hugging Face, OpenAI and Anthropic,
# GitHub, GitLab, AWS, Google, Slack; and JSON web tokens.
_KEY = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{35}|xox[abeoprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
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


def without_secrets(text: str) -> str:
    """The text with `***` for what lets somebody in: `http://me:pw@host` -> `http://***@host`.

    That is users and passwords of URIs, secrets in their queries, what follows `Bearer` or a name such as `api_key=`,
    and keys that providers mark by how they begin.
    """
    shown = _IN_QUERY.sub(_without_value, text)
    for found in (_USER_INFO, _BEARER, _NAMED):
        shown = found.sub(r"\g<name>***", shown)
    return _KEY.sub("***", shown)


def is_secret_name(name: str) -> bool:
    """Whether a parameter of this name holds a secret: `api_key`, `secretKey`, `X-Amz-Security-Token`."""
    return _SECRET_NAME.search(_WORD_ENDS.sub("_", name)) is not None


def secret_in(options: object, name: str = "") -> str | None:
    """The dotted name of the first value in `options`, dataclasses and mappings, that holds a secret; else None."""
    if is_dataclass(options) and not isinstance(options, type):
        options = {field.name: getattr(options, field.name) for field in fields(options)}
    if isinstance(options, Mapping):
        inner = ((f"{name}.{key}" if name else str(key), value) for key, value in options.items())
        return next(filter(None, (secret_in(value, path) for path, value in inner)), None)
    if isinstance(options, list | tuple):
        return next(filter(None, (secret_in(value, name) for value in options)), None)
    if isinstance(options, str) and options:
        return name if is_secret_name(name.rpartition(".")[2]) or without_secrets(options) != options else None
    return None


def _without_value(found: re.Match[str]) -> str:
    secret = is_secret_name(found["key"]) or _QUERY_NAME.search(found["key"])
    return f"{found['name']}***" if secret else found.group()


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
