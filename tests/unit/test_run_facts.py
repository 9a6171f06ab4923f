"""Flat parameters, secrets, names and the commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import DataError
from components.core.naming import MAX_VALUE_CHARS, flatten_params, git_commit, metric_names
from components.core.secrets import without_secrets


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


@pytest.mark.parametrize("name", ["max_new_tokens", "image_token", "token_budget", "key_groups", "api_key_env"])
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
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("s3://b/a?X-Amz-Signature=0af&X-Amz-Date=1", "s3://b/a?X-Amz-Signature=***&X-Amz-Date=1"),
        (
            "https://b/a?X-Amz-Credential=AK%2F1&X-Amz-Security-Token=t&X-Amz-Expires=9",
            "https://b/a?X-Amz-Credential=***&X-Amz-Security-Token=***&X-Amz-Expires=9",
        ),
        (
            "https://b/a?AWSAccessKeyId=1&Signature=2&Expires=3",
            "https://b/a?AWSAccessKeyId=***&Signature=***&Expires=3",
        ),
        ("https://b.example/a?sv=2022&sp=r&sig=x%3D", "https://b.example/a?sv=2022&sp=r&sig=***"),
        ("https://h/v1?apikey=x&api_key=y&apiKey=z", "https://h/v1?apikey=***&api_key=***&apiKey=***"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("header {'Authorization': 'Basic dXNlcjpwdw=='}", "header {'Authorization': 'Basic ***'}"),
        ("refused bearer 0123456789", "refused bearer ***"),
        ('{"secret_access_key": "abc", "region": "eu"}', '{"secret_access_key": "***", "region": "eu"}'),
        ("api_key=abc, password: pw; next", "api_key=***, password: ***; next"),
        ("of hf_" + "a1" * 17 + " and sk-proj-" + "b2" * 20, "of *** and ***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("ghp_" + "c3" * 18, "***"),
    ],
)
def test_credentials_leave_uris(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


@pytest.mark.parametrize("before", range(960, 1000, 7))
def test_a_message_that_is_cut_shows_no_part_of_a_secret(before: int) -> None:
    message = str(DataError(f"{'x' * before} https://me:Kq7Zw9Lp3@host/ {'y' * 3000}"))
    assert len(message) < 2100
    assert not any("Kq7Zw9Lp3"[:size] in message for size in range(2, 10))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the token budget of a reply is 64; tokens: 12",
        "token: chartqa",
        "a basic LoRA-adapter beside bearer tokens",
        "https://host/x?monkeys=3&page=2",
        "s3://bucket?endpoint_override=host:9000&scheme=http",
        "eos_token=</s>",
        "password=None",
        "sk-learn, hf_hub, eyJ.a.b",
        "/data/2024@home/x",
    ],
)
def test_ordinary_texts_stay(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "openai_api_key", "apikey", "apiKey", "secretKey", "AWS_SECRET_ACCESS_KEY", "aws_session_token"),
        *("X-Amz-Security-Token", "AWSAccessKeyId", "password", "client_secret", "credentials", "hf_token", "token"),
    ],
)
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert flatten_params({name: "x1", "headers": {name: "x1"}}) == {
        name: "(not recorded)",
        f"headers.{name}": "(not recorded)",
    }


@given(st.text())
def test_what_is_masked_stays_masked(text: str) -> None:
    assert without_secrets(without_secrets(text)) == without_secrets(text)


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
