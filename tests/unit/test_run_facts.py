"""Flat parameters, secrets, names and the commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.naming import MAX_VALUE_CHARS, flatten_params, git_commit, metric_names, without_secrets


@dataclass(frozen=True)
class Inner:
    rank: int = 8
    path: Path = Path("/data")
    api_key: str = "k-123"
    token: str | None = None


def test_nested_values_become_dotted_names() -> None:
    flat = flatten_params({"seed": 1, "method": Inner(), "tasks": ("a", "b"), "empty": {}, "text": "x" * 2000})
    assert flat["seed"] == "1"
    assert flat["method.rank"] == "8"
    assert flat["method.path"] == "/data"
    assert flat["method.api_key"] == "(not recorded)"
    assert flat["method.token"] == "None"
    assert flat["tasks"] == '["a", "b"]'
    assert flat["empty"] == "{}"
    assert len(flat["text"]) == MAX_VALUE_CHARS
    assert flatten_params({}) == {}


@pytest.mark.parametrize("name", ["max_new_tokens", "image_token", "token_budget", "key_groups"])
def test_ordinary_names_are_not_taken_for_secrets(name: str) -> None:
    assert flatten_params({name: 16}) == {name: "16"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me@db/runs", "postgresql+psycopg2://***@db/runs"),
        ("see http://a:b@h1 and http://c:d@h2", "see http://***@h1 and http://***@h2"),
        ("https://host/x?sig=abc&y=1&auth_token=q", "https://host/x?sig=***&y=1&auth_token=***"),
        ("https://host/a@b", "https://host/a@b"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
    ],
)
def test_credentials_leave_uris(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=8))
def test_names_are_legal_and_differ(names: list[str]) -> None:
    legal = metric_names(names)
    assert list(legal) == names
    assert len(set(legal.values())) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_\-. ]+", name) for name in legal.values())


def test_names_that_collide_get_a_number() -> None:
    assert metric_names(["a/b", "a:b", "chartqa"]) == {"a/b": "a_b", "a:b": "a_b-2", "chartqa": "chartqa"}


def test_the_commit_is_a_hash_or_unknown() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
