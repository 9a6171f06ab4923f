"""A store that fails for a while is asked again; one that refuses, or fails for long, is one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from components.core import asking
from components.core.asking import asked
from components.core.errors import StorageError

REFUSALS = (
    OSError("When reading information: AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    OSError("AWS Error INVALID_CLIENT_TOKEN_ID during PutObject operation"),
    PermissionError("no"),
)
NO_BUCKET = (
    "When uploading object with key 'runs/a' in bucket 'b': AWS Error NO_SUCH_BUCKET during PutObject operation: "
    "The specified bucket does not exist (Request ID: omwMAX3A7tpS)"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PAUSE_S", 0.01)


class Answers:
    """Raises what it was given, one after another, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self._errors: Iterator[Exception] = iter(errors)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        for error in self._errors:
            raise error
        return "here"


def test_it_is_asked_again_until_it_answers() -> None:
    answers = Answers(OSError("curlCode: 7"), OSError("AWS Error SLOW_DOWN"))
    assert (asked("s3://b/a", "read", answers, 30.0), answers.asked) == ("here", 3)


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_refusal_is_told_at_once(error: Exception) -> None:
    answers = Answers(error)
    with pytest.raises(StorageError, match=r"^s3://b/a cannot be written \(.*\); see that it can be reached"):
        asked("s3://b/a", "written", answers, 30.0)
    assert answers.asked == 1


def test_a_bucket_that_is_not_there_is_to_be_made() -> None:
    """What pyarrow says when S3 answers so, as moto_server did."""
    answers = Answers(OSError(NO_BUCKET))
    with pytest.raises(StorageError) as told:
        asked("s3://b/runs/a", "written", answers, 30.0)
    assert answers.asked == 1
    assert str(told.value) == (
        "s3://b/runs/a cannot be written (AWS Error NO_SUCH_BUCKET during PutObject operation: The specified bucket "
        "does not exist); make that bucket, or correct its name, and give the same command again."
    )


def test_what_is_missing_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match="s3://b/a"):
        asked("s3://b/a", "read", Answers(FileNotFoundError("b/a")), 30.0)


def test_without_patience_it_is_asked_once() -> None:
    answers = Answers(OSError("curlCode: 7"))
    with pytest.raises(StorageError, match=r"\(curlCode: 7\);"):
        asked("s3://b/a", "read", answers, 0.0)
    assert answers.asked == 1


def test_patience_ends_and_says_how_long_it_was() -> None:
    began, answers = time.monotonic(), Answers(*[OSError("timeout")] * 10_000)
    with pytest.raises(StorageError, match=r"\(timeout, for 0 s\);"):
        asked("s3://b/a", "read", answers, 0.5)
    assert answers.asked > 2
    assert time.monotonic() - began < 5
