"""What lets somebody in is replaced by `***` before a text is shown, logged or recorded.

Light on purpose: every error does this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

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
